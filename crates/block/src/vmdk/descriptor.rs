//! The descriptor: text that says what the disk is made of ("Virtual Disk Format 5.0", section "The Descriptor").

use crate::error::BlockError;
use crate::image::ImageResult;
use std::fmt::Write;
use std::path::Path;

/// Longest descriptor that is read.
pub(super) const DESCRIPTOR_MAX: u64 = 1 << 20;
/// Most extents of a disk.
const EXTENTS_MAX: usize = 4096;
/// CID of a parent that is not there.
pub(super) const NO_PARENT: u32 = u32::MAX;

/// How an extent is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ExtentKind {
    /// Bytes of a file, one behind the other.
    Flat,
    /// Grains.
    Sparse,
    /// Zeros.
    Zero,
}

/// A line about an extent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ExtentLine {
    /// It may be written.
    pub writable: bool,
    /// Size in sectors.
    pub sectors: u64,
    /// How it is stored.
    pub kind: ExtentKind,
    /// Its file.
    pub file: String,
    /// First sector in the file.
    pub offset: u64,
}

/// The descriptor's text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// All of it; what is not understood stays.
    text: String,
}

impl Descriptor {
    /// From the bytes, which end at the first zero.
    pub fn parse(path: &Path, at: u64, bytes: &[u8]) -> ImageResult<Self> {
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        let text = String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).into_owned();
        let descriptor = Descriptor { text };
        if !descriptor.text.trim_start().starts_with("# Disk DescriptorFile") {
            let problem = "does not begin with \"# Disk DescriptorFile\"";
            return Err(BlockError::metadata(path, at, "descriptor", problem));
        }
        match descriptor.value("version") {
            Some("1" | "2" | "3") => Ok(descriptor),
            other => {
                let problem = format!("is {other:?}; 1, 2 and 3 are known");
                Err(BlockError::metadata(path, at, "version", problem))
            }
        }
    }

    /// For a new image.
    pub fn new(
        create_type: &str,
        cid: u32,
        parent: Option<(&str, u32)>,
        extents: &[String],
        ddb: &Ddb<'_>,
    ) -> Self {
        let mut text = String::from("# Disk DescriptorFile\nversion=1\n");
        let parent_cid = parent.map_or(NO_PARENT, |(_, cid)| cid);
        // Writing to a string does not fail.
        let _ = write!(text, "CID={cid:08x}\nparentCID={parent_cid:08x}\ncreateType=\"{create_type}\"\n");
        if let Some((name, _)) = parent {
            let _ = writeln!(text, "parentFileNameHint=\"{name}\"");
        }
        text.push_str("\n# Extent description\n");
        for extent in extents {
            let _ = writeln!(text, "{extent}");
        }
        let (heads, per_track) = if ddb.adapter == "ide" { (16, 63) } else { (255, 63) };
        let cylinders = ddb.sectors / (heads * per_track);
        let _ = write!(
            text,
            "\n# The Disk Data Base\n#DDB\n\nddb.virtualHWVersion = \"{}\"\nddb.geometry.cylinders = \"{cylinders}\"\n\
             ddb.geometry.heads = \"{heads}\"\nddb.geometry.sectors = \"{per_track}\"\nddb.adapterType = \"{}\"\n",
            ddb.hardware, ddb.adapter
        );
        Descriptor { text }
    }

    /// The text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What stands behind `name=`, without quotes.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.text.lines().find_map(|line| {
            let (key, value) = line.split_once('=')?;
            (key.trim() == name).then(|| value.trim().trim_matches('"'))
        })
    }

    /// Puts a line in the place of the one that begins with `name=`, or behind the line of `after`; or removes it.
    pub fn set(&mut self, name: &str, value: Option<&str>, after: &str) {
        let is = |line: &str, name: &str| line.split_once('=').is_some_and(|(key, _)| key.trim() == name);
        let mut lines: Vec<String> = self.text.lines().map(str::to_owned).collect();
        let old = lines.iter().position(|line| is(line, name));
        match (old, value) {
            (Some(at), Some(value)) => {
                if let Some(line) = lines.get_mut(at) {
                    *line = format!("{name}={value}");
                }
            }
            (Some(at), None) => drop(lines.remove(at)),
            (None, Some(value)) => {
                let at = lines.iter().position(|line| is(line, after)).map_or(lines.len(), |at| at + 1);
                lines.insert(at, format!("{name}={value}"));
            }
            (None, None) => {}
        }
        self.text = lines.join("\n") + "\n";
    }

    /// Changes the size of the only extent, in sectors.
    pub fn set_sectors(&mut self, sectors: u64) {
        let lines = self.text.lines().map(|line| {
            let mut words = line.splitn(3, ' ');
            match (words.next(), words.next(), words.next()) {
                (Some(access @ ("RW" | "RDONLY" | "NOACCESS")), Some(_), Some(rest)) => {
                    format!("{access} {sectors} {rest}\n")
                }
                _ => format!("{line}\n"),
            }
        });
        self.text = lines.collect();
    }

    fn cid_of(&self, name: &str) -> Option<u32> {
        self.value(name).and_then(|value| u32::from_str_radix(value, 16).ok())
    }

    /// The content's identity.
    pub fn cid(&self) -> Option<u32> {
        self.cid_of("CID")
    }

    /// The parent content's identity, if there is a parent.
    pub fn parent_cid(&self) -> Option<u32> {
        self.cid_of("parentCID").filter(|&cid| cid != NO_PARENT)
    }

    /// The lines about extents.
    pub fn extents(&self, path: &Path) -> ImageResult<Vec<ExtentLine>> {
        let mut extents = Vec::new();
        let mut at = 0;
        for line in self.text.split_inclusive('\n') {
            let place = at;
            at += line.len() as u64;
            let trimmed = line.trim();
            if !["RW ", "RDONLY ", "NOACCESS "].iter().any(|access| trimmed.starts_with(access)) {
                continue;
            }
            let wrong = |problem: String| BlockError::metadata(path, place, "extent", problem);
            extents.push(extent(trimmed).map_err(wrong)?);
            if extents.len() > EXTENTS_MAX {
                return Err(wrong(format!("is one of more than {EXTENTS_MAX}")));
            }
        }
        Ok(extents)
    }
}

