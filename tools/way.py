#!/usr/bin/env python3
"""`make way`: the way to primary (docs/decisions/0084-way-to-primary.md). The guest that drains the card has Linux's aoe
initiator on port 3 of that card, and reaches the card's storage through it as any source does, while another source writes
through port 0. A volume is rolled back and that is undone; the agent is killed in the middle of writes, and a resync makes
journal and primary even while they go on; writes whose status is unknown, because the target is late, are read back.

    way.py TOOLS AGENT
"""
import json, os, random, select, signal, socket, subprocess, sys, tempfile, threading, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cosim, machine

VOLUME, SIZE = "2.0", 256 << 10
OTHER, HOST = 0, 3
# One answer in so many is so many cycles late: later than a write's status is unknown, before its quarantine is over.
HESITATE = "53:150000"
RESEND_SECONDS = 3


class Source(threading.Thread):
    """Writes, one write at a time, as many as it may; each is sent again until it is answered."""

    def __init__(self, ours, theirs, seed):
        super().__init__(daemon=True)
        self.socket, self.peer = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), theirs
        self.socket.bind(ours)
        self.random, self.changed = random.Random(seed), threading.Condition()
        self.allowed = self.written = 0

    def write(self, more, wait=True):
        """So many more may be written; waits until they are."""
        with self.changed:
            self.allowed = self.written + more
            self.changed.notify_all()
            if wait and not self.changed.wait_for(lambda: self.written >= self.allowed, cosim.LIMIT_SECONDS):
                sys.exit("%d writes have no answer" % (self.allowed - self.written))

    def pause(self):
        """Nothing is under way any more."""
        self.write(0)
        with self.changed:
            self.changed.wait_for(lambda: not self.busy, cosim.LIMIT_SECONDS)

    busy = False

    def run(self):
        tag = 0
        while True:
            with self.changed:
                self.busy = False
                self.changed.notify_all()
                self.changed.wait_for(lambda: self.written < self.allowed)
                self.busy = True
            tag += 1
            sectors = self.random.choice([1, 2, 4])
            lba = self.random.randrange(SIZE // 512 - sectors)
            shelf, slot = map(int, VOLUME.split("."))
            frame = (b"\xff" * 6 + b"\x02\xc5\x00\x00\x01\x00" + b"\x88\xa2\x10\x00" + shelf.to_bytes(2, "big") + bytes([slot, 0])
                     + tag.to_bytes(4, "big") + bytes([0x41, 0, sectors, 0x34]) + lba.to_bytes(6, "little") + bytes(2)
                     + self.random.randbytes(512 * sectors))
            sent = 0
            while True:
                if time.monotonic() - sent > RESEND_SECONDS:
                    self.socket.sendto(frame, self.peer)
                    sent = time.monotonic()
                if select.select([self.socket], [], [], 0.1)[0]:
                    answer = self.socket.recv(16384)
                    if answer[12:14] == b"\x88\xa2" and answer[14] & 8 and answer[20:24] == frame[20:24]:
                        break
            with self.changed:
                self.written += 1
                self.changed.notify_all()


def main():
    tools, agent = sys.argv[1:3]
    children = []
    with tempfile.TemporaryDirectory(prefix="way") as out:
        try:
            run(tools, agent, out, children)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                    child.wait()


def run(tools, agent, out, children):
    began = time.monotonic()

    def say(what):
        print("%6.1f s  %s" % (time.monotonic() - began, what), flush=True)
    seed = int(os.environ.get("CHRONO_SEED", random.randrange(1 << 32)))
    print("CHRONO_SEED=%d" % seed)
    primary = out + "/primary"
    with open(primary, "wb") as file:
        file.truncate(SIZE)
    sockets = {port: ("%s/peer%d" % (out, port), "%s/port%d" % (out, port)) for port in [OTHER, HOST]}
    command = cosim.simulate(agent, out) + ["--primary", VOLUME + "=" + primary, "--hesitate", HESITATE]
    for port, (ours, theirs) in sockets.items():
        command += ["--port", "%d=%s:%s" % (port, theirs, ours)]
    card = subprocess.Popen(command, stdout=subprocess.PIPE)
    children.append(card)
    if not card.stdout.readline():
        sys.exit("the simulated card doesn't start")
    source = Source(*sockets[OTHER], seed)
    source.start()
    disk = machine.disk(out, {"volumes": "--volume %s=%d\n" % (VOLUME, SIZE), "moments": ""})
    guest = cosim.host(tools, agent, out, disk, "way", HOST)
    children.append(guest)
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("the guest took longer than %d s" % cosim.LIMIT_SECONDS))
    signal.alarm(cosim.LIMIT_SECONDS)

    def hear(word):
        guest.stdin.write(word.encode() + b"\n")
        guest.stdin.flush()

    def digest():
        return machine.digest(primary)
    then = before = None
    done = ready = False
    for raw in guest.stdout:
        line = raw.decode("utf-8", "replace").rstrip()
        if "@@" not in line:
            print("          " + line, flush=True)
            continue
        what, _, rest = line.split("@@")[1].partition(" ")
        say("guest: %s %s" % (what, rest))
        if what == "FAIL":
            print(guest.stdout.read().decode("utf-8", "replace"))
            sys.exit("the guest failed")
        elif what == "READY" and not ready:
            ready = True
            source.write(40)
            then = digest()
            hear("bookmark")
        elif what == "BOOKMARKED":
            source.write(30)
            before = digest()
            # It goes on, or tries to: the volume is fenced.
            hear("rollback")
        elif what == "ROLLED":
            if digest() != then or then == before:
                sys.exit("primary is not what it was at the bookmark")
            say("primary is what it was at the bookmark")
            source.write(1)
            hear("undo")
        elif what == "UNDONE":
            if digest() != before:
                sys.exit("primary is not what it was before the rollback")
            say("primary is what it was before the rollback")
            source.write(1 << 30, wait=False)
            time.sleep(2)
            hear("kill")
        elif what == "RESYNCED":
            say("%d writes by now, beside all that" % source.written)
            source.pause()
            hear("unknown")
        elif what == "READBACK":
            hear("stop")
        done |= what == "DONE"
    guest.wait()
    if not done:
        sys.exit("the guest ended before it was done")
    journal, base, image = out + "/journal", out + "/base", out + "/image"
    subprocess.run(["/sbin/debugfs", "-R", "dump /journal " + journal, disk], check=True, stderr=subprocess.DEVNULL)
    subprocess.run([agent, "verify", journal], check=True)
    with open(base, "wb") as file:
        file.truncate(SIZE)
    restored = subprocess.run([agent, "restore", journal, "--volume", VOLUME, "--base", base, "--at", "end", "--to", image],
                              check=True, stdout=subprocess.PIPE, text=True).stdout
    print(restored, end="")
    if machine.digest(image) != digest():
        sys.exit("the newest image is not primary")
    log = subprocess.check_output([agent, "log", journal, "--json"], text=True)
    entries = [json.loads(line) for line in log.splitlines()]
    by = {}
    for entry in entries:
        by[(entry["port"], entry["kind"])] = by.get((entry["port"], entry["kind"]), 0) + 1
    say("entries by port and kind: %s; unknown: %d" % (by, sum(entry["status"] == "unknown" for entry in entries)))
    say("way: passed; the newest image is primary")


main()
