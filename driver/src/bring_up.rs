//! Making a card ready.

use crate::card::{Card, CardError, DmaRegion};
use crate::drain::{Driver, Ring};
use crate::patience::Patience;
use crate::record::Progress;
use crate::registers::{self, card, ports, ALL_ONES};
use crate::statistics::Wrapping;
use layout::aoe::MAXIMUM_SECTORS;
use layout::pcie::{BOUNDARY_BYTES, MSIX_ENTRY_BYTES, MSIX_TABLE_OFFSET};
use layout::port_ring;
use layout::registers::{
    command, control, global, IDENTITY_VALUE, MAP_VERSION_VALUE, MAXIMUM_PORTS, PORT_DRAIN, PORT_LOCKED,
    VOLUMES, VOLUME_BEFORE, VOLUME_BOTH, VOLUME_JOURNAL, VOLUME_VALID,
};
use layout::ring::{MAILBOX_STRIDE, MAXIMUM_RING_BYTES, MINIMUM_RING_BYTES};
use std::time::Duration;

/// Bits of a volume's word that say how it is journaled and acknowledged.
const VOLUME_MODE: u32 = VOLUME_BEFORE | VOLUME_BOTH | VOLUME_JOURNAL;
/// How long a reset may take.
const RESET_LIMIT: Duration = Duration::from_millis(10);

/// Everything that a card is told at bring-up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BringUp {
    /// Number of this session; not zero.
    pub session: u64,
    /// Time to set the time base to, ns since the Unix epoch.
    pub time: u64,
    /// Stamps are above it: the last stamp in the journal, ns.
    pub stamp_floor: u64,
    /// Numbers are above it: the last number in the journal.
    pub number_floor: u64,
    /// Shelf and slot of the volumes; their place here is the index that entries carry. `None`: that index is no volume of the
    /// card's.
    pub volumes: Vec<Option<(u16, u8)>>,
    /// How each of them is journaled and acknowledged: bits `VOLUME_BEFORE`, `VOLUME_BOTH` and `VOLUME_JOURNAL` of
    /// `layout::registers`; none set for those that have no place here.
    pub volume_modes: Vec<u32>,
    /// One for each port of the card.
    pub ports: Vec<PortSettings>,
    /// Time-outs and periods.
    pub timeouts: Timeouts,
    /// How long the leaf clocks may take to lock, in time of the card.
    pub lock_limit: Duration,
}

impl BringUp {
    /// Session `session` at `time`, on a card with `ports` ports, a journal that is empty, and no
    /// volumes.
    pub fn new(session: u64, time: u64, ports: usize) -> Self {
        Self {
            session,
            time,
            stamp_floor: 0,
            number_floor: 0,
            volumes: Vec::new(),
            volume_modes: Vec::new(),
            ports: vec![PortSettings::default(); ports],
            timeouts: Timeouts::default(),
            lock_limit: Duration::from_millis(10),
        }
    }
}

/// What a port is told at bring-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortSettings {
    /// Bit mask of the indexes of the volumes that sources on this port may write.
    pub volumes: u32,
    /// Size of the ring in host memory: a power of two, 64 KiB to 1 GiB.
    pub ring_bytes: usize,
    /// The port's own ring is drained when it holds at least so many 64-byte lines.
    pub flush_level: u32,
    /// The sequence that the port's next record must have, if the journal holds its last one and the
    /// card has lost nothing since. Otherwise what comes first is taken for the first.
    pub next_sequence: Option<u64>,
}

impl Default for PortSettings {
    fn default() -> Self {
        let flush_level = reset_value(layout::registers::port::REGISTERS, FLUSH_LEVEL);
        Self { volumes: 0, ring_bytes: 1 << 20, flush_level, next_sequence: None }
    }
}

/// Time-outs and periods of the card, in ticks of 128 core cycles (`layout::registers::ticks`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// A write that isn't admitted so long after its arrival is dropped.
    pub hold: u32,
    /// A before-image read is sent again after that.
    pub retry: u32,
    /// A write without an answer has an unknown status after that.
    pub unknown: u32,
    /// The interlock of an unanswered write ends so long after the last copy.
    pub quarantine: u32,
    /// Between two periodic drains; 0: none.
    pub flush_period: u32,
    /// Least time between two interrupts of a port.
    pub interrupt_period: u32,
}

const FLUSH_LEVEL: u32 = layout::registers::port::FLUSH_LEVEL;

impl Default for Timeouts {
    /// What the register map has after reset, and says why.
    fn default() -> Self {
        let of = |offset| reset_value(global::REGISTERS, offset);
        Self {
            hold: of(global::HOLD),
            retry: of(global::RETRY),
            unknown: of(global::UNKNOWN),
            quarantine: of(global::QUARANTINE),
            flush_period: of(global::FLUSH_PERIOD),
            interrupt_period: of(global::INTERRUPT_PERIOD),
        }
    }
}

