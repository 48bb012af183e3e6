//! Volumes of LVM volume groups that the host's administrator runs already, through the `lvm` tools.
//!
//! `lvm:GROUP/VOLUME` stands where the path of a raw disk stands: opening it makes the volume active, unless it is, and
//! closing it undoes that. Names are checked against LVM's rules before a tool hears them, no shell takes part, and errors
//! have the tool's own words.

mod tool;

use crate::error::BlockError;
use crate::image::ImageResult;
use serde::{Deserialize, Serialize};
use std::fmt::Display;
use std::path::{Path, PathBuf};
use tool::{lvm, report};

/// What a path begins with that names a volume.
const SCHEME: &str = "lvm:";
/// Longest name, in bytes (lvm(8), valid names).
const NAME_MAX: usize = 127;
/// Characters of a name besides letters and digits.
const MARKS: &[u8] = b"+_.-";
/// What names may not begin with, and may not contain: LVM has such volumes of its own.
const BEGINNINGS: [&str; 2] = ["snapshot", "pvmove"];
const PARTS: [&str; 14] = [
    "_cdata", "_cmeta", "_corig", "_iorig", "_imeta", "_mimage", "_mlog", "_pmspare", "_rimage", "_rmeta",
    "_tdata", "_tmeta", "_vdata", "_vorigin",
];

/// A volume's name: the group's, and its own in there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeName {
    group: String,
    volume: String,
}

impl Display for VolumeName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.group, self.volume)
    }
}

fn check(kind: &str, name: &str) -> ImageResult<()> {
    let wrong = |problem: &str| Err(BlockError::option(format!("LVM {kind} {name:?}"), problem));
    let character = |byte: u8| byte.is_ascii_alphanumeric() || MARKS.contains(&byte);
    if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(character) {
        return wrong("a name has 1 to 127 letters, digits, and + _ . -");
    }
    if name.starts_with('-') || name == "." || name == ".." {
        return wrong("a name does not begin with -, and is neither . nor ..");
    }
    if BEGINNINGS.iter().any(|begin| name.starts_with(begin)) || PARTS.iter().any(|part| name.contains(part))
    {
        return wrong("LVM keeps this name for volumes of its own");
    }
    Ok(())
}

impl VolumeName {
    /// Reads `GROUP/VOLUME`.
    ///
    /// # Errors
    /// When one of them is no name by LVM's rules.
    pub fn parse(text: &str) -> ImageResult<Self> {
        let Some((group, volume)) = text.split_once('/') else {
            return Err(BlockError::option(format!("LVM volume {text:?}"), "GROUP/VOLUME is needed"));
        };
        check("volume group", group)?;
        check("volume", volume)?;
        Ok(VolumeName { group: group.to_owned(), volume: volume.to_owned() })
    }

    /// The volume that a path `lvm:GROUP/VOLUME` names; `None` for other paths.
    pub(crate) fn of_path(path: &Path) -> ImageResult<Option<Self>> {
        path.to_str().and_then(|text| text.strip_prefix(SCHEME)).map(Self::parse).transpose()
    }

    /// Its facts.
    pub fn facts(&self) -> ImageResult<VolumeFacts> {
        let found = report::<VolumeFacts>("lvs", VOLUME_COLUMNS, Some(&self.to_string()))?;
        let missing = || BlockError::option(format!("LVM volume {self}"), "lvs does not list it");
        found.into_iter().find(|facts| facts.name == self.volume).ok_or_else(missing)
    }

    /// Makes it: with `pool`, a thin pool of the group, its space is taken when it is written; without, at once. Sizes
    /// are rounded up to the group's extents. What the space held before is not erased.
    pub fn create(&self, size: u64, pool: Option<&str>) -> ImageResult<()> {
        let size = format!("{size}b");
        let common = ["lvcreate", "--yes", "--activate", "n", "--name", &self.volume];
        match pool {
            Some(pool) => {
                check("thin pool", pool)?;
                let thin = ["--type", "thin", "--virtualsize", &size, "--thinpool", pool, &self.group];
                lvm(&[&common[..], &thin].concat())
            }
            // Zeroing its first bytes would take an active volume.
            None => {
                let thick = ["--zero", "n", "--wipesignatures", "n", "--size", &size, &self.group];
                lvm(&[&common[..], &thick].concat())
            }
        }
        .map(drop)
    }

    /// Makes it larger.
    pub fn grow(&self, size: u64) -> ImageResult<()> {
        lvm(&["lvextend", "--yes", "--size", &format!("{size}b"), &self.to_string()]).map(drop)
    }

    /// Removes it, which LVM refuses while somebody uses it.
    pub fn remove(&self) -> ImageResult<()> {
        lvm(&["lvremove", "--yes", &self.to_string()]).map(drop)
    }

    /// Keeps its present content as another volume of its group. A thin volume's snapshot shares what is not changed;
    /// another one's needs `size` bytes for the changes, and is lost when they are more.
    pub fn snapshot(&self, name: &str, size: Option<u64>) -> ImageResult<()> {
        check("volume", name)?;
        let thin = !self.facts()?.pool.is_empty();
        let size = match (thin, size) {
            (true, None) => None,
            (false, Some(size)) => Some(format!("{size}b")),
            (true, Some(_)) => return Err(self.wrong("a snapshot of a thin volume has no size of its own")),
            (false, None) => {
                return Err(self.wrong("it is not thin: its snapshot needs --size, for what changes"));
            }
        };
        let own = self.to_string();
        let mut arguments = vec!["lvcreate", "--yes", "--snapshot", "--name", name];
        match &size {
            Some(size) => arguments.extend(["--size", size.as_str()]),
            None => arguments.extend(["--setactivationskip", "n", "--activate", "n"]),
        }
        arguments.push(&own);
        lvm(&arguments).map(drop)
    }

