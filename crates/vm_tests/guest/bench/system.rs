//! Kernel entries, switches, processes, page faults, files, the shell.

use std::ffi::CString;
use std::io::{Read, Write};
use std::process::{Command, Stdio};
use std::time::Instant;

use crate::random::Random;
use crate::{Row, Work, sys};

/// The rows of this group.
pub fn rows() -> Vec<Row> {
    let row = |name, prepare| Row { name, group: "system", prepare };
    vec![
        row("getpid", || Some(Box::new(getpid))),
        row("clock", || Some(Box::new(clock))),
        row("pipe", || Some(Box::new(pipe))),
        row("fork-exec", || Some(Box::new(fork_exec))),
        row("page-faults", || Some(Box::new(page_faults))),
        row("mprotect", || Some(Box::new(protect))),
        row("dd-zero", || Some(Box::new(dd_zero))),
        row("file-write-read", || Some(Box::new(file_write_read))),
        row("file-tree", || Some(Box::new(file_tree))),
        row("gzip", || busybox().map(gzip)),
        row("shell-loop", || busybox().map(shell_loop)),
    ]
}

fn getpid() -> u64 {
    const GETPPID: i64 = 110;
    // SAFETY: getppid takes nothing and changes nothing.
    (0..1_000_000).map(|_| unsafe { sys::syscall(GETPPID) }).filter(|pid| *pid < 0).count() as u64
}

fn clock() -> u64 {
    let first = Instant::now();
    (0..1_000_000).filter(|_| Instant::now() < first).count() as u64
}

fn new_pipe() -> (i32, i32) {
    let mut ends = [0; 2];
    // SAFETY: two descriptors fit.
    assert_eq!(unsafe { sys::pipe(ends.as_mut_ptr()) }, 0, "pipe failed");
    (ends[0], ends[1])
}

/// Two processes hand a byte to and fro.
fn pipe() -> u64 {
    const TRIPS: usize = 20_000;
    let ((to_read, to_write), (back_read, back_write)) = (new_pipe(), new_pipe());
    let mut byte = [7_u8];
    let buffer = byte.as_mut_ptr().cast();
    // SAFETY: the child only reads, writes and ends; the buffer holds one byte.
    unsafe {
        let child = sys::fork();
        if child == 0 {
            for _ in 0..TRIPS {
                sys::read(to_read, buffer, 1);
                sys::write(back_write, buffer, 1);
            }
            sys::_exit(0);
        }
        for _ in 0..TRIPS {
            sys::write(to_write, buffer, 1);
            sys::read(back_read, buffer, 1);
        }
        sys::waitpid(child, std::ptr::null_mut(), 0);
        for end in [to_read, to_write, back_read, back_write] {
            sys::close(end);
        }
    }
    u64::from(byte[0])
}

fn fork_exec() -> u64 {
    let program = CString::new("/proc/self/exe").unwrap_or_default();
    let verb = CString::new("exec-target").unwrap_or_default();
    let arguments = [program.as_ptr(), verb.as_ptr(), std::ptr::null()];
    let mut statuses = 0;
    for _ in 0..100 {
        let mut status = 1;
        // SAFETY: the child calls nothing but exec.
        unsafe {
            let child = sys::fork();
            if child == 0 {
                sys::execv(program.as_ptr(), arguments.as_ptr());
                sys::_exit(9);
            }
            sys::waitpid(child, &mut status, 0);
        }
        statuses += status as u64;
    }
    statuses
}

fn page_faults() -> u64 {
    const PAGES: usize = 8192;
    let mut sum = 0;
    for _ in 0..8 {
        let memory = sys::map(PAGES * sys::PAGE, sys::READ | sys::WRITE);
        for page in 0..PAGES {
            // SAFETY: inside the mapping.
            unsafe { memory.add(page * sys::PAGE).write_volatile(page as u8) };
        }
        // SAFETY: inside the mapping; nothing points there afterwards.
        unsafe {
            sum += u64::from(memory.add(77 * sys::PAGE).read_volatile());
            sys::munmap(memory.cast(), PAGES * sys::PAGE);
        }
    }
    sum
}

