//! The setup header of a bzImage and its checks (Linux boot protocol, "The Real-Mode Kernel Header").

use crate::LoadError;
use crate::fields::{Fields, bytes, u16_at, u32_at};
use std::path::Path;

/// Offset of the setup header in the file and in the zero page.
pub const HEADER: u64 = 0x1f1;
/// Where `HdrS` stands.
const MAGIC: u64 = 0x202;
/// The oldest protocol that tells the length of its command line and has a relocatable kernel.
const MIN_VERSION: u16 = 0x0206;
/// `loadflags`: the protected-mode code goes to 1 MiB or above.
const LOADED_HIGH: u8 = 1;
/// `xloadflags`: there is a 64-bit entry at 0x200.
const KERNEL_64: u16 = 1;

/// Whether a file claims to be a Linux kernel with a setup header.
pub fn is_bzimage(image: &[u8]) -> bool {
    bytes(image, MAGIC, 4) == Some(b"HdrS")
}

/// What the setup header says. Addresses are guest-physical.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetupHeader {
    /// Boot protocol, 0x0206 for 2.06.
    pub version: u16,
    /// Bytes of boot sector and setup code before the protected-mode kernel.
    pub setup_len: u64,
    /// Bytes of the protected-mode kernel.
    pub kernel_len: u64,
    /// Bytes of the header, from [`HEADER`].
    pub header_len: u64,
    /// Whether there is a 64-bit entry.
    pub entry64: bool,
    /// Where to load.
    pub load_address: u64,
    /// RAM needed from where the kernel runs, in bytes.
    pub init_size: u64,
    /// Highest address of the initrd's last byte.
    pub initrd_max: u64,
    /// Longest command line, without the zero.
    pub command_line_max: usize,
    /// Offset in the file and length of the packed kernel, from protocol 2.08.
    pub payload: Option<(u64, u64)>,
}

impl SetupHeader {
    /// Reads and checks a bzImage.
    pub fn parse(path: &Path, image: &[u8]) -> Result<Self, LoadError> {
        let fields = Fields::new(path, image, LoadError::bzimage);
        let flag = fields.u16(0x1fe, "boot_flag")?;
        if flag != 0xaa55 {
            return Err(fields.fail(format!(
                "its field boot_flag at offset 0x1fe is {flag:#x} instead of 0xaa55; the file is damaged"
            )));
        }
        let version = fields.u16(0x206, "version")?;
        if version < MIN_VERSION {
            let (major, minor) = (version >> 8, version & 0xff);
            return Err(fields.fail(format!(
                "its field version at offset 0x206 says boot protocol {major}.{minor:02}; 2.06 or newer (Linux 2.6.22) is needed"
            )));
        }
        if fields.u8(0x211, "loadflags")? & LOADED_HIGH == 0 {
            return Err(fields.fail(
                "its field loadflags at offset 0x211 says it is a zImage, to be loaded low; a bzImage is needed",
            ));
        }
        // Zero means four, for old boot sectors.
        let sectors = match fields.u8(0x1f1, "setup_sects")? {
            0 => 4,
            sectors => u64::from(sectors),
        };
        let setup_len = (sectors + 1) * 512;
        let kernel_len = u64::from(fields.u32(0x1f4, "syssize")?) * 16;
        let header_len = 0x202 + u64::from(fields.u8(0x201, "jump")?) - HEADER;
        check_lengths(&fields, image, setup_len, kernel_len, header_len)?;
        check_sum(path, image, setup_len + kernel_len, version)?;
        let (load_address, init_size) = placement(&fields, version, kernel_len)?;
        Ok(SetupHeader {
            version,
            setup_len,
            kernel_len,
            header_len,
            entry64: version >= 0x020c && fields.u16(0x236, "xloadflags")? & KERNEL_64 != 0,
            load_address,
            init_size,
            initrd_max: fields.u32(0x22c, "initrd_addr_max")?.into(),
            command_line_max: fields.u32(0x238, "cmdline_size")? as usize,
            payload: match version {
                ..0x0208 => None,
                _ => Some((
                    setup_len + u64::from(fields.u32(0x248, "payload_offset")?),
                    fields.u32(0x24c, "payload_length")?.into(),
                )),
            },
        })
    }
}

