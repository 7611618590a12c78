//! `docs/registers.md` is what `layout::registers` says. `CHRONO_WRITE=1` writes it anew.

use layout::aoe::MAXIMUM_SECTORS;
use layout::pcie;
use layout::port_ring::{check, needed_bytes};
use layout::registers::{control, global, port, Access, Counter, Register, FUNCTION_RESET_PORT};
use layout::registers::{CORE_HZ, IDENTITY_VALUE, PORT_BASE, PORT_STRIDE, TICK_CYCLES};
use std::fmt::Write;

/// Rings that the table speaks of; gateware is made with the last two.
const RING_KIB: [usize; 3] = [16, 32, 64];

fn table(page: &mut String, registers: &[Register], resets: impl Fn(&Register) -> &'static str) {
    page.push_str(
        "| offset | name | bits | access | reset | function reset | what |\n|---|---|---|---|---|---|---|\n",
    );
    for register in registers {
        let access = match register.access {
            Access::Ro => "read",
            Access::Rw => "read, write",
            Access::Start => "write",
        };
        let Register { name, offset, bits, reset, doc, .. } = register;
        let resets = resets(register);
        writeln!(page, "| {offset:#05x} | {name} | {bits} | {access} | {reset:#x} | {resets} | {doc} |")
            .unwrap();
    }
}

/// Which ring takes which writes.
fn rings(page: &mut String) {
    write!(
        page,
        "\n## A port's own ring\n\nGEOMETRY tells its size. It holds two of the largest entries with their \
         completions, a watermark, a gap and a late answer; a write waits until there is room. Sources choose how long \
         their writes are, so the row of {MAXIMUM_SECTORS} sectors is what counts: gateware with smaller rings than \
         that of one image isn't made, and drivers refuse both images (VOLUME_TABLE bits 24 and 25) where rings are \
         smaller than that of two.\n\n\
         | sectors of a write | one image, bytes needed | both images | {} |\n|---|---|---|---|---|---|\n",
        RING_KIB.map(|kib| format!("ring of {kib} KiB")).join(" | ")
    )
    .unwrap();
    // Frames of 1,500 bytes, of 4 KiB and of 8 KiB of data, the longest.
    for sectors in [2, 8, 16, MAXIMUM_SECTORS] {
        let takes =
            RING_KIB.map(|kib| match [1, 2].map(|images| check(kib * 1024, sectors, images).is_ok()) {
                [_, true] => "both",
                [true, false] => "one image",
                [false, false] => "none",
            });
        let [one, two] = [1, 2].map(|images| needed_bytes(sectors, images));
        writeln!(page, "| {sectors} | {one} | {two} | {} |", takes.join(" | ")).unwrap();
    }
    page.push_str(
        "\nA ring takes a block RAM of 18 kbit for each 2 KiB (ECP5), or one of 36 kbit for each 4 KiB (7-series).\n",
    );
}

fn page() -> String {
    let mut page = String::new();
    write!(
        page,
        "<!-- Made from layout/src/registers.rs by layout/tests/registers_page.rs: edit there. -->\n\
         # The card's registers\n\n\
         BAR 0 has {} KiB, vendor {:#06x}, device {:#06x}. Words are little-endian; identity {IDENTITY_VALUE:#010x}.\n\n\
         - **Accesses** are of one or two whole, aligned 32-bit words. A write with partial byte enables or of \
         another length is ignored and noted in STATUS bit 2; a read of another length, or beyond the BAR, is \
         answered \"unsupported request\". Where there is no register zeroes are read.\n\
         - **A 64-bit register** takes effect with the write of its low half: write the high half first, or both in \
         one write, of which the high half is taken first. Reading the low half of one that changes by itself \
         latches its high half for the next read; any other access drops the latch.\n\
         - **A tick** is {TICK_CYCLES} core cycles, {:.3} µs at {} MHz.\n\
         - **Function reset** ends the packet being sent, then forgets drains, rings and interrupts; what the host \
         had not been told of stays in the ports' rings and is drained in the next session. **Card reset** takes \
         every register to its reset value. After either, accesses wait until it is over (about 520 cycles).\n\n\
         ## The card\n\n",
        pcie::BAR0_BYTES / 1024,
        pcie::VENDOR_ID,
        pcie::DEVICE_ID,
        TICK_CYCLES as f64 / CORE_HZ as f64 * 1e6,
        CORE_HZ / 1_000_000,
    )
    .unwrap();
    table(&mut page, global::REGISTERS, |register| match (register.offset, register.access) {
        (global::CONTROL, _) => "writes closed",
        (_, Access::Rw) => "stays",
        _ => "",
    });
    assert_eq!(control::WRITES_OPEN, 1);
    write!(page, "\n## A port\n\nPort *n* has its block at {PORT_BASE:#x} + *n* · {PORT_STRIDE:#x}.\n\n")
        .unwrap();
    table(&mut page, port::REGISTERS, |register| match register.access {
        _ if FUNCTION_RESET_PORT.contains(&register.offset) || register.offset == port::PRODUCED => "reset",
        Access::Rw => "stays",
        _ => "",
    });
    rings(&mut page);
    page.push_str(
        "\n## Counters\n\nWords of COUNTERS, by what became of a frame.\n\n| offset | counter |\n|---|---|\n",
    );
    for counter in Counter::ALL {
        writeln!(page, "| {:#05x} | {} |", port::COUNTERS + *counter as u32 * 4, counter.name()).unwrap();
    }
    write!(
        page,
        "\n## Interrupts\n\nMSI-X: one vector a port, vector *n* for port *n*. Table at {:#x}, {} bytes an entry \
         (address low, address high, data, control: bit 0 masks, set after reset); pending bits at {:#x}.\n",
        pcie::MSIX_TABLE_OFFSET,
        pcie::MSIX_ENTRY_BYTES,
        pcie::MSIX_PENDING_OFFSET,
    )
    .unwrap();
    page
}

#[test]
fn the_page_is_up_to_date() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/registers.md");
    let page = page();
    if std::env::var_os("CHRONO_WRITE").is_some() {
        std::fs::write(path, &page).unwrap();
    }
    let found = std::fs::read_to_string(path).unwrap_or_default();
    assert!(
        found == page,
        "docs/registers.md is stale: run CHRONO_WRITE=1 cargo test -p layout --test registers_page"
    );
}
