#!/usr/bin/env python3
"""Deliberate bugs in the gateware, each of which a test must find: `make mutations`.

The list is below; docs/verification.md tells it in words. Every bug is put into a copy of the sources, the test that
is named is run there, and must fail: a compiler error or another failing test doesn't count. First each test is run
without the bug, and must pass.

Usage: tools/mutations.py [--list] [NUMBER]...
"""

import argparse
import dataclasses
import os
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target"))
# What builds don't need, or what they make.
LEFT_OUT = shutil.ignore_patterns(".git", "target", "build", "run", ".tools", "captures")


# Most of the time goes into compiling: what changes in a mutation is little.
QUICK_BUILDS = {"CARGO_INCREMENTAL": "1"}
# What a build leaves that the next one uses; crates that aren't ours are taken over from the usual build.
KEPT = (".fingerprint", "build", "deps")


@dataclasses.dataclass
class Mutation:
    what: str
    file: str
    old: str
    new: str
    # ("cargo", package, target or "lib", test) or ("formal", proof)
    test: tuple


MUTATIONS = [
    Mutation("a memory write may go a line over the 4 KiB boundary", "hdl/src/host/planner.rs",
             "self.to_boundary.val().get_bits::<3>(0) + 1", "self.to_boundary.val().get_bits::<3>(0) + 2",
             ("cargo", "sim", "host", "random_drains_are_exact")),
    Mutation("two bytes of a DW are swapped on the link", "hdl/src/host/transmitter.rs",
             "self.swap.val().get_bits::<8>(16)) << 8)", "self.swap.val().get_bits::<8>(8)) << 8)",
             ("cargo", "sim", "host", "registers_reset_read_and_write")),
    Mutation("a masked interrupt vector is sent all the same", "hdl/src/host/msix.rs",
             "self.raised.q.val() & !self.masked.q.val() & !self.resting.q.val()",
             "self.raised.q.val() & !self.resting.q.val()",
             ("cargo", "sim", "host", "interrupts_mask_pend_and_are_moderated")),
    Mutation("the fetch of a drain asks for more words than its FIFO holds", "hdl/src/host/fetch.rs",
             "(self.credits.q.val() < 28) & !self.words.full.val()", "(self.credits.q.val() < 60)",
             ("cargo", "sim", "host", "random_drains_are_exact")),
    Mutation("a clock in holdover doesn't admit that its error grows", "hdl/src/leaf_clock.rs",
             "self.deaf.d.next = self.deaf.q.val() + 1;", "self.deaf.d.next = self.deaf.q.val();",
             ("cargo", "hdl", "time", "holdover_is_flagged_and_its_bound_holds")),
    Mutation("a leaf clock runs on through a jump as if locked", "hdl/src/leaf_clock.rs",
             "self.is_locked.d.next = false;\n                self.is_holdover.d.next = false;\n                // An",
             "self.is_holdover.d.next = false;\n                // An",
             ("formal", "leaf-clock")),
    Mutation("a write that was cut short is forwarded", "hdl/src/ingress.rs",
             "| (self.bytes.val() < self.needed.val())", "| (self.bytes.val() < 14)",
             ("cargo", "sim", "differential", "the_card_does_what_the_reference_model_says")),
    Mutation("the last word of an entry's payload is left out", "hdl/src/journal_engine.rs",
             "(bit_cast::<15, 5>(self.sectors_held.val()) << 6) + 4",
             "(bit_cast::<15, 5>(self.sectors_held.val()) << 6) + 3",
             ("cargo", "sim", "differential", "the_card_does_what_the_reference_model_says")),
    Mutation("the last word at the uplink has all of its bytes", "hdl/src/uplink.rs",
             "self.tx_keep.next = bits::<8>(0xFF) >> self.unused.val();", "self.tx_keep.next = bits::<8>(0xFF);",
             ("cargo", "sim", "differential", "the_card_does_what_the_reference_model_says")),
    Mutation("a scan of the interlock is believed although a write was admitted meanwhile", "hdl/src/interlock.rs",
             "if !self.stale.q.val() {", "if !self.blocked.q.val() | self.blocked.q.val() {",
             ("formal", "interlock")),
    Mutation("the head behind one dropped has that one's clearance", "hdl/src/interlock.rs",
             "self.known.d.next = self.known_now.val() & !self.dropped.val();",
             "self.known.d.next = self.known_now.val();",
             ("formal", "interlock")),
    Mutation("two stamps may be equal", "hdl/src/arbiter.rs",
             "if self.candidate.q.val() <= self.last.q.val() {", "if self.candidate.q.val() < self.last.q.val() {",
             ("formal", "arbiter")),
]


