#!/usr/bin/env python3
"""A running vblade at the end of the card's uplink: a TAP in a network namespace of its own, and what carries frames
between it and Unix datagram sockets. Needs root; run it with `unshare --net`.

    uplink_tap.py LOCAL PEER SHELF SLOT IMAGE [EVERY:SECONDS]

Frames that come to LOCAL go to the TAP, those from the TAP to PEER. One answer in EVERY comes SECONDS late.
"""
import fcntl, heapq, os, select, signal, socket, struct, subprocess, sys, time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000


def main():
    local, peer, shelf, slot, image = sys.argv[1:6]
    every, seconds = (sys.argv[6].split(":") + ["0"])[:2] if len(sys.argv) > 6 else ("0", "0")
    every, seconds = int(every), float(seconds)
    tap = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH", b"uplink", IFF_TAP | IFF_NO_PI))
    for key in ("all", "default"):
        with open("/proc/sys/net/ipv6/conf/%s/disable_ipv6" % key, "w") as file:
            file.write("1")
    subprocess.run(["ip", "link", "set", "uplink", "mtu", "9000", "up"], check=True)
    wire = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    wire.bind(local)
    # It says hello to the wire; nobody is there yet.
    target = subprocess.Popen(["vblade", shelf, slot, "uplink", image], stdout=sys.stderr)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    late, answers = [], 0

    def send(frame):
        try:
            wire.sendto(frame, socket.MSG_DONTWAIT, peer)
        except OSError:
            pass  # as on any wire
    try:
        print("vblade %s.%s serves %s" % (shelf, slot, image), flush=True)
        while target.poll() is None:
            wait = max(0.0, late[0][0] - time.monotonic()) if late else 1
            ready, _, _ = select.select([tap, wire], [], [], wait)
            if wire in ready:
                os.write(tap, wire.recv(16384))
            if tap in ready:
                frame = os.read(tap, 16384)
                answers += 1
                if every and answers % every == 0:
                    heapq.heappush(late, (time.monotonic() + seconds, answers, frame))
                else:
                    send(frame)
            while late and late[0][0] <= time.monotonic():
                send(heapq.heappop(late)[2])
        sys.exit("vblade has ended")
    finally:
        target.kill()
        target.wait()


main()
