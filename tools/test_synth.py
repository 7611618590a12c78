#!/usr/bin/env python3
"""The checks of synth.py can fail: each kind of fault is put into a small module and must be found."""

import pathlib
import subprocess
import sys
import tempfile

SYNTH = pathlib.Path(__file__).resolve().parent / "synth.py"

GOOD = """module top(input wire clock, input wire [1:0] a, output reg [1:0] b);
    always @(posedge clock) b <= a;
endmodule
"""
LATCH = """module top(input wire a, input wire b, output reg c);
    always @(*) begin
        if (a) begin
            c = b;
        end
    end
endmodule
"""
LOOP = """module top(input wire a, output wire b);
    wire c;
    assign c = ~(a & b);
    assign b = ~(a & c);
endmodule
"""
DRIVERS = """module part(input wire a, output wire b);
    assign b = ~a;
endmodule
module top(input wire a, input wire c, output wire b);
    part first(.a(a), .b(b));
    part second(.a(c), .b(b));
endmodule
"""
# Read without a clock: it can't become block RAM.
RAM = """module top(input wire clock, input wire [10:0] a, input wire [7:0] d, input wire w, output wire [7:0] q);
    reg [7:0] mem[2047:0];
    always @(posedge clock) if (w) mem[a] <= d;
    assign q = mem[a];
endmodule
"""
CASES = [
    ("good", GOOD, [], None),
    ("latch", LATCH, ["--check-only"], "latch: "),
    ("loop", LOOP, ["--check-only"], "logic loop"),
    ("drivers", DRIVERS, ["--check-only"], "multiple conflicting drivers"),
    ("ram", RAM, ["--target", "ecp5"], "did not become block RAM"),
]

with tempfile.TemporaryDirectory() as folder:
    for name, verilog, options, fault in CASES:
        file = pathlib.Path(folder) / f"fault-{name}.v"
        file.write_text(verilog)
        done = subprocess.run([sys.executable, SYNTH, file, *options], capture_output=True, text=True)
        found = [line for line in done.stdout.splitlines() if line.startswith("FAULT: ")]
        right = done.returncode == 1 and any(fault in line for line in found) if fault else done.returncode == 0
        if not right:
            sys.exit(f"test_synth.py: {name}: expected {fault!r}, got:\n{done.stdout}{done.stderr}")
print(f"synth.py finds what it must: {len(CASES)} cases")
