//! Reads on where a reader found the end: what has become durable since.

use crate::batch::Batch;
use crate::error::Error;
use crate::head;
use crate::payloads::Payloads;
use crate::pin;
use crate::reader::JournalReader;
use crate::walk::{Directory, Position, Step, Walk};

/// How often the directory is read anew before what doesn't fit is taken for damage.
const LOOKS: u32 = 4;

/// See the module.
pub(crate) struct Follower {
    reader: JournalReader,
    position: Position,
}

impl Follower {
    /// From the end of what `reader` reads.
    pub fn new(reader: JournalReader) -> Self {
        let position = reader.end_position();
        Self { reader, position }
    }

    /// The batches that have become durable since the last call, in order.
    ///
    /// Pointers to what they hold may be read from `payloads`. Costs a look at the two durability notes if there are none.
    pub fn batches(&mut self, payloads: &Payloads) -> Result<Vec<Batch>, Error> {
        let found = self.look(payloads);
        match found {
            Err(error) if error.is_corruption() && self.is_given_up()? => {
                Err(Error::Revoked { file: self.reader.file_name() })
            }
            other => other,
        }
    }

    /// Has the journal given up the segment in which it was being read on? It stays as it was while it is pinned.
    fn is_given_up(&self) -> Result<bool, Error> {
        let here = self.reader.directory().places.get(self.position.at).map(|place| place.sequence);
        let first = head::first_sequence(&*self.reader.shared_storage())?;
        Ok(here.is_some_and(|sequence| sequence < first))
    }

    fn look(&mut self, payloads: &Payloads) -> Result<Vec<Batch>, Error> {
        let storage = self.reader.shared_storage();
        let (note, damaged) = head::load_notes(&*storage, &self.reader.head().superblock)?;
        let mut batches = Vec::new();
        if note.batch.get() < self.position.expected {
            return Ok(batches);
        }
        self.reader.take_note(note, damaged);
        // Once with the directory as it is known, and again with what may have been added to it; the owner may be
        // adding while it is looked at.
        for attempt in 0..=LOOKS {
            if attempt > 0 {
                let directory = Directory::load(&*storage, self.reader.head())?;
                // What is new may be merged away while it is still pointed to.
                pin::all(&*storage, self.reader.head(), &directory)?;
                payloads.know(&directory);
                self.reader.replace_directory(directory, &mut self.position)?;
            }
            let mut walk =
                Walk::from_position(&*storage, self.reader.head(), self.reader.directory(), self.position);
            loop {
                if walk.position().expected > note.batch.get() {
                    self.position = walk.position();
                    return Ok(batches);
                }
                match walk.step() {
                    Ok(Some(Step::Batch(batch, _))) => batches.push(*batch),
                    Ok(Some(Step::Segment(_))) => {}
                    // What isn't where the old directory would have it may be in a new segment.
                    Ok(Some(Step::Damage(_)) | None) | Err(_) if attempt < LOOKS => break,
                    Ok(Some(Step::Damage(error))) | Err(error) => return Err(error),
                    Ok(Some(Step::End(_)) | None) => break,
                }
                self.position = walk.position();
            }
        }
        let what = format!("batch {} is durable and can't be found", note.batch);
        Err(Error::corrupt(&self.reader.file_name(), self.position.offset, what))
    }
}
