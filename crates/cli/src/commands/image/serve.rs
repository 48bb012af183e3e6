//! `vireo image serve`: images for NBD clients. The short options are those of `qemu-nbd`.

use super::{Folders, Output, open, parse_options};
use anyhow::{Context, Result, bail};
use block::{ByteAligned, CacheMode, DiskImage, OpenOptions};
use clap::Args;
use nbd::{Bitmap, Export, Listener, Server, ServerOptions, ServerTls};
use serde_json::json;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Largest preferred block: more makes clients read much for little.
const PREFERRED_MAX: u64 = 64 << 10;

#[derive(Debug, Args)]
#[command(after_help = "\
Ends when the last client has left, unless --persistent is given, and on SIGTERM, SIGINT or SIGHUP; what is under
way is done then, and all images are flushed.

Examples:
  vireo image serve -f qcow2 -t disk.qcow2
  vireo image serve -k /run/disk.sock -r -f qcow2 -B since-monday disk.qcow2
  vireo image serve -t -b 0.0.0.0 --tls /etc/pki/vireo --tls-verify-peer \\
      --export name=web,file=web.qcow2,format=qcow2 --export name=iso,file=cd.iso,format=raw,readonly=on
  nbdcopy nbd://localhost/web copy.raw")]
pub struct ServeArgs {
    /// Format of the image; without, its header decides
    #[arg(short, long)]
    format: Option<String>,
    /// Name under which clients find the image
    #[arg(short = 'x', long, value_name = "NAME", default_value = "")]
    export_name: String,
    /// What the image is, for people
    #[arg(short = 'D', long, value_name = "TEXT", default_value = "")]
    description: String,
    /// Clients cannot write
    #[arg(short, long)]
    read_only: bool,
    /// A persistent dirty bitmap that clients may ask for as qemu:dirty-bitmap:NAME; repeat for several
    #[arg(short = 'B', long, value_name = "NAME")]
    bitmap: Vec<String>,
    /// One more image: `file=FILE[,name=NAME][,format=FORMAT][,readonly=on|off][,bitmap=NAME][,description=TEXT]`;
    /// repeat for several
    #[arg(long, value_name = "EXPORT")]
    export: Vec<String>,
    /// Listen on this Unix socket instead of TCP
    #[arg(short = 'k', long, value_name = "PATH", conflicts_with_all = ["bind", "port"])]
    socket: Option<PathBuf>,
    /// Listen on this address; unlike qemu-nbd, only programs of this host can connect unless it is given
    #[arg(short, long, value_name = "ADDRESS", default_value = "127.0.0.1")]
    bind: String,
    /// TCP port; 0: any that is free
    #[arg(short, long, default_value_t = 10809)]
    port: u16,
    /// Most connections at a time; more wait until one ends
    #[arg(short = 'e', long, value_name = "NUMBER", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1024))]
    shared: u16,
    /// Most requests of a connection that are worked on at a time
    #[arg(long, value_name = "NUMBER", default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=256))]
    in_flight: u16,
    /// How the images are kept: writeback, writethrough, none, directsync or unsafe; none and directsync go past the
    /// host's page cache
    #[arg(long, value_name = "CACHE", default_value = "writeback", value_parser = CacheMode::named)]
    cache: CacheMode,
    /// Go on when the last client has left
    #[arg(short = 't', long)]
    persistent: bool,
    /// Demand TLS: directory with server-cert.pem and server-key.pem
    #[arg(long, value_name = "DIR")]
    tls: Option<PathBuf>,
    /// Let in only clients with a certificate that ca-cert.pem in the directory of --tls has signed
    #[arg(long, requires = "tls")]
    tls_verify_peer: bool,
    /// Write the number of this process into a file once clients can connect
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Do not print where clients can connect
    #[arg(short, long)]
    quiet: bool,
    #[command(flatten)]
    output: Output,
    /// Image
    file: Option<PathBuf>,
}

/// One image as it was asked for.
struct Wish {
    name: String,
    file: PathBuf,
    format: Option<String>,
    read_only: bool,
    bitmaps: Vec<String>,
    description: String,
}

pub fn run(arguments: &ServeArgs, folders: &Folders) -> Result<u8> {
    let wishes = wishes(arguments)?;
    let mut exports: Vec<Arc<Export>> = Vec::new();
    for wish in &wishes {
        if exports.iter().any(|export| export.name == wish.name) {
            bail!("Two exports have the name {:?}; say name=NAME", wish.name);
        }
        exports.push(Arc::new(export(wish, arguments.cache, folders)?));
    }
    let tls = arguments.tls.as_deref().map(|folder| ServerTls::load(folder, arguments.tls_verify_peer));
    // Before there are clients, so that none of them sees the default action.
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;
    let server = Server::new(ServerOptions {
        exports,
        tls: tls.transpose()?,
        connections: arguments.shared.into(),
        in_flight: arguments.in_flight.into(),
        persistent: arguments.persistent,
    })?;
    let listener = match &arguments.socket {
        Some(path) => Listener::unix(path)?,
        None => Listener::tcp(&arguments.bind, arguments.port)?,
    };
    let pid_file = arguments.pid_file.as_deref().map(PidFile::write).transpose()?;
    if arguments.output.is_json() {
        let uris = wishes.iter().map(|wish| {
            json!({ "name": wish.name, "filename": wish.file, "uri": uri(arguments, &listener, &wish.name) })
        });
        let mut out = std::io::stdout().lock();
        writeln!(out, "{:#}", json!({ "exports": uris.collect::<Vec<_>>() }))?;
        out.flush()?;
    } else if !arguments.quiet {
        let mut out = std::io::stdout().lock();
        for wish in &wishes {
            writeln!(out, "{}", uri(arguments, &listener, &wish.name))?;
        }
        out.flush()?;
    }
    let handle = signals.handle();
    let stop = server.clone();
    let watch = std::thread::spawn(move || {
        if signals.forever().next().is_some() {
            stop.stop();
        }
    });
    let served = server.run(&[listener]);
    handle.close();
    let watched = watch.join();
    drop(pid_file);
    served.context("serving, or writing out the images")?;
    if watched.is_err() {
        bail!("The thread that waits for signals failed");
    }
    Ok(0)
}

