//! Wrong input ends at once, with one clear line and an exit status that is neither success nor a guest's, and every
//! file is as it was.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use anyhow::Result;
use vm_tests::{Material, TestVm, TinyGuest};

/// Exit statuses, as `vireo run --help` lists them.
const USAGE: i32 = 2;
const ENGINE: i32 = 6;

/// A folder for files that must stay as they are, and a kernel that would run if anything let it.
struct Case {
    material: Material,
    folder: tempfile::TempDir,
}

/// Content and time of the last change of each file.
type Files = BTreeMap<PathBuf, (SystemTime, Vec<u8>)>;

impl Case {
    fn new() -> Result<Option<Self>> {
        let Some(material) = Material::find() else { return Ok(None) };
        let folder = tempfile::tempdir()?;
        TinyGuest::DebugExit(0).image(folder.path())?;
        Ok(Some(Case { material, folder }))
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<String> {
        let path = self.path(name);
        std::fs::write(&path, content)?;
        Ok(path)
    }

    fn files(&self) -> Result<Files> {
        let mut files = Files::new();
        for entry in std::fs::read_dir(self.folder.path())? {
            let entry = entry?;
            let (path, metadata) = (entry.path(), entry.metadata()?);
            let content = if metadata.is_file() { std::fs::read(&path)? } else { Vec::new() };
            files.insert(path, (metadata.modified()?, content));
        }
        Ok(files)
    }

    /// Runs `vireo run` with these arguments; it must fail within seconds with this status, in one line with all
    /// these words, and leave all files alone.
    fn fails(&self, arguments: &[&str], status: i32, words: &[&str]) -> Result<()> {
        let mut command = self.material.command(&["run"]);
        command.args(arguments);
        self.command_fails(command, status, words)
    }

    fn command_fails(&self, command: Command, status: i32, words: &[&str]) -> Result<()> {
        let shown = format!("{command:?}");
        let before = self.files()?;
        let outcome = TestVm::start(command)?.wait(60)?;
        let said = outcome.errors.trim();
        assert_eq!(outcome.code, Some(status), "{shown}: {said}");
        for word in words {
            assert!(said.contains(word), "{shown} does not say {word:?}: {said}");
        }
        assert!(said.starts_with("vireo: error: ") && said.lines().count() == 1, "{shown}: {said}");
        assert_eq!(outcome.console, "", "{shown}");
        assert!(self.files()? == before, "{shown} changed a file");
        Ok(())
    }

    /// As [`Case::fails`], with the good kernel.
    fn refuses(&self, arguments: &[&str], words: &[&str]) -> Result<()> {
        let kernel = self.path("tiny-guest.elf");
        let mut all = vec!["--engine", "software", "--kernel", &kernel];
        all.extend(arguments);
        self.fails(&all, USAGE, words)
    }

    /// That the good kernel does run with these arguments.
    fn accepts(&self, arguments: &[&str]) -> Result<()> {
        let mut command = self.material.tiny(TinyGuest::DebugExit(0), self.folder.path(), arguments)?;
        let output = command.stdin(Stdio::null()).output()?;
        assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    }
}

#[test]
fn kernels_that_are_none() -> Result<()> {
    let Some(case) = Case::new()? else { return Ok(()) };
    case.fails(&[], USAGE, &["kernel", "--kernel FILE"])?;
    case.fails(&["--kernel", &case.path("missing")], USAGE, &["missing", "No such file"])?;
    case.fails(&["--kernel", &case.path(".")], USAGE, &[&case.path(".")])?;
    let words = case.write("words.txt", "This is not a kernel, it is a sentence.\n".repeat(99))?;
    case.fails(&["--kernel", &words], USAGE, &["words.txt"])?;
    let empty = case.write("empty", "")?;
    case.fails(&["--kernel", &empty], USAGE, &["empty"])?;
    let whole = std::fs::read(case.material.kernel())?;
    for length in [1_usize, 600, 2_000, 40_000, whole.len() / 2] {
        let short = case.write("short", &whole[..length])?;
        case.fails(&["--kernel", &short], USAGE, &["short"])?;
    }
    Ok(())
}

#[test]
fn values_that_are_none() -> Result<()> {
    let Some(case) = Case::new()? else { return Ok(()) };
    case.accepts(&[])?;
    for (arguments, words) in [
        (&["--memory", "3K"][..], &["3K", "at least 2M"][..]),
        (&["--memory", "many"], &["many", "like 512M"]),
        (&["--memory", "300G"], &["300G", "at most"]),
        (&["--cpus", "0"], &["0", "1 to 255"]),
        (&["--cpus", "256"], &["256", "1 to 255"]),
        (&["--cpus", "-1"], &["--cpus"]),
        (&["--cpu", "z80"], &["z80", "x86-64-v2"]),
        (&["--serial", "teletype"], &["teletype", "stdio, pty, unix:PATH, file:PATH, none"]),
        (&["--serial", "unix:"], &["unix:PATH"]),
        (&["--debug-exit=0x1ffff"], &["0x1ffff", "0xf4"]),
        (&["--debug-exit=0xffff"], &["0xffff", "0xfffc"]),
        (&["--name", "a b"], &["a b", "letters"]),
        (&["--memroy", "1G"], &["--memroy", "--memory"]),
    ] {
        case.refuses(arguments, words)?;
    }
    case.fails(&["--engine", "steam"], USAGE, &["steam", "auto, kvm, software"])
}

#[test]
fn an_initrd_larger_than_memory() -> Result<()> {
    let Some(case) = Case::new()? else { return Ok(()) };
    let large = case.path("large-initrd");
    std::fs::File::create(&large)?.set_len(200 << 20)?;
    let kernel = case.material.kernel().display().to_string();
    let arguments = ["--engine", "software", "--kernel", &kernel, "--initrd", &large, "--memory", "128M"];
    // Two hundred megabytes need not be read to compare them.
    let mut command = case.material.command(&["run"]);
    command.args(arguments);
    let outcome = TestVm::start(command)?.wait(60)?;
    assert_eq!(outcome.code, Some(USAGE));
    assert!(outcome.errors.contains("large-initrd"), "{}", outcome.errors);
    Ok(())
}

#[test]
fn disks_that_are_none() -> Result<()> {
    let Some(case) = Case::new()? else { return Ok(()) };
    let odd = case.write("odd.raw", vec![9; 1_000])?;
    let empty = case.write("empty.raw", "")?;
    let good = case.write("good.raw", vec![3; 1 << 20])?;
    let good_by_another_name = case.path("link.raw");
    std::os::unix::fs::symlink(&good, &good_by_another_name)?;
    case.accepts(&["--disk", &good])?;
    case.refuses(&["--disk", &case.path("missing.raw")], &["missing.raw", "No such file"])?;
    case.refuses(&["--disk", &odd], &["odd.raw", "1000 bytes", "truncate -s 1024"])?;
    case.refuses(&["--disk", &empty], &["empty.raw"])?;
    case.refuses(&["--disk", &case.path(".")], &["directory"])?;
    case.refuses(&["--disk", "/dev/null"], &["/dev/null"])?;
    case.refuses(&["--disk", ""], &["path"])?;
    case.refuses(&["--disk", &format!("{good},colour=red")], &["colour", "readonly=on|off"])?;
    case.refuses(&["--disk", &format!("{good},format=qcow9")], &["qcow9", "raw"])?;
    case.refuses(&["--disk", &format!("{good},readonly=perhaps")], &["perhaps", "on or off"])?;
    case.refuses(&["--disk", &format!("{good},serial={}", "S".repeat(21))], &["at most 20"])?;
    case.refuses(&["--disk", &good, "--disk", &good], &["good.raw", "twice"])?;
    case.refuses(&["--disk", &good, "--disk", &good_by_another_name], &["link.raw", "disk 0"])?;
    case.refuses(&["--disk", &good, "--serial", &format!("file:{good}")], &["good.raw", "disk 0"])?;
    let kernel = case.path("tiny-guest.elf");
    case.refuses(&["--disk", &kernel], &["tiny-guest.elf", "the kernel"])
}

/// A command run as a user without rights, through setpriv, when this test may.
fn as_nobody(case: &Case, arguments: &[&str]) -> Result<Option<Command>> {
    let identity = ["--reuid=65534", "--regid=65534", "--clear-groups"];
    let may = Command::new("setpriv").args(identity).arg("true").stderr(Stdio::null()).status();
    if !may.is_ok_and(|status| status.success()) {
        eprintln!("skipped: changing to another user needs setpriv and root");
        return Ok(None);
    }
    // The program itself may lie where only its owner can go.
    let program = case.path("vireo");
    std::fs::copy(case.material.command(&[]).get_program(), &program)?;
    for path in [case.path("."), program.clone()] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    }
    let mut command = Command::new("setpriv");
    command.args(identity).arg(program).args(arguments);
    Ok(Some(command))
}

