//! The client as a disk, against `qemu-nbd`, our own server, and servers that break the protocol.

#[path = "../../block/tests/random/mod.rs"]
mod random;

use block::BlockBackend;
use nbd::exercise::MemoryDisk;
use nbd::{Client, Export, Listener, Location, Server, ServerOptions, percent_encoded};
use random::Random;
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::Arc;

const SIZE: usize = 4 << 20;

fn uri(socket: &Path) -> Location {
    let text = format!("nbd+unix:///?socket={}", percent_encoded(&socket.to_string_lossy()));
    Location::parse(&text).unwrap().unwrap()
}

fn wait_for(path: &Path) {
    for _ in 0..3000 {
        if path.exists() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    panic!("{} does not appear", path.display());
}

/// A server in this process, with the disk it serves.
struct Own {
    server: Server,
    thread: Option<std::thread::JoinHandle<std::io::Result<()>>>,
    disk: Arc<MemoryDisk>,
    socket: PathBuf,
}

impl Own {
    fn start(folder: &Path, in_flight: usize) -> Self {
        let disk = Arc::new(MemoryDisk::new(SIZE));
        let export = Export {
            name: String::new(),
            description: String::new(),
            disk: disk.clone(),
            read_only: false,
            bitmaps: Vec::new(),
            preferred_block: 4096,
        };
        let options = ServerOptions {
            exports: vec![Arc::new(export)],
            tls: None,
            connections: 4,
            in_flight,
            persistent: true,
        };
        let server = Server::new(options).unwrap();
        let socket = folder.join("own.sock");
        let listener = Listener::unix(&socket).unwrap();
        let running = server.clone();
        let thread = std::thread::spawn(move || running.run(&[listener]));
        Own { server, thread: Some(thread), disk, socket }
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        self.server.stop();
        let ended = self.thread.take().unwrap().join().unwrap();
        if !std::thread::panicking() {
            ended.unwrap();
            assert!(!self.socket.exists());
        }
    }
}

/// Random requests from several threads, each in a part of its own, with a model of what must be there.
fn histories(client: &Client, content: &mut [u8]) {
    let part = content.len() / 4;
    std::thread::scope(|scope| {
        for (number, model) in content.chunks_mut(part).enumerate() {
            scope.spawn(move || history(client, (number * part) as u64, model));
        }
    });
}

fn history(client: &Client, base: u64, model: &mut [u8]) {
    let mut random = Random(base + 1);
    for step in 0..200 {
        let unit = random.pick(&[1, 512, 512, 512, 4096]);
        let at = random.below(model.len() as u64) / unit * unit;
        let longest = if random.chance(10) { model.len() as u64 } else { 128 << 10 };
        let len = (random.below(longest) / unit * unit).min(model.len() as u64 - at);
        let range = at as usize..(at + len) as usize;
        match random.below(10) {
            0..4 => {
                let mut data = vec![0; len as usize];
                client.read_bytes(base + at, &mut data).unwrap();
                assert!(data == model[range], "step {step}: {at}, {len} bytes");
            }
            4..7 => {
                let data: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
                client.write_bytes(base + at, &data).unwrap();
                model[range].copy_from_slice(&data);
            }
            7 => {
                client.write_zeroes(base + at, len, random.chance(50)).unwrap();
                model[range].fill(0);
            }
            8 if len > 0 => {
                let extent = client.block_status(base + at, len).unwrap();
                assert!(extent.start == base + at && (1..=len).contains(&extent.length));
                let range = at as usize..(at + extent.length) as usize;
                assert!(
                    !extent.zero || model[range].iter().all(|byte| *byte == 0),
                    "step {step}: {extent:?}"
                );
            }
            _ => client.flush().unwrap(),
        }
    }
}

#[test]
fn our_server_keeps_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    for in_flight in [1, 8] {
        let own = Own::start(folder.path(), in_flight);
        let client = Client::connect(&uri(&own.socket), false).unwrap();
        let mut content = own.disk.content();
        histories(&client, &mut content);
        drop(client);
        assert!(own.disk.content() == content);
    }
}

struct Theirs(Child);