/// The image of the positional argument first, then those of `--export`.
fn wishes(arguments: &ServeArgs) -> Result<Vec<Wish>> {
    let mut wishes = Vec::new();
    if let Some(file) = &arguments.file {
        wishes.push(Wish {
            name: arguments.export_name.clone(),
            file: file.clone(),
            format: arguments.format.clone(),
            read_only: arguments.read_only,
            bitmaps: arguments.bitmap.clone(),
            description: arguments.description.clone(),
        });
    }
    for text in &arguments.export {
        let mut options = parse_options(std::slice::from_ref(text))?;
        let file = options.remove("file").with_context(|| format!("--export {text:?} has no file=FILE"))?;
        let read_only = options.remove("readonly").map(|value| block::switch("readonly", &value));
        wishes.push(Wish {
            name: options.remove("name").unwrap_or_default(),
            file: file.into(),
            format: options.remove("format"),
            read_only: read_only.transpose()?.unwrap_or(arguments.read_only),
            bitmaps: options.remove("bitmap").into_iter().collect(),
            description: options.remove("description").unwrap_or_default(),
        });
        if let Some(other) = options.keys().next() {
            let known = "file, name, format, readonly, bitmap, description";
            bail!("--export knows no {other:?}; known: {known}");
        }
    }
    if wishes.is_empty() {
        bail!("An image is needed: FILE or --export file=FILE");
    }
    Ok(wishes)
}

fn export(wish: &Wish, cache: CacheMode, folders: &Folders) -> Result<Export> {
    let options = if wish.read_only { folders.reading(&wish.file) } else { folders.writing(&wish.file) };
    let disk = open(&wish.file, wish.format.as_deref(), &OpenOptions { cache, ..options })?;
    let bitmaps = wish.bitmaps.iter().map(|name| bitmap(&*disk, wish, name)).collect::<Result<_>>()?;
    let preferred_block = disk.cluster_size().next_power_of_two().clamp(4096, PREFERRED_MAX) as u32;
    Ok(Export {
        name: wish.name.clone(),
        description: wish.description.clone(),
        read_only: wish.read_only,
        bitmaps,
        preferred_block,
        disk: Arc::new(ByteAligned::new(block::with_cache_mode(disk, cache))),
    })
}

fn bitmap(disk: &dyn DiskImage, wish: &Wish, name: &str) -> Result<Bitmap> {
    let file = wish.file.display();
    let bitmaps = disk.bitmaps().with_context(|| format!("{file} is of a format without bitmaps"))?;
    let list = bitmaps.list()?;
    let found = list.iter().find(|bitmap| bitmap.name == name);
    let found = found.with_context(|| format!("{file} has no bitmap {name:?}"))?;
    if found.in_use {
        bail!("Bitmap {name:?} of {file} was not stored in order: what it marks is not to be trusted");
    }
    if found.enabled && !wish.read_only {
        bail!(
            "Bitmap {name:?} of {file} records writes; serve read-only, or stop it with: vireo image bitmap --disable"
        );
    }
    Ok(Bitmap { name: name.to_owned(), dirty: bitmaps.dirty_ranges(name)? })
}

fn uri(arguments: &ServeArgs, listener: &Listener, name: &str) -> String {
    let scheme = if arguments.tls.is_some() { "nbds" } else { "nbd" };
    let name = nbd::percent_encoded(name);
    match &arguments.socket {
        Some(path) => {
            format!("{scheme}+unix:///{name}?socket={}", nbd::percent_encoded(&path.to_string_lossy()))
        }
        None => {
            let host = &arguments.bind;
            let host = if host.contains(':') { format!("[{host}]") } else { host.clone() };
            format!("{scheme}://{host}:{}/{name}", listener.port().unwrap_or(arguments.port))
        }
    }
}

/// A file with this process's number, which goes with it.
struct PidFile(PathBuf);

impl PidFile {
    fn write(path: &Path) -> Result<Self> {
        std::fs::write(path, format!("{}\n", std::process::id()))
            .with_context(|| format!("writing {}", path.display()))?;
        Ok(PidFile(path.to_owned()))
    }
}

impl Drop for PidFile {
    fn drop(&mut self) {
        // Somebody may have removed it already.
        let _ = std::fs::remove_file(&self.0);
    }
}
