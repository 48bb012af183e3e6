//! The whole machine.

use crate::TraceConfig;
use crate::throttle::validate_groups;
use crate::{ByteSize, ConfigError, DiskConfig, SerialConfig};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Least memory: the loader's tables and a small kernel.
pub const MIN_MEMORY: ByteSize = ByteSize(2 << 20);
/// Most memory: what lies below the 64-bit PCI window, with room for the hole below 4 GiB.
pub const MAX_MEMORY: ByteSize = ByteSize(254 << 30);
/// Most processors: APIC IDs of eight bits, without the broadcast.
pub const MAX_CPUS: u32 = 255;
/// The customary port of the debug-exit device.
pub const DEFAULT_DEBUG_EXIT_PORT: u16 = 0xf4;
/// Page size; memory is whole pages.
const PAGE: u64 = 4096;
/// Longest name.
const NAME_LEN: usize = 64;
/// Disks that have a place on the PCI bus.
const MAX_DISKS: usize = 28;

/// What runs the processors.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// KVM where it is good, else the software CPU.
    #[default]
    Auto,
    /// KVM.
    Kvm,
    /// The software CPU.
    Software,
}

impl FromStr for EngineChoice {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "auto" => Ok(EngineChoice::Auto),
            "kvm" => Ok(EngineChoice::Kvm),
            "software" => Ok(EngineChoice::Software),
            _ => Err(ConfigError::value("Engine", text, "one of auto, kvm, software is needed")),
        }
    }
}

impl fmt::Display for EngineChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            EngineChoice::Auto => "auto",
            EngineChoice::Kvm => "kvm",
            EngineChoice::Software => "software",
        })
    }
}

/// How the software CPU runs code.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SoftwareTier {
    /// Instruction by instruction.
    Interpreter,
    /// 64-bit code is translated when it is first met.
    Translate,
    /// 64-bit code is interpreted while it is cold and translated when it is warm.
    #[default]
    Auto,
}

impl FromStr for SoftwareTier {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "interpreter" => Ok(SoftwareTier::Interpreter),
            "translate" => Ok(SoftwareTier::Translate),
            "auto" => Ok(SoftwareTier::Auto),
            _ => Err(ConfigError::value(
                "Software tier",
                text,
                "one of auto, interpreter, translate is needed",
            )),
        }
    }
}

/// How the kernel is entered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryChoice {
    /// The best way the kernel offers.
    #[default]
    Auto,
    /// Linux boot protocol, 64-bit entry.
    Linux64,
    /// Linux boot protocol, 32-bit entry.
    Linux32,
    /// PVH.
    Pvh,
    /// Multiboot, version 1.
    Multiboot,
}

impl FromStr for EntryChoice {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "auto" => Ok(EntryChoice::Auto),
            "linux64" => Ok(EntryChoice::Linux64),
            "linux32" => Ok(EntryChoice::Linux32),
            "pvh" => Ok(EntryChoice::Pvh),
            "multiboot" => Ok(EntryChoice::Multiboot),
            _ => {
                let reason = "one of auto, linux64, linux32, pvh, multiboot is needed";
                Err(ConfigError::value("Entry", text, reason))
            }
        }
    }
}

/// Least size of the translation cache of a processor.
pub const MIN_TRANSLATION_CACHE: ByteSize = ByteSize(1 << 20);
/// Greatest size of the translation cache of a processor: what a jump can reach.
pub const MAX_TRANSLATION_CACHE: ByteSize = ByteSize(1 << 30);

/// A machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default, rename_all = "kebab-case")]
pub struct VmConfig {
    /// Name, for messages and thread names.
    pub name: String,
    /// Kernel: bzImage, ELF with a PVH note, or multiboot image.
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk.
    pub initrd: Option<PathBuf>,
    /// Kernel command line.
    pub append: String,
    /// How the kernel is entered.
    pub entry: EntryChoice,
    /// Memory, [`MIN_MEMORY`] to [`MAX_MEMORY`], whole pages.
    pub memory: ByteSize,
    /// Processors, 1 to [`MAX_CPUS`].
    pub cpus: u32,
    /// CPU model.
    pub cpu: String,
    /// What runs the processors.
    pub engine: EngineChoice,
    /// How the software CPU runs code.
    pub software_tier: SoftwareTier,
    /// Memory for translated code, for each processor: [`MIN_TRANSLATION_CACHE`] to [`MAX_TRANSLATION_CACHE`].
    pub translation_cache_size: ByteSize,
    /// Compare every so-many-th translated block with the interpreter; zero for none. For one processor.
    pub verify: u32,
    /// Write names of translated code for Linux perf to `/tmp/perf-PID.map`.
    pub perf_map: bool,
    /// Directory where translations are kept from run to run.
    pub translation_store: Option<PathBuf>,
    /// Write down what the software CPU executes.
    pub trace: Option<TraceConfig>,
    /// Count what translated code executes, for `--stats=detail`: it becomes slower.
    pub count_executed: bool,
    /// Disks, in the order the guest finds them.
    pub disks: Vec<DiskConfig>,
    /// First serial port.
    pub serial: SerialConfig,
    /// virtio console (`hvc0`), if there is one.
    pub console: Option<SerialConfig>,
    /// Port of the debug-exit device, if there is one.
    pub debug_exit: Option<u16>,
    /// A reset ends the machine.
    pub no_reboot: bool,
}

