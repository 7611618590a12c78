//! `emit-verilog [--ports N] OUT.v`: the gateware as Verilog, module `top`.

use hdl::card::Card;
use hdl::prelude::{check_all, generate_verilog, Block};
use std::process::ExitCode;

const USAGE: &str = "\
Writes the gateware of the card as Verilog.

Usage: emit-verilog [--ports N] OUT.v

  --ports N   ports of the card, 1 to 4 [default: 4]
  OUT.v       file to write; `-` is standard output

Rings have 32 KiB, buffers 16 KiB, as in the standard configuration.";

fn card<const P: usize>() -> Result<String, String> {
    let mut card = Box::new(Card::<P, 12, 10, 11>::default());
    card.connect_all();
    check_all(&*card).map_err(|error| format!("RustHDL's checks of the card: {error:?}"))?;
    Ok(generate_verilog(&*card))
}

fn misuse(what: &str) -> ExitCode {
    eprintln!("emit-verilog: {what}\n\n{USAGE}");
    ExitCode::from(2)
}

fn main() -> ExitCode {
    let mut ports = "4".to_owned();
    let mut out = None;
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--help" | "-h" => {
                println!("{USAGE}");
                return ExitCode::SUCCESS;
            }
            "--ports" => match arguments.next() {
                Some(number) => ports = number,
                None => return misuse("--ports needs a number"),
            },
            _ if out.is_none() && (argument == "-" || !argument.starts_with('-')) => out = Some(argument),
            _ => return misuse(&format!("`{argument}` isn't understood")),
        }
    }
    let verilog = match ports.as_str() {
        "1" => card::<1>(),
        "2" => card::<2>(),
        "3" => card::<3>(),
        "4" => card::<4>(),
        _ => return misuse(&format!("--ports {ports}: a card has 1 to 4 ports")),
    };
    let verilog = match verilog {
        Ok(verilog) => verilog,
        Err(error) => {
            eprintln!("emit-verilog: {error}");
            return ExitCode::FAILURE;
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
