//! How the owner changes volumes, ports and sources.

use crate::error::Error;
use crate::moment::Moment;
use crate::reader::JournalReader;
use crate::record_check;
use crate::sizes::Sizes;
use crate::storage;
use crate::tables::{Bookmark, NamedImage, Port, Source, Tables, Volume};
use crate::writer::{now, Claim, Journal};
use layout::journal_file::{PortState, MAXIMUM_PORTS};
use std::sync::Arc;

impl Journal {
    /// Adds or changes volumes, durably. An index that is in use keeps its name, and, once the journal has anything of
    /// the volume, its size: [`Journal::resize`] changes that.
    pub fn set_volumes(&mut self, volumes: &[Volume]) -> Result<(), Error> {
        for volume in volumes {
            let known = self.head.tables.volume_at(volume.index).map(|known| known.sectors);
            if known.is_some_and(|sectors| sectors != volume.sectors) && self.knows_of(volume.index)? {
                return Err(Error::Invalid(format!(
                    "volume {} was entered with {} sectors, and can't have had {}: its size is changed by resize \
                     (host-agent volume resize)",
                    volume.name(),
                    known.unwrap_or_default(),
                    volume.sectors
                )));
            }
        }
        let mut tables = self.head.tables.clone();
        for volume in volumes {
            match tables.volumes.iter_mut().find(|known| known.index == volume.index) {
                Some(known) if known.address != volume.address => {
                    return Err(Error::Invalid(format!(
                        "volume index {} is {} in this journal, and can't become {}",
                        volume.index,
                        known.name(),
                        volume.name()
                    )));
                }
                Some(known) => *known = volume.clone(),
                None => tables.volumes.push(volume.clone()),
            }
        }
        tables.volumes.sort_by_key(|volume| volume.index);
        record_check::volumes(&tables.volumes)?;
        self.change_tables(tables)
    }

