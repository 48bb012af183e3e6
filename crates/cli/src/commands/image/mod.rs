//! `vireo image`: disk images. Options and units are those of `qemu-img` where they mean the same.

mod bench;
mod bitmap;
mod chain;
mod check;
mod compare;
mod convert;
mod create;
mod dd;
mod info;
mod map;
mod measure;
mod partitions;
mod progress;
mod resize;
mod serve;
mod snapshot;

use anyhow::{Context, Result, bail};
use block::{BackingPolicy, CacheMode, CreateOptions, DiskImage, OpenOptions};
use clap::{Args, Subcommand, ValueEnum};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use vmm::disks::DiskElsewhere;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  vireo image create -f qcow2 disk.qcow2 20G
  vireo image convert -p -O qcow2 -c -o compression_type=zstd disk.raw disk.qcow2
  vireo image check --repair all disk.qcow2
  vireo image create -f luks --key-file secret disk.luks 20G
  vireo image convert --key-file secret -f luks disk.luks disk.raw
  vireo image convert -O qcow2 nbd://host/name disk.qcow2
An image may be the export of an NBD server: nbd://HOST[:PORT]/NAME, nbd+unix:///NAME?socket=PATH, and with TLS
nbds://HOST/NAME?tls-certificates=DIR. It may be a logical unit of an iSCSI target:
iscsi://[USER[%SECRET]@]HOST[:PORT]/TARGET/LUN[?secret_file=PATH]. It may be a file on a web server, http://… or
https://…, for reading only, or an LVM volume of this host: lvm:GROUP/VOLUME.
All are raw unless a format is said. An .iso is raw, for reading only.")]
pub struct ImageArgs {
    /// Directory in which backing files may be; repeat for several. Without: the directory of the image
    #[arg(long, value_name = "DIR", global = true)]
    backing_dir: Vec<PathBuf>,
    /// File whose whole content is the passphrase of encrypted images
    #[arg(long, value_name = "FILE", global = true)]
    key_file: Option<PathBuf>,
    /// A secret (secret,id=ID,file=FILE or data=TEXT) that -o key-secret=ID or encrypt.key-secret=ID names, the
    /// passphrase of the image to be made; without, that of --key-file
    #[arg(long, value_name = "SECRET", global = true)]
    object: Vec<String>,
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Make an empty image
    Create(create::CreateArgs),
    /// Tell what is known about an image
    Info(info::InfoArgs),
    /// Look for contradictions in an image's metadata, and repair them
    Check(check::CheckArgs),
    /// Copy an image into another format
    Convert(convert::ConvertArgs),
    /// Change the size of the disk
    Resize(resize::ResizeArgs),
    /// List, make, apply or delete snapshots inside an image
    Snapshot(snapshot::SnapshotArgs),
    /// Write an image's changes into its backing file
    Commit(chain::CommitArgs),
    /// Give an image another backing file
    Rebase(chain::RebaseArgs),
    /// Tell which parts of the disk are stored, and where
    Map(map::MapArgs),
    /// Compare the content of two images
    Compare(compare::CompareArgs),
    /// Tell how large a file becomes
    Measure(measure::MeasureArgs),
    /// List the partitions of a disk and what they hold, without mounting
    Partitions(partitions::PartitionsArgs),
    /// Measure how fast requests to an image are
    Bench(bench::BenchArgs),
    /// Copy blocks of an image (if=, of=, bs=, count=, skip=)
    Dd(dd::DdArgs),
    /// Serve images to NBD clients
    Serve(serve::ServeArgs),
    /// Change a persistent dirty bitmap
    Bitmap(bitmap::BitmapArgs),
}

/// The format an image is copied into.
#[derive(Debug, Clone, Args)]
struct TargetFormat {
    /// Format of the target
    #[arg(short = 'O', long = "target-format", value_name = "FORMAT", default_value = "raw")]
    name: String,
    /// Options of the target's format (name=value,…); "help" lists them
    #[arg(short = 'o', value_name = "OPTIONS")]
    options: Vec<String>,
}

