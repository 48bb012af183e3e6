//! The Debian disk: debootstrap's minimal system with systemd, as ext4 on a whole raw disk.

use std::path::{Path, PathBuf};

use anyhow::Result;

use super::packages::{Kernel, need};
use super::{initramfs, made_from};
use crate::command;

/// Makes the root file system and the disk; runs as root.
const SCRIPT: &str = include_str!("rootfs.sh");

/// The Debian disk, made when its inputs changed.
pub fn build(folder: &Path, kernel: &Kernel, busybox: &Path) -> Result<PathBuf> {
    let modules = initramfs::module_tree(folder, kernel, busybox)?;
    let disk = folder.join("debian.raw");
    let mirror = std::env::var("VIREO_DEBIAN_MIRROR").unwrap_or_default();
    made_from(&disk, &format!("{} {mirror}\n{SCRIPT}", kernel.release), || {
        need("debootstrap", "debootstrap")?;
        need("mke2fs", "e2fsprogs")?;
        let mut command = command::as_root("sh")?;
        command.args(["-c", SCRIPT, "rootfs.sh"]).arg(folder).arg(&modules).arg(&disk).arg(&mirror);
        command::run(&mut command)
    })?;
    Ok(disk)
}
