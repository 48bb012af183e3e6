//! Translations that can be put to another place: for another processor, or another run.
//!
//! Code does not know its linear address (see the [module doc](super)); what ties it to one translator are the
//! [`Refers`] in it. A [`Portable`] block holds its code with the places of these, and the guest's bytes that it was
//! made of. It may only be used where the guest has the same bytes at the same place in a page, by the same program
//! on a host with the same features: that is the [store](super::store)'s part.

use super::asm::{Reference, Refers};
use super::block::Built;
use super::flags::FlagHome;
use super::share::Share;
use super::unit::{Entries, Link, Next, PAGE, Site};
use super::{BlockPlace, Translator};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A translated block. Addresses of code are counted from its start, numbers of sites, links and checks from its
/// first ones.
#[derive(Serialize, Deserialize)]
pub(super) struct Portable<'a> {
    /// The kind of code, by its bits.
    pub mode: u8,
    /// Address in the page, perhaps with [`PLAIN`](super::share::PLAIN).
    pub start: u16,
    /// Address in the page of [`Portable::guest`].
    pub from: u16,
    /// What the guest has there.
    #[serde(borrow)]
    pub guest: &'a [u8],
    /// What it had from the start of the block on: by this it is found, see [`super::store`].
    #[serde(borrow)]
    pub head: &'a [u8],
    #[serde(borrow)]
    code: Cow<'a, [u8]>,
    references: Vec<(u32, Kind)>,
    entries: Entries,
    sites: Vec<(u16, Next, bool)>,
    links: Vec<(u32, u16, FlagHome)>,
    shares: Vec<Share>,
}

/// As [`Refers`], with the number of the fixed code instead of its address, and numbers counted from the block's first.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum Kind {
    Thunk(u8),
    Site(u32),
    Link(u32),
    Share(u32),
    Cell,
    Generation,
}

impl Kind {
    /// Bytes of the number in the code.
    fn len(self) -> usize {
        match self {
            Kind::Thunk(_) | Kind::Site(_) | Kind::Link(_) | Kind::Share(_) | Kind::Generation => 4,
            Kind::Cell => 8,
        }
    }
}

/// Sites, links and shared checks of a translator: before a block was added.
#[derive(Clone, Copy)]
pub(super) struct Counts {
    sites: usize,
    links: usize,
    shares: usize,
}

impl Portable<'_> {
    /// Whether the guest's bytes are those of the block.
    pub fn is_of(&self, page: &[u8; PAGE]) -> bool {
        let from = usize::from(self.from);
        page.get(from..from + self.guest.len()).is_some_and(|there| there == self.guest)
    }
}

/// The 32-bit number `at` bytes from the start of the code.
fn number_at(code: &[u8], at: usize) -> Option<u32> {
    let bytes = code.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// Code with zeros where its references are, so that a block is the same whoever translated it.
fn without_numbers(code: &[u8], references: &[(u32, Kind)]) -> Option<Vec<u8>> {
    let mut code = code.to_vec();
    for &(at, kind) in references {
        let at = at as usize;
        code.get_mut(at..at.checked_add(kind.len())?)?.fill(0);
    }
    Some(code)
}

impl Translator {
    /// How many there are now.
    pub(super) fn counts_before(&self) -> Counts {
        Counts { sites: self.sites.len(), links: self.links.len(), shares: self.shares.len() }
    }

    /// The block that was built last, in a mode and from an address in the page on, to be used elsewhere. `base` is where its
    /// code is.
    pub(super) fn portable<'a>(
        &self,
        built: &Built,
        page: &'a [u8; PAGE],
        (mode, start): (u8, u16),
        base: u64,
        before: Counts,
    ) -> Option<Portable<'a>> {
        let base = (base - self.memory.start()) as u32;
        let references = built.references.as_ref()?;
        let kinds: Option<Vec<_>> = references.iter().map(|r| self.kind(&built.code, r, before)).collect();
        let references = kinds?;
        let code = without_numbers(&built.code, &references)?;
        let Entries { outer, saved, live, prefers_live } = built.entries;
        let entries = Entries { outer: outer - base, saved: saved - base, live: live - base, prefers_live };
        let sites = self.sites.get(before.sites..)?.iter();
        let links = self.links.get(before.links..)?.iter();
        let shares = self.shares.get(before.shares..)?.iter();
        Some(Portable {
            mode,
            start,
            from: built.depends.start,
            guest: page.get(usize::from(built.depends.start)..usize::from(built.depends.end))?,
            head: super::store::head(start, page),
            code: Cow::Owned(code),
            references,
            entries,
            sites: sites.map(|site| (site.offset, site.next, site.inside)).collect(),
            links: links.map(|link| (link.at - base, link.target, link.flags)).collect(),
            shares: shares.map(|share| Share { at: share.at - base, unit: 0, ..*share }).collect(),
        })
    }

    fn kind(&self, code: &[u8], reference: &Reference, before: Counts) -> Option<(u32, Kind)> {
        let number = number_at(code, reference.at)?;
        let kind = match reference.refers {
            Refers::Thunk(address) => Kind::Thunk(self.thunks.number_of(address)?),
            Refers::Site => Kind::Site(number - before.sites as u32),
            Refers::Link => Kind::Link(number - before.links as u32),
            Refers::Share => Kind::Share(number - before.shares as u32),
            Refers::Cell => Kind::Cell,
            Refers::Generation => Kind::Generation,
        };
        Some((reference.at as u32, kind))
    }

    /// Makes the block of a place out of a portable one. `None` if code memory is full.
    pub(super) fn install(&mut self, block: &Portable<'_>, place: &BlockPlace<'_>) -> Option<Entries> {
        let unit = place.unit;
        let (cell, generation) = self.units.get(unit as usize)?.generation();
        let (base, before) = (self.memory.next_address(), self.counts_before());
        let mut code = std::mem::take(&mut self.buffer);
        code.clear();
        code.extend_from_slice(&block.code);
        for &(at, kind) in &block.references {
            let at = at as usize;
            let number = match kind {
                Kind::Thunk(number) => {
                    let target = self.thunks.with_number(number)?;
                    target.wrapping_sub(base + at as u64 + 4) as u32
                }
                Kind::Site(number) => number.wrapping_add(before.sites as u32),
                Kind::Link(number) => number.wrapping_add(before.links as u32),
                Kind::Share(number) => number.wrapping_add(before.shares as u32),
                Kind::Generation => generation,
                Kind::Cell => {
                    code.get_mut(at..at + 8)?.copy_from_slice(&cell.to_le_bytes());
                    continue;
                }
            };
            code.get_mut(at..at + 4)?.copy_from_slice(&number.to_le_bytes());
        }
        let (added, host, len) = (self.memory.add(&code), base, code.len());
        self.buffer = code;
        if !added {
            return None;
        }
        let base = (host - self.memory.start()) as u32;
        let sites = block.sites.iter();
        self.sites.extend(sites.map(|&(offset, next, inside)| {
            // Code that is kept does not count.
            Site { unit, count: 0, offset, next, inside, rest: 0 }
        }));
        let links = block.links.iter();
        self.links.extend(links.map(|&(at, target, flags)| Link { unit, at: at + base, target, flags }));
        let shares = block.shares.iter();
        self.shares.extend(shares.map(|share| Share { unit, at: share.at + base, ..*share }));
        let Entries { outer, saved, live, prefers_live } = block.entries;
        let entries = Entries { outer: outer + base, saved: saved + base, live: live + base, prefers_live };
        self.note_block(place, entries, host, len);
        self.counts.installed += 1;
        Some(entries)
    }
}
