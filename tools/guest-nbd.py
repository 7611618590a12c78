#!/usr/bin/env python3
"""`make guest-nbd`: Linux's own NBD client, in a virtual machine, as a client of `host-agent serve` and of `host-agent image
serve`: it makes an ext4, mounts it, writes, trims and flushes; the server is killed under it; images at moments are attached
read-only and writable, and hold what the kernel read at that moment. Then the journal is taken out of the guest, verified,
and the moments restored: the same bytes.

    guest-nbd.py TOOLS AGENT
"""
import hashlib, os, subprocess, sys, tempfile, time
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import machine

MODULES = ["virtio_pci", "virtio_blk", "nbd"]
PROGRAMS = {"nbd-client": "/sbin/nbd-client", "mkfs.ext4": "/sbin/mkfs.ext4", "e2fsck": "/sbin/e2fsck"}
LIMIT_SECONDS = int(os.environ.get("GUEST_LIMIT", "480"))


def main():
    tools, agent = sys.argv[1:3]
    began = time.monotonic()

    def say(what):
        print("%6.1f s  %s" % (time.monotonic() - began, what), flush=True)
    with tempfile.TemporaryDirectory(prefix="guest-nbd") as out:
        image = machine.disk(out, {}, "320M")
        initrd, kernel = machine.initramfs(tools, out, machine.HERE + "/tools/guest-nbd-init.sh",
                                           dict(PROGRAMS, **{"host-agent": agent}), MODULES)
        guest = machine.qemu(tools, kernel, initrd, [
            "-drive", "file=%s,if=none,id=disk,format=raw,cache=unsafe" % image, "-device", "virtio-blk-pci,drive=disk"], "")
        moments, done = [], False
        try:
            for what, rest in machine.told(guest, "guest", LIMIT_SECONDS):
                say("guest: %s %s" % (what, rest))
                done |= what == "DONE"
                if what == "MOMENT":
                    moments.append(rest.split())
        finally:
            guest.kill()
            guest.wait()
        if not done or not moments:
            sys.exit("the guest ended before it was done")
        for images in sorted({m[0] for m in moments}):
            files = {name: "%s/%s.%s" % (out, name, images) for name in ["j", "base", "disk"]}
            for name, path in files.items():
                subprocess.run(["/sbin/debugfs", "-R", "dump /%s.%s %s" % (name, images, path), image], check=True,
                               stderr=subprocess.DEVNULL)
            subprocess.run([agent, "verify", files["j"]], check=True)
            source = ["--base", files["base"]] if images == "after" else ["--primary", files["disk"]]
            for _, name, digest in [m for m in moments if m[0] == images]:
                subprocess.run([agent, "restore", files["j"], "--volume", "disk", *source, "--at", "bookmark:" + name, "--to",
                                out + "/then", "--force"], check=True, stdout=subprocess.DEVNULL)
                if hashlib.md5(open(out + "/then", "rb").read()).hexdigest() != digest:
                    sys.exit("%s-images, moment %s: what is restored isn't what the guest's kernel read" % (images, name))
        say("%d moments restored outside: what the guest's kernel read" % len(moments))
        say("guest-nbd: passed")


main()