/// A line like `RW 4192256 SPARSE "disk-s001.vmdk" 0`.
fn extent(line: &str) -> Result<ExtentLine, String> {
    let wrong = |what: &str| format!("{line:?}: {what}");
    let (head, name, tail) = match line.split_once('"') {
        Some((head, rest)) => {
            let (name, tail) = rest.rsplit_once('"').ok_or_else(|| wrong("the name has no end"))?;
            (head, name, tail)
        }
        None => (line, "", ""),
    };
    let mut words = head.split_whitespace();
    let access = words.next().unwrap_or_default();
    let sectors = words.next().and_then(|word| word.parse::<u64>().ok()).filter(|&n| n > 0 && n < 1 << 54);
    let sectors = sectors.ok_or_else(|| wrong("the size is no number of sectors"))?;
    let kind = match words.next().unwrap_or_default() {
        "FLAT" | "VMFS" => ExtentKind::Flat,
        "SPARSE" => ExtentKind::Sparse,
        "ZERO" => ExtentKind::Zero,
        other => {
            return Err(wrong(&format!("kind {other:?} cannot be opened; FLAT, VMFS, SPARSE and ZERO can")));
        }
    };
    let offset = match tail.split_whitespace().next() {
        Some(word) => word
            .parse()
            .ok()
            .filter(|&n: &u64| n < 1 << 54)
            .ok_or_else(|| wrong("the offset is no number"))?,
        None => 0,
    };
    if kind != ExtentKind::Zero && name.is_empty() {
        return Err(wrong("it has no file"));
    }
    if access == "NOACCESS" {
        return Err(wrong("it may not be accessed"));
    }
    Ok(ExtentLine { writable: access == "RW", sectors, kind, file: name.to_owned(), offset })
}

/// What the disk data base of a new image says.
pub(super) struct Ddb<'a> {
    /// Adapter type.
    pub adapter: &'a str,
    /// Virtual hardware version.
    pub hardware: &'a str,
    /// Size of the disk in sectors.
    pub sectors: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_of_all_kinds() {
        let text = "# Disk DescriptorFile\nversion=1\nCID=0badf00d\nparentCID=ffffffff\n\
                    RW 4192256 SPARSE \"a b-s001.vmdk\"\nRDONLY 63 FLAT \"f\" 17\nRW 5 ZERO\n";
        let descriptor = Descriptor::parse(Path::new("d"), 0, text.as_bytes()).unwrap();
        assert_eq!((descriptor.cid(), descriptor.parent_cid()), (Some(0x0BAD_F00D), None));
        let line = |writable, sectors, kind, file: &str, offset| ExtentLine {
            writable,
            sectors,
            kind,
            file: file.to_owned(),
            offset,
        };
        let expected = [
            line(true, 4_192_256, ExtentKind::Sparse, "a b-s001.vmdk", 0),
            line(false, 63, ExtentKind::Flat, "f", 17),
            line(true, 5, ExtentKind::Zero, "", 0),
        ];
        assert_eq!(descriptor.extents(Path::new("d")).unwrap(), expected);
        for bad in
            ["RW x FLAT \"f\"", "RW 0 FLAT \"f\"", "RW 5 FLAT", "RW 5 SESPARSE \"f\"", "RW 5 FLAT \"f\" -1"]
        {
            assert!(extent(bad).is_err(), "{bad}");
        }
    }
}
