//! Names for translated code in Linux `perf`: a line for each block in `/tmp/perf-PID.map`, in the form that perf reads
//! for code made at run time (Linux, `tools/perf/Documentation/jit-interface.txt`): start and length in hexadecimal,
//! and a name, here `guest:` with the linear address at which the block was translated.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Bytes that the file may have: some million blocks.
const LONGEST: usize = 64 << 20;

/// The file.
#[derive(Debug)]
pub struct PerfMap(Mutex<Inner>);

#[derive(Debug)]
struct Inner {
    file: File,
    /// Bytes that may still be written.
    left: usize,
}

impl PerfMap {
    /// Where perf looks for this process's.
    pub fn path() -> PathBuf {
        PathBuf::from(format!("/tmp/perf-{}.map", std::process::id()))
    }

    /// This process's, made at the first call. All processors share it.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub fn of_process() -> io::Result<Arc<Self>> {
        static MAP: OnceLock<Arc<PerfMap>> = OnceLock::new();
        if let Some(map) = MAP.get() {
            return Ok(Arc::clone(map));
        }
        let map = Arc::new(PerfMap::create(&Self::path(), LONGEST)?);
        Ok(Arc::clone(MAP.get_or_init(|| map)))
    }

    /// A new file of at most `longest` bytes, for its owner. What is there (an earlier process had this number) is
    /// replaced, not written to: the name can be guessed, and a link might lie there.
    pub(crate) fn create(path: &Path, longest: usize) -> io::Result<Self> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(PerfMap(Mutex::new(Inner { file, left: longest })))
    }

    /// Adds a block of `len` bytes at `host`. A full file, or a full disk, ends the map.
    pub(crate) fn add(&self, host: u64, len: usize, linear: u64) {
        let line = format!("{host:x} {len:x} guest:{linear:x}\n");
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if line.len() > inner.left || inner.file.write_all(line.as_bytes()).is_err() {
            inner.left = 0;
            return;
        }
        inner.left -= line.len();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::Cpu;
    use crate::interp::harness::{CODE, cpu_in, long_state, memory};
    use crate::translate::store::TranslationStore;
    use crate::translate::{TranslationCounts, TranslationSettings};
    use engine::{VcpuIo, VmExit};
    use x86::MpState;

    struct NoDevices;

    impl VcpuIo for NoDevices {}

    /// What perf reads of a line.
    fn parsed(line: &str) -> (u64, u64, &str) {
        let mut words = line.splitn(3, ' ');
        let mut number = || u64::from_str_radix(words.next().unwrap(), 16).unwrap();
        let (start, len) = (number(), number());
        (start, len, words.next().unwrap())
    }

    fn run(cpu: &mut Cpu, map: Arc<PerfMap>, store: Option<Arc<TranslationStore>>) {
        cpu.enable_translation(TranslationSettings { store, ..TranslationSettings::default() }).unwrap();
        cpu.translator.as_mut().unwrap().perf_map = Some(map);
        assert_eq!(cpu.run(&NoDevices, None), VmExit::Halted);
        assert_eq!(cpu.mp_state, MpState::Halted);
    }

    /// Checks the lines of a processor that runs a loop and a call.
    fn check_lines(store: Option<Arc<TranslationStore>>) -> TranslationCounts {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map");
        std::fs::write(&path, "somebody else's").unwrap();
        let memory = memory();
        // mov ecx, 100; dec ecx; jnz back; call +5; hlt; at the call: ret
        let code = [0xb9, 100, 0, 0, 0, 0xff, 0xc9, 0x75, 0xfc, 0xe8, 5, 0, 0, 0, 0xf4];
        memory.write(CODE, &code).unwrap();
        memory.write(CODE + 19, &[0xc3]).unwrap();
        let mut cpu = cpu_in(memory, &long_state());
        run(&mut cpu, Arc::new(PerfMap::create(&path, 1 << 16).unwrap()), store);

        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().map(parsed).collect();
        let translator = cpu.translator.as_ref().unwrap();
        let code_memory = &translator.memory;
        let cache = code_memory.start()..code_memory.start() + code_memory.used() as u64;
        for (start, len, _) in &lines {
            assert!(*len > 0 && cache.contains(start) && start + len <= cache.end, "{text}");
        }
        let apart = lines.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0);
        assert!(apart, "{text}");
        // Where control arrives: the start, the loop, the function, and behind the call.
        for offset in [0, 5, 19, 14] {
            let name = format!("guest:{:x}", CODE + offset);
            assert!(lines.iter().any(|line| line.2 == name), "{name} is not in {text}");
        }
        translator.counts
    }

    #[test]
    fn lines_are_blocks_in_the_cache_with_their_guest_addresses() {
        check_lines(None);
    }

    #[test]
    fn blocks_out_of_a_store_have_lines_too() {
        let directory = tempfile::tempdir().unwrap();
        let store = TranslationStore::open(directory.path()).unwrap();
        assert_eq!(check_lines(Some(Arc::clone(&store))).installed, 0);
        let counts = check_lines(Some(store));
        assert!(counts.blocks == 0 && counts.installed >= 4, "{counts:?}");
    }

    #[test]
    fn the_file_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("map");
        let map = PerfMap::create(&path, 50).unwrap();
        (0..100).for_each(|n| map.add(0x7f00_0000_0000 + 16 * n, 16, n));
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.len() <= 50 && text.ends_with('\n') && text.lines().count() > 0, "{text}");
    }
}
