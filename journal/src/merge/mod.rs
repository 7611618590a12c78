//! Merging: the writes of a window become one entry per location, and the room that they took is free again (claims
//! 2, 15 and 25).
//!
//! | file | job |
//! |---|---|
//! | `due` | what the schedule has due |
//! | `final_watermark` | up to where nothing can change any more |
//! | `pass` | the windows, and who was complete in them |
//! | `combine` | the result of a window's writes |
//! | `step` | one step: read, combine, write |
//! | `output` | the merged segments |
//! | `give_up` | what nobody keeps any more: into the bases, then away |
//! | `preview` | what would be done, without doing it |
//!
//! A step runs beside its journal's owner, who goes on appending: it reads what is durable and immutable, and writes
//! segments that the owner has handed it. Only then the owner changes the superblock, once, and in that moment
//! what was merged takes the place of what it was made from. A crash before leaves free segments, a crash behind the
//! finished step.

mod combine;
mod due;
pub(crate) mod final_watermark;
mod give_up;
mod output;
mod pass;
mod preview;
mod step;

pub use preview::{preview, Preview};

use crate::base::Rolling;
use crate::error::Error;
use crate::open::scrub;
use crate::schedule::Schedule;
use crate::storage::{self, Storage};
use crate::tables::Volume;
use crate::writer::Journal;
use layout::journal_file::{features, role, technique, Portion, PORTIONS};
use std::path::PathBuf;
use std::sync::Arc;
use step::named_moments;
use zerocopy::FromZeros;

/// How to merge.
#[derive(Clone, Debug, Default)]
pub struct MergeOptions {
    /// Room is short: what the schedule allows to shrink then is due earlier.
    pub short: bool,
    /// Only where more segments become free than are written: as much is due later, and more will have been merged.
    pub freeing_only: bool,
    /// Bases by the names of their volumes: what is given up is rolled into them first.
    pub bases: Vec<(String, PathBuf)>,
}

/// What merging did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Steps.
    pub steps: u64,
    /// Windows that were made.
    pub windows: u64,
    /// Entries that went into them, and bytes of those.
    pub entries_in: u64,
    /// See `entries_in`.
    pub bytes_in: u64,
    /// Merged entries that were made of them, and bytes of those.
    pub entries_out: u64,
    /// See `entries_out`.
    pub bytes_out: u64,
    /// Segments that became free.
    pub segments_freed: u64,
    /// Segments that were written.
    pub segments_written: u64,
    /// Orders that were given up, and bytes that were rolled into bases before.
    pub given_up: u64,
    /// See `given_up`.
    pub bytes_rolled: u64,
    /// Bases that were rolled on.
    pub rolled: Vec<RolledBase>,
    /// What is due and had to stay, and why.
    pub held_back: Vec<String>,
}

/// A base that took in what was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RolledBase {
    /// Name of the volume.
    pub volume: String,
    /// It holds every entry up to this order, stamped so.
    pub to: (u64, u64),
    /// Bytes that were written into it.
    pub bytes: u64,
}

impl Merged {
    /// Counts a step too. What is held back is what the last step says.
    pub fn add(&mut self, step: &Merged) {
        self.steps += step.steps;
        self.windows += step.windows;
        self.entries_in += step.entries_in;
        self.bytes_in += step.bytes_in;
        self.entries_out += step.entries_out;
        self.bytes_out += step.bytes_out;
        self.segments_freed += step.segments_freed;
        self.segments_written += step.segments_written;
        self.given_up += step.given_up;
        self.bytes_rolled += step.bytes_rolled;
        for base in &step.rolled {
            match self.rolled.iter_mut().find(|known| known.volume == base.volume) {
                Some(known) => (known.to, known.bytes) = (base.to, known.bytes + base.bytes),
                None => self.rolled.push(base.clone()),
            }
        }
        self.held_back.clone_from(&step.held_back);
    }
}

/// Leave to do one step of merging, beside the owner. It has to be handed back: [`Journal::finish_merge`].
pub struct MergeStep {
    storage: Arc<dyn Storage>,
    session: u64,
    /// Free segments that the step may write.
    slots: Vec<u32>,
    options: MergeOptions,
    /// Bases that are to be rolled on: then that is the step.
    rolling: Vec<Rolling>,
    /// How often its input is halved.
    halvings: u32,
}

