//! Commands of disks and what answers them (SPC-4, SBC-3).

use std::fmt::Display;
use std::io::{Error, ErrorKind};
use std::sync::Arc;

/// A command, as it is sent and sent again.
#[derive(Clone, Debug)]
pub(crate) struct Command {
    /// The command descriptor block.
    pub bytes: [u8; 16],
    pub data: Data,
    /// It changes what the disk holds.
    pub changes: bool,
}

/// The data of a command.
#[derive(Clone, Debug)]
pub(crate) enum Data {
    None,
    /// So many bytes at most come.
    In(u32),
    /// These go.
    Out(Arc<Vec<u8>>),
}

impl Data {
    /// Bytes that come or go.
    pub fn len(&self) -> u32 {
        match self {
            Data::None => 0,
            Data::In(len) => *len,
            Data::Out(data) => data.len() as u32,
        }
    }
}

fn command(parts: &[(usize, &[u8])], data: Data) -> Command {
    let mut bytes = [0; 16];
    for (at, part) in parts {
        bytes.iter_mut().skip(*at).zip(*part).for_each(|(to, from)| *to = *from);
    }
    Command { bytes, data, changes: false }
}

/// Operation code of WRITE(16).
const WRITE: u8 = 0x8A;

impl Command {
    pub fn test_unit_ready() -> Self {
        command(&[], Data::None)
    }

    /// A page of vital product data, or the standard answer.
    pub fn inquiry(page: Option<u8>) -> Self {
        let wanted: u16 = 255;
        let page = [u8::from(page.is_some()), page.unwrap_or(0)];
        command(&[(0, &[0x12]), (1, &page), (3, &wanted.to_be_bytes())], Data::In(wanted.into()))
    }

    pub fn read_capacity() -> Self {
        command(&[(0, &[0x9E, 0x10]), (10, &32_u32.to_be_bytes())], Data::In(32))
    }

    /// The mode page that tells about caching, and whether it may be written.
    pub fn mode_sense() -> Self {
        command(&[(0, &[0x1A, 0, 0x08, 0, 192])], Data::In(192))
    }

    pub fn read(block: u64, count: u32, len: u32) -> Self {
        command(&[(0, &[0x88]), (2, &block.to_be_bytes()), (10, &count.to_be_bytes())], Data::In(len))
    }

    /// Whether its data are what the disk shall hold.
    pub fn is_write(&self) -> bool {
        self.bytes[0] == WRITE
    }

    pub fn write(block: u64, count: u32, data: Vec<u8>) -> Self {
        let data = Data::Out(Arc::new(data));
        let parts: [(usize, &[u8]); 3] =
            [(0, &[WRITE]), (2, &block.to_be_bytes()), (10, &count.to_be_bytes())];
        Command { changes: true, ..command(&parts, data) }
    }

    /// Synchronize cache of all blocks, in the long or the old short form.
    pub fn flush(long: bool) -> Self {
        command(&[(0, &[if long { 0x91 } else { 0x35 }])], Data::None)
    }

    pub fn unmap(block: u64, count: u32) -> Self {
        let mut list = Vec::with_capacity(24);
        list.extend_from_slice(&22_u16.to_be_bytes());
        list.extend_from_slice(&16_u16.to_be_bytes());
        list.extend_from_slice(&[0; 4]);
        list.extend_from_slice(&block.to_be_bytes());
        list.extend_from_slice(&count.to_be_bytes());
        list.extend_from_slice(&[0; 4]);
        let data = Data::Out(Arc::new(list));
        Command { changes: true, ..command(&[(0, &[0x42]), (7, &24_u16.to_be_bytes())], data) }
    }

    /// Writes a block of zeros over and over, or gives the space back where that reads as zeros.
    pub fn write_same(block: u64, count: u32, unmap: bool, block_size: u32) -> Self {
        let data = Data::Out(Arc::new(vec![0; block_size as usize]));
        let parts: [(usize, &[u8]); 3] =
            [(0, &[0x93, u8::from(unmap) << 3]), (2, &block.to_be_bytes()), (10, &count.to_be_bytes())];
        Command { changes: true, ..command(&parts, data) }
    }

