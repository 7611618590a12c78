# Chronoswitch. `make run` shows what it does; `make test` proves it. Each installs what it needs: system
# packages by name, Python tools into .tools, crates by cargo.

.PHONY: run test lint rust-test verilog synth formal mutations line-rate differential bench kill-test liveness \
	journal-exhaustive soak clean tools system-packages

# Simulation in a debug build is far too slow to be of use.
CARGO := cargo
RELEASE := --release
VERILOG := build/card.v
ONE_PORT := build/card1.v
ECP5_CARD := build/card-ecp5.v

run:
	@tools/system-packages.sh e2fsprogs:/sbin/e2fsck python3:python3
	tools/run-demo.sh

# Yosys and many a test keep one processor busy for a minute: two things go on side by side.
test: lint binaries tools
	@tools/cosim-packages.sh > /dev/null
	$(MAKE) --jobs=2 rust-test gateware-check cosim-sample nbd-clients
	@echo "make test: all passed"

# One behind the other: Yosys and the provers fill one cache.
.PHONY: gateware-check
gateware-check: binaries tools
	$(MAKE) verilog-lint && $(MAKE) synth-check && $(MAKE) formal-check

# Formatting, clippy and rustc's warnings.
lint: system-packages
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets $(RELEASE) --quiet -- -D warnings

# What the system tests and the checks of the gateware run. Built with the whole workspace, whose features together are
# others than a package's own: each would build it anew, with all that it needs.
BINARIES := $(abspath $(or $(CARGO_TARGET_DIR),target))/release
HOST_AGENT := $(BINARIES)/host-agent
.PHONY: binaries
binaries: system-packages
	$(CARGO) build --workspace --bins $(RELEASE)

# Unit, gateware, co-simulation and system tests. Clippy has looked at the examples; to link them too takes a minute.
rust-test: binaries
	HOST_AGENT=$(HOST_AGENT) $(CARGO) test --workspace --lib --bins --tests $(RELEASE) --no-fail-fast
	$(CARGO) test --package nbd --doc $(RELEASE)

# The Verilog of the card, of one whose four rings fit an ECP5-85F, and of one with a single port of that.
verilog: binaries
	mkdir -p build
	$(BINARIES)/emit-verilog $(VERILOG)
	$(BINARIES)/emit-verilog --ring 32 $(ECP5_CARD)
	$(BINARIES)/emit-verilog --ports 1 --ring 32 $(ONE_PORT)

# Verilator's lint of the card; tools/lint.vlt says what is waived and why.
.PHONY: verilog-lint
verilog-lint: verilog
	verilator --lint-only -Wall tools/lint.vlt $(VERILOG) --top-module top

# Yosys takes the card: no latches, no loops.
.PHONY: synth-check
synth-check: verilog tools
	python3 tools/test_synth.py
	python3 tools/synth.py $(VERILOG) --check-only

# Cells of a card with one port; its rings are block RAM. Mapping four ports takes far longer and shows nothing about
# this that one port doesn't.
.PHONY: synth-port
synth-port: verilog tools
	python3 tools/synth.py $(ONE_PORT)

# Cells of the four-port card on ECP5 and 7-series; placed and routed on an LFE5UM5G-85F, once a seed. Hours.
SEEDS := 1,2,3,4,5
synth: verilog tools
	python3 tools/synth.py $(ECP5_CARD) --place $(SEEDS)

# Proofs over single blocks, and that each can fail (hdl/formal).
formal: formal-check
	python3 tools/formal.py --mutants

.PHONY: formal-check
formal-check: binaries tools
	python3 tools/formal.py

# Deliberate bugs, each of which a test must find (docs/verification.md).
mutations: system-packages tools
	python3 tools/mutations.py

# Two million core cycles of writes back to back on four ports, 1, 2 and 17 sectors each; CI writes fewer.
line-rate: system-packages
	CHRONO_CYCLES=2000000 $(CARGO) test $(RELEASE) --package sim --test line_rate -- --nocapture

# The Verilated card against the reference model at length; CI runs fewer seeds.
differential: system-packages
	CHRONO_SEEDS=1000 $(CARGO) test $(RELEASE) --package sim --test differential -- --nocapture does
	$(CARGO) test $(RELEASE) --package system-tests --test software_replay -- --ignored
	CHRONO_RESTORES=1000 $(CARGO) test $(RELEASE) --package system-tests --test large_capture

