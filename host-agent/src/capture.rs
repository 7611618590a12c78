//! Frames out of a capture file: pcap or pcapng, gzipped or not.
//!
//! Read as a stream, one frame at a time: a capture may be larger than memory. A file that isn't whole
//! is an error that names the byte; what a card would get from it can't be known.

use crate::error::Error;
use flate2::read::MultiGzDecoder;
use pcap_parser::traits::PcapReaderIterator;
use pcap_parser::{create_reader, Block, Linktype, PcapBlockOwned, PcapError};
use std::fs::File;
use std::io::{self, BufReader, Read, Seek};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// Longest record that is read: far beyond any frame, so that a damaged length shows as damage.
const BUFFER_BYTES: usize = 1 << 20;
/// First bytes of a gzipped file (RFC 1952).
const GZIP_MAGIC: [u8; 2] = [0x1F, 0x8B];

/// A frame as it was captured, without FCS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Its stamp, ns since the Unix epoch.
    pub time: u64,
    /// Which record of the file it is, from 1.
    pub record: u64,
    /// The bytes, from the Ethernet destination on.
    pub bytes: Vec<u8>,
}

/// A capture file being read.
pub struct Capture {
    path: PathBuf,
    reader: Box<dyn PcapReaderIterator + Send>,
    /// What reading said, because the parser keeps only that there was an error.
    read_error: Arc<Mutex<Option<String>>>,
    records: u64,
    interfaces: Vec<Interface>,
    gzipped: bool,
}

#[derive(Clone, Copy)]
struct Interface {
    /// Units of a stamp in a second.
    resolution: u64,
    /// Seconds to be added.
    offset: i64,
}

impl Capture {
    /// Opens `path`.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let mut file = File::open(path).map_err(|e| Error::io(path, "opening the capture", e))?;
        let mut magic = [0; 2];
        let gzipped = match file.read_exact(&mut magic).and_then(|()| file.rewind()) {
            Ok(()) => magic == GZIP_MAGIC,
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(broken(path, "not a capture: it has less than two bytes".into()));
            }
            Err(e) => return Err(Error::io(path, "reading the capture", e)),
        };
        let read_error = Arc::new(Mutex::new(None));
        let input: Box<dyn Read + Send> = match gzipped {
            true => Box::new(MultiGzDecoder::new(BufReader::new(file))),
            false => Box::new(file),
        };
        let reader = Whole { input, error: Arc::clone(&read_error) };
        let reader = create_reader(BUFFER_BYTES, reader).map_err(|_| match taken(&read_error) {
            Some(error) => broken(path, format!("reading the capture: {error}")),
            None => broken(path, "not a capture: neither pcap nor pcapng begins at offset 0".into()),
        })?;
        let interfaces = Vec::new();
        Ok(Self { path: path.to_owned(), reader, read_error, records: 0, interfaces, gzipped })
    }

    /// The next frame; `None` at the end.
    pub fn next(&mut self) -> Result<Option<Captured>, Error> {
        loop {
            let at = self.reader.consumed();
            let (length, found) = match self.reader.next() {
                Ok((length, block)) => (length, take_block(block, &mut self.interfaces)),
                Err(PcapError::Eof) => return Ok(None),
                Err(PcapError::Incomplete(_)) => {
                    if self.reader.refill().is_err() {
                        let error = taken(&self.read_error).unwrap_or_default();
                        return Err(self.broken(at, &format!("reading on: {error}")));
                    }
                    continue;
                }
                Err(PcapError::UnexpectedEof) => {
                    return Err(self.broken(at, "the file ends in the middle of this record"));
                }
                Err(PcapError::BufferTooSmall) => {
                    return Err(self.broken(at, "the record's length is beyond any frame"));
                }
                Err(_) => return Err(self.broken(at, "no record begins here")),
            };
            self.reader.consume(length);
            match found {
                Ok(None) => {}
                Ok(Some((time, bytes))) => {
                    self.records += 1;
                    return Ok(Some(Captured { time, record: self.records, bytes }));
                }
                Err(what) => {
                    self.records += 1;
                    return Err(self.broken(at, &what));
                }
            }
        }
    }

    fn broken(&self, offset: usize, what: &str) -> Error {
        let place = if self.gzipped { "offset (uncompressed)" } else { "offset" };
        broken(&self.path, format!("{place} {offset}, after {} frames: {what}", self.records))
    }
}

