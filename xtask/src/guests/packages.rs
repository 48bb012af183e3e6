//! What comes from Debian packages: the kernel, Xen and a static busybox.
//!
//! Packages are downloaded with `apt-get download` and unpacked into the cache; nothing is installed for
//! them. Programs that must be installed (debootstrap) are, after saying so.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::made_from;
use crate::command;

/// The package that depends on the newest cloud kernel.
const KERNEL_META_PACKAGE: &str = "linux-image-cloud-amd64";

/// The package that depends on the newest Xen.
const XEN_META_PACKAGE: &str = "xen-system-amd64";

/// An unpacked kernel package.
pub struct Kernel {
    /// Its release, as `uname -r` says.
    pub release: String,
    /// The bzImage.
    pub image: PathBuf,
    /// The folder of its modules, `lib/modules/RELEASE`.
    pub modules: PathBuf,
}

/// The cached kernel, fetched when there is none.
pub fn kernel(folder: &Path) -> Result<Kernel> {
    let image = folder.join("vmlinuz");
    let record = folder.join("kernel-release");
    let unpacked = folder.join("kernel");
    made_from(&image, KERNEL_META_PACKAGE, || {
        let package = package_behind(KERNEL_META_PACKAGE, "linux-image-")?;
        let release = package.trim_start_matches("linux-image-").to_owned();
        download(folder, &package, &unpacked)?;
        std::fs::copy(unpacked.join(format!("boot/vmlinuz-{release}")), &image)?;
        Ok(std::fs::write(&record, release)?)
    })?;
    let release = std::fs::read_to_string(&record).context("Cannot read the cached kernel's release")?;
    let in_lib = PathBuf::from("lib/modules").join(&release);
    let modules = [unpacked.join(&in_lib), unpacked.join("usr").join(&in_lib)]
        .into_iter()
        .find(|folder| folder.is_dir())
        .context("The kernel package has no modules")?;
    Ok(Kernel { release, image, modules })
}

/// The cached static busybox, fetched when there is none.
pub fn busybox(folder: &Path) -> Result<PathBuf> {
    let busybox = folder.join("busybox");
    made_from(&busybox, "busybox-static", || {
        let unpacked = folder.join("busybox-package");
        download(folder, "busybox-static", &unpacked)?;
        let program = ["bin/busybox", "usr/bin/busybox"]
            .map(|path| unpacked.join(path))
            .into_iter()
            .find(|path| path.is_file())
            .context("The busybox package has no busybox")?;
        std::fs::copy(program, &busybox)?;
        Ok(())
    })?;
    Ok(busybox)
}

/// Xen, a multiboot kernel, fetched when there is none.
pub fn xen(folder: &Path) -> Result<()> {
    let xen = folder.join("xen");
    made_from(&xen, XEN_META_PACKAGE, || {
        let package = package_behind(XEN_META_PACKAGE, "xen-hypervisor-")?;
        let unpacked = folder.join("xen-package");
        download(folder, &package, &unpacked)?;
        let version = package.trim_start_matches("xen-hypervisor-");
        let image = std::fs::File::open(unpacked.join(format!("boot/xen-{version}.gz")))?;
        let mut gunzip = Command::new("gunzip");
        command::run(gunzip.arg("--stdout").stdin(image).stdout(std::fs::File::create(&xen)?))
    })
}

/// Installs the package a program comes in, when the program is missing.
pub fn need(program: &str, package: &str) -> Result<()> {
    if command::is_installed(program) {
        return Ok(());
    }
    eprintln!("guests: {program} is missing; installing the package {package} with apt-get");
    let install = || -> Result<()> {
        let mut command = command::as_root("apt-get")?;
        command::run(command.args(["install", "--yes", "--no-install-recommends", package]))
    };
    install().or_else(|_| update().and_then(|()| install()))
}

/// The name of the package that a meta package stands for now.
fn package_behind(meta: &str, prefix: &str) -> Result<String> {
    let named = || -> Result<String> {
        let text = command::output(Command::new("apt-cache").args([
            "depends",
            "--no-recommends",
            "--no-suggests",
            meta,
        ]))?;
        text.lines()
            .filter_map(|line| line.trim().strip_prefix("Depends: "))
            .find(|name| name.starts_with(prefix) && name.ends_with("amd64"))
            .map(str::to_owned)
            .with_context(|| format!("apt-cache knows no {prefix} behind {meta}"))
    };
    named().or_else(|_| update().and_then(|()| named()))
}

/// Downloads a package and unpacks it into `target`; package lists that are too old are renewed first.
fn download(folder: &Path, package: &str, target: &Path) -> Result<()> {
    let fetch = || command::run(Command::new("apt-get").current_dir(folder).args(["download", package]));
    fetch().or_else(|_| update().and_then(|()| fetch()))?;
    let prefix = format!("{package}_");
    let archive = std::fs::read_dir(folder)?
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(&prefix)));
    let Some(archive) = archive else { bail!("apt-get downloaded no {package}") };
    let _ = std::fs::remove_dir_all(target);
    command::run(Command::new("dpkg-deb").arg("--extract").arg(&archive).arg(target))?;
    Ok(std::fs::remove_file(archive)?)
}

/// Renews the package lists.
fn update() -> Result<()> {
    command::run(command::as_root("apt-get")?.arg("update"))
}
