//! Writes the Verilog of the card: `emit_verilog OUT.v [--ports 1|2|4]`.

use hdl::card::Card;
use hdl::prelude::{check_all, generate_verilog, Block};
use std::process::ExitCode;

/// The standard rings (32 KiB) and buffers (16 KiB) with `P` ports.
fn verilog<const P: usize>() -> Result<String, String> {
    let mut card = Box::new(Card::<P, 12, 10, 11>::default());
    card.connect_all();
    check_all(&*card).map_err(|error| format!("the card's checks: {error}"))?;
    Ok(generate_verilog(&*card))
}

fn emit(arguments: &[String]) -> Result<(), String> {
    let (path, ports) = match arguments {
        [path] => (path, "4"),
        [path, option, ports] if option == "--ports" => (path, ports.as_str()),
        _ => return Err("usage: emit_verilog OUT.v [--ports 1|2|4]".into()),
    };
    let text = match ports {
        "1" => verilog::<1>()?,
        "2" => verilog::<2>()?,
        "4" => verilog::<4>()?,
        other => return Err(format!("{other} ports: this program is built for 1, 2 and 4")),
    };
    std::fs::write(path, &text).map_err(|error| format!("{path}: {error}"))?;
    println!("{path}: a card with {ports} ports, {} lines of Verilog", text.lines().count());
    Ok(())
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match emit(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("emit_verilog: {error}");
            ExitCode::FAILURE
        }
    }
}
