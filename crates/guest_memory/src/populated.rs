//! Which parts of RAM the host has backed with pages: all others are zero, and reading them would back them.
#![expect(unsafe_code, reason = "asks the kernel with lseek")]

use crate::Region;
use std::io::Error;
use std::ops::Range;
use std::os::fd::AsRawFd;

impl Region {
    /// Guest-physical ranges that are backed, in order. Everything outside was zero at the time of the call.
    ///
    /// # Errors
    /// When the kernel does not tell.
    pub fn populated(&self) -> std::io::Result<Vec<Range<u64>>> {
        let mut ranges = Vec::new();
        let mut at = 0;
        while let Some(start) = self.seek(at, libc::SEEK_DATA)? {
            let end = self.seek(start, libc::SEEK_HOLE)?.unwrap_or(self.size());
            ranges.push(self.start() + start..self.start() + end);
            at = end;
        }
        Ok(ranges)
    }

    /// The first offset from `at` of a kind; `None` behind the last.
    fn seek(&self, at: u64, kind: libc::c_int) -> std::io::Result<Option<u64>> {
        // SAFETY: a plain system call on our own descriptor; nobody uses its file position.
        let found = unsafe { libc::lseek(self.memfd().as_raw_fd(), at as libc::off_t, kind) };
        match u64::try_from(found) {
            Ok(found) => Ok(Some(found)),
            Err(_) => match Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ENXIO) => Ok(None),
                error => Err(error),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::GuestMemory;

    #[test]
    fn only_what_was_touched_is_backed() {
        let memory = GuestMemory::new(&[(0, 64 << 20), (1 << 32, 64 << 20)]).unwrap();
        let backed = |memory: &GuestMemory| {
            let ranges = memory.regions().iter().flat_map(|region| region.populated().unwrap());
            ranges.collect::<Vec<_>>()
        };
        assert!(backed(&memory).is_empty());
        for address in [0x5000, (1 << 32) + 0x3f0_0000, (1 << 32) + (64 << 20) - 1] {
            memory.write(address, &[1]).unwrap();
        }
        let ranges = backed(&memory);
        let covers = |address: u64| ranges.iter().any(|range| range.contains(&address));
        assert!(covers(0x5000) && covers((1 << 32) + 0x3f0_0000) && covers((1 << 32) + (64 << 20) - 1));
        assert!(!covers(0x200_0000), "the host may back a huge page, but not all");
    }
}