# Ratios against a peer or a physical limit, measured in turns; not a test.
bench: system-packages
	mkdir -p build
	$(CARGO) run $(RELEASE) --quiet --package sim --example card_speed
	$(CARGO) run $(RELEASE) --quiet --package driver --example drain_bandwidth
	$(CARGO) run $(RELEASE) --quiet --package journal --example append_speed -- build
	$(CARGO) run $(RELEASE) --quiet --package journal --example map_speed -- build
	$(CARGO) run $(RELEASE) --quiet --package journal --example merge_speed -- build
	$(CARGO) run $(RELEASE) --quiet --package journal --example rollback_speed -- build
	@tools/system-packages.sh nbdkit:nbdkit fio:fio
	$(CARGO) build $(RELEASE) --quiet --package nbd --examples
	$(CARGO) run $(RELEASE) --quiet --package nbd --example request_speed -- build
	@tools/system-packages.sh libnbd-bin:nbdinfo
	@tools/system-packages.sh qemu-utils:qemu-storage-daemon
	$(CARGO) build $(RELEASE) --quiet --package host-agent --bins --examples
	$(CARGO) run $(RELEASE) --quiet --package host-agent --example image_speed -- build
	$(CARGO) run $(RELEASE) --quiet --package host-agent --example serve_speed -- build

# The agent killed at 50 random moments of a replay; CI runs fewer.
kill-test: system-packages
	CHRONO_KILLS=50 $(CARGO) test $(RELEASE) --package system-tests --test kill --test serve -- --nocapture

# Software ports for long, killed and restarted, beside images and merging; `make soak MINUTES=60`.
MINUTES := 5
KILLS := 20
soak: system-packages
	@tools/system-packages.sh fio:fio
	mkdir -p build
	$(CARGO) build $(RELEASE) --quiet --package host-agent
	cd build && $(CARGO) run $(RELEASE) --quiet --package system-tests --example soak -- $(MINUTES) $(KILLS)

# Software ports' crashes at length: power cuts at any write of any disk; CI runs a sample.
.PHONY: power-cuts
power-cuts: system-packages
	CHRONO_SEEDS=5000 $(CARGO) test $(RELEASE) --package ports --test power_cut -- --nocapture

# AoE ports in software between virtual links, with a running vblade, at length; CI runs a sample. As root.
.PHONY: switch-test
switch-test: system-packages
	CHRONO_WRITES=2000 $(CARGO) test $(RELEASE) --package system-tests --test switch -- --nocapture

# What reads bytes from outside, given any; `make fuzz FUZZ_SECONDS=3600`. A finding stays in fuzz/artifacts.
FUZZ_SECONDS := 300
FUZZ_TARGETS := aoe_frame aoe_switch nbd_session journal_file
.PHONY: fuzz
fuzz:
	@test -x .tools/bin/cargo-fuzz || $(CARGO) install --quiet --root .tools cargo-fuzz
	cd fuzz && for target in $(FUZZ_TARGETS); do RUSTC_BOOTSTRAP=1 PATH="$(CURDIR)/.tools/bin:$$PATH" \
		$(CARGO) fuzz run --sanitizer none $$target -- -max_total_time=$(FUZZ_SECONDS) -max_len=4096 || exit 1; done

# Target lost, host gone, rings full, another host: in each technique and acknowledge policy; CI runs one of them.
liveness: system-packages
	$(CARGO) test $(RELEASE) --package sim --test liveness -- --nocapture --include-ignored

# The journal's random worlds at length, every write torn at every sector, every byte flipped; CI runs a sample of each.
journal-exhaustive: system-packages
	CHRONO_SEEDS=100000 $(CARGO) test $(RELEASE) --package journal --test any_moment --test merge --test resize -- --nocapture
	CHRONO_EVERY=1 $(CARGO) test $(RELEASE) --package journal --test merge --test verify_merged -- --nocapture

