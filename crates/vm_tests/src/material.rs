//! The program under test and the guests.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::{TestVm, TinyGuest};

/// A guest without 64-bit code.
pub struct LegacyGuest {
    /// Debian's 32-bit kernel.
    pub kernel: PathBuf,
    /// An initramfs with `xtask/src/guests/init-686.sh` and a 32-bit busybox.
    pub initramfs: PathBuf,
    /// That busybox.
    busybox: PathBuf,
}

/// Where the program and the guest material are.
pub struct Material {
    program: PathBuf,
    guests: PathBuf,
}

impl Material {
    /// What the environment names; `None`, said on standard error, when it names nothing.
    ///
    /// # Panics
    /// When the environment names something that does not exist: that is a broken test run, not a lesser one.
    #[must_use]
    pub fn find() -> Option<Self> {
        let (Some(program), Some(guests)) = (std::env::var_os("VIREO_BIN"), std::env::var_os("VIREO_GUESTS"))
        else {
            eprintln!("skipped: no VIREO_BIN and VIREO_GUESTS; `cargo xtask test` sets them");
            return None;
        };
        let found = Self { program: program.into(), guests: guests.into() };
        for path in [found.program.clone(), found.kernel(), found.initramfs()] {
            assert!(path.is_file(), "{} does not exist", path.display());
        }
        Some(found)
    }

    /// Debian's kernel.
    #[must_use]
    pub fn kernel(&self) -> PathBuf {
        self.guests.join("vmlinuz")
    }

    /// The busybox initramfs, whose `vireo.test=` words are described in `xtask/src/guests/init.sh`.
    #[must_use]
    pub fn initramfs(&self) -> PathBuf {
        self.guests.join("initramfs.cpio.gz")
    }

    /// Debian's Xen, a multiboot kernel.
    #[must_use]
    pub fn xen(&self) -> PathBuf {
        self.guests.join("xen")
    }

    /// The 32-bit guest; `None`, said on standard error, where it could not be fetched.
    #[must_use]
    pub fn of_32_bits(&self) -> Option<LegacyGuest> {
        let [kernel, initramfs, busybox] =
            ["vmlinuz-686", "initramfs-686.cpio.gz", "busybox-686"].map(|name| self.guests.join(name));
        for path in [&kernel, &initramfs, &busybox] {
            if !path.is_file() {
                eprintln!(
                    "skipped: no {}; `cargo xtask guests` fetches it from Debian's i386 packages, and says why \
                     not (releases after 12 have no 32-bit kernel)",
                    path.display()
                );
                return None;
            }
        }
        Some(LegacyGuest { kernel, initramfs, busybox })
    }

    /// What the 32-bit guest's work gives on this host's own processor; `None` if its kernel does not run 32-bit programs.
    ///
    /// # Errors
    /// When the script fails.
    pub fn work_of_32_bits(&self, guest: &LegacyGuest) -> Result<Option<String>> {
        if !Command::new(&guest.busybox).arg("true").status().is_ok_and(|status| status.success()) {
            return Ok(None);
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/work-686.sh");
        let output = Command::new(&guest.busybox).arg("sh").arg(script).arg(&guest.busybox).output()?;
        if !output.status.success() {
            bail!("the work failed on this host: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(Some(String::from_utf8(output.stdout)?))
    }

    /// A sparse copy of the Debian disk, for one test to write to.
    ///
    /// # Errors
    /// When it cannot be copied.
    pub fn debian_disk(&self, copy: &Path) -> Result<()> {
        let status = Command::new("cp")
            .arg("--sparse=always")
            .arg(self.guests.join("debian.raw"))
            .arg(copy)
            .status()?;
        if !status.success() {
            bail!("Cannot copy the Debian disk");
        }
        Ok(())
    }

    /// What the guest program prints on this host's own processor.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn on_this_processor(&self, arguments: &[&str]) -> Result<String> {
        let output = Command::new(self.guests.join("guest-program")).args(arguments).output()?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// What `vireo doctor` says, or `None` where machines do not run on KVM at all; then it says what is lacking.
    ///
    /// # Errors
    /// When the program cannot be run.
    pub fn kvm(&self) -> Result<Option<String>> {
        let output = self.command(&["doctor"]).output()?;
        let said = String::from_utf8(output.stdout)?;
        let verdict = said.lines().last().unwrap_or_default();
        if verdict.contains("KVM is not usable") {
            eprintln!("skipped: {verdict}");
            return Ok(None);
        }
        Ok(Some(said))
    }

    /// `vireo` with arguments of the test's own.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        command
    }

    /// A machine with the kernel and the busybox initramfs: `words` go to the kernel's command line, `options`
    /// to `vireo run`.
    ///
    /// # Errors
    /// When the program cannot be started.
    pub fn boot(&self, words: &str, options: &[&str]) -> Result<TestVm> {
        let mut command = self.command(&["run", "--memory", "256M", "--kernel"]);
        command.arg(self.kernel()).arg("--initrd").arg(self.initramfs());
        command.args(["--append", &format!("console=ttyS0 {words}")]).args(options);
        TestVm::start(command)
    }

    /// The command line for a guest of a few bytes on the software CPU, whose image is put into `folder`.
    ///
    /// # Errors
    /// When the image cannot be written.
    pub fn tiny(&self, guest: TinyGuest, folder: &Path, options: &[&str]) -> Result<Command> {
        let mut command = self.command(&["run", "--memory", "16M", "--engine", "software", "--debug-exit"]);
        command.arg("--kernel").arg(guest.image(folder)?).args(options);
        Ok(command)
    }
}