#[test]
fn disks_without_permission() -> Result<()> {
    let Some(case) = Case::new()? else { return Ok(()) };
    let disk = case.write("fixed.raw", vec![3; 1 << 20])?;
    std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o444))?;
    let kernel = case.path("tiny-guest.elf");
    let base =
        ["run", "--engine", "software", "--serial", "none", "--debug-exit", "--kernel", &kernel, "--disk"];
    let Some(mut writing) = as_nobody(&case, &base)? else { return Ok(()) };
    writing.arg(&disk);
    case.command_fails(writing, USAGE, &["fixed.raw", "readonly=on"])?;
    let Some(mut reading) = as_nobody(&case, &base)? else { return Ok(()) };
    reading.arg(format!("{disk},readonly=on"));
    assert_eq!(TestVm::start(reading)?.wait(60)?.code, Some(1));
    std::fs::set_permissions(&disk, std::fs::Permissions::from_mode(0o000))?;
    let Some(mut secret) = as_nobody(&case, &base)? else { return Ok(()) };
    secret.arg(format!("{disk},readonly=on"));
    case.command_fails(secret, USAGE, &["fixed.raw", "Permission denied"])
}

#[test]
fn disks_in_use() -> Result<()> {
    let Some(case) = Case::new()? else { return Ok(()) };
    let disk = case.write("used.raw", vec![3; 1 << 20])?;
    let other = tempfile::tempdir()?;
    let words = ["used.raw", "in use by another process"];
    let read_only = format!("{disk},readonly=on");
    let mut holder = case.material.tiny(TinyGuest::Echo, other.path(), &["--disk", &disk])?;
    let mut vm = TestVm::start(holder_stdio(&mut holder))?;
    vm.wait_for("R", 60)?;
    case.refuses(&["--disk", &disk], &words)?;
    case.refuses(&["--disk", &read_only], &words)?;
    // QEMU's tools see it as well.
    let copy = other.path().join("copy").display().to_string();
    match Command::new("qemu-img").args(["convert", "-f", "raw", "-O", "raw", &disk, &copy]).output() {
        Ok(output) => assert!(!output.status.success(), "qemu-img reads a disk that is being written"),
        Err(_) => eprintln!("not compared: no qemu-img"),
    }
    vm.send("q")?;
    vm.wait(60)?;
    // Readers share; a writer is refused while there is one.
    let mut readers = case.material.tiny(TinyGuest::Echo, other.path(), &["--disk", &read_only])?;
    let mut reader = TestVm::start(holder_stdio(&mut readers))?;
    reader.wait_for("R", 60)?;
    case.accepts(&["--disk", &read_only])?;
    case.refuses(&["--disk", &disk], &words)?;
    reader.send("q")?;
    reader.wait(60)?;
    case.accepts(&["--disk", &disk])
}