    pub fn get_lba_status(block: u64) -> Self {
        let wanted: u32 = 24;
        let parts: [(usize, &[u8]); 3] =
            [(0, &[0x9E, 0x12]), (2, &block.to_be_bytes()), (10, &wanted.to_be_bytes())];
        command(&parts, Data::In(wanted))
    }
}

/// Status codes (SAM-5, 5.3.1).
pub(crate) mod status {
    pub const GOOD: u8 = 0x00;
    pub const CHECK_CONDITION: u8 = 0x02;
    pub const BUSY: u8 = 0x08;
    pub const RESERVATION_CONFLICT: u8 = 0x18;
    pub const TASK_SET_FULL: u8 = 0x28;
}

/// Sense keys (SPC-4, 4.5.6).
pub(crate) mod key {
    pub const NOT_READY: u8 = 0x2;
    pub const MEDIUM_ERROR: u8 = 0x3;
    pub const HARDWARE_ERROR: u8 = 0x4;
    pub const ILLEGAL_REQUEST: u8 = 0x5;
    pub const UNIT_ATTENTION: u8 = 0x6;
    pub const DATA_PROTECT: u8 = 0x7;
    pub const ABORTED_COMMAND: u8 = 0xB;
}

/// What a target says about a command that went wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sense {
    pub key: u8,
    /// Additional sense code and its qualifier.
    pub code: u16,
}

impl Sense {
    /// Reads sense data in the fixed or the descriptor format; what is missing is zero.
    pub fn parse(bytes: &[u8]) -> Self {
        let byte = |at: usize| bytes.get(at).copied().unwrap_or_default();
        let (key, high, low) = match byte(0) & 0x7F {
            0x72 | 0x73 => (byte(1), byte(2), byte(3)),
            _ => (byte(2), byte(12), byte(13)),
        };
        Sense { key: key & 0xF, code: u16::from_be_bytes([high, low]) }
    }

    fn words(&self) -> &'static str {
        match self.code >> 8 {
            0x04 if self.code == 0x0402 => return "it must be started first",
            0x04 => return "it is becoming ready, or cannot",
            0x10 => return "the checksums in the disk's blocks do not match",
            0x11 => return "the blocks cannot be read",
            0x20 => return "it does not know this command",
            0x21 => return "the blocks are beyond its end",
            0x25 => return "there is no such logical unit",
            0x27 => return "it is write-protected",
            0x3A => return "there is no medium in it",
            0x44 => return "it has an internal failure",
            _ => {}
        }
        match self.key {
            key::NOT_READY => "it is not ready",
            key::MEDIUM_ERROR => "its medium is damaged",
            key::HARDWARE_ERROR => "its hardware failed",
            key::ILLEGAL_REQUEST => "it does not take this command",
            key::UNIT_ATTENTION => "it has changed",
            key::DATA_PROTECT => "it is write-protected, or has no space left",
            key::ABORTED_COMMAND => "it gave the command up",
            _ => "it does not do it",
        }
    }
}

/// Why a command came to nothing.
#[derive(Clone, Debug)]
pub(crate) enum Failure {
    /// The logical unit says why.
    Sense(Sense),
    /// The logical unit says no more than that.
    Status(u8),
    /// The target does not take the command; the reason's number (RFC 7143, 11.17.1).
    Rejected(u8),
    /// Fewer data came than the answer says.
    Short,
    /// There is no connection, and there was none for too long.
    Gone(String),
}

impl Failure {
    /// The logical unit has no such command, or not with these fields.
    pub fn is_unknown(&self) -> bool {
        matches!(self, Failure::Sense(Sense { key: key::ILLEGAL_REQUEST, .. }) | Failure::Rejected(_))
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Sense(sense) => {
                let (high, low) = (sense.code >> 8, sense.code & 0xFF);
                write!(f, "{} (sense {:#x}, {high:02x}/{low:02x})", sense.words(), sense.key)
            }
            Failure::Status(status::RESERVATION_CONFLICT) => {
                f.write_str("another initiator has reserved it for itself")
            }
            Failure::Status(status) => write!(f, "it answers with status {status:#04x}"),
            Failure::Rejected(reason) => write!(f, "the target rejects the command (reason {reason:#04x})"),
            Failure::Short => f.write_str("the target sends fewer bytes than it says"),
            Failure::Gone(why) => f.write_str(why),
        }
    }
}

