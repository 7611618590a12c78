//! What stands behind the card's uplink: a target that answers as `vblade` 25 does.
//!
//! `vblade` executes more than it should (`docs/decisions/0040-target-model.md` has the list and where
//! it comes from), and so does this model: whoever relies on a target's good manners fails here.

use layout::aoe::{
    self, Ata, AtaFrame, Header, ATA_ERROR_ABORT, ATA_ERROR_NOT_FOUND, ATA_STATUS_ERROR, ATA_STATUS_READY,
    COMMAND_ATA, COMMAND_CONFIG, ERROR_ARGUMENT, FLAG_ERROR, FLAG_RESPONSE, LBA28_MASK, MINIMUM_FRAME_BYTES,
    SHELF_BROADCAST, SLOT_BROADCAST, WRITE_HEADER_BYTES,
};
use layout::SECTOR_BYTES;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use zerocopy::{FromBytes, IntoBytes};

/// A target, or several on one wire.
pub trait Target {
    /// Takes a frame that left the card's uplink whole at core cycle `cycle`, and adds its answers:
    /// after how many cycles each begins to come back, and its bytes.
    fn frame(&mut self, frame: &[u8], cycle: u64, answers: &mut Vec<(u64, Vec<u8>)>);

    /// Adds what comes at core cycle `cycle` without the wait for a frame: answers of a target elsewhere.
    fn poll(&mut self, cycle: u64, answers: &mut Vec<(u64, Vec<u8>)>) {
        let _ = (cycle, answers);
    }

    /// The first thing that went wrong inside the target (an image that can't be written), if any.
    fn trouble(&self) -> Option<&str> {
        None
    }
}

impl<T: Target + ?Sized> Target for Box<T> {
    fn frame(&mut self, frame: &[u8], cycle: u64, answers: &mut Vec<(u64, Vec<u8>)>) {
        (**self).frame(frame, cycle, answers);
    }

    fn poll(&mut self, cycle: u64, answers: &mut Vec<(u64, Vec<u8>)>) {
        (**self).poll(cycle, answers);
    }

    fn trouble(&self) -> Option<&str> {
        (**self).trouble()
    }
}

/// Cycles from a request to its answer as measured with `vblade` on a veth pair: about 50 µs.
pub const MEASURED_ANSWER_CYCLES: u64 = 6_250;
/// Cycles from a request to its answer unless set otherwise: short, because every cycle is simulated.
pub const DEFAULT_ANSWER_CYCLES: u64 = 400;
/// Requests that the target says it can hold, in its answer to a config query (as `vblade`).
pub const BUFFERS: u16 = 16;
/// Firmware version in the answer to a config query (as `vblade` 25).
pub const FIRMWARE: u16 = 0x4025;

/// Bytes of a config query's header; the string follows.
const CONFIG_HEADER_BYTES: usize = 32;
/// Longest config string (AoEr11).
const CONFIG_STRING_BYTES: usize = 1024;
/// AoE error code: unrecognised command.
const ERROR_COMMAND: u8 = 1;
/// AoE error code: the config string is set already.
const ERROR_CONFIG: u8 = 4;
/// AFlags bit: a write. The model goes by it only where `vblade` does: for the length of an answer.
const AFLAG_WRITE: u8 = 0x01;

/// Where a volume's bytes lie.
#[derive(Debug)]
pub enum Image {
    /// In a file.
    File(File),
    /// In memory.
    Memory(Vec<u8>),
}

impl Image {
    fn read(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Image::File(file) => file.read_exact_at(buffer, offset),
            Image::Memory(bytes) => {
                let at = offset as usize;
                let part = bytes.get(at..at + buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(part);
                Ok(())
            }
        }
    }