/// The same command, owned.
fn holder_stdio(command: &mut Command) -> Command {
    let mut owned = Command::new(command.get_program());
    owned.args(command.get_args());
    owned
}

#[test]
fn machine_files() -> Result<()> {
    let Some(case) = Case::new()? else { return Ok(()) };
    for (name, content, words) in [
        (
            "a.toml",
            "cpus = 1\nmemroy = \"512M\"\n",
            &["a.toml, line 2", "memroy", "did you mean `memory`"][..],
        ),
        ("a.json", "{\"cpus\": 1,\n \"memroy\": 1}", &["a.json, line 2", "memroy", "did you mean `memory`"]),
        (
            "b.toml",
            "[[disks]]\npath = 'x'\nread-only = true\n",
            &["b.toml, line 3", "did you mean `readonly`"],
        ),
        ("c.toml", "engine = \"steam\"\n", &["c.toml, line 1", "`auto`", "`kvm`", "`software`"]),
        ("d.toml", "cpus = \n", &["d.toml, line 1"]),
        ("e.json", "", &["e.json, line 1"]),
        ("f.toml", "cpus = -3\n", &["f.toml, line 1", "-3"]),
        ("g.yaml", "cpus: 3\n", &["g.yaml", ".toml", ".json"]),
        ("h.toml", "cpus = 0\nkernel = 'k'\n", &["1 to 255"]),
        ("i.toml", "cpus = 1\n", &["--kernel"]),
        ("j.toml", "kernel = 'gone'\n", &["gone", "No such file"]),
    ] {
        let path = case.write(name, content)?;
        case.fails(&["--engine", "software", &path], USAGE, words)?;
    }
    case.fails(&[&case.path("missing.toml")], USAGE, &["missing.toml", "No such file"])?;
    case.write("latin.toml", b"name = '\xe9'\n")?;
    case.fails(&[&case.path("latin.toml")], USAGE, &["latin.toml"])
}

