//! Errors and delays on demand, as a decorator: for tests, and for operators who want to see what their guests make
//! of a failing disk.
//!
//! A rule counts the requests it is for. It leaves the first `after` alone and meets the next `times`, or all: by a
//! delay, by an error, or by both. An error comes instead of the request, so nothing of it reaches the disk.

use crate::backend::{BlockBackend, Capabilities, Extent};
use crate::buffers::len;
use crate::error::BlockError;
use crate::options::parse_size;
use std::io::{Error, IoSlice, IoSliceMut, Result};
use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// A kind of request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOperation {
    /// Reads.
    Read,
    /// Writes, and requests for zeros.
    Write,
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
    /// All of them.
    Any,
}

/// When something goes wrong, and what. Text: the operation (`read`, `write`, `flush`, `discard` or `any`), then any
/// of `error=EIO|ENOSPC|EDQUOT|EROFS`, `delay=MILLISECONDS`, `after=N`, `times=N` and `at=START-END` (bytes), all
/// separated by colons. Without `error` and `delay` the error is EIO.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultRule {
    /// Requests it is for.
    pub operation: FaultOperation,
    /// Only those that touch these bytes of the disk; flushes touch all.
    pub range: Range<u64>,
    /// So many pass unharmed first.
    pub after: u64,
    /// So many are met then.
    pub times: u64,
    /// The system's number of the error.
    pub error: Option<i32>,
    /// How long they wait.
    pub delay: Duration,
}

const ERRORS: [(&str, i32); 4] =
    [("EIO", libc::EIO), ("ENOSPC", libc::ENOSPC), ("EDQUOT", libc::EDQUOT), ("EROFS", libc::EROFS)];

impl FromStr for FaultRule {
    type Err = BlockError;

    fn from_str(text: &str) -> std::result::Result<Self, BlockError> {
        let fail = |problem: String| BlockError::option("inject", problem);
        let mut parts = text.split(':');
        let operation = match parts.next() {
            Some("read") => FaultOperation::Read,
            Some("write") => FaultOperation::Write,
            Some("flush") => FaultOperation::Flush,
            Some("discard") => FaultOperation::Discard,
            Some("any") => FaultOperation::Any,
            _ => return Err(fail(format!("{text:?} begins with none of read, write, flush, discard, any"))),
        };
        let mut rule = FaultRule {
            operation,
            range: 0..u64::MAX,
            after: 0,
            times: u64::MAX,
            error: None,
            delay: Duration::ZERO,
        };
        for part in parts {
            let number = |text: &str| text.parse().map_err(|_| fail(format!("{part:?} has no number")));
            match part.split_once('=') {
                Some(("error", name)) => {
                    let found = ERRORS.iter().find(|(known, _)| *known == name);
                    let unknown = || fail(format!("{name:?} is none of EIO, ENOSPC, EDQUOT, EROFS"));
                    rule.error = Some(found.ok_or_else(unknown)?.1);
                }
                Some(("delay", text)) => rule.delay = Duration::from_millis(number(text)?),
                Some(("after", text)) => rule.after = number(text)?,
                Some(("times", text)) => rule.times = number(text)?,
                Some(("at", range)) => {
                    let (start, end) =
                        range.split_once('-').ok_or_else(|| fail(format!("{part:?} is not START-END")))?;
                    rule.range = parse_size(start).map_err(fail)?..parse_size(end).map_err(fail)?;
                }
                _ => return Err(fail(format!("{part:?} is none of error=, delay=, after=, times=, at="))),
            }
        }
        if rule.error.is_none() && rule.delay.is_zero() {
            rule.error = Some(libc::EIO);
        }
        Ok(rule)
    }
}

/// A disk on which things go wrong.
pub struct Faulty {
    inner: Arc<dyn BlockBackend>,
    /// With the number of requests each was for so far.
    rules: Vec<(FaultRule, AtomicU64)>,
}

impl Faulty {
    /// The disk with these rules; the first that meets a request with an error decides.
    pub fn new(inner: Arc<dyn BlockBackend>, rules: Vec<FaultRule>) -> Self {
        let rules = rules.into_iter().map(|rule| (rule, AtomicU64::new(0))).collect();
        Faulty { inner, rules }
    }

