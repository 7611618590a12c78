//! Rolls what expires into a base: before the journal gives entries up, the base holds them.
//!
//! Whatever happens in between, every moment from the new position on can be made, and no moment that can't
//! be made right is made: label and row say so before the base is touched.

use super::check::check;
use super::{at, label};
use crate::error::Error;
use crate::image::open_base;
use crate::reader::JournalReader;
use crate::sizes::Sizes;
use crate::sparse::SparseImage;
use crate::tables::Volume;
use crate::writer::Journal;
use layout::journal_file::BaseLabel;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A base that is being rolled on. Dropped before [`Rolling::finish`], and after a crash: begin again, with the
/// same position or a later one, and write everything again.
///
/// What has to be written is what the image at `to` has behind [`Rolling::from`]: of each location the last
/// entry of the volume behind `from` and up to `to` that may have been executed.
pub struct Rolling {
    file: File,
    name: String,
    path: PathBuf,
    label: BaseLabel,
    volume: Volume,
    to: (u64, u64),
}

impl Journal {
    /// Begins to roll a volume's base on to the entry `to`, given by order and stamp, which all of the volume's
    /// entries up to there have to be settled for. From here on no moment before it can be made from the base,
    /// whether or not the rolling is ever finished.
    ///
    /// The work between, [`Rolling::write`] and [`Rolling::zero`], doesn't need the journal.
    pub fn begin_rolling(&mut self, volume: &str, base: &Path, to: (u64, u64)) -> Result<Rolling, Error> {
        let row = self.tables().volume(volume)?.clone();
        let name = base.display().to_string();
        if row.base_id == [0; 16] {
            let what = format!(
                "the journal knows of no base of volume {volume}; base adopt takes over an image from before the \
                 first write, base create makes one"
            );
            return Err(Error::Base { file: name, what });
        }
        open_base(base, &row, row.sectors)?;
        check(self.head.journal_id(), &row, base)?;
        let path = label::path_of(base)?;
        let Some((mut label, _)) = label::read(&path)? else {
            return Err(Error::Base { file: name, what: "its label is gone".into() });
        };
        if to.0 > self.end().order {
            return Err(Error::NoMoment(format!(
                "order:{}; the journal ends at order:{}",
                to.0,
                self.end().order
            )));
        }
        // 1. What the base is going to hold is durable: no crash cuts off what is in it.
        self.sync()?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(base)
            .map_err(|e| Error::io(&name, "opening the base for writing", e))?;
        // A base never shrinks: what the volume loses becomes zeroes, which its own entries say. So it only has to be
        // large enough for what it will hold.
        let reader = JournalReader::open_on(Arc::clone(&self.storage))?;
        let then = reader.sizes()?.get(&row.index).map_or(row.sectors, |sizes: &Sizes| sizes.at_stamp(to.1));
        let sectors = then.max(label.sectors.get());
        // 2. The row: the journal refuses moments before `to`. A crash here leaves a base that is still as it
        //    was, and a label that says less; both are in order.
        let rolling = row.rolling.max(to);
        let row = Volume { rolling, ..row };
        self.set_volumes(std::slice::from_ref(&row))?;
        // The room: a crash here leaves a base that is larger than its label says, which counts. What is larger from
        // an earlier attempt goes first, so that all that it gains is zeroes.
        if sectors > label.sectors.get() {
            let bytes = |sectors: u64| sectors.saturating_mul(u64::from(row.sector_bytes));
            let grown = file.set_len(bytes(label.sectors.get())).and_then(|()| file.set_len(bytes(sectors)));
            let durable = grown.and_then(|()| file.sync_all());
            durable.map_err(|e| Error::io(&name, format!("giving it {} bytes", bytes(sectors)), e))?;
        }
        // 3. The label: whoever has an image open over the base sees that it goes on.
        if label.rolling_order.get() < rolling.0 || sectors > label.sectors.get() {
            label.sectors = sectors.into();
            (label.rolling_order, label.rolling_timestamp) = (rolling.0.into(), rolling.1.into());
            label::write(&path, &label)?;
        }
        Ok(Rolling { file, name, path, label, volume: row, to })
    }
}

impl Rolling {
    /// Name of the volume.
    pub fn volume_name(&self) -> String {
        self.volume.name()
    }

    /// The base holds every entry up to this one, order and stamp: those behind it and up to
    /// [`Rolling::to`] have to be written.
    pub fn from(&self) -> (u64, u64) {
        label::order(&self.label)
    }

    /// Where the base is going. At or below [`Rolling::from`]: there is nothing to write.
    pub fn to(&self) -> (u64, u64) {
        self.to
    }

    /// Writes into the base. Zeroes become holes where the file system has them.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<(), Error> {
        // Sectors that the volume lost before `to` are zeroes, and so is what lies behind the base's end.
        let there = self.bytes().saturating_sub(offset).min(data.len() as u64) as usize;
        let data = match data[there..].iter().all(|byte| *byte == 0) {
            true => &data[..there],
            false => data,
        };
        if data.is_empty() {
            return Ok(());
        }
        self.check_range(offset, data.len() as u64)?;
        self.image().write(data, offset)
    }

    /// Writes zeroes into the base. Behind its end there are zeroes already.
    pub fn zero(&self, offset: u64, bytes: u64) -> Result<(), Error> {
        let bytes = bytes.min(self.bytes().saturating_sub(offset));
        if bytes == 0 {
            return Ok(());
        }
        self.check_range(offset, bytes)?;
        self.image().zero(offset, bytes)
    }

    /// Everything has been written: the base stands at [`Rolling::to`], durably, and the entries up to there may
    /// be given up. `doubtful` of them are in the base though nobody knows whether the target executed them.
    pub fn finish(mut self, journal: &mut Journal, doubtful: u64) -> Result<(), Error> {
        let row = journal.tables().volume(&self.volume.name())?.clone();
        if row.base_id != self.volume.base_id {
            let what = format!("volume {} got another base meanwhile", row.name());
            return Err(Error::Base { file: self.name, what });
        }
        if self.to > self.from() {
            // 4. The data.
            self.file
                .sync_data()
                .map_err(|e| Error::io(&self.name, "making the base durable (fdatasync)", e))?;
            // 5. The label: they are there. A crash here leaves a label ahead of the row, within what the row
            //    allows; the next rolling takes it from there. (`doubtful` is lost to the row then.)
            (self.label.order, self.label.timestamp) = (self.to.0.into(), self.to.1.into());
            label::write(&self.path, &self.label)?;
        }
        // 6. The row: only from here on may the journal give the entries up.
        let base = row.base.max(self.from());
        let base_doubtful = row.base_doubtful.saturating_add(doubtful);
        journal.set_volumes(&[Volume { base, base_doubtful, ..row }])
    }

    fn image(&self) -> SparseImage<'_> {
        SparseImage::over_file(&self.file, &self.name, self.bytes())
    }

    /// Bytes of the base.
    fn bytes(&self) -> u64 {
        self.label.sectors.get().saturating_mul(u64::from(self.volume.sector_bytes))
    }

    fn check_range(&self, offset: u64, bytes: u64) -> Result<(), Error> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.bytes() => Ok(()),
            _ => Err(Error::Invalid(format!(
                "{bytes} bytes at offset {offset} of a base of {} ({})",
                self.bytes(),
                at(self.to)
            ))),
        }
    }
}