fn reset_value(map: &[layout::registers::Register], offset: u32) -> u32 {
    let register = map.iter().find(|register| register.offset == offset && register.bits == 32);
    register.unwrap_or_else(|| unreachable!("a constant of the map")).reset as u32
}

/// How a card is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Ports.
    pub ports: usize,
    /// Scoreboard slots of a port.
    pub slots: usize,
    /// Bytes of a port's own ring.
    pub port_ring_bytes: usize,
    /// Entries of the volume table.
    pub volumes: usize,
}

/// What bring-up found on the card before it changed anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// How the card is built.
    pub geometry: Geometry,
    /// The session that didn't end with [`Driver::stop`]: an unclean stop. What it left in the rings of
    /// the host is lost, and storage may be ahead of the journal.
    pub unclean_session: Option<u64>,
    /// The last stamp that the card had given, ns.
    pub last_stamp: u64,
    /// The last number that the card had given.
    pub last_number: u64,
}

/// Why a card could not be brought up.
#[derive(Debug, thiserror::Error)]
pub enum BringUpError {
    /// The card itself failed.
    #[error(transparent)]
    Card(#[from] CardError),
    /// It isn't ours.
    #[error("register 0x0000 reads {0:#010x}: this is not a Chronoswitch card")]
    Identity(u32),
    /// Newer or older gateware.
    #[error("the card has register map {0}, this driver knows {MAP_VERSION_VALUE}: use the driver that belongs to the gateware")]
    MapVersion(u32),
    /// GEOMETRY makes no sense.
    #[error("register 0x0008 (geometry) reads {value:#010x}: {reason}")]
    Geometry {
        /// What it reads.
        value: u32,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The caller's settings don't fit the card.
    #[error("{0}")]
    Settings(String),
    /// A register doesn't hold what was written.
    #[error("register {offset:#06x} ({name}) reads {found:#x} after {written:#x} was written")]
    NotTaken {
        /// Offset in BAR 0.
        offset: u32,
        /// Its name.
        name: &'static str,
        /// What it reads.
        found: u64,
        /// What was written.
        written: u64,
    },
    /// The function reset doesn't end.
    #[error("the card has not ended its function reset after {RESET_LIMIT:?}: reset the card as a whole")]
    Reset,
    /// Leaf clocks don't follow the time base.
    #[error(
        "the leaf clocks of ports {ports:?} are not locked after {limit:?}: check the clock of these ports"
    )]
    Unlocked {
        /// These ports.
        ports: Vec<usize>,
        /// How long they had.
        limit: Duration,
    },
}

impl<C: Card> Driver<C> {
    /// Makes `card` ready and opens it for writes.
    ///
    /// In this order: identify; look at the session; close writes and reset the function; session, time,
    /// floors, volumes, time-outs; rings, mailboxes, interrupts; drain; wait for the leaf clocks; open.
    pub fn bring_up(mut card: C, settings: &BringUp) -> Result<Self, BringUpError> {
        let geometry = identify(&mut card)?;
        check_settings(settings, &geometry)?;
        let found = look(&mut card, geometry)?;
        reset(&mut card, geometry.ports)?;
        set_card(&mut card, settings, &found)?;
        let mailboxes = card.map_dma(BOUNDARY_BYTES)?;
        let mut driver = Self { card, found, rings: Vec::new(), mailboxes, counters: Vec::new(), control: 0 };
        for (port, port_settings) in settings.ports.iter().enumerate() {
            driver.set_port(port, port_settings)?;
        }
        for port in 0..geometry.ports {
            ports::CONTROL.of(port).write(&mut driver.card, PORT_DRAIN)?;
        }
        driver.wait_for_clocks(settings.lock_limit)?;
        let open = control::TIME_ENABLED | control::WRITES_OPEN;
        driver.set_control(open)?;
        let status = card::STATUS.read(&mut driver.card)?;
        if status & open != open {
            return Err(not_taken(card::STATUS.offset(), "STATUS", status.into(), open.into()));
        }
        Ok(driver)
    }

