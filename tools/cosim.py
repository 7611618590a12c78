#!/usr/bin/env python3
"""`make cosim`: the simulated card in a slot of a virtual machine with an emulated IOMMU, a stock Debian kernel, and
the host-agent as it is built. Captured traffic comes from outside into the card's ports, is drained by DMA into a
journal on the guest's disk, and restored there; what comes out is compared with what the captured volumes held.

    cosim.py TOOLS AGENT [faults|sample]   TOOLS: the folder that cosim-packages.sh prints; AGENT: host-agent

With `sample` there is one source, one volume and one moment. With `faults` the agent is killed (COSIM_KILLS times) and the card's function reset (COSIM_RESETS times), all in the middle
of traffic. Then nothing that was reported durable may be lost, each is a gap, and after a resync from primary the newest
image must be primary.
"""
import json, os, re, signal, subprocess, sys, tempfile, threading, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import machine, replay_frames

CAPTURES = machine.HERE + "/tests/captures/small"
MOMENTS = ["made", "before-disaster", "final"]
MODULES = ["irqbypass", "vfio", "vfio_virqfd", "vfio_iommu_type1", "vfio-pci-core", "vfio-pci", "virtio_pci", "virtio_blk"]
# How much slower than a real card's the simulated one's clock may be: 125 MHz over 20,000 cycles/s.
SLOWER = 6000
# How often the agent is killed and the card reset, with `faults`.
KILLS = int(os.environ.get("COSIM_KILLS", "1"))
RESETS = int(os.environ.get("COSIM_RESETS", "1"))
LIMIT_SECONDS = int(os.environ.get("COSIM_LIMIT", "480"))


def host(tools, agent, out, image, mode, port=None):
    """The guest that has the card in a slot, and the agent; with an initiator of its own on that port of the card."""
    folder = out + "/host"
    os.makedirs(folder)
    modules = MODULES + (["virtio_net", "aoe"] if port is not None else [])
    initrd, kernel = machine.initramfs(tools, folder, machine.HERE + "/tools/cosim-init.sh", {"host-agent": agent}, modules)
    socket = {"type": "unix", "path": out + "/card.sock"}
    device = {"driver": "vfio-user-pci", "bus": "rp0", "socket": socket, "x-msg-timeout": 60000}
    devices = ["-device", "intel-iommu,intremap=on,caching-mode=on",
               "-device", "pcie-root-port,id=rp0,chassis=1,slot=1", "-device", json.dumps(device),
               "-drive", "file=%s,if=none,id=disk,format=raw,cache=unsafe" % image, "-device", "virtio-blk-pci,drive=disk"]
    if port is not None:
        devices += network(port, "%s/peer%d" % (out, port), "%s/port%d" % (out, port), 0x10)
    return machine.qemu(tools, kernel, initrd, devices, "intel_iommu=on slower=%d mode=%s kills=%d resets=%d" % (SLOWER, mode, KILLS, RESETS))


def network(port, ours, theirs, slot):
    """A guest's network interface on a port of the card: frames as large as AoE's, and nothing done to them."""
    return ["-netdev", "dgram,id=n%d,local.type=unix,local.path=%s,remote.type=unix,remote.path=%s" % (port, ours, theirs),
            "-device", "virtio-net-pci,netdev=n%d,mac=02:c5:00:00:00:%02x,host_mtu=9000,addr=0x%x,romfile=,csum=off,"
            "gso=off,guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,host_tso4=off,"
            "host_tso6=off,host_ecn=off,host_ufo=off" % (port, port + 1, slot)]


def simulate(agent, out):
    """The command that the card is simulated with; ENGINE=verilated: stepped by Verilator."""
    return [agent, "card", "simulate", "--socket", out + "/card.sock", "--engine", os.environ.get("ENGINE") or "card"]


def main():
    tools, agent = sys.argv[1:3]
    mode = sys.argv[3] if len(sys.argv) > 3 else "plain"
    moments = json.load(open(CAPTURES + "/moments.json"))
    children = []
    with tempfile.TemporaryDirectory(prefix="cosim") as out:
        try:
            run(tools, agent, moments, out, children, mode)
        finally:
            for child in children:
                if child.poll() is None:
                    child.kill()
                    child.wait()


