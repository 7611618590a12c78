//! `emit-verilog [--ports N] [--ring KIB] OUT.v`, `emit-verilog --block NAME OUT.v`: the gateware, or a block of it, as Verilog, module `top`.

use hdl::arbiter::Arbiter;
use hdl::card::Card;
use hdl::host::planner::Planner;
use hdl::host::schedule::Schedule;
use hdl::host::transmitter::Transmitter;
use hdl::interlock::Interlock;
use hdl::leaf_clock::LeafClock;
use hdl::prelude::{check_all, generate_verilog, Block};
use layout::aoe::MAXIMUM_SECTORS;
use layout::{port_ring, ring};
use std::process::ExitCode;

const USAGE: &str = "\
Writes the gateware of the card as Verilog.

Usage: emit-verilog [--ports N] [--ring KIB] OUT.v
       emit-verilog --block NAME OUT.v

  --ports N      ports of the card, 1 to 4 [default: 4]
  --ring KIB     size of each port's ring [default: 64, as in the standard configuration]: with 32 volumes have either
                 before- or after-images, and drivers refuse both (docs/registers.md)
  --block NAME   only this block, as small as it gets (two ports, rings of 8 KiB), for formal proofs:
                 arbiter, interlock, leaf-clock, planner, schedule, transmitter
  OUT.v          file to write; `-` is standard output

The card's buffers have 16 KiB, as in the standard configuration.";

fn verilog_of<B: Block + Default>() -> Result<String, String> {
    let mut block = Box::<B>::default();
    block.connect_all();
    check_all(&*block).map_err(|error| format!("RustHDL's checks: {error:?}"))?;
    Ok(generate_verilog(&*block))
}

fn card<const P: usize>(ring_kib: usize) -> Result<String, String> {
    match ring_kib {
        32 => verilog_of::<Card<P, 12, 10, 11>>(),
        64 => verilog_of::<Card<P, 13, 11, 11>>(),
        _ => Err(format!("rings of {ring_kib} KiB: 32 and 64 can be had")),
    }
}

/// That rings of this size can be: the largest entries must fit twice, a whole ring the smallest one of a host.
fn check_ring(kib: usize) -> Result<(), String> {
    let bytes = kib.saturating_mul(1024);
    port_ring::check(bytes, MAXIMUM_SECTORS, 1).map_err(|error| error.to_string())?;
    if bytes > ring::MINIMUM_RING_BYTES {
        let most = ring::MINIMUM_RING_BYTES / 1024;
        return Err(format!(
            "rings of {kib} KiB: a drain must fit the smallest ring of a host, which has {most} KiB"
        ));
    }
    if !kib.is_power_of_two() {
        return Err(format!("rings of {kib} KiB: a ring's size is a power of two"));
    }
    Ok(())
}

/// The card with so many ports.
fn card_with(ports: &str, ring_kib: usize) -> Option<Result<String, String>> {
    Some(match ports {
        "1" => card::<1>(ring_kib),
        "2" => card::<2>(ring_kib),
        "3" => card::<3>(ring_kib),
        "4" => card::<4>(ring_kib),
        _ => return None,
    })
}

/// A block by its name.
fn block(name: &str) -> Option<Result<String, String>> {
    Some(match name {
        "arbiter" => verilog_of::<Arbiter<2>>(),
        "interlock" => verilog_of::<Interlock<2>>(),
        "leaf-clock" => verilog_of::<LeafClock>(),
        "planner" => verilog_of::<Planner<2, 10, 8>>(),
        "schedule" => verilog_of::<Schedule<2, 8>>(),
        "transmitter" => verilog_of::<Transmitter>(),
        _ => return None,
    })
}

fn misuse(what: &str) -> ExitCode {
    eprintln!("emit-verilog: {what}\n\n{USAGE}");
    ExitCode::from(2)
}

fn main() -> ExitCode {
    let (mut ports, mut ring_kib, mut named) = (None, None, None);
    let mut out = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--help" | "-h" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            "--ports" => match arguments.next() {
                Some(number) => ports = Some(number),
                None => return misuse("--ports needs a number"),
            },
            "--ring" => match arguments.next().and_then(|kib| kib.parse().ok()) {
                Some(kib) => ring_kib = Some(kib),
                None => return misuse("--ring needs a number of KiB"),
            },
            "--block" => match arguments.next() {
                Some(name) => named = Some(name),
                None => return misuse("--block needs a name"),
            },
            _ if out.is_none() && (argument == "-" || !argument.starts_with('-')) => out = Some(argument),
            _ => return misuse(&format!("`{argument}` isn't understood")),
        }
    }
    if named.is_some() && (ports.is_some() || ring_kib.is_some()) {
        return misuse("a block has no --ports and no --ring");
    }
    let ring_kib = ring_kib.unwrap_or(64);
    if let Err(why) = check_ring(ring_kib) {
        return misuse(&why);
    }
    let ports = ports.as_deref().unwrap_or("4");
    let made = match &named {
        Some(name) => block(name),
        None => card_with(ports, ring_kib),
    };
    let verilog = match made {
        Some(Ok(verilog)) => verilog,
        Some(Err(error)) => {
            eprintln!("emit-verilog: {error}");
            return ExitCode::FAILURE;
        }
        None => {
            let what = named.as_deref().unwrap_or(ports);
            return misuse(&format!("`{what}`: a card has 1 to 4 ports, and blocks are those listed"));
        }
    };
    match out.as_deref() {
        None => misuse("no file to write was named"),
        Some("-") => {
            print!("{verilog}");
            ExitCode::SUCCESS
        }
        Some(path) => match std::fs::write(path, verilog) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("emit-verilog: {path}: {error}");
                ExitCode::FAILURE
            }
        },
    }
}
