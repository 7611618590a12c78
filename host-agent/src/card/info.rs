//! `host-agent card info`.

use super::{missing, open, Which};
use crate::error::Error;
use crate::output::{bytes, count, Output};
use clap::Args;
use driver::registers::{card as words, ports};
use driver::{identify, Card, CardError, Geometry};
use serde::Serialize;

/// `card info`.
#[derive(Debug, Args)]
pub struct Info {
    #[command(flatten)]
    pub which: Which,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

/// As `--json` prints it. The field names are an interface: add, don't change.
#[derive(Serialize)]
struct Printed {
    card: String,
    driver: Option<String>,
    group: Option<u32>,
    group_devices: Vec<String>,
    missing: Vec<missing::Missing>,
    slot: Option<Slot>,
    inside: Option<Inside>,
}

/// From configuration space.
#[derive(Serialize)]
struct Slot {
    revision: u8,
    link_speed: u8,
    link_lanes: u8,
    payload_bytes: usize,
    payload_bytes_supported: usize,
    function_level_reset: bool,
    vectors: usize,
}

/// From registers.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub struct Inside {
    ports: usize,
    slots: usize,
    port_ring_bytes: usize,
    volumes: usize,
    /// 0: the last session ended in order.
    pub session: u64,
    last_stamp: u64,
    last_number: u64,
    /// Bytes that each port's ring holds and no host has had.
    pub undrained: Vec<u64>,
}

impl Inside {
    /// Of a card that isn't up.
    pub fn of<C: Card>(card: &mut C, geometry: &Geometry) -> Result<Self, CardError> {
        let mut undrained = Vec::new();
        for port in 0..geometry.ports {
            undrained
                .push(u64::from(ports::RING_LEVEL.of(port).read(card)?) * layout::entry::HEADER_BYTES as u64);
        }
        Ok(Self {
            ports: geometry.ports,
            slots: geometry.slots,
            port_ring_bytes: geometry.port_ring_bytes,
            volumes: geometry.volumes,
            session: words::SESSION.read(card)?,
            last_stamp: words::LAST_STAMP.read(card)?,
            last_number: words::LAST_NUMBER.read(card)?,
            undrained,
        })
    }
}

/// Runs the command.
pub fn run(info: &Info) -> Result<(), Error> {
    let (system, device) = info.which.find()?;
    let missing = missing::of(&system, &device)?;
    let group_devices = match device.group {
        Some(group) => system.group(group)?,
        None => Vec::new(),
    };
    let mut printed = Printed {
        card: device.address.clone(),
        driver: device.driver.clone(),
        group: device.group,
        group_devices: group_devices.iter().map(|other| other.address.clone()).collect(),
        slot: None,
        inside: None,
        missing,
    };
    let mut output = Output::new();
    if !printed.missing.iter().any(|missing| missing.is_needed) {
        match open(&system, &device, 1) {
            Ok(mut card) => {
                let found = card.configuration();
                printed.slot = Some(Slot {
                    revision: found.revision,
                    link_speed: found.link.0,
                    link_lanes: found.link.1,
                    payload_bytes: found.payload_bytes.1,
                    payload_bytes_supported: found.payload_bytes.0,
                    function_level_reset: found.has_function_level_reset,
                    vectors: found.msix.vectors,
                });
                let geometry = identify(&mut card)?;
                printed.inside = Some(Inside::of(&mut card, &geometry)?);
            }
            // What sysfs says is worth printing all the same.
            Err(error) => output.note(error),
        }
    }
    match info.json {
        true => output.json(&printed)?,
        false => print(&printed, &mut output)?,
    }
    output.finish()
}

fn print(printed: &Printed, output: &mut Output) -> Result<(), Error> {
    output.line(format!("card            {}", printed.card))?;
    output.line(format!("driver          {}", printed.driver.as_deref().unwrap_or("none")))?;
    let group = printed.group.map_or_else(|| "none".into(), |group| group.to_string());
    output.line(format!("IOMMU group     {group}: {}", printed.group_devices.join(", ")))?;
    for missing in &printed.missing {
        output
            .line(format!("{}         {missing}", if missing.is_needed { "missing" } else { "better " }))?;
    }
    if let Some(slot) = &printed.slot {
        let payload =
            format!("payloads of {} bytes, {} supported", slot.payload_bytes, slot.payload_bytes_supported);
        output.line(format!(
            "link            generation {}, {} lanes, {payload}",
            slot.link_speed, slot.link_lanes
        ))?;
        let reset = if slot.function_level_reset { "yes" } else { "no" };
        output.line(format!("interrupts      {} vectors; function-level reset: {reset}", slot.vectors))?;
    }
    let Some(inside) = &printed.inside else { return Ok(()) };
    output.line(format!(
        "built with      {}, rings of {}, {} writes in flight a port, {} volumes",
        count(inside.ports as u64, "port", "ports"),
        bytes(inside.port_ring_bytes as u64),
        inside.slots,
        inside.volumes
    ))?;
    let session = match inside.session {
        0 => "none; the last one ended in order".into(),
        session => format!("{session}, which didn't end in order"),
    };
    output.line(format!("session         {session}"))?;
    output.line(format!("last number     {}, stamp {} ns", inside.last_number, inside.last_stamp))?;
    for (port, undrained) in inside.undrained.iter().enumerate().filter(|(_, undrained)| **undrained > 0) {
        output.line(format!("port {port}          holds {} that no host has had", bytes(*undrained)))?;
    }
    Ok(())
}
