#!/usr/bin/env python3
"""A wire that carries frames between two ends, and isn't a good one: it loses frames, or has answers come late.

    wire.py END END [LOSE]      one frame in LOSE gets lost, each way

An end is a TAP, named tap:NAME, or Unix datagram sockets, OURS:THEIRS. A TAP needs root.
"""
import fcntl, heapq, os, select, socket, struct, subprocess, sys, time

TUNSETIFF, IFF_TAP, IFF_NO_PI = 0x400454CA, 0x0002, 0x1000
MOST_BYTES = 16384


def no_ipv6():
    """The kernel's own frames would be on the wire too."""
    for key in ("all", "default"):
        with open("/proc/sys/net/ipv6/conf/%s/disable_ipv6" % key, "w") as file:
            file.write("1")


class Tap:
    """What is sent arrives at the interface, and what the interface sends is received."""

    def __init__(self, name):
        self.file = os.open("/dev/net/tun", os.O_RDWR)
        fcntl.ioctl(self.file, TUNSETIFF, struct.pack("16sH", name.encode(), IFF_TAP | IFF_NO_PI))
        subprocess.run(["ip", "link", "set", name, "mtu", "9000", "up"], check=True)

    def fileno(self):
        return self.file

    def receive(self):
        return os.read(self.file, MOST_BYTES)

    def send(self, frame):
        os.write(self.file, frame)


class Sockets:
    """Frames from `ours` and to `theirs`, which may not be there yet."""

    def __init__(self, ours, theirs):
        self.socket, self.theirs = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), theirs
        self.socket.bind(ours)

    def fileno(self):
        return self.socket.fileno()

    def receive(self):
        return self.socket.recv(MOST_BYTES)

    def send(self, frame):
        self.socket.sendto(frame, socket.MSG_DONTWAIT, self.theirs)


def end(text):
    first, _, second = text.partition(":")
    return Tap(second) if first == "tap" else Sockets(first, second)


class Capture:
    """Frames in a file as libpcap writes it, each whole for who reads it meanwhile."""

    def __init__(self, path):
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(self.file, struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, MOST_BYTES, 1))

    def add(self, frame):
        now = time.time_ns() // 1000
        os.write(self.file, struct.pack("<IIII", now // 1000000, now % 1000000, len(frame), len(frame)) + frame)


def carry(one, other, goes_on=lambda: True, lose=0, late=(0, 0.0), capture=None):
    """While `goes_on`. Of the frames that `other` sends one in late[0] comes late[1] seconds late; those that `one` sends
    are captured before they can get lost."""
    every, seconds = late
    waiting, sent = [], {one: 0, other: 0}

    def send(to, frame):
        try:
            to.send(frame)
        except OSError:
            pass  # as on any wire
    while goes_on():
        wait = max(0.0, waiting[0][0] - time.monotonic()) if waiting else 1
        for source in select.select([one, other], [], [], wait)[0]:
            frame = source.receive()
            sent[source] += 1
            if source is one and capture:
                capture.add(frame)
            if lose and sent[source] % lose == 0:
                continue
            if source is other and every and sent[source] % every == 0:
                heapq.heappush(waiting, (time.monotonic() + seconds, sent[source], frame))
            else:
                send(other if source is one else one, frame)
        while waiting and waiting[0][0] <= time.monotonic():
            send(one, heapq.heappop(waiting)[2])


def main():
    no_ipv6()
    one, other = map(end, sys.argv[1:3])
    print("from %s to %s" % tuple(sys.argv[1:3]), flush=True)
    carry(one, other, lose=int(sys.argv[3]) if len(sys.argv) > 3 else 0)


if __name__ == "__main__":
    main()