fn broken(path: &Path, what: String) -> Error {
    Error::File { file: path.display().to_string(), what }
}

fn taken(error: &Mutex<Option<String>>) -> Option<String> {
    error.lock().ok().and_then(|mut error| error.take())
}

/// The frame in a block, if it is one; interfaces are noted.
fn take_block(
    block: PcapBlockOwned<'_>,
    interfaces: &mut Vec<Interface>,
) -> Result<Option<(u64, Vec<u8>)>, String> {
    match block {
        PcapBlockOwned::LegacyHeader(header) => {
            ethernet(header.network)?;
            let resolution = if header.is_nanosecond_precision() { 1_000_000_000 } else { 1_000_000 };
            interfaces.push(Interface { resolution, offset: 0 });
            Ok(None)
        }
        PcapBlockOwned::Legacy(frame) => {
            let resolution = interfaces.first().map_or(1_000_000, |interface| interface.resolution);
            let fraction = u64::from(frame.ts_usec).saturating_mul(1_000_000_000 / resolution);
            let time = (u64::from(frame.ts_sec) * 1_000_000_000).saturating_add(fraction);
            whole(frame.data, frame.caplen, frame.origlen).map(|bytes| Some((time, bytes)))
        }
        PcapBlockOwned::NG(Block::SectionHeader(_)) => {
            interfaces.clear();
            Ok(None)
        }
        PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
            ethernet(interface.linktype)?;
            let resolution = interface.ts_resolution().filter(|resolution| *resolution > 0);
            let resolution = resolution.ok_or("an interface whose stamps have no resolution")?;
            interfaces.push(Interface { resolution, offset: interface.ts_offset() });
            Ok(None)
        }
        PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
            let interface = interfaces
                .get(packet.if_id as usize)
                .ok_or_else(|| format!("a frame of interface {}, which isn't described", packet.if_id))?;
            let units = u128::from(packet.ts_high) << 32 | u128::from(packet.ts_low);
            let nanoseconds = units * 1_000_000_000 / u128::from(interface.resolution);
            let time = nanoseconds as i128 + i128::from(interface.offset) * 1_000_000_000;
            let time = u64::try_from(time).map_err(|_| "a stamp outside 1970 to 2554".to_owned())?;
            whole(packet.data, packet.caplen, packet.origlen).map(|bytes| Some((time, bytes)))
        }
        PcapBlockOwned::NG(Block::SimplePacket(_)) => {
            Err("a simple packet block: it has no stamp, so its place in time isn't known".into())
        }
        PcapBlockOwned::NG(_) => Ok(None),
    }
}

fn ethernet(link: Linktype) -> Result<(), String> {
    if link == Linktype::ETHERNET {
        return Ok(());
    }
    Err(format!("link type {}: only Ethernet (1) can be replayed", link.0))
}

fn whole(data: &[u8], captured: u32, original: u32) -> Result<Vec<u8>, String> {
    if captured < original {
        return Err(format!(
            "only {captured} of the frame's {original} bytes were captured: capture whole frames (tcpdump -s 0)"
        ));
    }
    data.get(..captured as usize).map(<[u8]>::to_vec).ok_or_else(|| "a frame longer than its record".into())
}

