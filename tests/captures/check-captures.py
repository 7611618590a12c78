#!/usr/bin/env python3
"""Checks captures against their moments.json, with nothing else than these files.

  check-captures.py small large       proves both sets
  check-captures.py --stats small     and says what the traffic looks like
  check-captures.py --fill DIR        writes the counts into a fresh moments.json (make-captures.sh)

What is proved: every record is one whole AoE frame of at most its port's MTU;
applying the captured writes of each volume in capture order to an all-zero image gives, at each
moment, the sha256 that the target's image file had then; no write lies near a moment; all counts
in moments.json are right."""

import argparse
import gzip
import hashlib
import json
import os
import struct
import sys
from collections import Counter, defaultdict

GAP_NS = 300_000_000  # no write this near to a moment, before or after
BACK_NS = 1_000_000  # a stamp is taken before its frame is queued: two CPUs can swap neighbours
SECTOR = 512


def records(path):
    """(time_ns, frame) of a pcap.gz with nanosecond time stamps."""
    with gzip.open(path) as f:
        data = f.read()
    magic, major, minor, _, _, snaplen, link = struct.unpack_from("<IHHiIII", data)
    if magic != 0xA1B23C4D or (major, minor) != (2, 4) or link != 1:
        sys.exit(f"{path}: not an Ethernet pcap with nanoseconds, little-endian")
    at = 24
    while at < len(data):
        sec, nsec, caplen, length = struct.unpack_from("<IIII", data, at)
        if caplen != length or at + 16 + caplen > len(data):
            sys.exit(f"{path}: a cut frame at byte {at}")
        yield sec * 10**9 + nsec, data[at + 16:at + 16 + caplen]
        at += 16 + caplen


class Frame:
    """An AoE frame, decoded as far as needed here."""

    def __init__(self, time, raw):
        self.time, self.raw = time, raw
        self.dst, self.src = raw[0:6], raw[6:12]
        self.ethertype = struct.unpack_from(">H", raw, 12)[0]
        if self.ethertype != 0x88A2:
            return
        self.version, self.flags = raw[14] >> 4, raw[14] & 15
        self.error = raw[15]
        self.shelf, self.slot, self.command, self.tag = struct.unpack_from(">HBBI", raw, 16)
        self.response = bool(self.flags & 8)
        self.ata = self.command == 0 and len(raw) >= 36
        if self.ata:
            self.aflags, self.feature, self.count, self.cmd = raw[24:28]
            self.lba = int.from_bytes(raw[28:34], "little")
            if self.cmd == 0x30 or not self.aflags & 0x40:
                self.lba &= 0x0FFFFFFF

    @property
    def volume(self):
        return f"{self.shelf}.{self.slot}"

    @property
    def is_write(self):
        """A request that a target executes as a write."""
        return (self.ethertype == 0x88A2 and not self.response and self.ata
                and self.cmd in (0x30, 0x34) and self.count > 0)

    @property
    def payload(self):
        return self.raw[36:36 + self.count * SECTOR]

    def key(self):
        return (self.src, self.volume, self.lba, self.count, self.payload)


def mac(b):
    return ":".join(f"{x:02x}" for x in b)