class Failed(Exception):
    """Something other than a test failed."""


def run(folder, test):
    """Runs a test in `folder`; tells whether it passed."""
    environment = dict(os.environ, CARGO_TARGET_DIR=str(folder / "target"), CARGO_TERM_COLOR="never", **QUICK_BUILDS)
    if test[0] == "formal":
        build = ["cargo", "build", "--release", "--quiet", "--package", "emit-verilog"]
        done = subprocess.run(build, cwd=folder, env=environment, capture_output=True, text=True)
        if done.returncode != 0:
            raise Failed(done.stderr[-3000:])
        command = [sys.executable, "tools/formal.py", test[1]]
        passed, failed = rf"^{test[1]}: (proved|holds)", rf"^{test[1]}: (FAIL|UNKNOWN)"
    else:
        _, package, target, name = test
        where = ["--lib"] if target == "lib" else ["--test", target]
        command = ["cargo", "test", "--release", "--package", package, *where, name]
        passed, failed = rf"^test .*\b{name} \.\.\. ok", rf"^test .*\b{name} \.\.\. FAILED"
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    if done.returncode == 0 and re.search(passed, done.stdout, re.M):
        return True
    if done.returncode != 0 and re.search(failed, done.stdout, re.M):
        return False
    raise Failed(f"{' '.join(command)} neither passed nor failed:\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("numbers", nargs="*", type=int, metavar="NUMBER")
    arguments = parser.parse_args()
    chosen = [(n, m) for n, m in enumerate(MUTATIONS, 1) if not arguments.numbers or n in arguments.numbers]
    for number, mutation in chosen:
        if (ROOT / mutation.file).read_text().count(mutation.old) != 1:
            raise Failed(f"mutation {number}, {mutation.what}: {mutation.file} doesn't have `{mutation.old}` once")
        if arguments.list:
            print(f"{number}. {mutation.what} ({mutation.file}): {' '.join(mutation.test)}")
    if arguments.list:
        return
    folder = TARGET / "mutations"
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        # The build of the last time is kept.
        if entry.name not in ("target", ".tools"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    shutil.copytree(ROOT, folder, ignore=LEFT_OUT, dirs_exist_ok=True)
    # What was mutated the last time is newer in the build than in the sources: cargo must look again.
    for file in {mutation.file for mutation in MUTATIONS}:
        os.utime(folder / file)
    if not (folder / ".tools").exists():
        (folder / ".tools").symlink_to(ROOT / ".tools")
    if not (folder / "target").exists():
        for kept in KEPT:
            if (TARGET / "release" / kept).exists():
                shutil.copytree(TARGET / "release" / kept, folder / "target/release" / kept, copy_function=os.link)
    for test in dict.fromkeys(mutation.test for _, mutation in chosen):
        if not run(folder, test):
            raise Failed(f"{' '.join(test)} fails without any mutation")
    missed = 0
    for number, mutation in chosen:
        file = folder / mutation.file
        text = file.read_text()
        file.write_text(text.replace(mutation.old, mutation.new))
        start = time.monotonic()
        try:
            found = not run(folder, mutation.test)
        finally:
            file.write_text(text)
        missed += not found
        print(f"{number}. {mutation.what}: {'found' if found else 'NOT FOUND'} by {mutation.test[-1]} "
              f"({time.monotonic() - start:.0f} s)", flush=True)
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    try:
        main()
    except (Failed, OSError) as error:
        sys.exit(f"mutations.py: {error}")