#[test]
fn places_for_sockets_and_logs() -> Result<()> {
    let Some(case) = Case::new()? else { return Ok(()) };
    let taken = case.path("taken");
    let _listener = UnixListener::bind(&taken)?;
    let file = case.write("file", "precious")?;
    for (place, words) in [
        (&taken, &["taken", "a process listens there"][..]),
        (&file, &["file", "a file is there", "choose another"]),
        (&case.path("."), &["a directory is there"]),
        (&case.path("no/where"), &["no/where", "No such file"]),
        (&format!("/tmp/{}", "x".repeat(120)), &["xxx", "too long"]),
    ] {
        case.refuses(&["--serial", &format!("unix:{place}")], words)?;
        case.refuses(&["--control", place], words)?;
    }
    // What is refused for another reason leaves neither socket nor file.
    let (control, log) = (case.path("new.ctl"), format!("file:{}", case.path("new.log")));
    case.refuses(&["--control", &control, "--serial", &log, "--initrd", "/nonexistent"], &["/nonexistent"])?;
    case.refuses(&["--control", &control, "--serial", "file:/proc/none"], &["/proc/none"])?;
    case.refuses(&["--serial", &format!("file:{}", case.path("no/where"))], &["no/where"])?;
    case.refuses(&["--serial", &format!("file:{}", case.path("."))], &["regular file"])?;
    let fifo = case.path("fifo");
    assert!(Command::new("mkfifo").arg(&fifo).status()?.success());
    case.refuses(&["--serial", &format!("file:{fifo}")], &["fifo", "regular file"])
}

#[test]
fn kvm_without_permission() -> Result<()> {
    let Some(case) = Case::new()? else { return Ok(()) };
    if !Path::new("/dev/kvm").exists() {
        eprintln!("skipped: no /dev/kvm");
        return Ok(());
    }
    if std::fs::metadata("/dev/kvm")?.permissions().mode() & 0o006 == 0o006 {
        eprintln!("skipped: everybody may use /dev/kvm here");
        return Ok(());
    }
    let kernel = case.path("tiny-guest.elf");
    let run = ["run", "--debug-exit", "--serial", "none", "--kernel", &kernel];
    let Some(mut kvm) = as_nobody(&case, &run)? else { return Ok(()) };
    kvm.args(["--engine", "kvm"]);
    case.command_fails(kvm, ENGINE, &["/dev/kvm", "ermission"])?;
    let Some(auto) = as_nobody(&case, &run)? else { return Ok(()) };
    assert_eq!(TestVm::start(auto)?.wait(60)?.code, Some(1), "auto does not fall back");
    let Some(mut doctor) = as_nobody(&case, &["doctor"])? else { return Ok(()) };
    let said = String::from_utf8(doctor.output()?.stdout)?;
    assert!(said.contains("software") && said.contains("ermission"), "{said}");
    Ok(())
}
