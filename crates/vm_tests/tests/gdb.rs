//! The gdb stub, with the real gdb. What gdb shows is compared with what the guest's own kernel says of itself.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use vm_tests::{Material, Signal, TestVm, TinyGuest};

/// Seconds after which anything has gone wrong.
const PATIENCE: u64 = 120;

/// A running gdb. It says what it shows on its standard output.
struct Gdb {
    process: TestVm,
    commands: u32,
}

impl Gdb {
    /// gdb at a machine's socket; `None`, said on standard error, if there is no gdb.
    fn connect(socket: &Path) -> Result<Option<Self>> {
        let there = Command::new("gdb").arg("--version").stdout(Stdio::null()).status();
        if !there.is_ok_and(|status| status.success()) {
            eprintln!("skipped: there is no gdb; `cargo xtask test` installs it");
            return Ok(None);
        }
        let mut command = Command::new("gdb");
        command.args(["-nx", "-q", "-ex", "set pagination off", "-ex", "set confirm off"]);
        // The guest's system calls and gdb's packets take their time on a busy host.
        command.args(["-ex", "set remotetimeout 60"]);
        let mut gdb = Gdb { process: TestVm::start(command)?, commands: 0 };
        gdb.ask(&format!("target remote {}", socket.display()))?;
        Ok(Some(gdb))
    }

    /// Gives a command without waiting for its end.
    fn say(&mut self, command: &str) -> Result<()> {
        self.commands += 1;
        self.process.send(&format!("{command}\necho end-of-{}\\n\n", self.commands))
    }

    /// What the last command showed.
    fn answer(&mut self) -> Result<String> {
        let end = format!("end-of-{}\n", self.commands);
        self.process.wait_for(&end, PATIENCE)
    }

    fn ask(&mut self, command: &str) -> Result<String> {
        self.say(command)?;
        self.answer()
    }

    /// The value of an expression, a number.
    fn value(&mut self, expression: &str) -> Result<u64> {
        let answer = self.ask(&format!("printf \"value %#lx.\\n\", (unsigned long)({expression})"))?;
        let value = answer.split_once("value ").and_then(|(_, rest)| rest.split_once('.'));
        let digits = value.with_context(|| format!("{expression}: {answer}"))?.0;
        Ok(u64::from_str_radix(digits.trim_start_matches("0x"), 16)?)
    }
}

/// A machine that listens for gdb at a socket in a folder.
fn socket(folder: &tempfile::TempDir, wait: &str) -> (std::path::PathBuf, String) {
    let socket = folder.path().join("gdb");
    let option = format!("unix:{}{wait}", socket.display());
    (socket, option)
}

/// What the guest's shell answers.
fn shell(vm: &mut TestVm, command: &str) -> Result<String> {
    // The echoed command has the quotes, the answer has not.
    vm.send(&format!("{command}; echo 'answer''ed'\n"))?;
    let said = vm.wait_for("answered", PATIENCE)?;
    let answer = said.rsplit_once("answer''ed'").context("No echo")?.1;
    Ok(answer.trim().to_owned())
}

/// Address of a symbol of the guest's kernel.
fn symbol(vm: &mut TestVm, name: &str) -> Result<u64> {
    let answer = shell(vm, &format!("grep -w {name} /proc/kallsyms"))?;
    let line = answer.lines().find(|line| line.trim_end().ends_with(&format!(" {name}")));
    let digits = line.and_then(|line| line.split(' ').next()).context(answer.clone())?;
    Ok(u64::from_str_radix(digits.trim(), 16)?)
}