impl Drop for Theirs {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `None` where `qemu-nbd` is missing.
fn qemu_nbd(folder: &Path, options: &[&str]) -> Option<(Theirs, PathBuf, PathBuf)> {
    let (image, socket) = (folder.join("disk.raw"), folder.join("theirs.sock"));
    let byte = |at: usize| if at >> 16 & 1 == 0 { (at >> 7) as u8 } else { 0 };
    std::fs::write(&image, (0..SIZE).map(byte).collect::<Vec<u8>>()).unwrap();
    let mut command = Command::new("qemu-nbd");
    command.args(["-f", "raw", "-t", "-k"]).arg(&socket).args(options).arg(&image);
    let Ok(child) = command.spawn() else {
        eprintln!("skipped: qemu-nbd is not installed");
        return None;
    };
    wait_for(&socket);
    Some((Theirs(child), socket, image))
}

#[test]
fn qemu_nbd_keeps_what_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let Some((_server, socket, image)) = qemu_nbd(folder.path(), &[]) else { return };
    let client = Client::connect(&uri(&socket), false).unwrap();
    assert_eq!(client.size(), SIZE as u64);
    let mut content = std::fs::read(&image).unwrap();
    histories(&client, &mut content);
    client.flush().unwrap();
    assert!(std::fs::read(&image).unwrap() == content);
}

#[test]
fn what_a_server_refuses_is_said() {
    let folder = tempfile::tempdir().unwrap();
    let Some((_server, socket, _)) = qemu_nbd(folder.path(), &["-r", "-x", "name"]) else { return };
    let error = |text: &str, read_only| {
        let socket = percent_encoded(&socket.to_string_lossy());
        let location = Location::parse(&format!("nbd+unix:///{text}?socket={socket}")).unwrap().unwrap();
        Client::connect(&location, read_only).map(drop).map_err(|error| error.to_string())
    };
    let unknown = error("other", true).unwrap_err();
    assert!(unknown.contains("no export of this name"), "{unknown}");
    assert!(error("name", false).unwrap_err().contains("read-only"));
    error("name", true).unwrap();
}

#[test]
fn a_lost_server_fails_every_request() {
    let folder = tempfile::tempdir().unwrap();
    let own = Own::start(folder.path(), 2);
    let client = Client::connect(&uri(&own.socket), false).unwrap();
    client.write_bytes(0, &[1; 512]).unwrap();
    drop(own);
    for _ in 0..2 {
        let error = client.read_bytes(0, &mut [0; 512]).unwrap_err();
        assert!(error.to_string().contains("open the disk again"), "{error}");
    }
    assert!(client.flush().is_err());
}

/// What a server says to a client that asks for the first sector and the first extent.
fn good_server() -> Vec<u8> {
    let reply_magic = 0x0003_e889_0455_65a9_u64.to_be_bytes();
    let option = |option: u32, kind: u32, data: &[u8]| {
        let (option, kind, len) = (option.to_be_bytes(), kind.to_be_bytes(), data.len() as u32);
        [&reply_magic[..], &option, &kind, &len.to_be_bytes(), data].concat()
    };
    let chunk = |kind: u8, cookie: u8, data: &[u8]| {
        let magic = 0x668e_33ef_u32.to_be_bytes();
        let len = (data.len() as u32).to_be_bytes();
        [&magic[..], &[0, 1, 0, kind], &[0, 0, 0, 0, 0, 0, 0, cookie], &len, data].concat()
    };
    let export = [&[0, 0], &(1_u64 << 20).to_be_bytes()[..], &0x01ed_u16.to_be_bytes()].concat();
    [
        0x4e42_444d_4147_4943_u64.to_be_bytes().to_vec(),
        [&0x4948_4156_454f_5054_u64.to_be_bytes()[..], &[0, 3]].concat(),
        option(8, 1, &[]),
        option(10, 4, &[&[0; 4][..], b"base:allocation"].concat()),
        option(10, 1, &[]),
        option(7, 3, &export),
        option(7, 1, &[]),
        chunk(1, 0, &[0; 520]),
        chunk(5, 1, &[0, 0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 3]),
    ]
    .concat()
}

/// Servers that say anything: the client must end with an error or an answer, and never wait or panic.
#[test]
fn a_client_stands_what_comes() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut random = Random(7);
    let mut answered = 0;
    for round in 0..400 {
        let mut bytes = good_server();
        for _ in 0..(if round == 0 { 0 } else { 1 + random.below(3) }) {
            let at = random.below(bytes.len() as u64) as usize;
            bytes[at] = random.next() as u8;
        }
        let location = uri(&socket);
        let client = std::thread::spawn(move || {
            let client = Client::connect(&location, false).ok()?;
            client.read_bytes(0, &mut [0; 512]).ok()?;
            client.block_status(0, 1 << 20).ok()
        });
        let (mut peer, _) = listener.accept().unwrap();
        let listening = std::thread::spawn(move || {
            let _ = peer.write_all(&bytes);
            let _ = peer.shutdown(std::net::Shutdown::Write);
            let _ = peer.read_to_end(&mut Vec::new());
        });
        answered += u32::from(client.join().unwrap().is_some());
        listening.join().unwrap();
        assert!(round > 0 || answered == 1, "the server without noise must be understood");
    }
    assert!(answered < 400, "noise in lengths and magic numbers must be noticed");
}