# The NBD server with the clients that people have: libnbd, QEMU, fio.
.PHONY: nbd-clients
nbd-clients: binaries
	@tools/system-packages.sh libnbd-bin:nbdcopy qemu-utils:qemu-img fio:fio
	HOST_AGENT=$(HOST_AGENT) $(CARGO) test $(RELEASE) --workspace --test clients --test serve_clients -- --ignored

# ENGINE=verilated: the card stepped by Verilator, several times as fast once it is compiled; in each of the next ones.
export ENGINE

# The card in a slot of a virtual machine: a stock kernel's VFIO behind an emulated IOMMU, the host-agent as it is
# built, traffic from outside. QEMU and the kernel are fetched by apt into .tools once (about 60 MB).
.PHONY: cosim
cosim: binaries
	@tools/system-packages.sh e2fsprogs:/sbin/e2fsck python3:python3 binutils:strip
	python3 tools/cosim.py "$$(tools/cosim-packages.sh)" $(HOST_AGENT)

# `cosim` with one source, one volume and one moment.
.PHONY: cosim-sample
cosim-sample: binaries
	@tools/system-packages.sh e2fsprogs:/sbin/e2fsck python3:python3 binutils:strip
	python3 tools/cosim.py "$$(tools/cosim-packages.sh)" $(HOST_AGENT) sample

# Linux's aoe initiator on two ports, a file system and a database on it, frames that get lost; the card drained in
# another virtual machine; a running vblade as the target (as root; TARGET=model: its model); the journal proved against
# what left the uplink. SWITCH=software: `host-agent switch` instead of the card, killed once (as root); IMAGES=both:
# with before-images.
.PHONY: system
system: binaries
	@tools/system-packages.sh e2fsprogs:/sbin/e2fsck python3:python3 binutils:strip sqlite3:sqlite3 \
		vblade:/usr/sbin/vblade iproute2:ip
	IMAGES=$(IMAGES) python3 tools/system.py "$$(tools/cosim-packages.sh)" $(HOST_AGENT) $(SWITCH) $(TARGET)

# The way to primary: the guest that drains the card reaches the card's storage by its own initiator, through a port; resync,
# read-back and rollback while another source writes.
.PHONY: way
way: binaries
	@tools/system-packages.sh e2fsprogs:/sbin/e2fsck python3:python3 binutils:strip
	python3 tools/way.py "$$(tools/cosim-packages.sh)" $(HOST_AGENT)

# `cosim` with the agent killed and the card reset in the middle of traffic.
.PHONY: cosim-faults
cosim-faults: binaries
	@tools/system-packages.sh e2fsprogs:/sbin/e2fsck python3:python3 binutils:strip
	python3 tools/cosim.py "$$(tools/cosim-packages.sh)" $(HOST_AGENT) faults

# Linux's NBD client in a guest on what the host-agent serves: disks, and images at moments.
.PHONY: guest-nbd
guest-nbd: binaries
	@tools/system-packages.sh e2fsprogs:/sbin/e2fsck python3:python3 binutils:strip nbd-client:/sbin/nbd-client
	python3 tools/guest-nbd.py "$$(tools/cosim-packages.sh)" $(HOST_AGENT)

# PostgreSQL with pgbench on ext4 in a guest, on a served disk: images of random moments recover by its own log, with
# the rows that were committed. PG_MOMENTS and PG_SECONDS; half an hour.
.PHONY: postgres
postgres: binaries
	@tools/system-packages.sh e2fsprogs:/sbin/e2fsck python3:python3 binutils:strip postgresql-15:/usr/lib/postgresql/15/bin/postgres
	python3 tools/postgres.py "$$(tools/cosim-packages.sh)" $(HOST_AGENT)

system-packages:
	@tools/system-packages.sh verilator:verilator g++:g++ e2fsprogs:/sbin/e2fsck python3:python3 \
		libnbd-bin:nbdcopy qemu-utils:qemu-img vblade:/usr/sbin/vblade iproute2:ip fio:fio

tools: .tools/venv/installed
.tools/venv/installed: tools/requirements.txt
	python3 -m venv .tools/venv
	.tools/venv/bin/pip install --quiet --disable-pip-version-check --requirement tools/requirements.txt
	touch $@

clean:
	$(CARGO) clean
	rm -rf build run .tools
