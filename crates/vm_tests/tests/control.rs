//! The control socket, through `vireo ctl` and by hand.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use vm_tests::{Material, TestVm, TinyGuest};

struct Controlled {
    vm: TestVm,
    socket: PathBuf,
    _folder: tempfile::TempDir,
}

fn start(material: &Material, guest: TinyGuest) -> Result<Controlled> {
    let folder = tempfile::tempdir()?;
    let socket = folder.path().join("ctl");
    let text = socket.display().to_string();
    let mut vm =
        TestVm::start(material.tiny(guest, folder.path(), &["--name", "web", "--control", &text])?)?;
    let end = Instant::now() + Duration::from_secs(60);
    while !socket.exists() {
        ensure!(Instant::now() < end, "no socket: {:?}", vm.wait(1));
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(Controlled { vm, socket, _folder: folder })
}

/// `vireo ctl`: its status, and what it said.
fn ctl(material: &Material, socket: &Path, words: &[&str]) -> Result<(Option<i32>, String)> {
    let output = material.command(&["ctl", &socket.display().to_string()]).args(words).output()?;
    let said = [output.stdout, output.stderr].concat();
    Ok((output.status.code(), String::from_utf8(said)?))
}

struct Peer(BufReader<UnixStream>);

impl Peer {
    fn connect(socket: &Path) -> Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        Ok(Peer(BufReader::new(stream)))
    }

    fn say(&mut self, bytes: impl AsRef<[u8]>) -> Result<()> {
        Ok(self.0.get_mut().write_all(bytes.as_ref())?)
    }

    /// The next line; empty at the end.
    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line).context("No answer")?;
        Ok(line)
    }
}

#[test]
fn the_client_asks_and_the_machine_obeys() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let mut machine = start(&material, TinyGuest::Echo)?;
    let socket = machine.socket.clone();
    assert_eq!(std::fs::metadata(&socket)?.permissions().mode() & 0o777, 0o600);
    let ask = |words: &[&str]| ctl(&material, &socket, words);
    let mut events = Peer::connect(&socket)?;
    events.say("{\"version\":1,\"id\":\"e\",\"command\":\"events\"}\n")?;
    assert!(events.line()?.contains("\"id\":\"e\""));

    machine.vm.wait_for("R", 60)?;
    let (code, status) = ask(&["status"])?;
    assert_eq!(code, Some(0), "{status}");
    for words in ["name    web", "state   running", "engine  software", "memory  16M", "cpus    1"] {
        assert!(status.contains(words), "{status}");
    }
    assert_eq!(ask(&["pause"])?, (Some(0), String::new()));
    assert!(ask(&["status", "--json"])?.1.contains("\"state\":\"paused\""));
    // A guest that stands does not answer; its counters stand too.
    machine.vm.send("hello")?;
    let stats = ask(&["stats"])?.1;
    assert!(stats.contains("MIPS") && stats.contains("engine switches 0"), "{stats}");
    let instructions =
        |stats: &str| stats.lines().find(|line| line.starts_with("instructions")).map(str::to_owned);
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(instructions(&ask(&["stats"])?.1), instructions(&stats));
    assert_eq!(ask(&["resume"])?.0, Some(0));
    machine.vm.wait_for("hello", 60)?;
    assert_eq!(ask(&["switch-engine", "software"])?.0, Some(0));
    assert_eq!(ask(&["power-button"])?.0, Some(0));
    assert_eq!(ask(&["reset"])?.0, Some(0));
    machine.vm.wait_for("R", 60)?;
    assert_eq!(ask(&["fly"])?.0, Some(2));
    assert_eq!(ask(&["stop"])?.0, Some(0));
    assert_eq!(machine.vm.wait(60)?.code, Some(10));
    let mut told = String::new();
    events.0.read_to_string(&mut told)?;
    let told: Vec<&str> = told.lines().collect();
    for (line, event) in told.iter().zip(["paused", "resumed", "power-button", "reset", "ended"]) {
        assert!(line.contains(&format!("\"event\":\"{event}\"")), "{told:?}");
    }
    assert!(told.len() == 5 && told[4].contains("\"exit_status\":10"), "{told:?}");
    assert!(!socket.exists(), "the socket is left behind");
    let (code, said) = ask(&["status"])?;
    assert!(code == Some(2) && said.contains("ctl") && said.lines().count() == 1, "{said}");
    Ok(())
}