    fn meet(&self, operation: FaultOperation, offset: u64, len: u64) -> Result<()> {
        for (rule, seen) in &self.rules {
            let touches = operation == FaultOperation::Flush
                || offset < rule.range.end && rule.range.start < offset.saturating_add(len);
            if !touches || ![operation, FaultOperation::Any].contains(&rule.operation) {
                continue;
            }
            let number = seen.fetch_add(1, Ordering::Relaxed);
            if number < rule.after || number - rule.after >= rule.times {
                continue;
            }
            if !rule.delay.is_zero() {
                std::thread::sleep(rule.delay);
            }
            if let Some(error) = rule.error {
                return Err(Error::from_raw_os_error(error));
            }
        }
        Ok(())
    }
}

impl BlockBackend for Faulty {
    fn size(&self) -> u64 {
        self.inner.size()
    }
    fn capabilities(&self) -> Capabilities {
        self.inner.capabilities()
    }
    fn read_at(&self, offset: u64, buffers: &mut [IoSliceMut<'_>]) -> Result<()> {
        self.meet(FaultOperation::Read, offset, len(buffers))?;
        self.inner.read_at(offset, buffers)
    }
    fn write_at(&self, offset: u64, buffers: &[IoSlice<'_>]) -> Result<()> {
        self.meet(FaultOperation::Write, offset, len(buffers))?;
        self.inner.write_at(offset, buffers)
    }
    fn flush(&self) -> Result<()> {
        self.meet(FaultOperation::Flush, 0, u64::MAX)?;
        self.inner.flush()
    }
    fn discard(&self, offset: u64, len: u64) -> Result<()> {
        self.meet(FaultOperation::Discard, offset, len)?;
        self.inner.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> Result<()> {
        self.meet(FaultOperation::Write, offset, len)?;
        self.inner.write_zeroes(offset, len, unmap)
    }
    fn resize(&self, size: u64) -> Result<()> {
        self.inner.resize(size)
    }
    fn block_status(&self, offset: u64, len: u64) -> Result<Extent> {
        self.inner.block_status(offset, len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RawFile;

    #[test]
    fn rules_meet_what_they_say() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(1 << 20).unwrap();
        let raw = Arc::new(RawFile::open(file.path(), false).unwrap());
        let rules = [
            "write:error=ENOSPC:after=2:times=2",
            "read:at=64k-65k",
            "flush:error=EROFS:times=1",
            "any:delay=1:times=1",
        ];
        let disk = Faulty::new(raw, rules.iter().map(|rule| rule.parse().unwrap()).collect());
        let code = |result: Result<()>| result.err().and_then(|error| error.raw_os_error());
        let writes: Vec<_> =
            (0..6).map(|at| code(disk.write_bytes(at * 512, &[at as u8 + 1; 512]))).collect();
        assert_eq!(writes, [None, None, Some(libc::ENOSPC), Some(libc::ENOSPC), None, None]);
        assert_eq!([disk.flush(), disk.flush()].map(code), [Some(libc::EROFS), None]);
        let mut buffer = [0; 1024];
        let mut read = |at| code(disk.read_bytes(at, &mut buffer));
        assert_eq!([read(0), read(65_024), read(66_048), read(66_560)], [None, Some(5), Some(5), None]);
        // What failed did not reach the disk.
        let content = std::fs::read(file.path()).unwrap();
        assert_eq!([0, 1, 2, 3, 4, 5].map(|at| content[at * 512]), [1, 2, 0, 0, 5, 6]);
    }

    #[test]
    fn wrong_rules_say_what_would_be_right() {
        for (text, words) in [
            ("", "read, write"),
            ("write:error=EPERM", "EIO"),
            ("write:times=x", "number"),
            ("read:at=5", "START-END"),
            ("read:at=a-b", "size"),
            ("read:often", "times="),
        ] {
            let error = text.parse::<FaultRule>().unwrap_err().to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
