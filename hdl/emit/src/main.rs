//! `emit-verilog [--ports N | --block NAME] OUT.v`: the gateware, or a block of it, as Verilog, module `top`.

use hdl::arbiter::Arbiter;
use hdl::card::Card;
use hdl::host::planner::Planner;
use hdl::host::schedule::Schedule;
use hdl::host::transmitter::Transmitter;
use hdl::interlock::Interlock;
use hdl::leaf_clock::LeafClock;
use hdl::prelude::{check_all, generate_verilog, Block};
use std::process::ExitCode;

const USAGE: &str = "\
Writes the gateware of the card as Verilog.

Usage: emit-verilog [--ports N | --block NAME] OUT.v

  --ports N      ports of the card, 1 to 4 [default: 4]
  --block NAME   only this block, as small as it gets (two ports, rings of 8 KiB), for formal proofs:
                 arbiter, interlock, leaf-clock, planner, schedule, transmitter
  OUT.v          file to write; `-` is standard output

The card's rings have 32 KiB, its buffers 16 KiB, as in the standard configuration.";

fn verilog_of<B: Block + Default>() -> Result<String, String> {
    let mut block = Box::<B>::default();
    block.connect_all();
    check_all(&*block).map_err(|error| format!("RustHDL's checks: {error:?}"))?;
    Ok(generate_verilog(&*block))
}

fn card<const P: usize>() -> Result<String, String> {
    verilog_of::<Card<P, 12, 10, 11>>()
}

/// Port numbers and blocks by name.
fn verilog(what: &str) -> Option<Result<String, String>> {
    Some(match what {
        "1" => card::<1>(),
        "2" => card::<2>(),
        "3" => card::<3>(),
        "4" => card::<4>(),
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
    let mut what = "4".to_owned();
    let mut out = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--help" | "-h" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            "--ports" => match arguments.next() {
                Some(number) if number.bytes().all(|b| b.is_ascii_digit()) => what = number,
                _ => return misuse("--ports needs a number"),
            },
            "--block" => match arguments.next() {
                Some(name) if !name.bytes().any(|b| b.is_ascii_digit()) => what = name,
                _ => return misuse("--block needs a name"),
            },
            _ if out.is_none() && (argument == "-" || !argument.starts_with('-')) => out = Some(argument),
            _ => return misuse(&format!("`{argument}` isn't understood")),
        }
    }
    let verilog = match verilog(&what) {
        Some(Ok(verilog)) => verilog,
        Some(Err(error)) => {
            eprintln!("emit-verilog: {error}");
            return ExitCode::FAILURE;
        }
        None => return misuse(&format!("`{what}`: a card has 1 to 4 ports, and blocks are those listed")),
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
