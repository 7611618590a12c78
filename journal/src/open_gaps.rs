//! Gaps that nothing has closed: what a volume has to be compared for.

use crate::error::Error;
use crate::payloads::Payloads;
use crate::reader::JournalReader;
use crate::writer::Journal;
use layout::entry::{flags, Gap, GapReason, Kind};
use std::collections::BTreeSet;
use std::sync::Arc;
use zerocopy::FromBytes;

impl Journal {
    /// Why there are gaps that spoil the moments of a volume (by index) from after-images up to the journal's end; a word that is no
    /// reason counts as records that were lost. The gap of a stop since which nothing was appended isn't among them
    /// ([`Journal::gap_is_pending`]). Found by the indexes of segments.
    pub fn open_gaps(&self, volume: u16) -> Result<BTreeSet<GapReason>, Error> {
        let reader = JournalReader::open_on(Arc::clone(&self.storage))?;
        let payloads = Payloads::new(&reader);
        let (mut gaps, mut compared) = (Vec::new(), 0);
        for source in reader.sources()? {
            let part = source.load(&reader)?;
            for note in &part.notes {
                let stamp = note.timestamp.get();
                let record = || payloads.record(part.slot, u64::from(note.descriptor.get()));
                match Kind::from_byte(note.kind) {
                    Ok(Kind::Gap) => {
                        let payload = payloads.whole(&record()?)?;
                        let reason = Gap::read_from_prefix(&payload)
                            .ok()
                            .and_then(|(gap, _)| GapReason::from_word(gap.reason.get()).ok());
                        gaps.push((stamp, reason.unwrap_or(GapReason::Lost)));
                    }
                    Ok(Kind::Marker)
                        if note.flags.get() & flags::RESYNCED != 0
                            && record()?.header.volume.get() == volume =>
                    {
                        compared = compared.max(stamp);
                    }
                    _ => {}
                }
            }
        }
        // Of after-images primary's unflushed writes are there.
        let open = gaps.into_iter().filter(|(to, reason)| *to > compared && *reason != GapReason::WritesLost);
        Ok(open.map(|(_, reason)| reason).collect())
    }
}
