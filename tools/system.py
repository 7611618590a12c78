#!/usr/bin/env python3
"""`make system`: everything around the simulated card is real. One guest has Linux's aoe initiator on two ports of the
card, both in use at once, and frames get lost; it makes an ext4, writes, overwrites and deletes files, and runs a
database. Another guest has the card in a slot and drains it into a journal. Then the journal is proved: it has each write
that left the uplink, in that order, and no other; the image at random moments is, byte for byte, what those writes make;
e2fsck finds each clean or recovers its journal, and the database is whole.

    system.py TOOLS AGENT [vblade|model|software]       CHRONO_SEED replays what is chosen

The target is a running vblade, on a TAP in a network namespace of its own, which needs root; with `model` it is the model
of vblade inside the simulated card. Either is late with an answer now and then, so that the initiator sends again. What
left the uplink is captured. With `software` there is no card: `host-agent switch` is in its place, and killed once.
"""
import json, os, random, select, shutil, signal, subprocess, sys, tempfile, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import cosim, machine, software_switch

SIZE = 16 << 20
VOLUME = "1.0"
PORTS = [0, 1]
MODULES = ["virtio_pci", "virtio_net", "aoe"]
# One frame in so many gets lost, each way, at each port.
LOSE = 61
# One answer in so many is so many cycles, or seconds, late, in which the initiator sends again.
HESITATE = {"model": "37:100000", "vblade": "37:1.5"}
MOMENTS = 20


def initiator(tools, out, sockets):
    programs = {"mkfs.ext4": "/sbin/mkfs.ext4", "sqlite3": shutil.which("sqlite3")}
    initrd, kernel = machine.initramfs(tools, out + "/initiator", machine.HERE + "/tools/system-init.sh", programs, MODULES)
    devices = []
    for port in PORTS:
        devices += cosim.network(port, *sockets[port], port + 3)
    return machine.qemu(tools, kernel, initrd, devices, "ipv6.disable=1", memory="384M")


def written(path):
    """Every write that left the uplink: first sector, data."""
    data = open(path, "rb").read()
    at = 24
    while at < len(data):
        length = int.from_bytes(data[at + 8:at + 12], "little")
        frame = data[at + 16:at + 16 + length]
        at += 16 + length
        if frame[12:14] == b"\x88\xa2" and not frame[14] & 8 and not frame[19] and frame[27] in (0x30, 0x34):
            yield int.from_bytes(frame[28:34], "little"), frame[36:36 + 512 * frame[26]]


class Card:
    """The simulated card, and the guest that drains it."""
    BEGINS = ("host", "READY")

    def __init__(self, tools, agent, out, children, target):
        self.tools, self.agent, self.out, self.children, self.target = tools, agent, out, children, target
        self.disk = self.guests = None

    def start(self, sockets, primary, capture, lose, hesitate):
        command = cosim.simulate(self.agent, self.out) + ["--uplink-capture", capture, "--lose", str(lose)]
        if self.target == "model":
            command += ["--primary", VOLUME + "=" + primary, "--hesitate", hesitate]
        else:
            ours, theirs = self.out + "/target", self.out + "/uplink"
            command += ["--uplink", "%s:%s" % (theirs, ours)]
            vblade = subprocess.Popen(["unshare", "--net", "python3", machine.HERE + "/tools/uplink_tap.py",
                                       "%s:%s" % (ours, theirs), *VOLUME.split("."), primary, hesitate], stdout=subprocess.PIPE)
            self.children.append(vblade)
            if not vblade.stdout.readline():
                sys.exit("vblade doesn't start: it needs root; without, there is: make system TARGET=model")
        for port, (ours, theirs) in sockets.items():
            command += ["--port", "%d=%s:%s" % (port, theirs, ours)]
        card = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.children.append(card)
        if not card.stdout.readline():
            sys.exit("the simulated card doesn't start")
        self.disk = machine.disk(self.out, {"volumes": "--volume %s=%d\n" % (VOLUME, SIZE), "moments": ""})
        host = cosim.host(self.tools, self.agent, self.out, self.disk, "system")
        self.children.append(host)
        self.guests = {"host": host}

    def made(self, left, choice):
        pass

    def turn(self, left):
        pass

    def end(self):
        hear(self.guests["host"], "stop")

    @property
    def journal(self):
        journal = self.out + "/journal"
        subprocess.run(["/sbin/debugfs", "-R", "dump /journal " + journal, self.disk], check=True, stderr=subprocess.DEVNULL)
        return journal

    def known(self, entries, writes):
        """The writes that left, in the journal's order; and of each order how many of them make its image."""
        if len(entries) != len(writes):
            sys.exit("%d writes left the uplink, and the journal has %d" % (len(writes), len(entries)))
        return writes, {order: order for order in range(len(entries) + 1)}


