#!/usr/bin/env python3
"""One capture run: TAPs, targets, tcpdump, the guest, and the moments. Run by make-captures.sh
inside a network namespace of its own. Leaves port*.pcap and moments.json (counts still empty)."""

import argparse
import gzip
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time

SIZES = {"small": 8 << 20, "large": 48 << 20}
PORTS = [
    # mtu, guest MAC, target's MAC, shelf, slot
    dict(mtu=1500, guest="02:c5:00:00:00:01", target="02:c5:00:00:01:01", volume="1.0"),
    dict(mtu=9000, guest="02:c5:00:00:00:02", target="02:c5:00:00:01:02", volume="1.1"),
]


def sh(*cmd):
    subprocess.run(cmd, check=True)


def output(*cmd):
    return subprocess.run(cmd, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main():
    ap = argparse.ArgumentParser()
    for a in ("set", "out", "root", "kernel", "kernel-version", "initrd"):
        ap.add_argument("--" + a, required=True)
    args = ap.parse_args()
    size = SIZES[args.set]
    children = []
    try:
        run(args, size, children)
    finally:
        for c in children:
            if c.poll() is None:
                c.send_signal(signal.SIGCONT)
                c.kill()
                c.wait()


def run(args, size, children):
    out, root = args.out, args.root
    sh("ip", "link", "set", "lo", "up")
    for key in ("all", "default"):
        with open(f"/proc/sys/net/ipv6/conf/{key}/disable_ipv6", "w") as f:
            f.write("1")
    dumps = []
    for i, p in enumerate(PORTS):
        p["image"] = f"{out}/volume{i}.img"
        with open(p["image"], "wb") as f:
            f.truncate(size)
        sh("ip", "tuntap", "add", "dev", f"port{i}", "mode", "tap")
        sh("ip", "link", "set", f"port{i}", "address", p["target"], "mtu", str(p["mtu"]), "up")
        log = open(f"{out}/tcpdump{i}.log", "w")
        d = subprocess.Popen(
            ["tcpdump", "-i", f"port{i}", "-Z", "root", "-n", "-U", "-s", "262144", "-B", "65536",
             "--time-stamp-precision=nano", "-w", f"{out}/port{i}.pcap"], stderr=log)
        children.append(d)
        dumps.append(d)
    for i in range(len(PORTS)):
        while "listening on" not in open(f"{out}/tcpdump{i}.log").read():
            time.sleep(0.05)

    lib = f"{root}/lib/x86_64-linux-gnu"
    usr = f"{root}/usr"
    # Without a vnet header no offload can cross the TAP: one record is one Ethernet frame.
    cmd = [f"{lib}/ld-linux-x86-64.so.2", "--library-path", f"{lib}:{usr}/lib/x86_64-linux-gnu",
           f"{usr}/bin/qemu-system-x86_64", "-L", f"{usr}/share/qemu", "-L", f"{usr}/share/seabios",
           "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-monitor", "none",
           "-serial", "stdio", "-machine", "q35", "-accel", "tcg,thread=multi", "-cpu", "max",
           "-smp", "2", "-m", "512M",
           "-kernel", args.kernel, "-initrd", args.initrd,
           "-append", f"console=ttyS0 quiet loglevel=4 panic=-1 ipv6.disable=1 workload={args.set}"]
    for i, p in enumerate(PORTS):
        cmd += ["-netdev", f"tap,id=n{i},ifname=port{i},script=no,downscript=no,vnet_hdr=off",
                "-device", f"virtio-net-pci,netdev=n{i},mac={p['guest']},host_mtu={p['mtu']},"
                           f"addr=0x{i + 3:x},romfile=,csum=off,gso=off,guest_csum=off,guest_tso4=off,"
                           "guest_tso6=off,guest_ecn=off,guest_ufo=off,host_tso4=off,host_tso6=off,"
                           "host_ecn=off,host_ufo=off"]
    env = dict(os.environ, QEMU_MODULE_DIR=f"{usr}/lib/x86_64-linux-gnu/qemu")
    guest = subprocess.Popen(cmd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env)
    children.append(guest)
    targets = []

    def go():
        guest.stdin.write(b"go\n")
        guest.stdin.flush()

    def digest(i):
        h = hashlib.sha256()
        with open(PORTS[i]["image"], "rb") as f:
            while block := f.read(1 << 20):
                h.update(block)
        return h.hexdigest()

    moments, stalls, release, done = [], [], None, False
    console = open(f"{out}/console.log", "wb")
    started = time.time()
    watchdog = signal.signal(signal.SIGALRM, lambda *_: sys.exit("the guest took too long"))
    signal.alarm(480)
    for raw in guest.stdout:
        now = time.time_ns()
        console.write(raw)
        console.flush()
        m = re.search(r"@@(\w+) ?(.*)", raw.decode("utf-8", "replace").strip())
        if not m:
            continue
        what, rest = m.group(1), m.group(2)
        print(f"{time.time() - started:7.2f} {what} {rest}", flush=True)
        if what == "READY":
            release = rest
            for i, p in enumerate(PORTS):
                shelf, slot = p["volume"].split(".")
                log = open(f"{out}/vblade{i}.log", "w")
                t = subprocess.Popen(["vblade", shelf, slot, f"port{i}", p["image"]], stdout=log, stderr=log)
                children.append(t)
                targets.append(t)
            time.sleep(1)
            go()
        elif what == "MOMENT":
            name, mounted, text = rest.split(" ", 2)
            hashes = [digest(i) for i in range(len(PORTS))]
            if mounted == "0" and name != "start":
                for i, p in enumerate(PORTS):
                    sh("cp", "--sparse=always", p["image"], f"{out}/fsck.img")
                    with open(f"{out}/fsck-{name}-{i}.log", "w") as log:
                        r = subprocess.run(["e2fsck", "-fn", f"{out}/fsck.img"], stdout=log, stderr=log)
                    if r.returncode != 0:
                        sys.exit(f"e2fsck at {name}, volume {i}: {r.returncode}")
            time.sleep(0.2)
            if hashes != [digest(i) for i in range(len(PORTS))]:
                sys.exit(f"an image changed during the moment {name}")
            moments.append(dict(
                name=name, what=text, time_ns=now, mounted=mounted == "1",
                e2fsck="clean" if mounted == "0" and name != "start" else "not run",
                volumes={p["volume"]: dict(port=i, size=size, sha256=hashes[i])
                         for i, p in enumerate(PORTS)}))
            go()
        elif what == "STALL":
            i, ms = map(int, rest.split())
            targets[i].send_signal(signal.SIGSTOP)
            stalls.append(dict(volume=PORTS[i]["volume"], time_ns=time.time_ns(), milliseconds=ms))
            go()
            time.sleep(ms / 1000)
            targets[i].send_signal(signal.SIGCONT)
        elif what == "FAIL":
            sys.exit("guest: " + rest)
        elif what == "DONE":
            done = True
    guest.wait()
    signal.alarm(0)
    if not done:
        sys.exit("the guest ended early, see console.log")
    time.sleep(0.5)
    dropped = []
    for i, d in enumerate(dumps):
        d.send_signal(signal.SIGINT)
        d.wait()
        text = open(f"{out}/tcpdump{i}.log").read()
        got = {k: int(v) for v, k in re.findall(r"(\d+) packets? (captured|received by filter|dropped by kernel)", text)}
        if got["dropped by kernel"] or got["captured"] != got["received by filter"]:
            sys.exit(f"tcpdump lost frames on port {i}: {got}")
        dropped.append(got["dropped by kernel"])
        with open(f"{out}/port{i}.pcap", "rb") as f:
            data = f.read()
        sh("gzip", "-9nf", f"{out}/port{i}.pcap")
        if gzip.open(f"{out}/port{i}.pcap.gz").read() != data:
            sys.exit("gzip")
    if any(t.poll() is not None for t in targets):
        sys.exit("a target died")

    def package(name):
        return name + " " + output("dpkg-query", "-W", "-f", "${Version}", name)

    with open(f"{out}/moments.json", "w") as f:
        json.dump(dict(
            format=1, set=args.set,
            made_with=dict(
                initiator=f"Linux {release} (Debian linux-image {args.kernel_version}), module aoe, QEMU TCG, 2 CPUs, virtio-net",
                target=package("vblade"), mkfs=package("e2fsprogs"), capture=package("tcpdump")),
            captures=[dict(file=f"port{i}.pcap.gz", port=i, mtu=p["mtu"], initiator=p["guest"],
                           target=p["target"], volume=p["volume"], size=size,
                           dropped_by_capture=dropped[i]) for i, p in enumerate(PORTS)],
            target_stalls=stalls, moments=moments), f, indent=1)
        f.write("\n")


if __name__ == "__main__":
    main()