    fn write(&mut self, data: &[u8], offset: u64) -> io::Result<()> {
        match self {
            Image::File(file) => file.write_all_at(data, offset),
            Image::Memory(bytes) => {
                let at = offset as usize;
                let part = bytes.get_mut(at..at + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                part.copy_from_slice(data);
                Ok(())
            }
        }
    }
}

/// A volume of the model: what one `vblade` process serves.
#[derive(Debug)]
pub struct TargetVolume {
    /// AoE shelf.
    pub shelf: u16,
    /// AoE slot.
    pub slot: u8,
    /// MAC that the answers come from.
    pub mac: [u8; 6],
    /// Size in sectors.
    pub sectors: u64,
    /// The bytes.
    pub image: Image,
    config: Vec<u8>,
    executed: u64,
}

impl TargetVolume {
    /// A volume of `sectors` sectors; its MAC is made of shelf and slot (`02:c5:01:` shelf, slot).
    pub fn new(shelf: u16, slot: u8, sectors: u64, image: Image) -> Self {
        let [high, low] = shelf.to_be_bytes();
        let mac = [0x02, 0xC5, 0x01, high, low, slot];
        Self { shelf, slot, mac, sectors, image, config: Vec::new(), executed: 0 }
    }

    /// Writes executed.
    pub fn executed(&self) -> u64 {
        self.executed
    }
}

/// `vblade` processes on one wire, one for each volume.
#[derive(Debug)]
pub struct VbladeModel {
    volumes: Vec<TargetVolume>,
    answer_cycles: u64,
    maximum_sectors: u8,
    trouble: Option<String>,
}

impl VbladeModel {
    /// Serves `volumes`; answers come [`DEFAULT_ANSWER_CYCLES`] after their requests.
    pub fn new(volumes: Vec<TargetVolume>) -> Self {
        let maximum_sectors = aoe::MAXIMUM_SECTORS as u8;
        Self { volumes, answer_cycles: DEFAULT_ANSWER_CYCLES, maximum_sectors, trouble: None }
    }

    /// Answers come `cycles` after their requests.
    pub fn with_answer_cycles(mut self, cycles: u64) -> Self {
        self.answer_cycles = cycles;
        self
    }

    /// The volumes.
    pub fn volumes(&self) -> &[TargetVolume] {
        &self.volumes
    }
}

impl Target for VbladeModel {
    fn frame(&mut self, frame: &[u8], _cycle: u64, answers: &mut Vec<(u64, Vec<u8>)>) {
        let frame = without_vlan_tags(frame);
        let Ok((header, _)) = Header::ref_from_prefix(&frame) else { return };
        // Neither the destination nor the header's version matters to vblade.
        if header.ethertype.get() != aoe::ETHERTYPE || header.version_flags & FLAG_RESPONSE != 0 {
            return;
        }
        for volume in &mut self.volumes {
            let shelf = [volume.shelf, SHELF_BROADCAST].contains(&header.shelf.get());
            if !shelf || ![volume.slot, SLOT_BROADCAST].contains(&header.slot) {
                continue;
            }
            let answer = match header.command {
                COMMAND_ATA => answer_ata(volume, &frame, self.maximum_sectors, &mut self.trouble),
                COMMAND_CONFIG => answer_config(volume, &frame, self.maximum_sectors),
                _ => Some(with_error(frame.clone(), ERROR_COMMAND)),
            };
            if let Some(answer) = answer {
                answers.push((self.answer_cycles, addressed(answer, volume)));
            }
        }
    }

    fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }
}

/// The frame as `vblade` gets it: the kernel strips VLAN tags.
fn without_vlan_tags(frame: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    while let Some(&[high, low]) = frame.get(12..14) {
        let tags = [aoe::ETHERTYPE_VLAN, aoe::ETHERTYPE_PROVIDER_VLAN];
        if !tags.contains(&u16::from_be_bytes([high, low])) || frame.len() < 18 {
            break;
        }
        frame.drain(12..16);
    }
    frame
}

/// Turns a request into an answer: back to the source, from this volume, with the response flag.
fn addressed(mut answer: Vec<u8>, volume: &TargetVolume) -> Vec<u8> {
    if let Ok((header, _)) = Header::mut_from_prefix(&mut answer) {
        header.destination = header.source;
        header.source = volume.mac;
        header.shelf = volume.shelf.into();
        header.slot = volume.slot;
        header.version_flags |= FLAG_RESPONSE;
    }
    answer
}

fn with_error(mut answer: Vec<u8>, error: u8) -> Vec<u8> {
    if let Ok((header, _)) = Header::mut_from_prefix(&mut answer) {
        header.version_flags |= FLAG_ERROR;
        header.error = error;
    }
    answer
}

