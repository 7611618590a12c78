//! `docs/registers.md` is what `layout::registers` says. `CHRONO_WRITE=1` writes it anew.

use layout::pcie;
use layout::registers::{control, global, port, Access, Counter, Register, FUNCTION_RESET_PORT};
use layout::registers::{CORE_HZ, IDENTITY_VALUE, PORT_BASE, PORT_STRIDE, TICK_CYCLES};
use std::fmt::Write;

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