/// How results are printed.
#[derive(Debug, Clone, Args)]
struct Output {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Print for people or as JSON
    #[arg(long, value_enum, default_value = "human", hide = true)]
    output: OutputKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum OutputKind {
    Human,
    Json,
}

impl Output {
    fn is_json(&self) -> bool {
        self.json || self.output == OutputKind::Json
    }

    /// Prints what was done: as JSON, or as text unless `quiet`.
    fn report(&self, quiet: bool, facts: &serde_json::Value, text: &str) -> Result<()> {
        if self.is_json() {
            println!("{}", serde_json::to_string_pretty(facts)?);
        } else if !quiet && !text.is_empty() {
            println!("{text}");
        }
        Ok(())
    }
}

/// Where files that an image refers to may be, and what opens encrypted ones.
struct Folders {
    backing: Vec<PathBuf>,
    passphrase: Option<Arc<[u8]>>,
    secrets: BTreeMap<String, Arc<[u8]>>,
}

impl Folders {
    fn policy(&self, image: &Path) -> BackingPolicy {
        if self.backing.is_empty() {
            BackingPolicy::beside(image)
        } else {
            BackingPolicy::Inside(self.backing.clone())
        }
    }

    fn reading(&self, image: &Path) -> OpenOptions {
        OpenOptions {
            backing: self.policy(image),
            passphrase: self.passphrase.clone(),
            ..OpenOptions::reading()
        }
    }

    fn writing(&self, image: &Path) -> OpenOptions {
        OpenOptions { read_only: false, ..self.reading(image) }
    }

