//! Formatting, tests, and the whole of continuous integration.

use anyhow::Result;
use clap::Args;

use crate::{command, guests, lint, workspace};

/// Options of `cargo xtask test`.
#[derive(Args)]
pub struct TestOptions {
    /// Leave out the tests that boot guests
    #[arg(long)]
    no_guests: bool,
    /// Passed on to the test runner, for example a test's name
    filter: Vec<String>,
}

/// Formats the workspace, or says what would change.
pub fn fmt(check: bool) -> Result<()> {
    let mut command = workspace::cargo();
    command.args(["fmt", "--all"]);
    if check {
        command.args(["--", "--check"]);
    }
    command::run(&mut command)
}

/// Runs every test of the workspace; the guests are made first.
///
/// The runner is cargo-nextest where it is installed, else `cargo test`, one guest at a time there because
/// a guest on the software CPU keeps whole cores busy. The last lines printed are the runner's own.
pub fn test(options: &TestOptions) -> Result<()> {
    let mut environment = Vec::new();
    if !options.no_guests {
        environment.push(("VIREO_BIN", workspace::build_vireo()?));
        environment.push(("VIREO_GUESTS", guests::prepare(false)?.folder));
    }
    // The oracle of disk images and their locks.
    guests::need("qemu-img", "qemu-utils")?;
    // Clients of our NBD server, and the maker of their certificates.
    guests::need("nbdinfo", "libnbd-bin")?;
    guests::need("fio", "fio")?;
    guests::need("openssl", "openssl")?;
    // The target of our iSCSI initiator, and QEMU's initiator beside it.
    guests::need("tgtd", "tgt")?;
    guests::need("iscsi-ls", "libiscsi-bin")?;
    guests::need("/usr/lib/x86_64-linux-gnu/qemu/block-iscsi.so", "qemu-block-extra")?;
    // The oracle of Apple's disk images, and the packer of one kind of their chunks.
    guests::need("dmg2img", "dmg2img")?;
    guests::need("xz", "xz-utils")?;
    // The tools of LVM volumes.
    guests::need("lvm", "lvm2")?;
    // The oracle of partition tables.
    guests::need("sfdisk", "fdisk")?;
    // The debugger that debugs guests.
    guests::need("gdb", "gdb")?;
    // The oracle of our ACPI tables.
    guests::need("iasl", "acpica-tools")?;
    let nextest = command::is_installed("cargo-nextest");
    let mut command = workspace::cargo();
    if nextest {
        command.args(["nextest", "run", "--workspace", "--no-fail-fast"]);
    } else {
        eprintln!("test: cargo-nextest is not installed; using `cargo test`");
        command.args(["test", "--workspace", "--all-targets", "--no-fail-fast"]);
    }
    if options.no_guests {
        command.args(["--exclude", "vm_tests"]);
    }
    command.args(&options.filter).envs(environment);
    command::run(&mut command)
}

/// What continuous integration runs.
pub fn ci() -> Result<()> {
    checks()?;
    test(&TestOptions { no_guests: false, filter: Vec::new() })
}

/// The part of continuous integration that runs no test.
pub fn checks() -> Result<()> {
    fmt(true)?;
    lint::run()?;
    command::run(workspace::cargo().args([
        "clippy",
        "--workspace",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))?;
    command::run(
        workspace::cargo().args(["doc", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "--deny warnings"),
    )
}
