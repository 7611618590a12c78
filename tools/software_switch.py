"""What is between the initiator and vblade in `make system SWITCH=software`: `host-agent switch`, by AF_PACKET, in a
network namespace of its own. It is killed in the middle of traffic, and started again. IMAGES: after, or both: images are
proved over a base, which before-images alone are not enough for."""
import ctypes, os, signal, subprocess, sys, time
import machine

CLONE_NEWNET = 0x40000000
IMAGES = os.environ.get("IMAGES") or "after"
# After so many writes it is killed: in the first of the guest's rounds.
KILL_AFTER = (20, 120)
# What it let through last is in the capture after this long.
SETTLE_SECONDS = 0.3


class SoftwareSwitch:
    # Which guest says what, when the initiator may begin.
    BEGINS = ("initiator", "BOOTED")

    def __init__(self, agent, out, children, volume, say):
        self.agent, self.out, self.children, self.volume, self.say = agent, out, children, volume, say
        self.journal, self.switch, self.ports = out + "/journal", None, []
        self.kill_at = self.left_before = None
        self.guests = {}

    def start(self, sockets, primary, capture, lose, hesitate):
        if IMAGES not in ("after", "both"):
            sys.exit("IMAGES=%s: there is after, and both" % IMAGES)
        if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNET):
            sys.exit("a network of its own: %s; it needs root" % os.strerror(ctypes.get_errno()))
        self.run_wire("uplink_tap.py", "tap:uplink", *self.volume.split("."), primary, hesitate, capture)
        for port, (theirs, ours) in sockets.items():
            self.ports += ["--port", "port%d" % port]
            self.run_wire("wire.py", "%s:%s" % (ours, theirs), "tap:port%d" % port, str(lose))
        self.begin("--create", "--size", "64M", "--images", IMAGES)

    def run_wire(self, program, *arguments):
        wire = subprocess.Popen(["python3", machine.HERE + "/tools/" + program, *arguments], stdout=subprocess.PIPE)
        self.children.append(wire)
        if not wire.stdout.readline():
            sys.exit("%s doesn't start" % program)

    def begin(self, *more):
        command = [self.agent, "switch", "--journal", self.journal, *self.ports, "--uplink", "uplink",
                   "--base", "%s=%s/base" % (self.volume, self.out), *more]
        self.switch = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        self.children.append(self.switch)
        said = []
        for line in self.switch.stdout:
            said.append(line.rstrip())
            if line.startswith("switching "):
                return said
        sys.exit("the switch doesn't start: " + "\n".join(said))

    def made(self, left, choice):
        self.kill_at = left + choice.randrange(*KILL_AFTER)

    def turn(self, left):
        """Between two lines of the guests; `left` counts the writes that left the uplink."""
        if self.switch.poll() is not None:
            sys.exit("the switch has ended: " + self.switch.stdout.read())
        if self.kill_at is None or self.left_before is not None or left() < self.kill_at:
            return
        self.switch.kill()
        self.switch.wait()
        time.sleep(SETTLE_SECONDS)
        self.left_before = left()
        self.say("switch: killed after %d writes" % self.left_before)
        for line in self.begin():
            self.say("switch: " + line)

    def end(self):
        if self.left_before is None:
            sys.exit("the switch was never killed: too few writes")
        self.switch.send_signal(signal.SIGTERM)
        said = self.switch.communicate()[0]
        if self.switch.returncode or "ended in order" not in said:
            sys.exit("the switch did not end in order: " + said)

    def known(self, entries, writes):
        """The writes that left, in the journal's order; and of each order whose image is certain how many of them make it. The
        journal has a beginning of those before the kill, then what a comparison found, then each one after it. With
        before-images an entry is there before its write leaves, and those that overlap nothing may change places."""
        before, later = writes[:self.left_before], writes[self.left_before:]
        behind = len(entries) - len(later)
        found = [at for at, entry in enumerate(entries) if entry["kind"] == "resync"]
        durable = found[0] if found else behind
        if found != list(range(durable, behind)) or (IMAGES == "after" and durable > len(before)):
            sys.exit("%d writes left before the kill and %d after it; the journal has %d entries, those of the resync are %s" %
                     (len(before), len(later), len(entries), found))
        self.say("%d writes left before the kill, the journal had %d; %d entries by comparison; then %d writes" %
                 (len(before), durable, len(found), len(later)))
        known = {order: order for order in range(durable + 1)} if IMAGES == "after" else {}
        known.update({order: len(before) + order - behind for order in range(behind, len(entries) + 1)})
        return before + (later if IMAGES == "after" else in_order(entries[behind:], later)), known


def in_order(entries, writes):
    """The writes as the journal has them."""
    left, ordered = list(writes), []
    for entry in entries:
        place = entry["lba"], 512 * entry["sectors"]
        found = next((at for at, (lba, data) in enumerate(left) if (lba, len(data)) == place), None)
        if found is None:
            sys.exit("order:%d: no such write left the uplink" % entry["order"])
        ordered.append(left.pop(found))
    return ordered
