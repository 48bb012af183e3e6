//! What the metadata are made of, and the records that change them.

use serde::{Deserialize, Serialize};
use std::fmt::{Display, Formatter};

/// A member, for as long as the pool lives: numbers do not come again.
pub type MemberId = u16;
/// A volume, likewise.
pub type VolumeId = u32;
/// A layer of a volume's content, likewise.
pub type LayerId = u32;

/// Most copies of a mirrored volume.
pub const COPIES_MAX: usize = 3;

/// A chunk of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Place {
    /// The member.
    pub member: MemberId,
    /// Its chunk; 0 holds the superblock and belongs to nobody.
    pub chunk: u32,
}

/// Where the copies of a chunk are: 1 to [`COPIES_MAX`] places on different members.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<Place>", into = "Vec<Place>")]
pub struct Copies {
    count: u8,
    places: [Place; COPIES_MAX],
}

impl Copies {
    /// `None` when there is none, when there are too many, or two on one member.
    pub fn new(places: &[Place]) -> Option<Self> {
        let mut own = [Place { member: 0, chunk: 0 }; COPIES_MAX];
        own.get_mut(..places.len())?.copy_from_slice(places);
        let twice = (1..places.len())
            .any(|n| places[..n].iter().any(|place| Some(place.member) == places.get(n).map(|p| p.member)));
        (!places.is_empty() && !twice).then_some(Copies { count: places.len() as u8, places: own })
    }

    /// The places.
    pub fn places(&self) -> &[Place] {
        self.places.get(..usize::from(self.count)).unwrap_or_default()
    }

    /// Those that a condition holds for.
    pub fn filter(&self, keep: impl Fn(&Place) -> bool) -> Option<Copies> {
        let kept: Vec<Place> = self.places().iter().copied().filter(|place| keep(place)).collect();
        Copies::new(&kept)
    }

    /// Whether one is on this member.
    pub fn on(&self, member: MemberId) -> bool {
        self.places().iter().any(|place| place.member == member)
    }
}

impl TryFrom<Vec<Place>> for Copies {
    type Error = &'static str;

    fn try_from(places: Vec<Place>) -> Result<Self, Self::Error> {
        Copies::new(&places).ok_or("the copies of a chunk are none, too many, or two on one member")
    }
}

impl From<Copies> for Vec<Place> {
    fn from(copies: Copies) -> Self {
        copies.places().to_vec()
    }
}

/// What the places of a chunk hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Filled {
    /// Nothing yet: it reads as zeros.
    No,
    /// Data.
    Plain,
    /// Data, whose checksums are in the tables of the members.
    Summed,
}

/// A chunk that has data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Where.
    pub copies: Copies,
    /// The tables of the members have its checksums.
    pub summed: bool,
}

impl Stored {
    /// What a slot says of it.
    pub fn filled(summed: bool) -> Filled {
        if summed { Filled::Summed } else { Filled::Plain }
    }
}

/// What a layer says of a chunk of the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Slot {
    /// Zeros, whatever the layers below say.
    Zero,
    /// It has places.
    Data {
        /// Where.
        copies: Copies,
        /// With what.
        filled: Filled,
    },
}

impl Slot {
    /// The data it leads to.
    pub fn stored(&self) -> Option<Stored> {
        match self {
            Slot::Zero | Slot::Data { filled: Filled::No, .. } => None,
            Slot::Data { copies, filled } => {
                Some(Stored { copies: *copies, summed: *filled == Filled::Summed })
            }
        }
    }

    /// The places it owns.
    pub fn places(&self) -> &[Place] {
        match self {
            Slot::Zero => &[],
            Slot::Data { copies, .. } => copies.places(),
        }
    }
}

/// On which members the chunks of a volume are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Layout {
    /// One member is filled after the other.
    Linear,
    /// Chunk `n` is on the `n mod columns`th of the volume's members.
    Striped,
    /// Every chunk is on this many members, 2 or 3.
    Mirrored(u8),
}

