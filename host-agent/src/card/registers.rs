//! `host-agent card registers`.

use super::Which;
use crate::error::Error;
use crate::output::Output;
use clap::Args;
use driver::registers::ALL_ONES;
use driver::{identify, Card, CardError};
use layout::registers::{global, port, Counter, Register, PORT_BASE, PORT_STRIDE, SOURCES};
use serde::Serialize;

/// `card registers`.
#[derive(Debug, Args)]
pub struct Registers {
    #[command(flatten)]
    pub which: Which,
    /// Print one JSON object a line
    #[arg(long)]
    pub json: bool,
}

/// A register with its value, as `--json` prints it. The field names are an interface: add, don't change.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Value {
    /// Its offset in BAR 0.
    pub offset: u32,
    /// Its name.
    pub name: String,
    /// The port whose it is.
    pub port: Option<usize>,
    /// What it reads.
    pub value: u64,
    /// What it is, with units.
    pub doc: &'static str,
}

/// Runs the command.
pub fn run(registers: &Registers) -> Result<(), Error> {
    let mut card = registers.which.open(1)?;
    let geometry = identify(&mut card)?;
    let mut output = Output::new();
    for value in read(&mut card, geometry.ports, geometry.volumes)? {
        match registers.json {
            true => output.json(&value)?,
            false => output.line(format!("{:#06x}  {:<24} {:#x}", value.offset, value.name, value.value))?,
        }
    }
    output.finish()
}

/// Every register of a card, the tables' entries one by one.
pub fn read<C: Card>(card: &mut C, ports: usize, volumes: usize) -> Result<Vec<Value>, CardError> {
    let mut values = Vec::new();
    for register in global::REGISTERS {
        let entries = if register.offset == global::VOLUME_TABLE { volumes } else { 1 };
        read_register(card, register, 0, None, entries, &mut values)?;
    }
    for index in 0..ports {
        let base = PORT_BASE + PORT_STRIDE * index as u32;
        for register in port::REGISTERS {
            let entries = match register.offset {
                port::COUNTERS => Counter::ALL.len(),
                port::SOURCE_TABLE => SOURCES,
                _ => 1,
            };
            read_register(card, register, base, Some(index), entries, &mut values)?;
        }
    }
    Ok(values)
}

fn read_register<C: Card>(
    card: &mut C,
    register: &'static Register,
    base: u32,
    port: Option<usize>,
    entries: usize,
    values: &mut Vec<Value>,
) -> Result<(), CardError> {
    for entry in 0..entries {
        let offset = base + register.offset + entry as u32 * u32::from(register.bits / 8);
        let low = card.read(offset)?;
        // Nothing in between: the latched half is for the very next read.
        let high = if register.bits == 64 { card.read(offset + 4)? } else { 0 };
        if low == ALL_ONES && card.read(global::IDENTITY)? == ALL_ONES {
            return Err(CardError::Gone(format!(
                "register {offset:#06x} and the card's identity read all ones"
            )));
        }
        let name = match (port, register.offset, entries) {
            (Some(_), port::COUNTERS, _) => Counter::ALL[entry].name().into(),
            (_, _, 1) => register.name.to_string(),
            _ => format!("{}[{entry}]", register.name),
        };
        let name = port.map_or_else(|| name.clone(), |port| format!("{port}.{name}"));
        values.push(Value {
            offset,
            name,
            port,
            value: u64::from(high) << 32 | u64::from(low),
            doc: register.doc,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use driver::fake::{FakeCard, Step};

    #[test]
    fn every_register_is_read_where_it_is() {
        let mut card = FakeCard::new(2);
        card.set64(global::LAST_STAMP, 0x0123_4567_89AB_CDEF);
        card.set(FakeCard::of_port(1, port::COUNTERS + 4), 77);
        let values = read(&mut card, 2, 16).expect("a card");
        let of = |name: &str| values.iter().find(|value| value.name == name).expect("a register").value;
        assert_eq!(of("IDENTITY"), u64::from(layout::registers::IDENTITY_VALUE));
        assert_eq!(of("LAST_STAMP"), 0x0123_4567_89AB_CDEF);
        assert_eq!((of("1.journaled"), of("0.journaled")), (77, 0));
        let per_port = port::REGISTERS.len() - 2 + Counter::ALL.len() + SOURCES;
        assert_eq!(values.len(), global::REGISTERS.len() - 1 + 16 + 2 * per_port);
        card.run(Step::Gone);
        assert!(matches!(read(&mut card, 2, 16), Err(CardError::Gone(_))));
    }
}
