//! `host-agent card selftest`: registers, DMA, interrupts, clocks, each proved and said.

use super::info::Inside;
use super::{Pace, Which};
use crate::error::Error;
use crate::output::{count, Output};
use clap::Args;
use driver::registers::{card as words, ALL_ONES};
use driver::{identify, BringUp, Card, CardError, Driver, Geometry};
use layout::registers::ticks;
use serde::Serialize;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Session of a selftest: told from an agent's, which count from 1.
const SESSION: u64 = u64::MAX;
/// Rings for it: the smallest there are.
const RING_BYTES: usize = layout::ring::MINIMUM_RING_BYTES;
/// How long the leaf clocks may take to lock, in time of the card.
const LOCK_LIMIT: Duration = Duration::from_millis(20);
/// How long a drain that was asked for may take, in time of the card.
const DRAIN_LIMIT: Duration = Duration::from_millis(5);
/// How long a card without writes may take to stop, in time of the card.
const STOP_LIMIT: Duration = Duration::from_millis(20);
/// Watermarks come seldom meanwhile, so that each drain is one that was asked for.
const FLUSH_MICROSECONDS: u64 = 1_000_000;

/// `card selftest`.
#[derive(Debug, Args)]
pub struct Selftest {
    #[command(flatten)]
    pub which: Which,
    /// Go on though the card holds records, or its last session didn't end in order: they are lost then
    #[arg(long)]
    pub force: bool,
    #[command(flatten)]
    pub pace: Pace,
    /// Print the result as one JSON object
    #[arg(long)]
    pub json: bool,
}

/// What was proved. The field names are an interface of `--json`: add, don't change.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Proved {
    /// Ports of the card.
    pub ports: usize,
    /// Registers that held each pattern.
    pub registers: usize,
    /// Records that came by DMA, every CRC right.
    pub records: u64,
    /// Ports whose vector fired.
    pub interrupts: Vec<usize>,
    /// Largest filtered phase error of the ports' clocks, ns.
    pub phase_ns: f64,
    /// How often the card's clock fits into the machine's: 1 for a card, more for a simulated one.
    pub slower: f64,
    /// What it took, s.
    pub seconds: f64,
}

/// Runs the command.
pub fn run(selftest: &Selftest) -> Result<(), Error> {
    let began = Instant::now();
    let mut output = Output::new();
    let mut card = selftest.which.open(selftest.pace.slower)?;
    let geometry = identify(&mut card)?;
    let inside = Inside::of(&mut card, &geometry)?;
    if !selftest.force {
        check_unused(&inside)?;
    }
    let registers = prove_registers(&mut card)?;
    let mut proved = prove(card, &geometry, registers, |card| card.take_notes(), &mut output)?;
    proved.seconds = began.elapsed().as_secs_f64();
    if selftest.json {
        output.json(&proved)?;
        return output.finish();
    }
    output.line(format!(
        "registers   {} held every pattern",
        count(proved.registers as u64, "register", "registers")
    ))?;
    output.line(format!("DMA         {} came whole", count(proved.records, "record", "records")))?;
    output.line(format!("interrupts  from ports {:?}", proved.interrupts))?;
    output.line(format!(
        "clocks      locked on {} ports, at most {:.3} ns off",
        proved.ports,
        proved.phase_ns.abs()
    ))?;
    if proved.slower > 1.5 {
        output.line(format!(
            "time        goes {:.0} times slower than here: a simulated card",
            proved.slower
        ))?;
    }
    output.line(format!("passed in {:.1} s", proved.seconds))?;
    output.finish()
}

/// A card that holds what somebody still wants is left alone.
fn check_unused(inside: &Inside) -> Result<(), Error> {
    if inside.session != 0 {
        return Err(Error::Failed(format!(
            "session {} of this card didn't end in order: card drain takes what it still holds (--force tests it \
             nevertheless, and loses that)",
            inside.session
        )));
    }
    let undrained: u64 = inside.undrained.iter().sum();
    if undrained > 0 {
        return Err(Error::Failed(format!(
            "the card holds {undrained} bytes of records that no host has had: card drain takes them (--force tests it \
             nevertheless, and loses them)"
        )));
    }
    Ok(())
}

/// Writes patterns into registers that do nothing while writes are closed, and reads them back.
fn prove_registers<C: Card>(card: &mut C) -> Result<usize, Error> {
    let failed = |name: &str, written: u64, found: u64| {
        Err(Error::Failed(format!(
            "register {name} reads {found:#x} after {written:#x} was written: the BAR, or the link, is broken"
        )))
    };
    let words32 = [("HOLD", words::HOLD), ("UNKNOWN", words::UNKNOWN), ("QUARANTINE", words::QUARANTINE)];
    for (name, word) in words32 {
        let before = word.read(card)?;
        for pattern in [0, 0x5555_5555, 0xAAAA_AAAA, 0x0000_FFFF, 1 << 31, ALL_ONES - 1] {
            word.write(card, pattern)?;
            let found = word.read(card)?;
            if found != pattern {
                return failed(name, pattern.into(), found.into());
            }
        }
        word.write(card, before)?;
    }
    // Of a register of 64 bits both halves, and that they take effect together.
    let before = words::TIME_SET.read(card)?;
    for pattern in [0, 0x0123_4567_89AB_CDEF, 0xFEDC_BA98_7654_3210] {
        words::TIME_SET.write(card, pattern)?;
        let found = words::TIME_SET.read(card)?;
        if found != pattern {
            return failed("TIME_SET", pattern, found);
        }
    }
    words::TIME_SET.write(card, before)?;
    Ok(words32.len() + 1)
}