impl Layout {
    /// Copies of a chunk.
    pub fn copies(self) -> usize {
        match self {
            Layout::Mirrored(copies) => usize::from(copies),
            Layout::Linear | Layout::Striped => 1,
        }
    }
}

impl Display for Layout {
    fn fmt(&self, out: &mut Formatter<'_>) -> std::fmt::Result {
        match self {
            Layout::Linear => out.write_str("linear"),
            Layout::Striped => out.write_str("striped"),
            Layout::Mirrored(copies) => write!(out, "mirrored, {copies} copies"),
        }
    }
}

/// When a volume takes its space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Provisioning {
    /// When it is written to.
    #[default]
    Thin,
    /// At once; what was not written yet reads as zeros without being zeroed.
    Lazy,
    /// At once, and zeroed.
    Eager,
}

impl Provisioning {
    /// Discarded chunks keep their space.
    pub fn is_thick(self) -> bool {
        self != Provisioning::Thin
    }
}

/// One change of the metadata. Records are the words of the log: what one says must not depend on anything but the
/// state it meets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A member joins.
    MemberAdded { member: MemberId, uuid: u128, chunks: u32 },
    /// A member that holds nothing leaves.
    MemberRemoved { member: MemberId },
    /// A member is not written or read any more. Copies in dirty regions are given up, where there are others.
    MemberFailed { member: MemberId },
    /// A member is used again; all places that still refer to it are as they were.
    MemberRestored { member: MemberId },
    /// A volume begins, empty.
    VolumeCreated { volume: VolumeId, layer: LayerId, settings: VolumeSettings },
    /// A volume ends, with all its snapshots.
    VolumeDeleted { volume: VolumeId },
    /// A volume's size in bytes changes; what is beyond is given back.
    VolumeResized { volume: VolumeId, size: u64 },
    /// The members on which a volume takes space from now on.
    VolumeMoved { volume: VolumeId, members: Vec<MemberId> },
    /// A layer says something else of a chunk; places it does not name any more are free.
    Mapped { layer: LayerId, chunk: u32, slot: Slot },
    /// A chunk reads as zeros. Places of the layer are kept with `keep`, and free without.
    Cleared { layer: LayerId, chunk: u32, keep: bool },
    /// The volume's top layer becomes a snapshot, with a new and empty one above.
    Snapshotted { volume: VolumeId, layer: LayerId, name: String, time: u64 },
    /// The volume's top layer is given up for an empty one above a snapshot.
    Reverted { volume: VolumeId, snapshot: LayerId, layer: LayerId },
    /// A snapshot loses its name, and what nobody needs is free.
    SnapshotDeleted { snapshot: LayerId },
    /// Copies in a region of a mirrored volume may differ.
    Dirtied { volume: VolumeId, region: u32 },
    /// They are equal.
    Cleaned { volume: VolumeId, region: u32 },
    /// A volume begins as a clone: its content is that of a snapshot of another volume, whose layers it stands on.
    Cloned { volume: VolumeId, layer: LayerId, source: LayerId, settings: VolumeSettings },
    /// The oldest layer of a clone has all that it needs, and stands on nothing any more.
    Detached { layer: LayerId },
    /// A volume becomes a template, which is not written to, or ceases to be one.
    Templated { volume: VolumeId, on: bool },
    /// New chunks of a volume get checksums, or do not, and those that others have are forgotten.
    Summing { volume: VolumeId, on: bool },
    /// A chunk of the member holds the checksums of a group of its chunks.
    TableMade { member: MemberId, group: u32, chunk: u32 },
}

/// What a volume is made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeSettings {
    /// Its name: 1 to 64 letters, digits, `.`, `_` and `-`, the first one a letter or digit.
    pub name: String,
    /// Bytes; a multiple of 512.
    pub size: u64,
    /// Where chunks go.
    pub layout: Layout,
    /// When space is taken.
    pub provisioning: Provisioning,
    /// Members that are used, in this order; for linear and mirrored volumes, none means all.
    pub members: Vec<MemberId>,
}