    /// For an image to be made, with the texts of `-o`.
    fn creating(&self, size: u64, options: &[String]) -> Result<CreateOptions> {
        let mut options =
            CreateOptions { size, options: parse_options(options)?, ..CreateOptions::default() };
        let secret = options.take("key-secret").or_else(|| options.take("encrypt.key-secret"));
        options.passphrase = match secret {
            Some(id) => {
                let secret = self.secrets.get(&id);
                Some(secret.with_context(|| format!("No --object secret,id={id},… was given"))?.clone())
            }
            None => self.passphrase.clone(),
        };
        Ok(options)
    }
}

pub fn run(arguments: &ImageArgs) -> Result<u8> {
    let folders = Folders {
        backing: arguments.backing_dir.clone(),
        passphrase: arguments.key_file.as_deref().map(block::read_key_file).transpose()?,
        secrets: arguments.object.iter().map(|text| secret(text)).collect::<Result<_>>()?,
    };
    match &arguments.command {
        ImageCommand::Create(arguments) => create::run(arguments, &folders),
        ImageCommand::Info(arguments) => info::run(arguments, &folders),
        ImageCommand::Check(arguments) => check::run(arguments),
        ImageCommand::Convert(arguments) => convert::run(arguments, &folders),
        ImageCommand::Resize(arguments) => resize::run(arguments, &folders),
        ImageCommand::Snapshot(arguments) => snapshot::run(arguments, &folders),
        ImageCommand::Commit(arguments) => chain::commit(arguments, &folders),
        ImageCommand::Rebase(arguments) => chain::rebase(arguments, &folders),
        ImageCommand::Map(arguments) => map::run(arguments, &folders),
        ImageCommand::Compare(arguments) => compare::run(arguments, &folders),
        ImageCommand::Measure(arguments) => measure::run(arguments, &folders),
        ImageCommand::Partitions(arguments) => partitions::run(arguments, &folders),
        ImageCommand::Bench(arguments) => bench::run(arguments, &folders),
        ImageCommand::Dd(arguments) => dd::run(arguments, &folders),
        ImageCommand::Serve(arguments) => serve::run(arguments, &folders),
        ImageCommand::Bitmap(arguments) => bitmap::run(arguments, &folders),
    }
}

/// The format of a file: as said, or as its header says, unless its name says raw.
fn format_of(path: &Path, stated: Option<&str>) -> Result<String> {
    if let Some(stated) = stated {
        return Ok(stated.to_owned());
    }
    let found = block::probe(path)?;
    let extension = path.extension().and_then(|extension| extension.to_str()).unwrap_or_default();
    if found != "raw" && matches!(extension, "raw" | "img") {
        bail!(
            "{} is named as a raw image, but begins like {found}; a guest can write that: say which it is with -f",
            path.display()
        );
    }
    Ok(found.to_owned())
}

/// Whether an image that was just made reads as zeros. A device keeps what it had, and what was never written in an
/// encrypted container is decrypted to noise.
fn is_zero_when_made(path: &Path, format: &str) -> bool {
    format != "luks" && std::fs::metadata(path).is_ok_and(|file| file.is_file())
}

/// Opens a file, or a disk elsewhere whose URI stands in its place.
fn open(path: &Path, format: Option<&str>, options: &OpenOptions) -> Result<Arc<dyn DiskImage>> {
    if http_disk::is_address(path) {
        if !options.read_only {
            bail!("{} is on a web server: it can only be read", path.display());
        }
        refuse_file_options(path, options)?;
        let file = Arc::new(http_disk::HttpDisk::open(&path.to_string_lossy())?);
        return Ok(block::driver(format.unwrap_or("raw"))?.open(file, path, options)?);
    }
    if let Some(elsewhere) = DiskElsewhere::parse(path)? {
        refuse_file_options(path, options)?;
        let mut export = elsewhere.connect(options.read_only)?;
        if options.cache == CacheMode::Unsafe {
            export = block::without_flushes(export);
        }
        // What is there is most often a guest's disk: its first bytes decide nothing.
        return Ok(block::driver(format.unwrap_or("raw"))?.open(export, path, options)?);
    }
    let format = format_of(path, format)?;
    Ok(block::open(path, &format, options)?)
}

/// What concerns the files of this host only.
fn refuse_file_options(path: &Path, options: &OpenOptions) -> Result<()> {
    if options.cache.bypasses_host() || options.aio == block::Aio::IoUring {
        bail!("{} is no file of this host: its server chooses caches and io_uring", path.display());
    }
    Ok(())
}

/// A number of bytes.
pub(crate) fn size(text: &str) -> Result<u64> {
    block::parse_size(text).map_err(anyhow::Error::msg)
}

/// The id and the passphrase of `secret,id=ID,file=FILE` or `secret,id=ID,data=TEXT`.
fn secret(text: &str) -> Result<(String, Arc<[u8]>)> {
    let wrong = || format!("--object {text:?} is not secret,id=ID,file=FILE or secret,id=ID,data=TEXT");
    let mut options = parse_options(&[text.strip_prefix("secret,").with_context(wrong)?.to_owned()])?;
    let id = options.remove("id").with_context(wrong)?;
    let passphrase = match (options.remove("file"), options.remove("data")) {
        (Some(file), None) => block::read_key_file(Path::new(&file))?,
        (None, Some(data)) => data.into_bytes().into(),
        _ => bail!(wrong()),
    };
    if !options.is_empty() {
        bail!(wrong());
    }
    Ok((id, passphrase))
}

/// `-o name=value,name=value`, several times; a comma of a value is written twice.
fn parse_options(texts: &[String]) -> Result<BTreeMap<String, String>> {
    let mut options = BTreeMap::new();
    for text in texts {
        for part in text.replace(",,", "\0").split(',').map(|part| part.replace('\0', ",")) {
            let (name, value) =
                part.split_once('=').with_context(|| format!("-o {part:?} is no name=value"))?;
            options.insert(name.to_owned(), value.to_owned());
        }
    }
    Ok(options)
}

/// Prints the options of a format if the user asked for them.
fn wants_help(texts: &[String], format: &str) -> Result<bool> {
    if !texts.iter().any(|text| text == "help" || text == "?") {
        return Ok(false);
    }
    for (name, help) in block::driver(format)?.options() {
        println!("{name:<18} {help}");
    }
    Ok(true)
}

/// A size for people.
pub(crate) fn human(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if value.fract() == 0.0 || value >= 100.0 { 0 } else { 2 };
    format!("{value:.digits$} {}", units[unit])
}
