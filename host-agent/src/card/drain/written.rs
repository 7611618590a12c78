//! Where writes are under way, and where a volume was written since somebody asked.

use crate::replay::Expected;
use crate::through_card::Extents;
use driver::Record;
use journal::takes_order;
use layout::entry::{flags, EntryHeader, Kind, Updated};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Range;
use std::time::Duration;

/// Ranges of a watched volume that are told apart; with more, it counts as written everywhere.
const MOST_RANGES: usize = 1 << 16;
const EVERYWHERE: Range<u64> = 0..u64::MAX;

#[derive(Clone, Debug)]
struct Place {
    volume: u16,
    sectors: Range<u64>,
}

impl Place {
    fn of(header: &EntryHeader) -> Self {
        let (first, count) = (header.lba(), u64::from(header.sectors.get()));
        Self { volume: header.volume.get(), sectors: first..first.saturating_add(count) }
    }
}

/// See the module. Fed with every record as it comes out of the ports' rings, which is before the journal has it.
pub struct Written {
    unanswered: BTreeMap<u64, Place>,
    /// Unknown, but may still be executed until a stamp: that, number, place. Rising.
    quarantined: VecDeque<(u64, u64, Place)>,
    /// ns of the card's time.
    quarantine: u64,
    /// The card's time, which its time-outs go by: the last stamp seen, or what was told.
    now: u64,
    watched: Option<Watched>,
    /// Gaps that came.
    gaps: u64,
    /// Last stamp of an entry.
    last_entry: u64,
}

struct Watched {
    volume: u16,
    written: Extents,
    executed: Extents,
}

impl Written {
    /// With so long a quarantine, in the card's time.
    pub fn new(quarantine: Duration) -> Self {
        let quarantine = u64::try_from(quarantine.as_nanos()).unwrap_or(u64::MAX);
        Self {
            unanswered: BTreeMap::new(),
            quarantined: VecDeque::new(),
            quarantine,
            now: 0,
            watched: None,
            gaps: 0,
            last_entry: 0,
        }
    }

    /// The card's time as far as it is known; 0: not at all so far.
    pub fn now(&self) -> u64 {
        self.now
    }

    /// The card's time is that, at least. Where nothing happens, no stamp tells.
    pub fn tell_time(&mut self, now: u64) {
        self.now = self.now.max(now);
    }

    /// Gaps that came out of the ports' rings.
    pub fn gaps(&self) -> u64 {
        self.gaps
    }

    /// Last stamp of an entry that came; 0: none did.
    pub fn last_entry(&self) -> u64 {
        self.last_entry
    }

    /// What was executed may not be what is there: something from before may have been executed behind it.
    pub fn forget_executed(&mut self) {
        if let Some(watched) = &mut self.watched {
            watched.executed = Extents::default();
        }
    }

    fn end_quarantines(&mut self) {
        while self.quarantined.front().is_some_and(|(until, ..)| *until < self.now) {
            self.quarantined.pop_front();
        }
    }

    /// From now on `volume` is watched. Where it was written since it was last watched, and the target has executed it.
    pub fn watch(&mut self, volume: u16) -> Extents {
        let new = Watched { volume, written: Extents::default(), executed: Extents::default() };
        let old = self.watched.replace(new);
        old.filter(|old| old.volume == volume).map(|old| old.executed).unwrap_or_default()
    }

    /// Where the watched volume was written; `None`: nobody has watched one since the session began.
    pub fn written(&self) -> Option<Extents> {
        self.watched.as_ref().map(|watched| watched.written.clone())
    }

    /// Where writes of a volume have no answer, or may still be executed.
    pub fn unsettled(&mut self, volume: u16) -> Extents {
        self.end_quarantines();
        let places = self.unanswered.values().chain(self.quarantined.iter().map(|(.., place)| place));
        let mut unsettled = Extents::default();
        places.filter(|place| place.volume == volume).for_each(|place| unsettled.add(place.sectors.clone()));
        unsettled
    }

    fn note_written(&mut self, place: &Place) {
        let Some(watched) = self.watched.as_mut().filter(|watched| watched.volume == place.volume) else {
            return;
        };
        watched.written.add(place.sectors.clone());
        if watched.written.count() > MOST_RANGES {
            watched.written.add(EVERYWHERE);
        }
        // Until it is answered.
        watched.executed.remove(place.sectors.clone());
    }

    fn note_executed(&mut self, place: &Place) {
        let Some(watched) = self.watched.as_mut().filter(|watched| watched.volume == place.volume) else {
            return;
        };
        if watched.executed.count() < MOST_RANGES {
            watched.executed.add(place.sectors.clone());
        }
    }

    fn completion(&mut self, record: &Record<'_>) {
        let number = record.header.number.get();
        let place = self.unanswered.remove(&number);
        let late = record.header.flags.get() & flags::LATE != 0;
        match (place, record.updated) {
            (Some(place), Updated::Updated) if !late => self.note_executed(&place),
            (Some(_), Updated::Refused | Updated::Cancelled) if !late => {}
            (Some(place), _) => {
                self.quarantined.push_back((self.now.saturating_add(self.quarantine), number, place));
            }
            // To something from before this session, or late: it may have been executed just now.
            (None, _) => match self.quarantined.iter().find(|(_, of, _)| *of == number) {
                Some((.., place)) => self.note_written(&place.clone()),
                None => self.note_written_somewhere(),
            },
        }
    }

    fn note_written_somewhere(&mut self) {
        if let Some(watched) = &mut self.watched {
            watched.written.add(EVERYWHERE);
            watched.executed = Extents::default();
        }
    }
}

impl Expected for Written {
    fn entry(&mut self, _record: &Record<'_>) -> bool {
        true
    }

    fn seen(&mut self, record: &Record<'_>) {
        self.tell_time(record.header.timestamp.get());
        self.end_quarantines();
        match record.kind {
            Kind::Completion => self.completion(record),
            // What was written, and which answers came, is among what is missing.
            Kind::Gap => {
                self.gaps += 1;
                self.note_written_somewhere();
            }
            kind if takes_order(kind) => {
                let place = Place::of(record.header);
                self.last_entry = record.header.timestamp.get();
                self.note_written(&place);
                if record.updated == Updated::Pending {
                    self.unanswered.insert(record.header.number.get(), place);
                }
            }
            _ => {}
        }
    }
}