    /// Rings, mailbox and interrupt of one port. Its drain stays off.
    fn set_port(&mut self, port: usize, settings: &PortSettings) -> Result<(), BringUpError> {
        let region = self.card.map_dma(settings.ring_bytes)?;
        check_region(&self.card, &region, settings.ring_bytes)?;
        let card = &mut self.card;
        ports::VOLUMES.of(port).write(card, settings.volumes)?;
        ports::FLUSH_LEVEL.of(port).write(card, settings.flush_level)?;
        ports::RING_SIZE.of(port).write(card, settings.ring_bytes.trailing_zeros())?;
        ports::RING_ADDRESS.of(port).write(card, region.bus_address)?;
        let mailbox = self.mailboxes.bus_address + (port * MAILBOX_STRIDE) as u64;
        ports::MAILBOX_ADDRESS.of(port).write(card, mailbox)?;
        ports::CONSUMED.of(port).write(card, 0)?;
        self.counters.push(Wrapping::start(card, port)?);
        if let Some((address, data)) = card.msix_message(port) {
            // Address low, address high, data, control: unmasked last, when the rest stands.
            let entry = (MSIX_TABLE_OFFSET + port * MSIX_ENTRY_BYTES) as u32;
            card.write(entry, address as u32)?;
            card.write(entry + 4, (address >> 32) as u32)?;
            card.write(entry + 8, data)?;
            card.write(entry + 12, 0)?;
        }
        // What the card kept from before has its old stamps, so the floor is no floor for them.
        let progress = Progress { next_sequence: settings.next_sequence, stamp: 0, number: 0 };
        self.rings.push(Ring::new(region, progress));
        Ok(())
    }

    fn wait_for_clocks(&mut self, limit: Duration) -> Result<(), BringUpError> {
        let ports = self.found.geometry.ports;
        let mut unlocked = Vec::new();
        let locked = wait_until(&mut self.card, limit, |card| {
            unlocked.clear();
            for port in 0..ports {
                if ports::STATUS.of(port).read(card)? & PORT_LOCKED == 0 {
                    unlocked.push(port);
                }
            }
            Ok(unlocked.is_empty())
        })?;
        if locked {
            return Ok(());
        }
        Err(BringUpError::Unlocked { ports: unlocked, limit })
    }
}

/// What kind of card this is. Changes nothing on it.
pub fn identify<C: Card>(card: &mut C) -> Result<Geometry, BringUpError> {
    match card::IDENTITY.read(card)? {
        IDENTITY_VALUE => {}
        ALL_ONES => return Err(CardError::Gone("register 0x0000 reads all ones".into()).into()),
        other => return Err(BringUpError::Identity(other)),
    }
    match card::MAP_VERSION.read(card)? {
        MAP_VERSION_VALUE => {}
        other => return Err(BringUpError::MapVersion(other)),
    }
    let value = card::GEOMETRY.read(card)?;
    let [ports, slots, ring_log2, volumes] = value.to_le_bytes();
    let wrong = |reason| Err(BringUpError::Geometry { value, reason });
    if ports == 0 || usize::from(ports) > MAXIMUM_PORTS {
        return wrong("the number of ports is not between 1 and 8");
    }
    if slots == 0 {
        return wrong("there are no scoreboard slots");
    }
    if !(15..=24).contains(&ring_log2) {
        return wrong("the size of a port's ring is not between 32 KiB and 16 MiB");
    }
    if volumes == 0 || usize::from(volumes) > VOLUMES {
        return wrong("the number of volumes is not between 1 and 16");
    }
    Ok(Geometry {
        ports: ports.into(),
        slots: slots.into(),
        port_ring_bytes: 1 << ring_log2,
        volumes: volumes.into(),
    })
}

fn check_settings(settings: &BringUp, geometry: &Geometry) -> Result<(), BringUpError> {
    let wrong = |text: String| Err(BringUpError::Settings(text));
    if settings.session == 0 {
        return wrong("session 0 means that no session is open; take another number".into());
    }
    if settings.ports.len() != geometry.ports {
        return wrong(format!(
            "settings for {} ports, but the card has {}",
            settings.ports.len(),
            geometry.ports
        ));
    }
    if settings.volumes.len() > geometry.volumes {
        return wrong(format!(
            "{} volumes, but the card has place for {}",
            settings.volumes.len(),
            geometry.volumes
        ));
    }
    for (index, place) in settings.volumes.iter().enumerate() {
        let Some(volume) = place else { continue };
        if settings.volumes[..index].contains(place) {
            return wrong(format!("volume {}.{} is named twice", volume.0, volume.1));
        }
        let both = VOLUME_BEFORE | VOLUME_BOTH;
        if settings.volume_modes.get(index).is_some_and(|mode| mode & both == both) {
            // Sources choose the length of their writes, up to what AoE allows.
            if let Err(error) = port_ring::check(geometry.port_ring_bytes, MAXIMUM_SECTORS, 2) {
                return wrong(format!(
                    "volume {}.{} is to have both before- and after-images, but the card's {error}: choose one of \
                     them for it, or load gateware with larger rings",
                    volume.0, volume.1
                ));
            }
        }
    }
    for (port, of_port) in settings.ports.iter().enumerate() {
        let bytes = of_port.ring_bytes;
        if !bytes.is_power_of_two() || !(MINIMUM_RING_BYTES..=MAXIMUM_RING_BYTES).contains(&bytes) {
            return wrong(format!(
                "port {port}: a ring of {bytes} bytes; a power of two from 64 KiB to 1 GiB is needed"
            ));
        }
        if u64::from(of_port.volumes) >> settings.volumes.len() != 0 {
            return wrong(format!(
                "port {port}: volume mask {:#x} names volumes that there aren't",
                of_port.volumes
            ));
        }
    }
    Ok(())
}