class Traffic:
    """The sources, in a thread of their own, and what the host does when the guest is ready."""

    def __init__(self, ports, mode, hear):
        self.sources, self.hear = replay_frames.Sources(ports), hear
        self.requests = len(self.sources.answered)
        self.thread = threading.Thread(target=self.sources.run, args=(LIMIT_SECONDS,), daemon=True)
        # What the guest hears after so many requests: each in the middle of traffic that goes on.
        words = ["kill"] * KILLS + ["reset"] * RESETS if mode == "faults" else []
        part = self.requests // (len(words) + 1)
        self.steps = [(word, (place + 1) * part) for place, word in enumerate(words)] + [("stop", None)]
        # So many more are allowed than are waited for: some are under way when it happens.
        self.more = max(4, part // 4)

    def ready(self):
        word, requests = self.steps.pop(0)
        if not self.thread.ident:
            self.thread.start()
        if requests is None:
            self.sources.allow(1 << 30)
            self.thread.join()
            if self.sources.open:
                sys.exit("%d requests have no answer" % len(self.sources.open))
        else:
            self.sources.allow(requests + self.more)
            self.sources.wait_for(requests, LIMIT_SECONDS)
        self.hear(word)
        return "%d requests sent, %d of them again; guest hears: %s" % (self.sources.sent, self.sources.resent, word)


def run(tools, agent, moments, out, children, mode):
    began = time.monotonic()

    def say(what):
        print("%6.1f s  %s" % (time.monotonic() - began, what), flush=True)
    captures, names = moments["captures"], MOMENTS
    if mode == "sample":
        captures, names = captures[1:2], MOMENTS[-1:]
    volumes = [capture["volume"] for capture in captures]
    orders = {m["name"]: sum(m["volumes"][volume]["writes"] for volume in volumes) for m in moments["moments"]}
    image = machine.disk(out, {
        "moments": "".join("%s %d\n" % (name, orders[name]) for name in names),
        "volumes": " ".join("--volume %s=%d" % (c["volume"], c["size"]) for c in captures) + "\n",
    })
    command, ports = simulate(agent, out), {}
    for capture in captures:
        port, primary = capture["port"], "%s/%s.img" % (out, capture["volume"])
        with open(primary, "wb") as file:
            file.truncate(capture["size"])
        ours, theirs = "%s/peer%d" % (out, port), "%s/port%d" % (out, port)
        command += ["--primary", "%s=%s" % (capture["volume"], primary), "--port", "%d=%s:%s" % (port, theirs, ours)]
        ports[port] = (CAPTURES + "/" + capture["file"], ours, theirs)
    card = subprocess.Popen(command, stdout=subprocess.PIPE)
    children.append(card)
    if not card.stdout.readline():
        sys.exit("the simulated card doesn't start")
    say("card in its slot")
    guest = host(tools, agent, out, image, mode)
    children.append(guest)
    signal.signal(signal.SIGALRM, lambda *_: sys.exit("the guest took longer than %d s" % LIMIT_SECONDS))
    signal.alarm(LIMIT_SECONDS)

    def hear(word):
        guest.stdin.write(word.encode() + b"\n")
        guest.stdin.flush()
    traffic = Traffic(ports, mode, hear)
    wanted = {m["name"]: m["volumes"] for m in moments["moments"]}
    found, done = 0, False
    for raw in guest.stdout:
        line = raw.decode("utf-8", "replace").rstrip()
        told = re.search(r"@@(\w+) ?(.*)", line)
        if not told:
            print("          " + line, flush=True)
            continue
        what, rest = told.groups()
        if what == "FAIL":
            say("guest: FAIL " + rest)
            for raw in guest.stdout:
                print("          " + raw.decode("utf-8", "replace").rstrip())
            sys.exit("the guest failed")
        if what == "READY":
            say("the agent drains; traffic comes")
            say(traffic.ready())
        elif what == "IMAGE":
            name, volume, sha = rest.split()
            if sha != wanted[name][volume]["sha256"]:
                sys.exit("volume %s at moment %s is not what it was" % (volume, name))
            found += 1
            say("volume %s at moment %s: equal to what the real target held" % (volume, name))
        else:
            say("guest: %s %s" % (what, rest))
            done |= what == "DONE"
            if what == "KILLED":
                # Traffic goes on while nobody drains the card.
                traffic.sources.allow(traffic.sources.sent + traffic.more)
    guest.wait()
    images = 0 if mode == "faults" else len(names) * len(captures)
    if not done or found != images:
        sys.exit("the guest ended before it was done")
    # What the guest wrote is proved once more out here.
    subprocess.run(["/sbin/debugfs", "-R", "dump /journal %s/journal" % out, image], check=True, stderr=subprocess.DEVNULL)
    subprocess.run([agent, "verify", out + "/journal"], check=True)
    for capture in captures:
        volume, size = capture["volume"], capture["size"]
        primary = "%s/%s.img" % (out, volume)
        if mode != "faults":
            if machine.digest(primary) != wanted["final"][volume]["sha256"]:
                sys.exit("primary storage of volume %s is not what it was" % volume)
            continue
        base = out + "/base"
        with open(base, "wb") as file:
            file.truncate(size)
        subprocess.run([agent, "resync", out + "/journal", "--volume", volume, "--base", base, "--primary", primary],
                       check=True)
        subprocess.run([agent, "restore", out + "/journal", "--volume", volume, "--base", base, "--at", "end",
                        "--to", out + "/now", "--force"], check=True)
        if machine.digest(out + "/now") != machine.digest(primary):
            sys.exit("volume %s: the newest image is not primary" % volume)
        say("volume %s: after a resync the newest image is primary" % volume)
    say("cosim: passed")


if __name__ == "__main__":
    main()