impl Failure {
    /// As an I/O error.
    pub fn into_io(self, what: &str) -> Error {
        let kind = match &self {
            // SBC-3, 4.7.3.6: the space behind a thin unit is used up.
            Failure::Sense(Sense { key: key::DATA_PROTECT, code: 0x2707 }) => ErrorKind::StorageFull,
            Failure::Sense(Sense { key: key::DATA_PROTECT, .. }) => ErrorKind::ReadOnlyFilesystem,
            Failure::Gone(_) => ErrorKind::NotConnected,
            Failure::Short => ErrorKind::InvalidData,
            _ => ErrorKind::Other,
        };
        Error::new(kind, format!("{what}: {self}"))
    }
}

/// What a logical unit says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Facts {
    /// Bytes of a block: a power of two from 512 to 65536.
    pub block: u32,
    pub blocks: u64,
    /// Blocks of a read or write; 0 where nothing is said.
    pub longest: u32,
    /// Blocks of an UNMAP; 0: there is none.
    pub unmap: u32,
    /// WRITE SAME can give space back.
    pub unmaps_same: bool,
    /// Blocks of a WRITE SAME; `None` where nothing is said.
    pub same: Option<u64>,
    /// Space that was given back reads as zeros.
    pub zeros: bool,
    /// It knows which blocks have space.
    pub thin: bool,
    pub write_protected: bool,
    /// What was written may be lost unless it is flushed.
    pub cache: bool,
    /// Its name for itself, with which it is known again.
    pub name: Vec<u8>,
}

fn array<const N: usize>(bytes: &[u8], at: usize) -> [u8; N] {
    std::array::from_fn(|index| bytes.get(at + index).copied().unwrap_or_default())
}

/// Asks a logical unit for its facts.
///
/// # Errors
/// A sentence that goes on after "Logical unit N: ".
pub(crate) fn ask(call: &mut dyn FnMut(Command) -> Result<Vec<u8>, Failure>) -> Result<Facts, String> {
    let failed = |what: &'static str| move |failure: Failure| format!("{what}: {failure}");
    let answer = call(Command::inquiry(None)).map_err(failed("it does not say what it is"))?;
    match answer.first() {
        Some(0) => {}
        None => return Err("it does not say what it is".to_owned()),
        // SPC-4, 6.4.2: a qualifier of 1 or more, or no known type.
        Some(byte) if byte >> 5 != 0 || byte & 0x1F == 0x1F => {
            return Err(
                "the target has no such logical unit; `iscsi-ls -s iscsi://HOST` lists them".to_owned()
            );
        }
        Some(byte) => return Err(format!("it is no disk but a device of type {:#04x}", byte & 0x1F)),
    }
    call(Command::test_unit_ready()).map_err(failed("it is not ready"))?;
    let answer = call(Command::read_capacity()).map_err(failed("it does not say its size"))?;
    let (last, block) = (u64::from_be_bytes(array(&answer, 0)), u32::from_be_bytes(array(&answer, 8)));
    if !block.is_power_of_two() || !(512..=65536).contains(&block) {
        return Err(format!("its blocks have {block} bytes, which is no power of two from 512 to 65536"));
    }
    let blocks = last
        .checked_add(1)
        .filter(|blocks| blocks.checked_mul(block.into()).is_some_and(|bytes| i64::try_from(bytes).is_ok()));
    let blocks = blocks.ok_or_else(|| "it is larger than 8 EiB".to_owned())?;
    let flags: u8 = answer.get(14).copied().unwrap_or_default();
    let mut facts = Facts {
        block,
        blocks,
        longest: 0,
        unmap: 0,
        unmaps_same: false,
        same: None,
        zeros: flags & 0x40 != 0,
        thin: flags & 0x80 != 0,
        write_protected: false,
        cache: true,
        name: Vec::new(),
    };
    vital(&mut facts, call)?;
    if let Some(answer) = optional(call(Command::mode_sense()), "its mode")? {
        let byte = |at: usize| answer.get(at).copied().unwrap_or_default();
        facts.write_protected = byte(2) & 0x80 != 0;
        let page = 4 + usize::from(byte(3));
        if byte(page) & 0x3F == 8 {
            facts.cache = byte(page + 2) & 4 != 0;
        }
    }
    Ok(facts)
}

