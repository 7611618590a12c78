#!/usr/bin/env python3
"""Checks an image against a naive model: captured writes copied into zeroes, and nothing else.

    naive-image.py CAPTURES LOG VOLUME ORDER IMAGE

CAPTURES is a folder with moments.json and port<N>.pcap.gz, LOG the output of `host-agent log J --json`.
The journal says in which order the ports' writes came, port by port in the order of the capture; the
data come from the captures. Standard library only.
"""
import gzip, hashlib, json, struct, sys


def writes(path):
    """Every ATA write of a capture: volume, first sector, data."""
    data = gzip.open(path).read()
    at = 24
    while at < len(data):
        length = struct.unpack_from("<I", data, at + 8)[0]
        frame = data[at + 16:at + 16 + length]
        at += 16 + length
        if length < 36 or frame[12:14] != b"\x88\xa2" or frame[14] & 8 or frame[19]:
            continue
        if frame[27] in (0x30, 0x34) and frame[26]:
            lba = int.from_bytes(frame[28:34], "little") & ((1 << (28 if frame[27] == 0x30 else 48)) - 1)
            volume = "%d.%d" % (int.from_bytes(frame[16:18], "big"), frame[18])
            yield volume, lba, frame[36:36 + 512 * frame[26]]


def main():
    captures, log, volume, order, image = sys.argv[1:]
    moments = json.load(open(captures + "/moments.json"))
    ports = {c["port"]: writes(captures + "/" + c["file"]) for c in moments["captures"]}
    size = next(c["size"] for c in moments["captures"] if c["volume"] == volume)
    model = bytearray(size)
    for line in open(log):
        entry = json.loads(line)
        if entry["order"] > int(order):
            break
        written, lba, data = next(ports[entry["port"]])
        if written == volume:
            model[lba * 512:lba * 512 + len(data)] = data
    found = open(image, "rb").read()
    if found != bytes(model):
        sys.exit("%s: is not what the first %s writes make" % (image, order))
    print("  naive model: equal, sha256 %s" % hashlib.sha256(found).hexdigest()[:16])


main()
