//! Guest material: a Debian kernel, an initramfs and a Debian disk, made from packages and cached.
//!
//! | artefact | from | for |
//! |---|---|---|
//! | `vmlinuz` | the kernel package behind `linux-image-cloud-amd64` | everything |
//! | `initramfs.cpio.gz` | busybox, the kernel's modules, `init.sh`, our guest program | tests, benchmarks, and to reach the disk |
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
    let busybox = packages::busybox(&folder)?;
    let program = guest_program(&folder)?;
    let initramfs = initramfs::build(&folder, &kernel, &busybox, &program)?;
    let disk = rootfs::build(&folder, &kernel, &busybox)?;
    Ok(Guests { kernel: kernel.image, initramfs, disk, folder })
}

/// The folder everything is kept in.
pub fn cache() -> Result<PathBuf> {
    let folder = std::env::var_os("VIREO_CACHE")
        .map_or_else(|| workspace::root().join(".cache/guests"), PathBuf::from);
    std::fs::create_dir_all(&folder).with_context(|| format!("Cannot make {}", folder.display()))?;
    Ok(folder)
}

/// Builds the guest program as a static executable.
fn guest_program(folder: &Path) -> Result<PathBuf> {
    let source = workspace::root().join(GUEST_PROGRAM);
    let text = std::fs::read_to_string(&source).with_context(|| format!("Cannot read {GUEST_PROGRAM}"))?;
    let program = folder.join("guest-program");
    made_from(&program, &text, || {
        command::run(
            Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
                .args(["--edition", "2024", "-O", "--target", "x86_64-unknown-linux-gnu"])
                .args(["-C", "target-feature=+crt-static", "-C", "panic=abort", "-C", "strip=symbols"])
                .args(["-C", "relocation-model=static", "-o"])
                .arg(&program)
                .arg(&source),
        )
    })?;
    Ok(program)
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