    /// Has the journal, or had it, anything of the volume?
    fn knows_of(&mut self, volume: u16) -> Result<bool, Error> {
        self.flush()?;
        let reader = JournalReader::open_on(Arc::clone(&self.storage))?;
        if reader.head().history_begins().0 > 0 || reader.sizes()?.get(&volume).is_some_and(Sizes::changed) {
            return Ok(true);
        }
        for source in reader.sources()? {
            if source.load(&reader)?.rows.iter().any(|row| row.volume.get() == volume) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// History is about to begin later: the rows of volumes that were resized before say what they have there.
    pub(crate) fn set_first_sizes(&mut self, sizes: &[(u16, u64)]) -> Result<(), Error> {
        let mut tables = self.head.tables.clone();
        for (index, sectors) in sizes {
            if let Some(row) = tables.volumes.iter_mut().find(|row| row.index == *index) {
                row.sectors = *sectors;
            }
        }
        self.change_tables(tables)
    }

    /// Adds or changes ports, durably. Do this before a port's writes are opened: an unclean stop
    /// makes a gap for the ports that are known. A port keeps its arbiter.
    pub fn set_ports(&mut self, ports: &[Port]) -> Result<(), Error> {
        let mut tables = self.head.tables.clone();
        for port in ports {
            match tables.ports.iter_mut().find(|known| known.port == port.port) {
                Some(known) if known.arbiter != port.arbiter => {
                    return Err(Error::Invalid(format!(
                        "port {} belongs to arbiter {} in this journal, and can't move to {}",
                        port.port, known.arbiter, port.arbiter
                    )));
                }
                Some(known) => *known = port.clone(),
                None => tables.ports.push(port.clone()),
            }
        }
        tables.ports.sort_by_key(|port| port.port);
        assert!(tables.ports.len() <= MAXIMUM_PORTS, "a port is a byte");
        self.change_tables(tables)?;
        self.know_ports();
        Ok(())
    }

    /// Notes who a port's source index stands for, from the next entry on. Durable on return.
    /// Noting what is known already does nothing.
    pub fn note_source(&mut self, source: Source) -> Result<(), Error> {
        let known = self.head.tables.source_at(source.port, source.index, u64::MAX);
        if known.is_some_and(|known| known.identity == source.identity) {
            return Ok(());
        }
        let mut tables = self.head.tables.clone();
        tables.sources.push(Source { since_order: self.chain.order + 1, ..source });
        self.change_tables(tables)
    }

    /// Names a moment, durably. `order` has to be one that the journal has; its stamp is given along.
    pub fn add_bookmark(&mut self, name: &str, order: u64, timestamp: u64) -> Result<(), Error> {
        check_name("bookmark", name)?;
        if self.head.tables.bookmark(name).is_ok() {
            return Err(Error::Invalid(format!("there is a bookmark {name} already; remove it first")));
        }
        self.check_order(order)?;
        let mut tables = self.head.tables.clone();
        tables.bookmarks.push(Bookmark { name: name.to_owned(), order, timestamp, created: now() });
        self.change_tables(tables)
    }

    /// Forgets a bookmark, durably. The moment stays.
    pub fn remove_bookmark(&mut self, name: &str) -> Result<(), Error> {
        self.head.tables.bookmark(name)?;
        let mut tables = self.head.tables.clone();
        tables.bookmarks.retain(|bookmark| bookmark.name != name);
        self.change_tables(tables)
    }

    /// Names an image of a volume, durably: merging keeps its moment, until the schedule gives up all that old.
    /// `order` has to be one that the journal has as a moment; its stamp is given along.
    pub fn add_image(&mut self, name: &str, volume: &str, order: u64, timestamp: u64) -> Result<(), Error> {
        check_name("image", name)?;
        if self.head.tables.image(name).is_ok() {
            return Err(Error::Invalid(format!("there is an image {name} already; remove it first")));
        }
        self.check_order(order)?;
        let volume = self.head.tables.volume(volume)?.index;
        let mut tables = self.head.tables.clone();
        tables.images.push(NamedImage { name: name.to_owned(), volume, order, timestamp, created: now() });
        self.change_tables(tables)
    }

    /// Forgets a named image, durably. Its moment stays until it is merged.
    pub fn remove_image(&mut self, name: &str) -> Result<(), Error> {
        self.head.tables.image(name)?;
        let mut tables = self.head.tables.clone();
        tables.images.retain(|image| image.name != name);
        self.change_tables(tables)
    }

    fn check_order(&self, order: u64) -> Result<(), Error> {
        if order > self.chain.order {
            return Err(Error::NoMoment(format!(
                "order:{order}; the journal's last entry is order:{}",
                self.chain.order
            )));
        }
        // Only what has been merged may be no moment any more.
        if order >= self.head.superblock.portions[0].from_order.get() {
            return Ok(());
        }
        JournalReader::open_on(Arc::clone(&self.storage))?.has_moment(Moment::Order(order))
    }

    pub(crate) fn change_tables(&mut self, tables: Tables) -> Result<(), Error> {
        if tables == self.head.tables {
            return Ok(());
        }
        self.check_running()?;
        let bytes = self.head.encode_tables(&tables, self.head.table_generation + 1)?;
        // The seal of the segment that is being filled holds a copy: it has to have room for it.
        self.flush()?;
        // And the session has to be able to end in it.
        if !self.fits(self.bare_batch_bytes(), 0, bytes.len()) {
            self.next_segment(Claim::Settling, 0)?;
        }
        // What was sealed with the old tables has to be durable before larger ones are: a seal that a
        // crash took is written anew, in the room that was kept for it.
        let synced = storage::sync(&*self.storage);
        self.stop_on_error(synced)?;
        let written = self.head.write_tables(&*self.storage, tables);
        self.stop_on_error(written)?;
        self.table_bytes = bytes;
        Ok(())
    }

    /// Every port of the table has a state, so that it stands in every batch from now on.
    pub(crate) fn know_ports(&mut self) {
        for port in &self.head.tables.ports {
            self.chain.ports.entry(port.port).or_insert(PortState {
                port: port.port,
                flags: 0,
                arbiter: port.arbiter.into(),
                reserved: 0.into(),
                delivered: 0.into(),
                last_timestamp: 0.into(),
                last_number: 0.into(),
                last_sequence: 0.into(),
            });
        }
    }
}

fn check_name(what: &str, name: &str) -> Result<(), Error> {
    if name.is_empty() || name.chars().any(char::is_control) {
        let a = if what.starts_with(['a', 'e', 'i', 'o', 'u']) { "an" } else { "a" };
        return Err(Error::Invalid(format!("{a} {what}'s name is a line of text")));
    }
    Ok(())
}