/// Brings the card up with no volumes, so that no write is admitted, and proves the rest.
pub fn prove<C: Card>(
    card: C,
    geometry: &Geometry,
    registers: usize,
    notes: impl Fn(&mut C) -> Vec<String>,
    output: &mut Output,
) -> Result<Proved, Error> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |time| time.as_nanos() as u64);
    let mut settings = BringUp::new(SESSION, time, geometry.ports);
    settings.lock_limit = LOCK_LIMIT;
    settings.timeouts.flush_period = ticks(FLUSH_MICROSECONDS);
    settings.ports.iter_mut().for_each(|port| port.ring_bytes = RING_BYTES);
    let mut driver = Driver::bring_up(card, &settings)?;
    for note in notes(driver.card_mut()) {
        output.note(note);
    }
    let (at_first, began) = (driver.time_now()?, Instant::now());
    let (mut records, interrupts) = prove_dma(&mut driver)?;
    let mut phase_ns = 0f64;
    for port in 0..geometry.ports {
        let clock = driver.leaf_clock(port)?;
        if !clock.locked {
            return Err(Error::Failed(format!(
                "the clock of port {port} lost its lock: check that port's clock"
            )));
        }
        if clock.phase.abs() > phase_ns.abs() {
            phase_ns = clock.phase;
        }
    }
    // Long enough for the time that the card shows to have moved, whatever the card.
    let passed = driver.time_now()?.saturating_sub(at_first);
    if passed == 0 {
        return Err(Error::Failed("the card's time stands still: check the clock of its time base".into()));
    }
    let slower = began.elapsed().as_nanos() as f64 / passed as f64;
    let stopped = driver.stop(STOP_LIMIT, |driver| {
        for port in 0..driver.ports() {
            let taken = driver.batch(port).len();
            records += taken as u64;
            driver.consume(port, taken)?;
        }
        Ok::<_, CardError>(())
    });
    stopped.map_err(|error| Error::Failed(format!("stopping the card: {error}")))?;
    Ok(Proved { ports: geometry.ports, registers, records, interrupts, phase_ns, slower, seconds: 0.0 })
}

/// Asks every port for a drain: a watermark must come, whole, and its vector must fire.
fn prove_dma<C: Card>(driver: &mut Driver<C>) -> Result<(u64, Vec<usize>), Error> {
    let ports = driver.ports();
    let (mut came, mut fired, mut records) = (vec![false; ports], 0u64, 0);
    driver.flush()?;
    let mut left = DRAIN_LIMIT;
    let step = DRAIN_LIMIT / 50;
    while came.contains(&false) || fired.count_ones() < ports as u32 {
        if left.is_zero() {
            break;
        }
        fired |= driver.card_mut().wait(step)?.0 & ((1 << ports) - 1);
        left = left.saturating_sub(step);
        driver.poll()?;
        for (port, came) in came.iter_mut().enumerate() {
            let taken = driver.batch(port).len();
            *came |= taken > 0;
            records += taken as u64;
            driver.consume(port, taken)?;
        }
    }
    if let Some(port) = came.iter().position(|came| !came) {
        return Err(Error::Failed(format!(
            "nothing came of port {port} by DMA: look for DMAR or AMD-Vi faults in the kernel's log, and whether bus \
             mastering is on"
        )));
    }
    let interrupts: Vec<usize> = (0..ports).filter(|port| fired >> port & 1 == 1).collect();
    if interrupts.len() < ports {
        return Err(Error::Failed(format!(
            "DMA works, but interrupts came only from ports {interrupts:?}: is interrupt remapping on? (The rings \
             would be looked at from time to time.)"
        )));
    }
    Ok((records, interrupts))
}

#[cfg(test)]
mod tests {
    use super::*;
    use driver::fake::{FakeCard, Step};

    #[test]
    fn a_register_that_does_not_hold_is_named() {
        let mut card = FakeCard::new(2);
        assert_eq!(prove_registers(&mut card).expect("a good card"), 4);
        card.run(Step::Gone);
        assert!(prove_registers(&mut card).is_err());
    }

    #[test]
    fn a_card_that_holds_something_is_left_alone() {
        let mut card = FakeCard::new(2);
        let geometry = identify(&mut card).expect("a card");
        assert!(check_unused(&Inside::of(&mut card, &geometry).expect("a card")).is_ok());
        card.set(FakeCard::of_port(1, layout::registers::port::RING_LEVEL), 3);
        let error = check_unused(&Inside::of(&mut card, &geometry).expect("a card")).expect_err("records");
        assert!(error.to_string().contains("192 bytes"), "{error}");
        card.set64(layout::registers::global::SESSION, 9);
        let error = check_unused(&Inside::of(&mut card, &geometry).expect("a card")).expect_err("a session");
        assert!(error.to_string().contains("session 9"), "{error}");
    }

    #[test]
    fn dma_that_does_not_come_is_named() {
        let mut card = FakeCard::new(2);
        let geometry = identify(&mut card).expect("a card");
        let error =
            prove(card, &geometry, 0, |_| Vec::new(), &mut Output::new()).expect_err("no DMA").to_string();
        assert!(error.contains("port 0") && error.contains("DMAR"), "{error}");
    }
}
