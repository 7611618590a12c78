#!/usr/bin/env python3
"""A running vblade at the end of an uplink: a TAP in a network namespace of its own, and a wire to the other end. Needs
root; run it with `unshare --net`, or in the network where the other end is.

    uplink_tap.py END SHELF SLOT IMAGE [EVERY:SECONDS [CAPTURE]]

END: as for wire.py. One answer in EVERY comes SECONDS late. What END sends is put into CAPTURE.
"""
import os, signal, subprocess, sys
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import wire


def main():
    end, shelf, slot, image = sys.argv[1:5]
    every, seconds = sys.argv[5].split(":") if len(sys.argv) > 5 else ("0", "0")
    capture = wire.Capture(sys.argv[6]) if len(sys.argv) > 6 else None
    wire.no_ipv6()
    other, tap = wire.end(end), wire.Tap("target")
    # It says hello to the wire; nobody is there yet.
    target = subprocess.Popen(["vblade", shelf, slot, "target", image], stdout=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        print("vblade %s.%s serves %s" % (shelf, slot, image), flush=True)
        wire.carry(other, tap, lambda: target.poll() is None, late=(int(every), float(seconds)), capture=capture)
        sys.exit("vblade has ended")
    finally:
        target.kill()
        target.wait()


main()