#[test]
fn hostile_peers_harm_nobody_else() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let mut machine = start(&material, TinyGuest::Echo)?;
    let socket = machine.socket.clone();
    let mut peer = Peer::connect(&socket)?;
    for (line, kind) in [
        ("garbage\n", "malformed"),
        ("{\n", "malformed"),
        ("\u{0}\u{1}\u{fffd}\n", "malformed"),
        ("{\"id\":1}\n", "version"),
        ("{\"version\":99,\"command\":\"stop\"}\n", "version"),
        ("{\"version\":1,\"command\":\"fly\"}\n", "bad-request"),
        ("{\"version\":1,\"command\":\"stop\",\"now\":true}\n", "bad-request"),
        ("{\"version\":1,\"command\":\"switch-engine\",\"engine\":\"steam\"}\n", "bad-request"),
    ] {
        peer.say(line)?;
        let answer = peer.line()?;
        assert!(answer.contains(&format!("\"kind\":\"{kind}\"")), "{line:?}: {answer}");
    }
    // Nested beyond reason, but a line like another.
    peer.say(["[".repeat(60_000).as_bytes(), b"\n"].concat())?;
    assert!(peer.line()?.contains("malformed"));
    // Requests in a row are answered in their order, the last one without a line's end, after which no more is said.
    peer.say(
        "{\"version\":1,\"id\":1,\"command\":\"pause\"}\n\n{\"version\":1,\"id\":2,\"command\":\"resume\"}\n",
    )?;
    peer.say("{\"version\":1,\"id\":3,\"command\":\"status\"}")?;
    peer.0.get_ref().shutdown(Shutdown::Write)?;
    for id in 1..=3 {
        assert!(peer.line()?.contains(&format!("\"id\":{id}")));
    }
    assert_eq!(peer.line()?, "");
    // A line without end is cut off, long before it fills any memory.
    let mut endless = Peer::connect(&socket)?;
    let sent = (0..1000).take_while(|_| endless.say([b'x'; 65_536]).is_ok()).count();
    assert!(sent < 1000, "64 MiB were taken as one line");
    assert!(endless.line()?.contains("malformed"));
    // One that asks and never reads is cut off.
    let mut deaf = Peer::connect(&socket)?;
    deaf.0.get_ref().set_write_timeout(Some(Duration::from_secs(60)))?;
    let asked =
        (0..1_000_000).take_while(|_| deaf.say("{\"version\":1,\"command\":\"fly\"}\n").is_ok()).count();
    assert!(asked < 1_000_000, "a client that reads nothing is served for ever");
    // Many clients: a bound, and room again when they leave.
    let crowd: Vec<Peer> = (0..40).map(|_| Peer::connect(&socket)).collect::<Result<_>>()?;
    let refused = |mut peer: Peer| -> Result<bool> {
        let _ = peer.say("{\"version\":1,\"command\":\"status\"}\n");
        Ok(peer.line()?.contains("busy"))
    };
    let refused: Vec<bool> = crowd.into_iter().map(refused).collect::<Result<_>>()?;
    assert!(refused.contains(&true) && refused.contains(&false), "{refused:?}");
    let end = Instant::now() + Duration::from_secs(60);
    while ctl(&material, &socket, &["status"])?.0 != Some(0) {
        ensure!(Instant::now() < end, "no room again after the crowd left");
    }
    machine.vm.send("still here q")?;
    machine.vm.wait_for("still here q", 60)?;
    assert_eq!(machine.vm.wait(60)?.code, Some(TinyGuest::EXIT_STATUS));
    Ok(())
}
