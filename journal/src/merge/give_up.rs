//! What the schedule keeps no longer: into the bases first, where moments are made from bases, and only then away.

use super::due::Due;
use super::step::segments_given_up;
use super::{needs_base, Change, MergeOptions, Merged, RolledBase};
use crate::base::Rolling;
use crate::error::Error;
use crate::history::{self, mark, MissingSpan, Span, Wanted};
use crate::moment::{rfc3339, Moment};
use crate::payloads::Payloads;
use crate::pit_map::{PitMap, Prefer};
use crate::reader::JournalReader;
use crate::tables::Volume;
use crate::windows;
use layout::SECTOR_BYTES;

/// What has to happen next.
pub(super) enum GiveUp {
    /// Nothing, or not yet.
    Nothing,
    /// Bases have to be rolled on to this entry, order and stamp.
    Roll((u64, u64)),
    /// It can go.
    Change(Merged, Change),
}

/// Gives up what is due, as far as the bases go.
pub(super) fn give_up(
    reader: &JournalReader,
    due: &Due,
    options: &MergeOptions,
    held_back: &mut Vec<String>,
) -> Result<GiveUp, Error> {
    let based: Vec<&Volume> = reader.tables().volumes.iter().filter(|volume| needs_base(volume)).collect();
    let begins = reader.head().history_begins().0;
    let last = |until, most| -> Result<Option<(u64, u64)>, Error> {
        Ok(last_boundary(reader, due.source, until, most)?.filter(|(order, _)| *order > begins))
    };
    let mut until = due.until;
    // Where nothing is that old yet, there is nothing to say.
    if last(until, u64::MAX)?.is_none() {
        return Ok(GiveUp::Nothing);
    }
    for volume in &based {
        if volume.base_id == [0; 16] {
            held_back.push(format!(
                "volume {}: history before {} is kept, because the journal knows of no base to roll it into: base adopt or base create",
                volume.name(),
                rfc3339(until)
            ));
            return Ok(GiveUp::Nothing);
        }
        if let Some(gap) = first_open_gap(reader, volume)?.filter(|gap| gap.from < until) {
            held_back.push(format!(
                "volume {}: history before {} is kept, because entries of port {} are missing between {} and {}: resync closes that",
                volume.name(),
                rfc3339(until),
                gap.port,
                rfc3339(gap.from),
                rfc3339(gap.to)
            ));
            until = until.min(gap.from / due.window * due.window);
        }
    }
    let Some(wanted) = last(until, u64::MAX)? else { return Ok(GiveUp::Nothing) };
    let rolled = based.iter().map(|volume| volume.base.0).min().unwrap_or(u64::MAX);
    let ready = match last(until, rolled)? {
        Some((order, stamp)) => {
            let (first_sequence, freed) = segments_given_up(reader, due.source, stamp, order)?;
            // Where that alone frees nothing, the bases may still go on.
            (!options.freeing_only || !freed.is_empty()).then_some((order, stamp, first_sequence, freed))
        }
        None => None,
    };
    let Some((order, stamp, first_sequence, freed)) = ready else {
        if wanted.0 <= rolled {
            return Ok(GiveUp::Nothing);
        }
        let (_, freed) = segments_given_up(reader, due.source, wanted.1, wanted.0)?;
        if options.freeing_only && freed.is_empty() {
            return Ok(GiveUp::Nothing);
        }
        return Ok(match missing_base(&based, options) {
            None => GiveUp::Roll(wanted),
            Some(name) => {
                held_back.push(format!(
                    "volume {name}: history before {} is kept until it can be rolled into the base: --base {name}=FILE",
                    rfc3339(until)
                ));
                GiveUp::Nothing
            }
        });
    };
    let merged = Merged { given_up: order - begins, segments_freed: freed.len() as u64, ..Merged::default() };
    let change = Change {
        source: due.source,
        first_sequence,
        from_order: order + 1,
        after_timestamp: stamp,
        target: None,
        freed,
    };
    Ok(GiveUp::Change(merged, change))
}