fn check_region<C: Card>(card: &C, region: &DmaRegion, bytes: usize) -> Result<(), CardError> {
    let mapped = card.dma_bytes(region).len();
    if region.bytes != bytes || mapped != bytes || !region.bus_address.is_multiple_of(BOUNDARY_BYTES as u64) {
        let reason = format!("{mapped} bytes at {:#x} came back", region.bus_address);
        return Err(CardError::Map { bytes, reason });
    }
    Ok(())
}

fn look<C: Card>(card: &mut C, geometry: Geometry) -> Result<Found, CardError> {
    let session = card::SESSION.read(card)?;
    Ok(Found {
        geometry,
        unclean_session: (session != 0).then_some(session),
        last_stamp: card::LAST_STAMP.read(card)?,
        last_number: card::LAST_NUMBER.read(card)?,
    })
}

/// Closes writes, stops the time base, resets the function, and waits until that shows.
fn reset<C: Card>(card: &mut C, ports: usize) -> Result<(), BringUpError> {
    card::CONTROL.write(card, 0)?;
    card::COMMAND.write(card, command::FUNCTION_RESET)?;
    let done = wait_until(card, RESET_LIMIT, |card| {
        if card::STATUS.read(card)? & (control::WRITES_OPEN | control::TIME_ENABLED) != 0 {
            return Ok(false);
        }
        for port in 0..ports {
            let drain = ports::CONTROL.of(port).read(card)? & PORT_DRAIN;
            if drain != 0 || ports::PRODUCED.of(port).read(card)? != 0 {
                return Ok(false);
            }
        }
        Ok(true)
    })?;
    card.function_was_reset();
    done.then_some(()).ok_or(BringUpError::Reset)
}

/// Session, time, floors, volumes, time-outs.
fn set_card<C: Card>(card: &mut C, settings: &BringUp, found: &Found) -> Result<(), BringUpError> {
    card::SESSION.write(card, settings.session)?;
    let session = card::SESSION.read(card)?;
    if session != settings.session {
        return Err(not_taken(card::SESSION.offset(), "SESSION", session, settings.session));
    }
    card::TIME_SET.write(card, settings.time)?;
    // A card that was used without this journal may be ahead of it; neither may run backwards.
    card::STAMP_FLOOR.write(card, settings.stamp_floor.max(found.last_stamp))?;
    card::NUMBER_FLOOR.write(card, settings.number_floor.max(found.last_number))?;
    card::CONTROL.write(card, control::TIME_ENABLED)?;
    for index in 0..found.geometry.volumes {
        let mode = settings.volume_modes.get(index).copied().unwrap_or(0) & VOLUME_MODE;
        let word = settings.volumes.get(index).copied().flatten();
        let word = word.map_or(0, |(shelf, slot)| volume_word(shelf, slot) | mode);
        registers::volume(index).write(card, word)?;
    }
    let timeouts = &settings.timeouts;
    card::HOLD.write(card, timeouts.hold)?;
    card::RETRY.write(card, timeouts.retry)?;
    card::UNKNOWN.write(card, timeouts.unknown)?;
    card::QUARANTINE.write(card, timeouts.quarantine)?;
    card::FLUSH_PERIOD.write(card, timeouts.flush_period)?;
    card::INTERRUPT_PERIOD.write(card, timeouts.interrupt_period)?;
    Ok(())
}

/// A valid word of the volume table (`layout::registers::global::VOLUME_TABLE`).
fn volume_word(shelf: u16, slot: u8) -> u32 {
    u32::from(shelf) | u32::from(slot) << 16 | VOLUME_VALID
}

fn not_taken(offset: u32, name: &'static str, found: u64, written: u64) -> BringUpError {
    BringUpError::NotTaken { offset, name, found, written }
}

/// Looks until `done`, or until `limit` of the card's time is over; says whether it is done.
fn wait_until<C: Card>(
    card: &mut C,
    limit: Duration,
    mut done: impl FnMut(&mut C) -> Result<bool, CardError>,
) -> Result<bool, CardError> {
    let mut patience = Patience::new(limit);
    while !done(card)? {
        if patience.is_over() {
            return Ok(false);
        }
        patience.wait(card)?;
    }
    Ok(true)
}