/// An answer is the request's buffer, overwritten in place: a write's begins with the written data.
fn answer_ata(
    volume: &mut TargetVolume,
    frame: &[u8],
    maximum_sectors: u8,
    trouble: &mut Option<String>,
) -> Option<Vec<u8>> {
    let (request, data) = AtaFrame::read_from_prefix(frame).ok()?;
    let mut answer = frame.to_vec();
    answer.resize(answer.len().max(MINIMUM_FRAME_BYTES), 0);
    let Some(outcome) = execute(volume, &request.ata, data, maximum_sectors, trouble) else {
        answer.truncate(MINIMUM_FRAME_BYTES);
        return Some(with_error(answer, ERROR_ARGUMENT));
    };
    let read_back = request.ata.flags & AFLAG_WRITE == 0 && request.ata.sectors != 0;
    let length = match read_back {
        // Whatever the command was; after a write without the flag this is all of its data again.
        true => WRITE_HEADER_BYTES + outcome.sectors_done * SECTOR_BYTES,
        false => MINIMUM_FRAME_BYTES,
    };
    answer.resize(WRITE_HEADER_BYTES + outcome.data.len().max(answer.len() - WRITE_HEADER_BYTES), 0);
    answer[WRITE_HEADER_BYTES..][..outcome.data.len()].copy_from_slice(&outcome.data);
    answer.resize(length, 0);
    let (shown, _) = AtaFrame::mut_from_prefix(&mut answer).ok()?;
    shown.ata.sectors = outcome.sectors_left;
    shown.ata.error_feature = outcome.error;
    shown.ata.command_status = outcome.status;
    Some(answer)
}

/// What an ATA command came to.
struct Outcome {
    status: u8,
    error: u8,
    sectors_left: u8,
    sectors_done: usize,
    data: Vec<u8>,
}

impl Outcome {
    fn failed(request: &Ata, error: u8) -> Self {
        let status = ATA_STATUS_READY | ATA_STATUS_ERROR;
        Self { status, error, sectors_left: request.sectors, sectors_done: 0, data: Vec::new() }
    }

    fn done(request: &Ata, data: Vec<u8>) -> Self {
        let sectors_done = request.sectors.into();
        Self { status: ATA_STATUS_READY, error: 0, sectors_left: 0, sectors_done, data }
    }
}

/// `None`: AoE error 2.
fn execute(
    volume: &mut TargetVolume,
    request: &Ata,
    data: &[u8],
    maximum_sectors: u8,
    trouble: &mut Option<String>,
) -> Option<Outcome> {
    let lba = match request.command_status {
        aoe::ATA_READ | aoe::ATA_WRITE => request.lba48() & LBA28_MASK,
        aoe::ATA_READ_EXT | aoe::ATA_WRITE_EXT => request.lba48(),
        aoe::ATA_IDENTIFY if request.sectors != 1 => return None,
        aoe::ATA_IDENTIFY => return Some(Outcome::done(request, identify(volume.sectors))),
        // Nothing is flushed, and the status register stays zero.
        aoe::ATA_FLUSH => {
            let (status, error, sectors_left) = (0, request.error_feature, request.sectors);
            return Some(Outcome { status, error, sectors_left, sectors_done: 0, data: Vec::new() });
        }
        _ => return Some(Outcome::failed(request, ATA_ERROR_ABORT)),
    };
    if request.sectors > maximum_sectors {
        return None;
    }
    let (sectors, bytes) = (u64::from(request.sectors), usize::from(request.sectors) * SECTOR_BYTES);
    if lba + sectors > volume.sectors {
        return Some(Outcome::failed(request, ATA_ERROR_NOT_FOUND));
    }
    let offset = lba * SECTOR_BYTES as u64;
    let (result, read) = match request.command_status {
        aoe::ATA_READ | aoe::ATA_READ_EXT => {
            let mut buffer = vec![0; bytes];
            (volume.image.read(&mut buffer, offset), buffer)
        }
        _ => {
            let result = volume.image.write(data.get(..bytes)?, offset);
            volume.executed += u64::from(result.is_ok());
            (result, Vec::new())
        }
    };
    match result {
        Ok(()) => Some(Outcome::done(request, read)),
        Err(error) => {
            let (shelf, slot) = (volume.shelf, volume.slot);
            trouble.get_or_insert_with(|| {
                format!("the image of volume {shelf}.{slot}, {bytes} bytes at offset {offset}: {error}")
            });
            Some(Outcome::failed(request, ATA_ERROR_ABORT))
        }
    }
}