#[test]
fn gdb_debugs_a_kernel_that_goes_on_unharmed() -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let (path, option) = socket(&folder, "");
    let options = ["--engine", "software", "--cpus", "2", "--gdb", &option];
    let mut vm = material.boot("nokaslr", &options)?;
    vm.wait_for("/ #", PATIENCE)?;
    let uname = symbol(&mut vm, "__do_sys_newuname")?;
    let banner = symbol(&mut vm, "linux_banner")?;
    let jiffies = symbol(&mut vm, "jiffies_64")?;
    let version = shell(&mut vm, "cat /proc/version")?;
    let release = shell(&mut vm, "cat /proc/sys/kernel/osrelease")?;
    let Some(mut gdb) = Gdb::connect(&path)? else { return Ok(()) };

    let threads = gdb.ask("info threads")?;
    ensure!(threads.contains("vCPU 0") && threads.contains("vCPU 1"), "{threads}");
    let text = gdb.ask(&format!("x/s {banner:#x}"))?;
    let start: String = version.chars().take(60).collect();
    ensure!(start.starts_with("Linux") && text.contains(&start), "{text} has no {start}");
    ensure!(gdb.value("$cr0 & 0x80000001")? == 0x8000_0001, "paging and protection are on");
    ensure!(gdb.value("$efer & 0x500")? == 0x500, "long mode is active");

    // A breakpoint in a system call that nobody makes until the shell's user does.
    let before = gdb.ask(&format!("x/8xb {uname:#x}"))?;
    gdb.ask(&format!("break *{uname:#x}"))?;
    gdb.say("continue")?;
    vm.send("uname -r; echo 'go''ne on'\n")?;
    let stop = gdb.answer()?;
    ensure!(stop.contains("Breakpoint 1"), "{stop}");
    ensure!(gdb.value("$pc")? == uname);
    ensure!(gdb.ask(&format!("x/8xb {uname:#x}"))?.contains(before.trim()), "code was changed");
    // The argument is the program's memory: the buffer of the system call, which gdb can read.
    ensure!(gdb.value("$cs & 3")? == 0 && gdb.value("$ss")? < 0x100);

    // Steps go where the disassembler says, until a jump.
    for _ in 0..3 {
        let listing = gdb.ask("x/2i $pc")?;
        let lines: Vec<&str> = listing.lines().filter(|line| line.contains("0x")).collect();
        let next = lines.get(1).and_then(|line| line.trim().split([':', ' ']).next()).context("two lines")?;
        if lines[0].contains("call") || lines[0].contains('j') || lines[0].contains("ret") {
            break;
        }
        let next = u64::from_str_radix(next.trim_start_matches("0x"), 16)?;
        gdb.ask("stepi")?;
        ensure!(gdb.value("$pc")? == next, "{listing}");
    }

    // The timer interrupt counts.
    gdb.ask("delete")?;
    let ticks = gdb.value(&format!("*(long*){jiffies:#x}"))?;
    gdb.ask(&format!("watch *(long*){jiffies:#x}"))?;
    let watched = gdb.ask("continue")?;
    ensure!(watched.contains("Old value") && watched.contains("New value"), "{watched}");
    ensure!(gdb.value(&format!("*(long*){jiffies:#x}"))? > ticks);
    gdb.ask("delete")?;

    // Registers that are written are the guest's, and are put back.
    let rbx = gdb.value("$rbx")?;
    gdb.ask("set $rbx = 0x1234567890")?;
    gdb.ask("set $ymm3.v4_int64[2] = 77")?;
    gdb.ask("maint flush register-cache")?;
    ensure!(gdb.value("$rbx")? == 0x12_3456_7890 && gdb.value("$ymm3.v4_int64[2]")? == 77);
    gdb.ask(&format!("set $rbx = {rbx}"))?;
    gdb.ask("set $ymm3.v4_int64[2] = 0")?;

    // Ctrl-C.
    gdb.say("continue")?;
    vm.wait_for(&release, PATIENCE)?;
    vm.wait_for("gone on", PATIENCE)?;
    gdb.process.signal(Signal::INT)?;
    let stop = gdb.answer()?;
    ensure!(stop.contains("SIGINT"), "{stop}");
    gdb.ask("detach")?;

    ensure!(shell(&mut vm, "echo $((6 * 7))")?.contains("42"));
    vm.send("poweroff -f\n")?;
    ensure!(vm.wait(PATIENCE)?.code == Some(0));
    Ok(())
}

/// `TinyGuest::Echo` behind its entry: steps, a breakpoint, and registers of a guest that waits for gdb, then goes on
/// when gdb is killed.
fn debug_a_tiny_guest(engine: &str) -> Result<()> {
    let Some(material) = Material::find() else { return Ok(()) };
    let folder = tempfile::tempdir()?;
    let (path, option) = socket(&folder, ",wait");
    // The last `--engine` counts.
    let mut command = material.tiny(TinyGuest::Echo, folder.path(), &["--gdb", &option])?;
    let arguments: Vec<_> = command.get_args().map(|word| word.to_owned()).collect();
    let arguments =
        arguments.iter().map(|word| if word == "software" { engine.as_ref() } else { word.as_os_str() });
    let program = command.get_program().to_owned();
    command = Command::new(program);
    command.args(arguments);
    let mut vm = TestVm::start(command)?;
    let end = std::time::Instant::now() + std::time::Duration::from_secs(PATIENCE);
    while !path.exists() {
        ensure!(std::time::Instant::now() < end, "no socket: {:?}", vm.wait(1));
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let Some(mut gdb) = Gdb::connect(&path)? else { return Ok(()) };
    // mov dx, 3f8h (four bytes); mov al, 'R'; out dx, al
    let entry = gdb.value("$pc")?;
    gdb.ask("stepi")?;
    ensure!(gdb.value("$pc")? == entry + 4 && gdb.value("$dx")? == 0x3f8);
    gdb.ask(&format!("hbreak *{:#x}", entry + 7))?;
    let stop = gdb.ask("continue")?;
    ensure!(stop.contains("Breakpoint 1"), "{stop}");
    ensure!(gdb.value("$pc")? == entry + 7 && gdb.value("$al")? == u64::from(b'R'));
    // gdb shows what the machine says on its standard error.
    gdb.ask("monitor engine")?;
    gdb.process.wait_for_error(engine, PATIENCE)?;
    // The OUT was executed and the guest stands: it has said R and hears nothing.
    vm.wait_for("R", PATIENCE)?;
    vm.send("q")?;
    drop(gdb);
    ensure!(vm.wait(PATIENCE)?.code == Some(TinyGuest::EXIT_STATUS));
    Ok(())
}

#[test]
fn gdb_debugs_on_the_software_cpu_and_its_death_frees_the_guest() -> Result<()> {
    debug_a_tiny_guest("software")
}

#[test]
fn gdb_debugs_on_kvm() -> Result<()> {
    if Material::find().map(|material| material.kvm()).transpose()?.flatten().is_none() {
        return Ok(());
    }
    debug_a_tiny_guest("kvm")
}