impl Default for VmConfig {
    fn default() -> Self {
        VmConfig {
            name: "vm".to_owned(),
            kernel: None,
            initrd: None,
            append: String::new(),
            entry: EntryChoice::Auto,
            memory: ByteSize(512 << 20),
            cpus: 1,
            cpu: "max".to_owned(),
            engine: EngineChoice::Auto,
            software_tier: SoftwareTier::default(),
            translation_cache_size: ByteSize(12 << 20),
            verify: 0,
            perf_map: false,
            translation_store: None,
            trace: None,
            count_executed: false,
            disks: Vec::new(),
            serial: SerialConfig::Stdio,
            console: None,
            debug_exit: None,
            no_reboot: false,
        }
    }
}

impl VmConfig {
    /// Checks what can be checked without looking at the host.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let name_ok = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || self.name.len() > NAME_LEN || !self.name.chars().all(name_ok) {
            let reason = "1 to 64 letters, digits, '-', '_' or '.' are needed";
            return Err(ConfigError::value("Name", &self.name, reason));
        }
        if self.kernel.is_none() {
            return Err(ConfigError::Missing { option: "kernel", reason: "name one with --kernel FILE" });
        }
        self.validate_sizes()?;
        if !(MIN_TRANSLATION_CACHE..=MAX_TRANSLATION_CACHE).contains(&self.translation_cache_size) {
            let found = self.translation_cache_size.to_string();
            let reason = format!("{MIN_TRANSLATION_CACHE} to {MAX_TRANSLATION_CACHE} are possible");
            return Err(ConfigError::value("Translation cache size", found, reason));
        }
        self.validate_consoles()?;
        self.disks.iter().try_for_each(DiskConfig::validate)?;
        validate_groups(&self.disks)?;
        if self.disks.len() > MAX_DISKS {
            let found = self.disks.len().to_string();
            return Err(ConfigError::value(
                "Number of disks",
                found,
                format!("at most {MAX_DISKS} have a place"),
            ));
        }
        let mut paths = BTreeSet::new();
        match self.disks.iter().find(|disk| !paths.insert(&disk.path)) {
            Some(twice) => {
                let found = twice.path.display().to_string();
                Err(ConfigError::value("Disk", found, "it is given twice; each disk needs a file of its own"))
            }
            None => Ok(()),
        }
    }

    /// Two ends cannot share one terminal, socket or file.
    fn validate_consoles(&self) -> Result<(), ConfigError> {
        let shared = self.console.as_ref().filter(|console| match console {
            SerialConfig::None | SerialConfig::Pty => false,
            console => **console == self.serial,
        });
        match shared {
            Some(SerialConfig::Stdio) => {
                let reason = "the serial port has it already; move that with --serial, for example to none";
                Err(ConfigError::value("Console", "stdio", reason))
            }
            Some(other) => {
                Err(ConfigError::value("Console", other.to_string(), "the serial port has it already"))
            }
            None => Ok(()),
        }
    }

    fn validate_sizes(&self) -> Result<(), ConfigError> {
        let memory = self.memory;
        let fail = |reason: String| Err(ConfigError::value("Memory", memory.to_string(), reason));
        if memory < MIN_MEMORY {
            return fail(format!("at least {MIN_MEMORY} is needed"));
        }
        if memory > MAX_MEMORY {
            return fail(format!("at most {MAX_MEMORY} is possible"));
        }
        if !memory.0.is_multiple_of(PAGE) {
            return fail("whole pages of 4K are needed".to_owned());
        }
        if self.cpus == 0 || self.cpus > MAX_CPUS {
            let reason = format!("1 to {MAX_CPUS} are possible");
            return Err(ConfigError::value("Number of CPUs", self.cpus.to_string(), reason));
        }
        match self.debug_exit {
            Some(port) if port > u16::MAX - 3 => {
                let reason = "four ports are needed, so at most 0xfffc";
                Err(ConfigError::value("Debug-exit port", format!("{port:#x}"), reason))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serial_port_and_console_need_ends_of_their_own() {
        let config = |serial: &str, console: &str| VmConfig {
            kernel: Some("k".into()),
            serial: serial.parse().unwrap(),
            console: Some(console.parse().unwrap()),
            ..VmConfig::default()
        };
        for (serial, console) in [("none", "stdio"), ("stdio", "none"), ("none", "none"), ("pty", "pty")] {
            config(serial, console).validate().unwrap();
        }
        for (serial, console) in [("stdio", "stdio"), ("file:/a", "file:/a"), ("unix:/a", "unix:/a")] {
            let error = config(serial, console).validate().unwrap_err().to_string();
            assert!(error.contains("the serial port has it already"), "{error}");
        }
    }
}