/// The IDENTIFY data: LBA and LBA48 support, and the size in words 60–61 and 100–103.
fn identify(sectors: u64) -> Vec<u8> {
    let mut words = [0u16; SECTOR_BYTES / 2];
    words[0] = 0x0040;
    words[47] = 0x8000;
    words[49] = 0x0200;
    words[50] = 0x4000;
    words[83] = 0x5400;
    words[84] = 0x4000;
    words[86] = 0x1400;
    words[87] = 0x4000;
    words[93] = 0x400B;
    let short = sectors.min(LBA28_MASK);
    words[60] = short as u16;
    words[61] = (short >> 16) as u16;
    for (i, word) in words[100..104].iter_mut().enumerate() {
        *word = (sectors >> (16 * i)) as u16;
    }
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// Config query: read 0, test 1, test prefix 2, set 3, force 4.
fn answer_config(volume: &mut TargetVolume, frame: &[u8], maximum_sectors: u8) -> Option<Vec<u8>> {
    let head = frame.get(..CONFIG_HEADER_BYTES)?;
    let command = head[29] & 0x0F;
    let length = usize::from(u16::from_be_bytes([head[30], head[31]]));
    let string = frame.get(CONFIG_HEADER_BYTES..CONFIG_HEADER_BYTES + length);
    let mut answer = head.to_vec();
    match (command, string) {
        (0, _) => {}
        (1, Some(string)) if string == volume.config => {}
        (2, Some(string)) if volume.config.starts_with(string) => {}
        (1 | 2, _) => return None,
        (3, Some(string)) if volume.config.is_empty() || string == volume.config => {
            volume.config = string[..string.len().min(CONFIG_STRING_BYTES)].to_vec();
        }
        (3, Some(_)) => answer = with_error(answer, ERROR_CONFIG),
        (4, Some(string)) => volume.config = string[..string.len().min(CONFIG_STRING_BYTES)].to_vec(),
        _ => answer = with_error(answer, ERROR_ARGUMENT),
    }
    answer[24..26].copy_from_slice(&BUFFERS.to_be_bytes());
    answer[26..28].copy_from_slice(&FIRMWARE.to_be_bytes());
    answer[28] = maximum_sectors;
    answer[29] = aoe::VERSION << 4 | command;
    answer[30..32].copy_from_slice(&(volume.config.len() as u16).to_be_bytes());
    answer.extend_from_slice(&volume.config);
    Some(answer)
}

/// A request as an initiator sends it, for tests and benches.
pub fn request(source: [u8; 6], volume: (u16, u8), tag: u32, ata: Ata, data: &[u8]) -> Vec<u8> {
    let header = Header {
        destination: [0xFF; 6],
        source,
        ethertype: aoe::ETHERTYPE.into(),
        version_flags: aoe::VERSION << 4,
        error: 0,
        shelf: volume.0.into(),
        slot: volume.1,
        command: COMMAND_ATA,
        tag: tag.into(),
    };
    let mut frame = AtaFrame { header, ata }.as_bytes().to_vec();
    frame.extend_from_slice(data);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: [u8; 6] = [2, 0, 0, 0, 0, 1];

    fn model() -> VbladeModel {
        let volume = |slot| TargetVolume::new(1, slot, 64, Image::Memory(vec![0; 64 * SECTOR_BYTES]));
        VbladeModel::new(vec![volume(0), volume(1)])
    }

    fn ata(command: u8, lba: u64, sectors: u8) -> Ata {
        let mut bytes = [0; 6];
        bytes.copy_from_slice(&lba.to_le_bytes()[..6]);
        Ata { flags: 0x41, error_feature: 0, sectors, command_status: command, lba: bytes, reserved: [0; 2] }
    }

    fn ask(model: &mut VbladeModel, frame: &[u8]) -> Vec<Vec<u8>> {
        let mut answers = Vec::new();
        model.frame(frame, 0, &mut answers);
        assert!(answers.iter().all(|(delay, _)| *delay == DEFAULT_ANSWER_CYCLES));
        answers.into_iter().map(|(_, answer)| answer).collect()
    }

    fn one(model: &mut VbladeModel, frame: &[u8]) -> (AtaFrame, Vec<u8>) {
        let answers = ask(model, frame);
        assert_eq!(answers.len(), 1);
        let (head, data) = AtaFrame::read_from_prefix(&answers[0]).unwrap();
        assert_eq!((head.header.destination, head.header.source), (SOURCE, [2, 0xC5, 1, 0, 1, 0]));
        (head, data.to_vec())
    }

    fn bytes_of(model: &VbladeModel, slot: usize) -> &[u8] {
        match &model.volumes[slot].image {
            Image::Memory(bytes) => bytes,
            Image::File(_) => unreachable!("these tests keep their images in memory"),
        }
    }

    #[test]
    fn a_write_is_answered_by_sixty_bytes_that_look_like_it() {
        let mut model = model();
        let data: Vec<u8> = (0..1024u32).map(|i| i as u8).collect();
        let frame = request(SOURCE, (1, 0), 0x1234, ata(aoe::ATA_WRITE_EXT, 5, 2), &data);
        let (head, rest) = one(&mut model, &frame);
        assert_eq!(head.header.version_flags, 0x18);
        assert_eq!((head.ata.command_status, head.ata.error_feature, head.ata.sectors), (0x40, 0, 0));
        assert_eq!((head.header.tag.get(), head.ata.lba48()), (0x1234, 5));
        assert_eq!(rest, &data[..24]);
        assert_eq!(&bytes_of(&model, 0)[5 * 512..7 * 512], data);
        assert_eq!((model.volumes[0].executed(), model.volumes[1].executed()), (1, 0));
    }

    #[test]
    fn reads_give_what_was_written() {
        let mut model = model();
        let frame = request(SOURCE, (1, 0), 1, ata(aoe::ATA_WRITE, 63, 1), &[7; 512]);
        one(&mut model, &frame);
        for command in [aoe::ATA_READ, aoe::ATA_READ_EXT] {
            let read = Ata { flags: 0x40, ..ata(command, 62, 2) };
            // A path probe carries data; they mean nothing.
            let (head, data) = one(&mut model, &request(SOURCE, (1, 0), 2, read, &[9; 100]));
            assert_eq!((head.ata.command_status, data.len()), (0x40, 1024));
            assert_eq!((&data[..512], &data[512..]), (&[0; 512][..], &[7; 512][..]));
        }
    }

    #[test]
    fn identify_tells_the_size() {
        let read = Ata { flags: 0, ..ata(aoe::ATA_IDENTIFY, 0, 1) };
        let (head, data) = one(&mut model(), &request(SOURCE, (1, 0), 1, read, &[]));
        assert_eq!((head.ata.command_status, data.len()), (0x40, 512));
        assert_eq!((&data[120..124], &data[200..208]), (&[64, 0, 0, 0][..], &[64, 0, 0, 0, 0, 0, 0, 0][..]));
    }

    #[test]
    fn errors_are_those_of_vblade() {
        let mut model = model();
        let past = one(&mut model, &request(SOURCE, (1, 0), 1, ata(aoe::ATA_WRITE_EXT, 63, 2), &[1; 1024])).0;
        assert_eq!(
            (past.header.version_flags, past.ata.command_status, past.ata.error_feature),
            (0x18, 0x41, 0x10)
        );
        for command in [0x35, 0x39, 0x3D, 0x61, 0xCA, 0xEA] {
            let unknown = one(&mut model, &request(SOURCE, (1, 0), 1, ata(command, 0, 1), &[1; 512])).0;
            assert_eq!((unknown.ata.command_status, unknown.ata.error_feature), (0x41, 0x04));
        }
        let short = one(&mut model, &request(SOURCE, (1, 0), 1, ata(aoe::ATA_WRITE, 0, 2), &[1; 1023])).0;
        assert_eq!((short.header.version_flags, short.header.error), (0x1C, 2));
        let empty = one(&mut model, &request(SOURCE, (1, 0), 1, ata(aoe::ATA_WRITE, 0, 0), &[])).0;
        assert_eq!(empty.ata.command_status, 0x40);
        assert!(bytes_of(&model, 0).iter().all(|b| *b == 0));
        let flush = one(&mut model, &request(SOURCE, (1, 0), 1, ata(aoe::ATA_FLUSH, 0, 0), &[])).0;
        assert_eq!((flush.header.version_flags, flush.ata.command_status), (0x18, 0));
    }

    #[test]
    fn it_executes_what_it_should_not() {
        let mut model = model();
        let good = request(SOURCE, (1, 0), 1, ata(aoe::ATA_WRITE_EXT, 0, 1), &[1; 512]);
        let mut version = good.clone();
        version[14] = 0x20;
        version[36..].fill(2);
        assert_eq!(one(&mut model, &version).0.header.version_flags, 0x28);
        assert_eq!(bytes_of(&model, 0)[0], 2);
        let mut unflagged = good.clone();
        unflagged[24] = 0;
        unflagged[36..].fill(3);
        // Without the flag the answer has all of the data.
        assert_eq!(one(&mut model, &unflagged).1, [3; 512]);
        assert_eq!(bytes_of(&model, 0)[0], 3);
        let mut tagged = good.clone();
        tagged[36..].fill(4);
        tagged.splice(12..12, [0x81, 0x00, 0, 5, 0x88, 0xA8, 0, 6]);
        one(&mut model, &tagged);
        assert_eq!(bytes_of(&model, 0)[0], 4);
        let mut broadcast = good;
        broadcast[16..19].fill(0xFF);
        broadcast[36..].fill(5);
        assert_eq!(ask(&mut model, &broadcast).len(), 2);
        assert_eq!((bytes_of(&model, 0)[0], bytes_of(&model, 1)[0]), (5, 5));
    }

    #[test]
    fn addresses_decode_by_the_command() {
        let mut model = model();
        let far = ata(aoe::ATA_WRITE, 1 << 28 | 3, 1);
        assert_eq!(one(&mut model, &request(SOURCE, (1, 0), 1, far, &[8; 512])).0.ata.command_status, 0x40);
        assert_eq!(bytes_of(&model, 0)[3 * 512], 8);
        let far = ata(aoe::ATA_WRITE_EXT, 1 << 28 | 3, 1);
        assert_eq!(one(&mut model, &request(SOURCE, (1, 0), 1, far, &[8; 512])).0.ata.command_status, 0x41);
    }

    #[test]
    fn config_queries_and_what_is_not_for_it() {
        let mut model = model();
        let mut query = request(SOURCE, (0xFFFF, 0xFF), 9, ata(0, 0, 0), &[]);
        query.truncate(32);
        query[19] = COMMAND_CONFIG;
        query[24..].fill(0);
        let answers = ask(&mut model, &query);
        assert_eq!(answers.len(), 2);
        assert_eq!(&answers[1][14..20], [0x18, 0, 0, 1, 1, 1]);
        assert_eq!(&answers[1][24..32], [0, 16, 0x40, 0x25, 17, 0x10, 0, 0]);
        for (byte, value) in [(12, 8), (14, 0x18), (16, 5), (18, 5)] {
            let mut other = query.clone();
            other[16..19].copy_from_slice(&[0, 1, 0]);
            other[byte] = value;
            assert_eq!(ask(&mut model, &other).len(), 0, "byte {byte}");
        }
        assert_eq!(ask(&mut model, &query[..31]).len(), 0);
        query[19] = 9;
        assert_eq!(ask(&mut model, &query)[0][14..16], [0x1C, 1]);
    }

    #[test]
    fn an_image_that_fails_is_told_of() {
        let file = File::open("/dev/null").unwrap();
        let mut model = VbladeModel::new(vec![TargetVolume::new(1, 0, 8, Image::File(file))]);
        let frame = request(SOURCE, (1, 0), 1, ata(aoe::ATA_WRITE, 2, 1), &[1; 512]);
        assert_eq!(one(&mut model, &frame).0.ata.error_feature, 0x04);
        assert!(model.trouble().unwrap().contains("volume 1.0, 512 bytes at offset 1024"));
    }
}
