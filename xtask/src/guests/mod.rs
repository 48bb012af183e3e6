//! Guest material: a Debian kernel, an initramfs and a Debian disk, made from packages and cached.
//!
//! | artefact | from | for |
//! |---|---|---|
//! | `vmlinuz` | the kernel package behind `linux-image-cloud-amd64` | everything |
//! | `xen` | the hypervisor package behind `xen-system-amd64` | a multiboot kernel that is not ours |
//! | `initramfs.cpio.gz` | busybox, the kernel's modules, `init.sh`, our guest program | tests, benchmarks, and to reach the disk |
//! | `vmlinuz-686`, `initramfs-686.cpio.gz` | the i386 kernel package behind `linux-image-686`, an i386 busybox, `init-686.sh` | 32-bit code; other tests do without |
//! | `bench-program` | `crates/vm_tests/guest/bench/` | the rows of `cargo xtask bench cpu`, in guests and on the host |
//! | `guest-program` | `crates/vm_tests/guest/` | run in the guest and on the host: same results wanted |
//! | `debian.raw` | debootstrap, `rootfs.sh` | the demo and the systemd tests |
//!
//! Each artefact has a `.made-from` file beside it with the text of everything it was made from; an artefact
//! is made again when that text changes. The cache is `.cache/guests` in the repository, or the folder named
//! by `VIREO_CACHE`.

mod cpio;
mod initramfs;
mod packages;
mod rootfs;

pub use packages::need;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{command, workspace};

/// Source of the program that runs in guests.
const GUEST_PROGRAM: &str = "crates/vm_tests/guest/vireo_guest.rs";
/// Main source of the benchmark's guest side; its other files lie beside it.
const BENCH_PROGRAM: &str = "crates/vm_tests/guest/bench/main.rs";

/// The guest material, ready for use.
pub struct Guests {
    /// The folder that holds it all.
    pub folder: PathBuf,
    /// The kernel, a bzImage.
    pub kernel: PathBuf,
    /// The initramfs.
    pub initramfs: PathBuf,
    /// The Debian disk. Never boot it writable: use [`Guests::disk_copy`].
    disk: PathBuf,
}

impl Guests {
    /// A fresh, sparse copy of the Debian disk that a guest may write to.
    pub fn disk_copy(&self, name: &str) -> Result<PathBuf> {
        let copy = self.folder.join(format!("{name}-disk.raw"));
        command::run(Command::new("cp").args(["--sparse=always"]).arg(&self.disk).arg(&copy))?;
        Ok(copy)
    }

    /// The benchmark's program, for the host.
    pub fn bench_program(&self) -> PathBuf {
        self.folder.join("bench-program")
    }

    /// Says what there is.
    pub fn describe(&self) {
        for path in [&self.kernel, &self.initramfs, &self.disk] {
            println!("{}", path.display());
        }
    }
}

/// Makes what is missing or outdated. With `refresh`, everything.
pub fn prepare(refresh: bool) -> Result<Guests> {
    let folder = cache()?;
    if refresh {
        std::fs::remove_dir_all(&folder)?;
        std::fs::create_dir_all(&folder)?;
    }
    let kernel = packages::kernel(&folder)?;
    packages::xen(&folder)?;
    prepare_32_bit(&folder).unwrap_or_else(|error| {
        eprintln!("guests: there will be no 32-bit guest, and its test says that it was skipped: {error:#}");
    });
    let busybox = packages::busybox(&folder)?;
    let programs = [
        ("vireo_guest", static_program(GUEST_PROGRAM, &folder.join("guest-program"))?),
        ("vireo_bench", static_program(BENCH_PROGRAM, &folder.join("bench-program"))?),
    ];
    let initramfs = initramfs::build(&folder, &kernel, &busybox, &programs)?;
    let disk = rootfs::build(&folder, &kernel, &busybox)?;
    Ok(Guests { kernel: kernel.image, initramfs, disk, folder })
}

/// The 32-bit guest. Debian's releases after 12 have no such kernel any more, so nothing else depends on it.
fn prepare_32_bit(folder: &Path) -> Result<()> {
    let [_kernel, busybox] = packages::of_32_bits(folder)?;
    initramfs::build_32_bit(folder, &busybox)
}

/// The folder everything is kept in.
pub fn cache() -> Result<PathBuf> {
    let folder = std::env::var_os("VIREO_CACHE")
        .map_or_else(|| workspace::root().join(".cache/guests"), PathBuf::from);
    std::fs::create_dir_all(&folder).with_context(|| format!("Cannot make {}", folder.display()))?;
    Ok(folder)
}

/// A program for guests: the static executable and the text it was made from.
pub struct Program {
    executable: PathBuf,
    text: String,
}

/// Builds a program for guests as a static executable.
fn static_program(source: &str, executable: &Path) -> Result<Program> {
    let source = workspace::root().join(source);
    let text = program_text(&source)?;
    made_from(executable, &text, || {
        command::run(
            Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
                .args(["--edition", "2024", "-O", "--target", "x86_64-unknown-linux-gnu"])
                .args(["-C", "target-feature=+crt-static", "-C", "panic=abort", "-C", "strip=symbols"])
                .args(["-C", "relocation-model=static", "-o"])
                .arg(executable)
                .arg(&source),
        )
    })?;
    Ok(Program { executable: executable.to_path_buf(), text })
}

/// Everything a program is made of: a `main.rs` has its modules beside it.
fn program_text(source: &Path) -> Result<String> {
    let read = |path: &Path| {
        std::fs::read_to_string(path).with_context(|| format!("Cannot read {}", path.display()))
    };
    match source.parent() {
        Some(folder) if source.file_name().is_some_and(|name| name == "main.rs") => {
            workspace::files_below(folder, &["rs"])?.iter().map(|path| read(path)).collect()
        }
        _ => read(source),
    }
}

/// Makes `artefact` with `make` unless it exists and was made from the same `inputs`.
fn made_from(artefact: &Path, inputs: &str, make: impl FnOnce() -> Result<()>) -> Result<()> {
    let mut name = artefact.as_os_str().to_owned();
    name.push(".made-from");
    let record = PathBuf::from(name);
    if artefact.exists() && std::fs::read_to_string(&record).is_ok_and(|recorded| recorded == inputs) {
        return Ok(());
    }
    eprintln!("guests: making {}", artefact.display());
    let _ = std::fs::remove_file(&record);
    make()?;
    std::fs::write(record, inputs)?;
    Ok(())
}
