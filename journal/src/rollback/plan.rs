//! A rollback that others write: what has to be written, when a source on a port writes it and the ports journal it.

use super::{changed_since, target, RollbackOptions};
use crate::diff::diff;
use crate::error::Error;
use crate::image::{Backing, Image};
use crate::moment::Moment;
use crate::reader::JournalReader;
use crate::tables::Volume;
use crate::writer::Journal;

/// See the module.
pub struct Plan {
    image: Image,
    extents: Vec<(u64, u64)>,
    discarded: u64,
}

impl Plan {
    /// Everything that was written is durable in the journal, and nothing is written meanwhile. The image is made from the
    /// base of `options`, whose `primary` is for messages only.
    pub fn new(
        open: impl Fn() -> Result<JournalReader, Error>,
        options: &RollbackOptions<'_>,
    ) -> Result<Self, Error> {
        let (at, discarded) = target(options, &open()?)?;
        let sizes = diff(&open()?, options.volume, at, Moment::End, &mut |_, _| {})?.sizes;
        if sizes.0 != sizes.1 {
            return Err(Error::Invalid(format!(
                "volume {} had {} bytes then, and has {} now: it can't be rolled back through a port; give it that \
                 size first (host-agent volume resize)",
                options.volume, sizes.0, sizes.1
            )));
        }
        let extents = changed_since(&open()?, options, at)?;
        let Some(base) = options.base else {
            return Err(Error::Invalid("a rollback through a port needs a base".into()));
        };
        let image = Image::open(
            open()?,
            options.volume,
            at,
            Backing::Base(base),
            options.allow_gaps,
            &mut |_, _| {},
        )?;
        Ok(Self { image, extents, discarded })
    }

    /// What primary has to be.
    pub fn image(&self) -> &Image {
        &self.image
    }

    /// Where it may be something else: byte offsets and lengths.
    pub fn extents(&self) -> &[(u64, u64)] {
        &self.extents
    }

    /// Writes after the last rollback that an undo discards.
    pub fn discarded(&self) -> u64 {
        self.discarded
    }
}

impl Journal {
    /// It has to fit before anything is begun: `extents` are a [`Plan`]'s.
    pub fn check_room_for_rollback(&self, volume: &Volume, extents: &[(u64, u64)]) -> Result<(), Error> {
        self.check_room(volume, extents)
    }
}