def prove(agent, out, between, uplink, primary, made, choice, say):
    journal = between.journal
    subprocess.run([agent, "verify", journal], check=True)
    log = subprocess.check_output([agent, "log", journal, "--json"], text=True)
    entries = [json.loads(line) for line in log.splitlines()]
    writes, known = between.known(entries, list(written(uplink)))
    by_port = {}
    for entry in entries:
        if entry["kind"] != "resync":
            by_port[entry["port"]] = by_port.get(entry["port"], 0) + 1
    if sorted(by_port) != PORTS:
        sys.exit("not every path was used: %s" % by_port)
    duplicates = sum("duplicate" in json.dumps(entry.get("flags", "")) for entry in entries)
    say("%d writes, by port %s, %d of them copies; the journal has each" % (len(writes), by_port, duplicates))
    moments = sorted(choice.sample([order for order in known if known[order] >= made], MOMENTS - 1) + [len(entries)])
    base, image, model, done = out + "/base", out + "/image", bytearray(SIZE), 0
    recovered = databases = 0
    for moment in moments:
        for lba, data in writes[done:known[moment]]:
            model[lba * 512:lba * 512 + len(data)] = data
        done = known[moment]
        subprocess.run([agent, "restore", journal, "--volume", VOLUME, "--base", base, "--at", "order:%d" % moment,
                        "--to", image, "--force"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        if open(image, "rb").read() != model:
            sys.exit("the image at order:%d is not what the first %d writes make" % (moment, done))
        check = subprocess.run(["/sbin/e2fsck", "-fp", image], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if check.returncode not in (0, 1):
            sys.exit("e2fsck at order:%d: %s" % (moment, check.stdout))
        recovered += "recovering journal" in check.stdout
        databases += whole_database(out, image, moment)
    say("%d moments are what those writes make; e2fsck: all clean, %d after their journal; %d databases whole" %
        (len(moments), recovered, databases))
    subprocess.run([agent, "restore", journal, "--volume", VOLUME, "--base", base, "--at", "end", "--to", image, "--force"],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if machine.digest(image) != machine.digest(primary):
        sys.exit("the newest image is not primary")
    say("the newest image is primary")


def whole_database(out, image, moment):
    """The database in an image, with its journal, as sqlite finds it after a crash; 0: there is none yet."""
    for name in ["db", "db-journal"]:
        path = "%s/%s" % (out, name)
        if os.path.exists(path):
            os.remove(path)
        subprocess.run(["/sbin/debugfs", "-R", "dump /%s %s" % (name, path), image], check=True, stderr=subprocess.DEVNULL)
    if not os.path.exists(out + "/db") or not os.path.getsize(out + "/db"):
        return 0
    said = subprocess.run(["sqlite3", out + "/db", "pragma integrity_check"], stdout=subprocess.PIPE, text=True).stdout.strip()
    if said != "ok":
        sys.exit("the database at order:%d: %s" % (moment, said))
    return 1


def main():
    tools, agent = sys.argv[1:3]
    target = " ".join(sys.argv[3:]) or "vblade"
    if target not in ("vblade", "model", "software"):
        sys.exit("%s: there is TARGET=vblade, TARGET=model and SWITCH=software, one of them" % target)
    children = []
    with tempfile.TemporaryDirectory(prefix="system") as out:
        try:
            run(tools, agent, out, children, target)
        finally:
            for child in children:
                if child.poll() is None:
                    child.terminate()
                    child.wait()


def run(tools, agent, out, children, target):
    began = time.monotonic()

    def say(what):
        print("%6.1f s  %s" % (time.monotonic() - began, what), flush=True)
    seed = int(os.environ.get("CHRONO_SEED", random.randrange(1 << 32)))
    print("CHRONO_SEED=%d" % seed)
    choice = random.Random(seed)
    primary, uplink = out + "/primary", out + "/uplink.pcap"
    for path in [primary, out + "/base"]:
        with open(path, "wb") as file:
            file.truncate(SIZE)
    sockets = {port: ("%s/peer%d" % (out, port), "%s/port%d" % (out, port)) for port in PORTS}
    if target == "software":
        between = software_switch.SoftwareSwitch(agent, out, children, VOLUME, say)
    else:
        between = Card(tools, agent, out, children, target)
    between.start(sockets, primary, uplink, LOSE, HESITATE.get(target, HESITATE["vblade"]))
    source = initiator(tools, out, sockets)
    children.append(source)
    made = None

    def left():
        return sum(1 for _ in written(uplink))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("the guests took longer than %d s" % cosim.LIMIT_SECONDS))
    signal.alarm(cosim.LIMIT_SECONDS)
    for name, what in heard({"initiator": source, **between.guests}, lambda: between.turn(left), say):
        if (name, what) == between.BEGINS:
            hear(source, "go")
        elif (name, what) == ("initiator", "MADE"):
            made = left()
            between.made(made, choice)
        elif (name, what) == ("initiator", "DONE"):
            between.end()
    signal.alarm(0)
    prove(agent, out, between, uplink, primary, made, choice, say)
    say("system: passed")


def hear(guest, word):
    guest.stdin.write(word.encode() + b"\n")
    guest.stdin.flush()


def heard(guests, turn, say):
    """What the guests tell by lines with @@: who, and the word; until all have ended. `turn` is called between."""
    names = {guest.stdout.fileno(): name for name, guest in guests.items()}
    lines, ended = {number: b"" for number in names}, set()
    while lines:
        if len(ended) < len(guests):
            turn()
        for number in select.select(list(lines), [], [], 0.1)[0]:
            data, name = os.read(number, 65536), names[number]
            if not data:
                del lines[number]
                continue
            *whole, lines[number] = (lines[number] + data).split(b"\n")
            for raw in whole:
                line = raw.decode("utf-8", "replace").rstrip()
                if "@@" not in line:
                    print("%9s  %s" % (name, line), flush=True)
                    continue
                what, _, rest = line.split("@@")[1].partition(" ")
                say("%s: %s %s" % (name, what, rest))
                if what == "FAIL":
                    print(guests[name].stdout.read().decode("utf-8", "replace"))
                    sys.exit("the %s failed" % name)
                if what == "DONE":
                    ended.add(name)
                yield name, what
    if len(ended) != len(guests):
        sys.exit("a guest ended before it was done")

main()