fn protect() -> u64 {
    const PAGES: usize = 64;
    let length = PAGES * sys::PAGE;
    let memory = sys::map(length, sys::READ | sys::WRITE);
    let mut sum = 0;
    for round in 0..4000_usize {
        // SAFETY: the mapping is ours, and written only while it may be.
        unsafe {
            sys::mprotect(memory.cast(), length, sys::READ);
            sum += u64::from(memory.add(round % PAGES * sys::PAGE).read_volatile());
            sys::mprotect(memory.cast(), length, sys::READ | sys::WRITE);
            (0..PAGES).step_by(8).for_each(|page| memory.add(page * sys::PAGE).write_volatile(round as u8));
        }
    }
    // SAFETY: nothing points there afterwards.
    unsafe { sys::munmap(memory.cast(), length) };
    sum
}

fn dd_zero() -> u64 {
    let (Ok(mut zero), Ok(mut null)) = (std::fs::File::open("/dev/zero"), std::fs::File::create("/dev/null"))
    else {
        return 0;
    };
    let mut buffer = vec![1_u8; 64 << 10];
    let mut total = 0;
    for _ in 0..16_000 {
        total += zero.read(&mut buffer).unwrap_or(0) as u64;
        let _ = null.write(&buffer);
    }
    total
}

/// A folder of this process in memory (`/tmp` of the test guest, `/dev/shm` of a host).
fn folder() -> std::path::PathBuf {
    let shared = std::path::Path::new("/dev/shm");
    let base = if shared.is_dir() { shared } else { std::path::Path::new("/tmp") };
    base.join(format!("vireo-bench-{}", std::process::id()))
}

fn file_write_read() -> u64 {
    let path = folder();
    let block = vec![0x5a_u8; 64 << 10];
    let mut sum = 0;
    for _ in 0..6 {
        if let Ok(mut file) = std::fs::File::create(&path) {
            (0..512).for_each(|_| drop(file.write(&block)));
        }
        sum += std::fs::read(&path).map_or(0, |bytes| bytes.len() as u64);
    }
    let _ = std::fs::remove_file(&path);
    sum
}

fn file_tree() -> u64 {
    let base = folder();
    let mut seen = 0;
    for number in 0..40 {
        let inner = base.join(number.to_string());
        let _ = std::fs::create_dir_all(&inner);
        for file in 0..50 {
            let _ = std::fs::write(inner.join(format!("file-{file}")), b"text");
        }
        seen += std::fs::read_dir(&inner).map_or(0, |entries| entries.count() as u64);
    }
    let _ = std::fs::remove_dir_all(&base);
    seen
}

/// busybox of the guest, or the one the harness names on a host.
fn busybox() -> Option<String> {
    let path = std::env::var("VIREO_BUSYBOX").unwrap_or_else(|_| "/bin/busybox".into());
    std::path::Path::new(&path).exists().then_some(path)
}

fn gzip(busybox: String) -> Work {
    let mut random = Random::new(21);
    let words: Vec<String> =
        (0..500).map(|i| format!("word{}x{} ", i * 7919 % 1000, random.below(90))).collect();
    let text: String = (0..400_000).map(|_| words[random.below(500) as usize].as_str()).collect();
    Box::new(move || {
        let child =
            Command::new(&busybox).args(["gzip", "-c"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut child) = child else { return 0 };
        let (Some(mut input), Some(mut output)) = (child.stdin.take(), child.stdout.take()) else { return 0 };
        let reader = std::thread::spawn(move || {
            let mut out = Vec::new();
            output.read_to_end(&mut out).map_or(0, |count| count as u64)
        });
        let _ = input.write_all(text.as_bytes());
        drop(input);
        let _ = child.wait();
        reader.join().unwrap_or(0)
    })
}

fn shell_loop(busybox: String) -> Work {
    const SCRIPT: &str = "i=0; s=0; while [ $i -lt 30000 ]; do s=$((s + i * 3 % 7)); i=$((i + 1)); done; \
        for n in $(seq 1 60); do x=$(echo $n); done; echo $s";
    Box::new(move || {
        let output = Command::new(&busybox).args(["sh", "-c", SCRIPT]).output();
        let text =
            output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    })
}