/// What a step comes back with.
pub struct MergeOutcome {
    /// The change that makes it count; `None`: nothing was due, or it failed.
    change: Option<Change>,
    /// Bases that have to be rolled on to this entry, order and stamp, before anything else can happen.
    roll: Option<(u64, u64)>,
    /// Bases that were rolled on, and entries in them that nobody knows the fate of.
    rolled: Vec<(Rolling, u64)>,
    /// Segments that were written, and those that were not needed.
    taken: Vec<u32>,
    spare: Vec<u32>,
    /// Sectors that volumes have where history begins once the change counts: those of which it gives up a resize.
    first_sizes: Vec<(u16, u64)>,
    /// Orders of the moments that had a name when it began.
    named: Vec<u64>,
    /// Windows that it tried to make.
    windows: usize,
    result: Result<Merged, Error>,
}

/// Is a base what the moments of a volume are made from, so that what is given up has to be in it? A volume with both
/// images needs none, unless it has one.
pub(crate) fn needs_base(volume: &Volume) -> bool {
    let after = volume.technique & technique::AFTER != 0;
    after && (volume.base_id != [0; 16] || volume.technique & technique::BEFORE == 0)
}

/// How the portions change.
struct Change {
    source: usize,
    /// Of the source: its oldest segment, its first order, the stamp behind which it begins.
    first_sequence: u64,
    from_order: u64,
    after_timestamp: u64,
    target: Option<Target>,
    /// Segments that the source gives up.
    freed: Vec<u32>,
}

struct Target {
    portion: usize,
    window: u64,
    end_sequence: u64,
}

impl Journal {
    /// Sets the schedule, durably.
    pub fn set_schedule(&mut self, schedule: &Schedule) -> Result<(), Error> {
        let mut tables = self.tables().clone();
        tables.schedule = schedule.clone();
        self.change_tables(tables)
    }

    /// Merges all that is due. Durable on return; interrupted anywhere, what is done is done, and the rest is due.
    pub fn merge(
        &mut self,
        options: &MergeOptions,
        progress: &mut dyn FnMut(&Merged),
    ) -> Result<Merged, Error> {
        self.sync()?;
        let mut merged = Merged::default();
        loop {
            let all = self.free.len();
            let outcome = self.begin_merge(options, all)?.run();
            let step = self.finish_merge(outcome)?;
            merged.add(&step);
            if step.steps == 0 {
                return Ok(merged);
            }
            progress(&merged);
        }
    }

    /// Hands out leave for one step, with `most` segments at most, which are the step's until it is finished.
    /// What is to be merged has to be durable.
    pub fn begin_merge(&mut self, options: &MergeOptions, most: usize) -> Result<MergeStep, Error> {
        self.check_running()?;
        let rolling = self.begin_rollings(options)?;
        self.free_unpinned();
        let geometry = &self.head.geometry;
        let others = (geometry.reserved_completions + geometry.reserved_rollback) as usize;
        // What is kept for merging is its own, also when answers have used up what was kept for them.
        let own = (geometry.reserved_merge as usize).min(self.free.len());
        let most = most.min(self.free.len().saturating_sub(others).max(own));
        // From the back, so that the owner goes on in the order of the file.
        let slots = self.free.split_off(self.free.len() - most);
        self.lent = slots.len() as u32;
        Ok(MergeStep {
            storage: Arc::clone(&self.storage),
            session: self.chain.session,
            slots,
            options: options.clone(),
            rolling,
            halvings: self.merge_halvings,
        })
    }

    /// The step before found that bases have to be rolled on: from here on their old moments are refused.
    fn begin_rollings(&mut self, options: &MergeOptions) -> Result<Vec<Rolling>, Error> {
        let Some(to) = self.roll.take() else { return Ok(Vec::new()) };
        let behind = |volume: &Volume| needs_base(volume) && volume.base.0 < to.0;
        let volumes: Vec<String> =
            self.tables().volumes.iter().filter(|volume| behind(volume)).map(Volume::name).collect();
        let mut rolling = Vec::new();
        for name in volumes {
            if let Some((_, base)) = options.bases.iter().find(|(volume, _)| *volume == name) {
                rolling.push(self.begin_rolling(&name, base, to)?);
            }
        }
        Ok(rolling)
    }