/// What not every logical unit knows.
fn optional(answer: Result<Vec<u8>, Failure>, what: &str) -> Result<Option<Vec<u8>>, String> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(failure) if failure.is_unknown() => Ok(None),
        Err(failure) => Err(format!("it does not say {what}: {failure}")),
    }
}

/// The pages of vital product data: names, limits, and how space is given back.
fn vital(facts: &mut Facts, call: &mut dyn FnMut(Command) -> Result<Vec<u8>, Failure>) -> Result<(), String> {
    const NAMES: u8 = 0x83;
    const LIMITS: u8 = 0xB0;
    const PROVISIONING: u8 = 0xB2;
    let Some(list) = optional(call(Command::inquiry(Some(0))), "its pages")? else { return Ok(()) };
    let count = usize::from(list.get(3).copied().unwrap_or_default());
    let pages: Vec<u8> = list.iter().skip(4).take(count).copied().collect();
    let mut page = |number: u8| match pages.contains(&number) {
        true => optional(call(Command::inquiry(Some(number))), "a page"),
        false => Ok(None),
    };
    if let Some(names) = page(NAMES)? {
        facts.name = names;
    }
    let mut most = 0;
    if let Some(limits) = page(LIMITS)? {
        facts.longest = u32::from_be_bytes(array(&limits, 8));
        let descriptors = u32::from_be_bytes(array(&limits, 24));
        most = if descriptors == 0 { 0 } else { u32::from_be_bytes(array(&limits, 20)) };
        let same = u64::from_be_bytes(array(&limits, 36));
        facts.same = (same > 0).then_some(same);
    }
    if let Some(provisioning) = page(PROVISIONING)? {
        let flags = provisioning.get(5).copied().unwrap_or_default();
        facts.unmap = if flags & 0x80 != 0 { most } else { 0 };
        facts.unmaps_same = flags & 0x40 != 0;
    }
    Ok(())
}

/// A run of blocks from the answer to GET LBA STATUS: how many from `block` on, and whether they have space.
pub(crate) fn lba_status(answer: &[u8], block: u64) -> Option<(u64, bool)> {
    let start = u64::from_be_bytes(array(answer, 8));
    let count = u64::from(u32::from_be_bytes(array(answer, 16)));
    let left = start.checked_add(count)?.checked_sub(block)?;
    if answer.len() < 24 || start > block || left == 0 {
        return None;
    }
    match answer.get(20)? & 0xF {
        0 => Some((left, true)),
        1 => Some((left, false)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SBC-3, tables 41, 96 and 118: where the fields are.
    #[test]
    fn commands_have_their_fields_in_place() {
        let read = Command::read(0x0102_0304_0506_0708, 9, 4608);
        assert_eq!(read.bytes, [0x88, 0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 0, 9, 0, 0]);
        assert_eq!(Command::write_same(1, 2, true, 512).bytes[..2], [0x93, 8]);
        let unmap = Command::unmap(5, 6);
        let Data::Out(list) = &unmap.data else { panic!() };
        assert_eq!(
            (list.len(), unmap.bytes[8], list[1], list[3], list[15], list[19]),
            (24, 24, 22, 16, 5, 6)
        );
    }

    /// SPC-4, 4.5.2 and 4.5.3.
    #[test]
    fn sense_is_read_in_both_formats() {
        let expected = Sense { key: key::DATA_PROTECT, code: 0x2700 };
        assert_eq!(Sense::parse(&[0x70, 0, 7, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x27, 0]), expected);
        assert_eq!(Sense::parse(&[0x72, 7, 0x27, 0]), expected);
        assert_eq!(Sense::parse(&[]), Sense { key: 0, code: 0 });
        let error = Failure::Sense(expected).into_io("writing");
        assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem);
        assert!(error.to_string().contains("write-protected"), "{error}");
    }

    #[test]
    fn runs_of_blocks_are_believed_only_where_they_were_asked_for() {
        let mut answer = vec![0; 24];
        answer[15] = 8;
        answer[19] = 4;
        answer[20] = 1;
        assert_eq!(lba_status(&answer, 8), Some((4, false)));
        assert_eq!(lba_status(&answer, 10), Some((2, false)));
        assert_eq!(lba_status(&answer, 12), None);
        assert_eq!(lba_status(&answer, 7), None);
        assert_eq!(lba_status(&answer[..20], 8), None);
    }
}