/// The lengths that the header announces fit together and into the file.
fn check_lengths(
    fields: &Fields<'_>,
    image: &[u8],
    setup_len: u64,
    kernel_len: u64,
    header_len: u64,
) -> Result<(), LoadError> {
    if kernel_len == 0 {
        return Err(
            fields.fail("its field syssize at offset 0x1f4 says there is no kernel; the file is damaged")
        );
    }
    if HEADER + header_len > setup_len {
        return Err(fields.fail(format!(
            "its fields setup_sects at offset 0x1f1 and jump at offset 0x201 contradict each other: the header ends at {:#x}, the setup code already at {setup_len:#x}; the file is damaged",
            HEADER + header_len
        )));
    }
    let needed = setup_len + kernel_len;
    // The build may round the last paragraph up.
    if needed > (image.len() as u64).next_multiple_of(16) {
        return Err(fields.fail(format!(
            "it is truncated: its fields setup_sects at offset 0x1f1 and syssize at offset 0x1f4 announce {needed} bytes, the file has {}; copy it again",
            image.len()
        )));
    }
    Ok(())
}

/// Where to load the kernel and how much RAM it needs there.
fn placement(fields: &Fields<'_>, version: u16, kernel_len: u64) -> Result<(u64, u64), LoadError> {
    const ONE_MIB: u64 = 0x10_0000;
    if version < 0x020a {
        // The size is unknown before 2.10; decompression needs a few times the compressed size.
        return Ok((ONE_MIB, kernel_len.saturating_mul(4)));
    }
    let preferred = fields.u64(0x258, "pref_address")?;
    let init_size = fields.u32(0x260, "init_size")?;
    Ok((preferred.max(ONE_MIB), u64::from(init_size).max(kernel_len)))
}

/// Linux up to 6.14 ends in a CRC-32 that makes the CRC of the whole image zero (boot protocol 2.08, "The Image
/// Checksum"). Signing for secure boot changes two fields of the PE header afterwards; they count as zero.
fn check_sum(path: &Path, image: &[u8], len: u64, version: u16) -> Result<(), LoadError> {
    if version < 0x0208 {
        return Ok(());
    }
    let Some(covered) = bytes(image, 0, len) else { return Ok(()) };
    // The CRC of the specification does not invert its result; crc32fast's does.
    const RESIDUE: u32 = !0;
    if crc(covered, &[]) == RESIDUE || crc(covered, &signing_fields(covered)) == RESIDUE {
        return Ok(());
    }
    let problem = match release(image) {
        Some(release) if release >= LAST_WITHOUT_CRC => return Ok(()),
        Some(_) => "the CRC-32 at its end is wrong, so the file is damaged; copy it again",
        None => {
            "neither is the CRC-32 at its end right nor is there a release where its field kernel_version at offset 0x20e points, so the file is damaged; copy it again"
        }
    };
    Err(LoadError::bzimage(path, problem.to_owned()))
}

/// The first release whose build no longer appends a checksum.
const LAST_WITHOUT_CRC: (u32, u32) = (6, 15);

/// Major and minor number of the release that the image names.
fn release(image: &[u8]) -> Option<(u32, u32)> {
    let offset = u64::from(u16_at(image, 0x20e)?).checked_add(0x200)?;
    let text = image.get(usize::try_from(offset).ok()?..)?;
    let text = text.split(|&byte| byte == 0).next()?;
    let text = std::str::from_utf8(&text[..text.len().min(16)]).ok()?;
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// Offsets and lengths of the PE checksum and of the certificate table's directory entry, if it is a PE file.
fn signing_fields(image: &[u8]) -> Vec<(u64, u64)> {
    let find = || {
        let pe = u64::from(u32_at(image, 0x3c)?);
        (bytes(image, pe, 4)? == b"PE\0\0").then_some(())?;
        let optional = pe + 24;
        let directories = match u16_at(image, optional)? {
            0x20b => optional + 112,
            0x10b => optional + 96,
            _ => return None,
        };
        let (checksum, certificates) = ((optional + 64, 4), (directories + 4 * 8, 8));
        bytes(image, certificates.0, certificates.1)?;
        Some(vec![checksum, certificates])
    };
    find().unwrap_or_default()
}

/// CRC-32 with ascending ranges counted as zeros.
fn crc(image: &[u8], zeros: &[(u64, u64)]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    let mut at = 0;
    for &(start, len) in zeros {
        hasher.update(bytes(image, at, start - at).unwrap_or_default());
        hasher.update(&[0; 8][..len as usize]);
        at = start + len;
    }
    hasher.update(bytes(image, at, image.len() as u64 - at).unwrap_or_default());
    hasher.finalize()
}
