//! Writes that are held or in flight: no two of them overlap.

/// Writes in flight at once, over all ports: a slot is a byte.
pub const MOST_FLIGHTS: usize = 256;

/// Where a write goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Index of the volume.
    pub volume: u16,
    /// First sector.
    pub lba: u64,
    /// Sectors; not zero.
    pub sectors: u16,
}

impl Place {
    fn end(&self) -> u64 {
        self.lba + u64::from(self.sectors)
    }

    fn overlaps(&self, other: &Place) -> bool {
        self.volume == other.volume && self.lba < other.end() && other.lba < self.end()
    }
}

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Flight {
    pub place: Place,
    pub number: u64,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Flights {
    /// The lowest free place is taken first, so that few are looked at.
    slots: Vec<Option<Flight>>,
    count: usize,
}

impl Flights {
    /// A slot for it, unless it overlaps another or there is none.
    pub fn enter(&mut self, place: Place) -> Option<u8> {
        assert!(place.sectors > 0, "a write has sectors");
        let mut free = None;
        for (slot, flight) in self.slots.iter().enumerate() {
            match flight {
                Some(flight) if flight.place.overlaps(&place) => return None,
                Some(_) => {}
                None => free = free.or(Some(slot)),
            }
        }
        let slot = free.unwrap_or(self.slots.len());
        let index = u8::try_from(slot).ok()?;
        let flight = Some(Flight { place, number: Flight::UNNUMBERED });
        match self.slots.get_mut(slot) {
            Some(free) => *free = flight,
            None => self.slots.push(flight),
        }
        self.count += 1;
        assert!(self.count <= MOST_FLIGHTS, "a slot is a byte");
        Some(index)
    }

    pub fn at(&mut self, slot: u8) -> &mut Flight {
        self.slots[usize::from(slot)].as_mut().expect("a slot is used until it is left")
    }

    pub fn leave(&mut self, slot: u8) {
        let left = self.slots[usize::from(slot)].take();
        assert!(left.is_some(), "a slot is left once");
        self.count -= 1;
        while self.slots.last().is_some_and(Option::is_none) {
            self.slots.pop();
        }
    }

    /// The lowest number in flight; what is only held has none yet.
    pub fn lowest(&self) -> Option<u64> {
        let numbers = self.slots.iter().flatten().map(|flight| flight.number);
        numbers.filter(|number| *number != Flight::UNNUMBERED).min()
    }

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}