/// A volume whose base would have to be rolled on, and isn't given.
fn missing_base(based: &[&Volume], options: &MergeOptions) -> Option<String> {
    let given = |name: &String| options.bases.iter().any(|(volume, _)| volume == name);
    based.iter().map(|volume| volume.name()).find(|name| !given(name))
}

/// The first gap that the volume's base isn't newer than, and that no resync has closed.
fn first_open_gap(reader: &JournalReader, volume: &Volume) -> Result<Option<MissingSpan>, Error> {
    let payloads = Payloads::new(reader);
    let span = Span { after: Some(Moment::End), until: Moment::End, wanted: Wanted::Any };
    let found = history::read(reader, &payloads, volume, span, &mut |_, _| {})?;
    let resynced = found.resynced.iter().max().copied().unwrap_or(0);
    Ok(found.gaps.into_iter().find(|gap| !gap.bounded && gap.to > volume.base.1.max(resynced)))
}

/// The last moment of a portion that lies at or before a stamp and an order: order and stamp.
fn last_boundary(
    reader: &JournalReader,
    source: usize,
    until: u64,
    most: u64,
) -> Result<Option<(u64, u64)>, Error> {
    if source > 0 {
        let windows = windows::of_portion(reader, source)?;
        let last = windows.iter().rposition(|window| window.to <= until && window.last_order <= most);
        return Ok(last.map(|at| {
            // Behind the last there may be records still, up to where the next finer portion begins.
            let portions = reader.head().portions().skip_while(|(index, _)| *index != source);
            let finer = portions.skip(1).map(|(_, portion)| portion.after_timestamp.get()).next();
            let end = finer.filter(|end| at + 1 == windows.len() && (windows[at].to..=until).contains(end));
            (windows[at].last_order, end.unwrap_or(windows[at].to))
        }));
    }
    let mut last = None;
    for record in reader.records() {
        let record = record?;
        let stamp = record.header.timestamp.get();
        if stamp > until {
            break;
        }
        match record.order {
            Some(order) if order <= most => last = Some((order, stamp)),
            Some(_) => break,
            None => {}
        }
    }
    Ok(last)
}

/// Writes into each base what it lacks up to where it is rolled.
pub(super) fn roll(
    reader: &JournalReader,
    rolling: Vec<Rolling>,
    rolled: &mut Vec<(Rolling, u64)>,
) -> Result<Merged, Error> {
    let payloads = Payloads::new(reader);
    let mut merged = Merged { steps: 1, ..Merged::default() };
    for rolling in rolling {
        let volume = reader.tables().volume(&rolling.volume_name())?.clone();
        let (from, to) = (rolling.from().0, rolling.to().0);
        let span = Span { after: Some(Moment::Order(from)), until: Moment::Order(to), wanted: Wanted::After };
        let found = history::read(reader, &payloads, &volume, span, &mut |_, _| {})?;
        if let Some(order) = found.without_image {
            return Err(Error::Invalid(format!(
                "order:{order} of volume {} holds no image of the data after it: it can't be rolled into a base",
                volume.name()
            )));
        }
        let map = PitMap::build(found.writes, Prefer::Last);
        let before = merged.bytes_rolled;
        let mut buffer = Vec::new();
        for extent in map.extents() {
            let (offset, bytes) =
                (extent.lba * SECTOR_BYTES as u64, u64::from(extent.sectors) * SECTOR_BYTES as u64);
            merged.bytes_rolled += bytes;
            if extent.marks & mark::ZERO != 0 {
                rolling.zero(offset, bytes)?;
                continue;
            }
            buffer.resize(bytes as usize, 0);
            let skip = u64::from(extent.skip) * SECTOR_BYTES as u64;
            payloads.read(extent.place, extent.marks & mark::SECOND != 0, skip, &mut buffer)?;
            rolling.write(offset, &buffer)?;
        }
        merged.rolled.push(RolledBase {
            volume: volume.name(),
            to: rolling.to(),
            bytes: merged.bytes_rolled - before,
        });
        rolled.push((rolling, map.doubtful));
    }
    Ok(merged)
}