    fn wrong(&self, problem: &str) -> BlockError {
        BlockError::option(format!("LVM volume {self}"), problem)
    }

    /// Where a disk at `path` is: its file, or its device with what keeps that there.
    pub(crate) fn place(path: &Path) -> ImageResult<(PathBuf, Option<Activation>)> {
        match Self::of_path(path)? {
            None => Ok((path.to_owned(), None)),
            Some(name) => name.activate().map(|activation| (activation.path.clone(), Some(activation))),
        }
    }

    /// Makes it active until the answer is dropped; one that is active stays so.
    pub(crate) fn activate(&self) -> ImageResult<Activation> {
        let facts = self.facts()?;
        let own = !facts.is_active();
        if own {
            // Exclusively, where several hosts share the group.
            lvm(&["lvchange", "--yes", "--ignoreactivationskip", "--activate", "ey", &self.to_string()])?;
        }
        let activation = Activation { name: own.then(|| self.clone()), path: facts.path };
        if activation.path.exists() {
            return Ok(activation);
        }
        let problem = format!("it is said to be active, but {} is not there", activation.path.display());
        Err(self.wrong(&problem))
    }
}

/// A volume that is active.
#[derive(Debug)]
pub(crate) struct Activation {
    /// Who is made inactive again.
    name: Option<VolumeName>,
    /// Its device.
    pub path: PathBuf,
}

impl Drop for Activation {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            // It stays active for whoever else has opened it meanwhile.
            let _ = lvm(&["lvchange", "--yes", "--activate", "n", &name.to_string()]);
        }
    }
}

const VOLUME_COLUMNS: &str =
    "vg_name,lv_name,lv_size,lv_layout,lv_active,lv_path,pool_lv,origin,data_percent";

/// What `lvs` says of a volume.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VolumeFacts {
    /// Name of its group.
    #[serde(rename(deserialize = "vg_name"))]
    pub group: String,
    /// Its name.
    #[serde(rename(deserialize = "lv_name"))]
    pub name: String,
    /// Bytes.
    #[serde(rename(deserialize = "lv_size"), deserialize_with = "tool::number")]
    pub size: u64,
    /// How it is stored: `linear`, `thin,sparse`, …
    #[serde(rename(deserialize = "lv_layout"))]
    pub layout: String,
    /// `active`, empty, or why LVM does not know.
    #[serde(rename(deserialize = "lv_active"))]
    pub active: String,
    /// Its device, which is there while it is active.
    #[serde(rename(deserialize = "lv_path"))]
    pub path: PathBuf,
    /// Its thin pool; empty where it has none.
    #[serde(rename(deserialize = "pool_lv"))]
    pub pool: String,
    /// The volume it is a snapshot of; empty where it is none.
    pub origin: String,
    /// How much of its space is used, in percent; empty where that is not known.
    #[serde(rename(deserialize = "data_percent"))]
    pub used_percent: String,
}

impl VolumeFacts {
    /// Whether it is active on this host.
    pub fn is_active(&self) -> bool {
        self.active == "active" || self.active.starts_with("local")
    }
}

/// What `vgs` says of a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GroupFacts {
    /// Its name.
    #[serde(rename(deserialize = "vg_name"))]
    pub name: String,
    /// Bytes.
    #[serde(rename(deserialize = "vg_size"), deserialize_with = "tool::number")]
    pub size: u64,
    /// Bytes that no volume has.
    #[serde(rename(deserialize = "vg_free"), deserialize_with = "tool::number")]
    pub free: u64,
}

/// The groups of this host, or one of them.
///
/// # Errors
/// When there is no such group, or no tool.
pub fn groups(group: Option<&str>) -> ImageResult<Vec<GroupFacts>> {
    group.map_or(Ok(()), |group| check("volume group", group))?;
    report("vgs", "vg_name,vg_size,vg_free", group)
}

/// The volumes of all groups, or of one.
///
/// # Errors
/// When there is no such group, or no tool.
pub fn volumes(group: Option<&str>) -> ImageResult<Vec<VolumeFacts>> {
    group.map_or(Ok(()), |group| check("volume group", group))?;
    report("lvs", VOLUME_COLUMNS, group)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// lvm(8), "VALID NAMES".
    #[test]
    fn names_are_those_that_lvm_takes() {
        let name = VolumeName::parse("vg-1/data.2+x_y").unwrap();
        assert_eq!(name.to_string(), "vg-1/data.2+x_y");
        for wrong in [
            "vg",
            "vg/",
            "/lv",
            "vg/-lv",
            "vg/.",
            "../lv",
            "vg/a b",
            "vg/a;b",
            "vg/a/b",
            "vg/snapshot1",
            "vg/pvmove0",
            "vg/x_tdata",
            "vg/ü",
        ] {
            assert!(VolumeName::parse(wrong).is_err(), "{wrong}");
        }
        assert!(VolumeName::parse(&format!("vg/{}", "a".repeat(128))).is_err());
        assert!(VolumeName::of_path(Path::new("/a/path")).unwrap().is_none());
        assert!(VolumeName::of_path(Path::new("lvm:a/b")).unwrap().is_some());
        assert!(VolumeName::of_path(Path::new("lvm:b")).is_err());
    }
}
