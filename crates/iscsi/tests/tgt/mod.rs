//! `tgtd`, a target that runs in user space.

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

/// The name of the target that a [`Target`] has.
pub const NAME: &str = "iqn.2026-01.org.example:disks";

/// A running server with one target.
pub struct Target {
    folder: PathBuf,
    port: u16,
    server: Option<Child>,
    /// What `tgtadm` was told, for a server that begins anew.
    told: Vec<Vec<String>>,
}

fn program(name: &str) -> PathBuf {
    // Not everybody's search path has the administrator's programs.
    let path = Path::new("/usr/sbin").join(name);
    if path.exists() { path } else { name.into() }
}

impl Target {
    /// Starts one that has a target without logical units; `None`, with a word about it, where that is not possible.
    pub fn start(folder: &Path) -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut target = Target { folder: folder.to_owned(), port, server: None, told: Vec::new() };
        if !target.restart() {
            eprintln!(
                "skipped: tgtd cannot be run (package tgt; it wants to be root); `cargo xtask test` installs it"
            );
            return None;
        }
        target.tell(&format!("--op new --mode target --tid 1 -T {NAME}"));
        target.tell("--op bind --mode target --tid 1 -I ALL");
        Some(target)
    }

    fn run(&mut self) -> bool {
        let mut command = Command::new(program("tgtd"));
        command.args(["-f", "-C", "1", "--iscsi"]).arg(format!("portal=127.0.0.1:{}", self.port));
        let log = std::fs::File::create(self.folder.join("tgtd.log")).unwrap();
        command.env("TGT_IPC_SOCKET", self.folder.join("tgt")).stderr(log.try_clone().unwrap()).stdout(log);
        let Ok(server) = command.spawn() else { return false };
        self.server = Some(server);
        (0..500).any(|_| {
            std::thread::sleep(Duration::from_millis(20));
            self.admin(&["--op", "show", "--mode", "target"])
        })
    }

    fn admin<T: AsRef<std::ffi::OsStr>>(&self, arguments: &[T]) -> bool {
        let mut command = Command::new(program("tgtadm"));
        command.args(["-C", "1", "--lld", "iscsi"]).args(arguments);
        let output = command.env("TGT_IPC_SOCKET", self.folder.join("tgt")).output();
        output.is_ok_and(|output| output.status.success())
    }

    /// Tells the server something, now and whenever it begins anew.
    pub fn tell(&mut self, words: &str) {
        let words: Vec<String> = words.split(' ').map(str::to_owned).collect();
        assert!(self.admin(&words), "{words:?}");
        self.told.push(words);
    }

    /// Adds a logical unit; its content is the file.
    pub fn unit(&mut self, lun: u32, file: &Path, block: u32, thin: bool) {
        let unit = format!("--mode logicalunit --tid 1 --lun {lun}");
        self.tell(&format!("--op new {unit} --backing-store {} --blocksize {block}", file.display()));
        if thin {
            self.tell(&format!("--op update {unit} --params thin_provisioning=1"));
        }
    }

    /// Ends the server without a word to its initiators.
    pub fn kill(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    /// Starts it as it was told so far to be; whether that works.
    pub fn restart(&mut self) -> bool {
        // What a server that was killed has left.
        let _ = std::fs::remove_file(self.folder.join("tgt.1"));
        self.run() && self.told.iter().all(|words| self.admin(words))
    }

    /// The URI of a logical unit; `user` ends with an @, `more` begins with a question mark.
    pub fn uri(&self, user: &str, lun: u32, more: &str) -> String {
        format!("iscsi://{user}127.0.0.1:{}/{NAME}/{lun}{more}", self.port)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        self.kill();
    }
}