class Set:
    def __init__(self, folder):
        self.folder = folder
        with open(os.path.join(folder, "moments.json")) as f:
            self.json = json.load(f)
        self.captures = []
        for c in self.json["captures"]:
            frames = [Frame(t, r) for t, r in records(os.path.join(folder, c["file"]))]
            self.captures.append((c, frames))

    def check_frames(self):
        for c, frames in self.captures:
            last = 0
            for n, f in enumerate(frames, 1):
                where = f"{c['file']} frame {n}"
                if f.ethertype != 0x88A2:
                    sys.exit(f"{where}: EtherType {f.ethertype:#06x}")
                if len(f.raw) > c["mtu"] + 14:
                    sys.exit(f"{where}: {len(f.raw)} bytes at MTU {c['mtu']}")
                if f.time < last - BACK_NS:
                    sys.exit(f"{where}: time goes back by {last - f.time} ns")
                last = max(last, f.time)
                if mac(f.src) != (c["target"] if f.response else c["initiator"]):
                    sys.exit(f"{where}: from {mac(f.src)}")
                if f.is_write:
                    if f.volume != c["volume"]:
                        sys.exit(f"{where}: volume {f.volume}")
                    if len(f.raw) != 36 + f.count * SECTOR:
                        sys.exit(f"{where}: {len(f.raw)} bytes, {f.count} sectors")
                    if (f.lba + f.count) * SECTOR > c["size"]:
                        sys.exit(f"{where}: past the end")
                for m in self.json["moments"]:
                    if f.is_write and abs(f.time - m["time_ns"]) < GAP_NS:
                        sys.exit(f"{where}: a write within {GAP_NS} ns of the moment {m['name']}")

    def fill_in(self):
        """What moments.json says of the captures, counted afresh: (per capture, per moment)."""
        totals = []
        for c, frames in self.captures:
            t = dict(frames=len(frames),
                     requests=sum(not f.response for f in frames),
                     responses=sum(f.response for f in frames),
                     writes={c["volume"]: sum(f.is_write for f in frames)},
                     stamps_before_the_previous_frames=sum(b.time < a.time for a, b in zip(frames, frames[1:])),
                     write_payload_bytes=sum(f.count * SECTOR for f in frames if f.is_write))
            t.update(retransmissions(frames))
            totals.append(t)
        per_moment = []
        for m in self.json["moments"]:
            per_moment.append({
                c["volume"]: dict(frames=sum(f.time < m["time_ns"] for f in frames),
                                  writes=sum(f.is_write for f in frames if f.time < m["time_ns"]))
                for c, frames in self.captures})
        return totals, per_moment

    def fill(self):
        totals, per_moment = self.fill_in()
        for c, t in zip(self.json["captures"], totals):
            c.update(t)
        for m, volumes in zip(self.json["moments"], per_moment):
            for v, counts in volumes.items():
                m["volumes"][v].update(counts)
        with open(os.path.join(self.folder, "moments.json"), "w") as f:
            json.dump(self.json, f, indent=1)
            f.write("\n")

    def check_counts(self):
        totals, per_moment = self.fill_in()
        for c, t in zip(self.json["captures"], totals):
            for k, v in t.items():
                if c.get(k) != v:
                    sys.exit(f"{self.folder}: {c['file']}: {k} is {v}, moments.json says {c.get(k)}")
            if c["dropped_by_capture"] != 0:
                sys.exit(f"{self.folder}: {c['file']}: frames were dropped")
        for m, volumes in zip(self.json["moments"], per_moment):
            for v, counts in volumes.items():
                for k, n in counts.items():
                    if m["volumes"][v].get(k) != n:
                        sys.exit(f"{self.folder}: {m['name']} {v}: {k} is {n}, moments.json says {m['volumes'][v].get(k)}")

    def check_images(self):
        for c, frames in self.captures:
            image = bytearray(c["size"])
            writes = [f for f in frames if f.is_write]
            done = 0
            for m in self.json["moments"]:
                v = m["volumes"][c["volume"]]
                for f in writes[done:v["writes"]]:
                    image[f.lba * SECTOR:(f.lba + f.count) * SECTOR] = f.payload
                done = v["writes"]
                if v["size"] != c["size"] or hashlib.sha256(image).hexdigest() != v["sha256"]:
                    sys.exit(f"{self.folder}: volume {c['volume']} at {m['name']}: after {done} writes the image differs")
            if done != len(writes):
                sys.exit(f"{self.folder}: volume {c['volume']}: writes after the last moment")


def retransmissions(frames):
    """Write requests equal in source, volume, LBA, count and payload to an earlier one
    - `retransmissions`: while the first of them is unanswered (its tag, from its target);
    - `retransmissions_any_open`: while any of them is, or the first was answered after the
      initiator had already resent it (it completes a write on its latest tag only)."""
    open_first = {}   # key -> tag of the first, while that is unanswered
    open_last = {}    # key -> latest tag, while that is unanswered
    by_tag = defaultdict(list)
    strict = wide = 0
    for f in frames:
        if f.is_write:
            k = f.key()
            strict += k in open_first
            wide += k in open_last
            if k not in open_first and k not in open_last:
                open_first[k] = f.tag
            open_last[k] = f.tag
            by_tag[f.src, f.volume, f.tag].append(k)
        elif f.response and f.command == 0:
            for k in by_tag.pop((f.dst, f.volume, f.tag), ()):
                if open_first.get(k) == f.tag:
                    del open_first[k]
                if open_last.get(k) == f.tag:
                    del open_last[k]
    return dict(retransmissions=strict, retransmissions_any_open=wide)