/// Reads until the buffer is full or the input ends, and keeps the error.
struct Whole {
    input: Box<dyn Read + Send>,
    error: Arc<Mutex<Option<String>>>,
}

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut done = 0;
        while done < buffer.len() {
            match self.input.read(&mut buffer[done..]) {
                Ok(0) => break,
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                // What came before the error is handed out first; the error comes again.
                Err(_) if done > 0 => break,
                Err(e) => {
                    if let Ok(mut error) = self.error.lock() {
                        *error = Some(e.to_string());
                    }
                    return Err(e);
                }
            }
        }
        Ok(done)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn pcap(records: &[(u32, u32, &[u8])]) -> Vec<u8> {
        let mut file = Vec::new();
        for word in [0xA1B2_3C4Du32, 0x0004_0002, 0, 0, 262_144, 1] {
            file.extend_from_slice(&word.to_le_bytes());
        }
        for (seconds, nanoseconds, bytes) in records {
            for word in [*seconds, *nanoseconds, bytes.len() as u32, bytes.len() as u32] {
                file.extend_from_slice(&word.to_le_bytes());
            }
            file.extend_from_slice(bytes);
        }
        file
    }

    fn read(bytes: &[u8]) -> Result<Vec<Captured>, Error> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("capture");
        std::fs::write(&path, bytes).unwrap();
        let mut capture = Capture::open(&path)?;
        std::iter::from_fn(|| capture.next().transpose()).collect()
    }

    fn block(kind: u32, body: &[u8]) -> Vec<u8> {
        let length = (12 + body.len()) as u32;
        [&kind.to_le_bytes(), &length.to_le_bytes(), body, &length.to_le_bytes()].concat()
    }

    #[test]
    fn pcap_plain_and_gzipped() {
        let file = pcap(&[(5, 7, &[1; 60]), (6, 0, &[2; 9014])]);
        let frames = read(&file).unwrap();
        assert_eq!(frames.len(), 2);
        assert_eq!((frames[0].time, frames[0].record, frames[0].bytes.len()), (5_000_000_007, 1, 60));
        assert_eq!(frames[1].bytes, [2; 9014]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&file).unwrap();
        assert_eq!(read(&gzip.finish().unwrap()).unwrap(), frames);
    }

    #[test]
    fn pcapng_with_a_resolution_of_its_own() {
        let section =
            block(0x0A0D_0D0A, &[0x4D, 0x3C, 0x2B, 0x1A, 1, 0, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]);
        let interface = block(1, &[1, 0, 0, 0, 0, 0, 0, 0, 9, 0, 1, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        let mut packet = vec![0; 20];
        packet[8..12].copy_from_slice(&5123u32.to_le_bytes());
        packet[12..16].copy_from_slice(&6u32.to_le_bytes());
        packet[16..20].copy_from_slice(&6u32.to_le_bytes());
        packet.extend_from_slice(&[9, 9, 9, 9, 9, 9, 0, 0]);
        let frames = read(&[section, interface, block(6, &packet)].concat()).unwrap();
        assert_eq!(frames, [Captured { time: 5_123_000_000, record: 1, bytes: vec![9; 6] }]);
    }

    #[test]
    fn what_is_broken_says_where() {
        let file = pcap(&[(5, 7, &[1; 60]), (6, 0, &[2; 100])]);
        let cut = read(&file[..file.len() - 1]).unwrap_err().to_string();
        assert!(cut.contains("offset 100, after 1 frames: the file ends"), "{cut}");
        let mut snapped = file.clone();
        snapped[24 + 12] = 61;
        let snapped = read(&snapped).unwrap_err().to_string();
        assert!(snapped.contains("offset 24") && snapped.contains("60 of the frame's 61"), "{snapped}");
        let mut other_link = file.clone();
        other_link[20] = 113;
        assert!(read(&other_link).unwrap_err().to_string().contains("link type 113"));
        for foreign in [&b""[..], b"x", b"hello, this is no capture at all, is it"] {
            assert!(read(foreign).unwrap_err().to_string().contains("not a capture"));
        }
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&file).unwrap();
        let gzip = gzip.finish().unwrap();
        let error = read(&gzip[..gzip.len() - 10]).unwrap_err().to_string();
        assert!(error.contains("capture: "), "{error}");
    }
}
