//! What comes from Debian packages: the kernel, Xen and a static busybox.
//!
//! Packages are downloaded with `apt-get download` and unpacked into the cache; nothing is installed for
//! them. Those of another architecture have package lists of their own in the cache, so that the host's dpkg need not
//! know of it. Programs that must be installed (debootstrap) are, after saying so.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::made_from;
use crate::command;

/// The package that depends on the newest cloud kernel.
const KERNEL_META_PACKAGE: &str = "linux-image-cloud-amd64";

/// The package that depends on the newest Xen.
const XEN_META_PACKAGE: &str = "xen-system-amd64";

/// The package that depends on the newest 32-bit kernel for processors without PAE, of architecture i386.
const KERNEL_META_PACKAGE_686: &str = "linux-image-686";

/// The package of a busybox that needs no libraries.
const BUSYBOX_PACKAGE: &str = "busybox-static";

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
        let apt = Apt::of_the_host();
        let package = apt.package_behind(KERNEL_META_PACKAGE, "linux-image-", "amd64")?;
        let release = package.trim_start_matches("linux-image-").to_owned();
        apt.download(folder, &package, &unpacked)?;
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
    made_from(&busybox, BUSYBOX_PACKAGE, || {
        let unpacked = folder.join("busybox-package");
        Apt::of_the_host().download(folder, BUSYBOX_PACKAGE, &unpacked)?;
        copy_busybox(&unpacked, &busybox)
    })?;
    Ok(busybox)
}

fn copy_busybox(unpacked: &Path, to: &Path) -> Result<()> {
    let program = ["bin/busybox", "usr/bin/busybox"]
        .map(|path| unpacked.join(path))
        .into_iter()
        .find(|path| path.is_file())
        .context("The busybox package has no busybox")?;
    std::fs::copy(program, to)?;
    Ok(())
}

/// Debian's 32-bit kernel and a 32-bit busybox, fetched when there are none: kernel, busybox.
pub fn of_32_bits(folder: &Path) -> Result<[PathBuf; 2]> {
    let (image, busybox) = (folder.join("vmlinuz-686"), folder.join("busybox-686"));
    let apt = || Apt::of_architecture("i386", &folder.join("apt-i386"));
    made_from(&image, KERNEL_META_PACKAGE_686, || {
        let apt = apt()?;
        let package = apt.package_behind(KERNEL_META_PACKAGE_686, "linux-image-", "-686")?;
        let unpacked = folder.join("kernel-686");
        apt.download(folder, &package, &unpacked)?;
        let release = package.trim_start_matches("linux-image-");
        std::fs::copy(unpacked.join(format!("boot/vmlinuz-{release}")), &image)?;
        // Its modules are of no use here, and many.
        Ok(std::fs::remove_dir_all(&unpacked)?)
    })?;
    made_from(&busybox, BUSYBOX_PACKAGE, || {
        let unpacked = folder.join("busybox-686-package");
        apt()?.download(folder, BUSYBOX_PACKAGE, &unpacked)?;
        copy_busybox(&unpacked, &busybox)
    })?;
    Ok([image, busybox])
}

/// Xen, a multiboot kernel, fetched when there is none.
pub fn xen(folder: &Path) -> Result<()> {
    let xen = folder.join("xen");
    made_from(&xen, XEN_META_PACKAGE, || {
        let apt = Apt::of_the_host();
        let package = apt.package_behind(XEN_META_PACKAGE, "xen-hypervisor-", "amd64")?;
        let unpacked = folder.join("xen-package");
        apt.download(folder, &package, &unpacked)?;
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
    install().or_else(|_| Apt::of_the_host().update().and_then(|()| install()))
}

/// The package tools, for packages of one architecture.
#[derive(Default)]
struct Apt {
    /// Options for an architecture, and package lists, that are not the host's.
    options: Vec<String>,
}

impl Apt {
    fn of_the_host() -> Self {
        Self::default()
    }

    /// For packages of another architecture, whose lists are kept in `folder`.
    fn of_architecture(name: &str, folder: &Path) -> Result<Self> {
        let (state, cache) = (folder.join("state"), folder.join("cache"));
        std::fs::create_dir_all(state.join("lists/partial"))?;
        std::fs::create_dir_all(cache.join("archives/partial"))?;
        let settings = [
            format!("APT::Architecture={name}"),
            format!("APT::Architectures={name}"),
            format!("Dir::State={}", state.display()),
            "Dir::State::status=/dev/null".to_owned(),
            format!("Dir::Cache={}", cache.display()),
        ];
        Ok(Self { options: settings.map(|setting| format!("--option={setting}")).to_vec() })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args(&self.options);
        command
    }

    /// The name of the package that a meta package stands for now.
    fn package_behind(&self, meta: &str, prefix: &str, suffix: &str) -> Result<String> {
        let named = || -> Result<String> {
            let mut depends = self.command("apt-cache");
            let text = command::output(depends.args(["depends", "--no-recommends", "--no-suggests", meta]))?;
            text.lines()
                .filter_map(|line| line.trim().strip_prefix("Depends: "))
                .find(|name| name.starts_with(prefix) && name.ends_with(suffix))
                .map(str::to_owned)
                .with_context(|| format!("apt-cache knows no {prefix} behind {meta}"))
        };
        named().or_else(|_| self.update().and_then(|()| named()))
    }

    /// Downloads a package and unpacks it into `target`; package lists that are too old are renewed first.
    fn download(&self, folder: &Path, package: &str, target: &Path) -> Result<()> {
        let fetch = || {
            let mut download = self.command("apt-get");
            command::run(download.current_dir(folder).args(["download", package]))
        };
        fetch().or_else(|_| self.update().and_then(|()| fetch()))?;
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
    fn update(&self) -> Result<()> {
        if self.options.is_empty() {
            return command::run(command::as_root("apt-get")?.arg("update"));
        }
        // One source that has no such architecture, or is just being renewed, need not be the one that is wanted.
        let updated = command::run(self.command("apt-get").arg("update"));
        updated.or_else(|error| {
            eprintln!("guests: not all package lists came: {error:#}");
            Ok(())
        })
    }
}