def stats(s):
    def quantiles(values):
        v = sorted(values)
        return " ".join(f"{q}:{v[min(len(v) - 1, int(len(v) * p))]}" for q, p in
                        (("min", 0), ("p50", .5), ("p99", .99), ("max", 1))) if v else "-"

    tags_all = defaultdict(set)
    for c, frames in s.captures:
        print(f"== {s.folder} {c['file']} (volume {c['volume']}, MTU {c['mtu']}): {len(frames)} frames")
        kinds, sizes, sectors, flags = Counter(), Counter(), Counter(), Counter()
        outstanding, rtt, inflight, reads_rtt = {}, [], [], []
        overlaps = reordered = steps_back = bit31 = unknown_tag = 0
        same_gap, last_write, last_lba = [], None, None
        tags = Counter()
        copies = []
        first_seen = {}
        for f in frames:
            side = "response" if f.response else "request"
            what = (f"version {f.version} " if f.version != 1 else "") + (f"ATA {f.cmd:#04x}" if f.command == 0 and not f.response else
                    "ATA" if f.command == 0 else f"command {f.command}")
            if f.response and f.command == 0:
                what += f" status {f.cmd:#04x} error {f.error}"
            bcast = " broadcast" if f.dst == b"\xff" * 6 else ""
            kinds[f"{side} {what}{bcast}"] += 1
            sizes[len(f.raw)] += 1
            if f.command != 0:
                continue
            if not f.response:
                bit31 += f.tag >> 31
                tags[f.tag] += 1
                tags_all[f.tag].add(c["volume"])
                if f.is_write:
                    sectors[f.count] += 1
                    flags[f"{f.aflags:#04x}"] += 1
                    for g in outstanding.values():
                        if g.is_write and g.key() != f.key() and g.lba < f.lba + f.count and f.lba < g.lba + g.count:
                            overlaps += 1
                            break
                    if last_write is not None:
                        same_gap.append(f.time - last_write)
                        steps_back += f.lba < last_lba
                    last_write, last_lba = f.time, f.lba
                    k = f.key()
                    if k in first_seen and any(g.key() == k for g in outstanding.values() if g.is_write):
                        copies.append((f.time - first_seen[k]) // 1_000_000)
                    else:
                        first_seen[k] = f.time
                outstanding[f.tag] = f
                inflight.append(len(outstanding))
            else:
                g = outstanding.get(f.tag)
                if g is None:
                    unknown_tag += 1
                    continue
                reordered += next(iter(outstanding)) != f.tag
                del outstanding[f.tag]
                (rtt if g.is_write else reads_rtt).append((f.time - g.time) // 1000)
        for k, n in sorted(kinds.items()):
            print(f"  {n:6} {k}")
        print("  frame bytes:", dict(sorted(sizes.items())[:6]), "... max", max(sizes), "; under 60:", sum(n for b, n in sizes.items() if b < 60))
        print("  sectors of writes:", dict(sorted(sectors.items())), "AFlags:", dict(flags))
        print("  in flight (ATA requests):", quantiles(inflight), "; unanswered at the end:", len(outstanding))
        print("  write answered after us:", quantiles(rtt), "; other ATA after us:", quantiles(reads_rtt))
        print("  gap between writes ns:", quantiles(same_gap))
        print(f"  writes below the one before: {steps_back}; writes overlapping an unanswered other write: {overlaps}")
        print(f"  answers not to the oldest request: {reordered}; answers to no open tag: {unknown_tag}; requests with tag bit 31: {bit31}")
        print("  tags used twice:", sum(n > 1 for n in tags.values()), "; copies: ms after the first:", quantiles(copies))
        image = {}
        again = same = 0
        for f in frames:
            if f.is_write:
                for i in range(f.count):
                    sec = f.payload[i * SECTOR:(i + 1) * SECTOR]
                    old = image.get(f.lba + i)
                    again += old is not None
                    same += old == sec
                    image[f.lba + i] = sec
        zero = sum(not any(f.payload) for f in frames if f.is_write)
        print(f"  sectors written: {sum(f.count for f in frames if f.is_write)}, distinct {len(image)}, overwritten {again}, with what stood there {same}; all-zero writes {zero}")
    print("  tags used by both volumes:", sum(len(v) > 1 for v in tags_all.values()))
    if len(s.captures) == 2:
        merged = sorted((f.time, i) for i, (_, fr) in enumerate(s.captures) for f in fr if f.is_write)
        print("  changes of port between successive writes in time:", sum(a[1] != b[1] for a, b in zip(merged, merged[1:])))


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--fill", action="store_true")
    ap.add_argument("--stats", action="store_true")
    ap.add_argument("folders", nargs="+")
    args = ap.parse_args()
    for folder in args.folders:
        s = Set(folder)
        s.check_frames()
        if args.fill:
            s.fill()
            continue
        s.check_counts()
        s.check_images()
        if args.stats:
            stats(s)
        for c, _ in s.captures:
            print(f"{folder}/{c['file']}: {c['frames']} frames, {c['writes'][c['volume']]} writes of "
                  f"{c['write_payload_bytes']} bytes, {c['retransmissions']} retransmissions: "
                  f"{len(s.json['moments'])} moments reproduced")


if __name__ == "__main__":
    main()