    /// Makes a step count, durably. What it did; no steps: nothing was due.
    pub fn finish_merge(&mut self, outcome: MergeOutcome) -> Result<Merged, Error> {
        let MergeOutcome { change, roll, rolled, taken, spare, first_sizes, named, windows, result } =
            outcome;
        self.give_back(spare);
        self.lent = 0;
        for (rolling, doubtful) in rolled {
            rolling.finish(self, doubtful)?;
        }
        self.roll = roll;
        let merged = match (result, change) {
            (Ok(_), Some(change)) if self.hides_a_named_moment(&change, &named) => {
                // It was named while the step ran, and no window ends there. Nothing was changed yet: the next step
                // does it right.
                self.discard(taken)?;
                Merged { steps: 1, ..Merged::default() }
            }
            (Ok(merged), Some(change)) => {
                self.check_running()?;
                // Ahead of the change: a crash in between leaves markers that say the same.
                self.set_first_sizes(&first_sizes)?;
                self.apply(change)?;
                self.merge_halvings = 0;
                merged
            }
            (Ok(merged), None) => {
                assert!(taken.is_empty(), "a step without a change writes nothing");
                merged
            }
            (Err(Error::MergeRoom { .. }), _) if windows > 1 => {
                // Small segments hold less than was reckoned: half of it will fit, or a quarter.
                self.discard(taken)?;
                self.merge_halvings += 1;
                Merged { steps: 1, ..Merged::default() }
            }
            (Err(error), _) => {
                self.discard(taken)?;
                return Err(error);
            }
        };
        Ok(merged)
    }

    /// Takes back segments that a step has written in vain.
    fn discard(&mut self, taken: Vec<u32>) -> Result<(), Error> {
        // They would be taken for a part of the chain once others have their place in it.
        let scrubbed = scrub(&*self.storage, &self.head, &taken).and_then(|()| storage::sync(&*self.storage));
        self.stop_on_error(scrubbed)?;
        self.give_back(taken);
        Ok(())
    }

    /// Did a moment get a name since the step began that lies within what it merged?
    fn hides_a_named_moment(&self, change: &Change, named: &[u64]) -> bool {
        let from = self.head.superblock.portions[change.source].from_order.get();
        let within = from..change.from_order.saturating_sub(1);
        let new = |order: &u64| within.contains(order) && named.binary_search(order).is_err();
        change.target.is_some() && named_moments(self.tables()).iter().any(new)
    }

    fn apply(&mut self, change: Change) -> Result<(), Error> {
        let superblock = &mut self.head.superblock;
        let source = superblock.portions[change.source];
        assert!(
            source.after_timestamp.get() <= change.after_timestamp
                && source.from_order.get() < change.from_order,
            "a step takes something away, and at the old end only"
        );
        if let Some(target) = &change.target {
            let portion = &mut superblock.portions[target.portion];
            if portion.role == role::FREE {
                // It begins where what is now its oldest part began.
                *portion = Portion {
                    role: role::MERGED,
                    level: target.portion as u8,
                    first_sequence: 1.into(),
                    from_order: source.from_order.get().max(1).into(),
                    after_timestamp: source.after_timestamp,
                    ..Portion::new_zeroed()
                };
            }
            portion.window = target.window.into();
            portion.end_sequence = target.end_sequence.into();
            superblock.features_read |= features::MERGED;
            superblock.features_write |= features::MERGED;
        }
        superblock.portions[change.source].first_sequence = change.first_sequence.into();
        // What is given up moves the beginning of history: older portions are empty then, and begin there too.
        let last = if change.target.is_none() { PORTIONS - 1 } else { change.source };
        for portion in &mut superblock.portions[change.source..=last] {
            if portion.role != role::FREE {
                portion.from_order = change.from_order.into();
                portion.after_timestamp = change.after_timestamp.into();
            }
        }
        // The one moment in which everything changes hands. Written twice, as ever: a crash in between leaves the
        // newer copy, or the older, and the segments of both are whole.
        let written = self.head.write_superblock(&*self.storage);
        self.stop_on_error(written)?;
        self.pinned.extend(change.freed);
        self.free_unpinned();
        Ok(())
    }
}
