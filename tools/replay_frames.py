#!/usr/bin/env python3
"""Sources from outside the card: the frames that initiators sent, out of captures, into Unix datagram sockets.

Frames go out in the order of the captures. A write goes out only when the answers that its source had by then have
come, and no other request with its tag is open; so every order that mattered is kept, and what is answered is what
was sent. A request that stays without its answer is sent again, as an initiator does. Standard library only.
"""
import gzip, heapq, select, socket, struct, threading, time

ETHERTYPE = b"\x88\xa2"
RESPONSE = 0x08
# Bytes of a port's requests that may be under way: a port buffers 16 KiB.
WINDOW_BYTES = 12 * 1024
RESEND_SECONDS = 5


def frames(path, port):
    """Every frame of a pcap with nanoseconds: stamp, port, place, bytes. A stamp never goes back."""
    data = gzip.open(path).read()
    at, place, last = 24, 0, 0
    while at < len(data):
        seconds, nanoseconds, length = struct.unpack_from("<III", data, at)
        last = max(last, seconds * 10**9 + nanoseconds)
        yield last, port, place, data[at + 16:at + 16 + length]
        at, place = at + 16 + length, place + 1


def is_aoe(frame):
    return len(frame) >= 24 and frame[12:14] == ETHERTYPE


def key(frame, initiator):
    return initiator, frame[16:19], frame[20:24]


class Sources:
    """`ports`: number of a port → (capture, socket of ours, socket of the card's)."""

    def __init__(self, ports):
        self.sockets, self.peers, self.open, self.resent, self.sent = {}, {}, {}, 0, 0
        # Requests that may be sent; the rest waits (`allow`).
        self.allowed, self.changed = 0, threading.Condition()
        self.events = []
        for port, (capture, ours, peer) in ports.items():
            bound = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            bound.bind(ours)
            self.sockets[port], self.peers[port] = bound, peer
            self.events.append(frames(capture, port))
        # Requests that the target answered; the others nobody waits for.
        self.answered = set()
        for _, _, _, frame in heapq.merge(*self.events):
            if is_aoe(frame) and frame[14] & RESPONSE:
                self.answered.add(key(frame, frame[0:6]))
        self.events = [frames(capture, port) for port, (capture, _, _) in ports.items()]

    def allow(self, requests):
        """So many requests may be sent, from the first on."""
        with self.changed:
            self.allowed = requests
            self.changed.notify_all()

    def wait_for(self, requests, limit):
        """Until so many were sent."""
        with self.changed:
            if not self.changed.wait_for(lambda: self.sent >= requests, limit):
                raise SystemExit("%d requests were sent and not %d" % (self.sent, requests))

    def run(self, limit):
        """Sends everything, and waits for every answer."""
        until = time.monotonic() + limit
        for _, port, _, frame in heapq.merge(*self.events):
            if not is_aoe(frame):
                continue
            if frame[14] & RESPONSE:
                name = key(frame, frame[0:6])
                self.wait(lambda: name not in self.open, until)
                continue
            name = key(frame, frame[6:12])
            self.wait(lambda: name not in self.open and self.fits(port, frame) and self.sent < self.allowed, until)
            self.sockets[port].sendto(frame, self.peers[port])
            with self.changed:
                self.sent += 1
                self.changed.notify_all()
            if name in self.answered:
                self.open[name] = [port, frame, time.monotonic()]
        self.wait(lambda: not self.open, until)

    def fits(self, port, frame):
        under_way = sum(len(other) for of, other, _ in self.open.values() if of == port)
        return under_way == 0 or under_way + len(frame) <= WINDOW_BYTES

    def wait(self, is_over, until):
        while not is_over():
            if time.monotonic() > until:
                raise SystemExit("%d requests without an answer" % len(self.open))
            ready, _, _ = select.select(list(self.sockets.values()), [], [], 0.1)
            for bound in ready:
                answer = bound.recv(16384)
                if is_aoe(answer) and answer[14] & RESPONSE:
                    self.open.pop(key(answer, answer[0:6]), None)
            for request in self.open.values():
                if time.monotonic() - request[2] > RESEND_SECONDS:
                    self.sockets[request[0]].sendto(request[1], self.peers[request[0]])
                    request[2] = time.monotonic()
                    self.resent += 1
