//! Boots a kernel without any of the process around a machine, for work on the machine itself:
//! `cargo run --release -p machine --example boot -- KERNEL INITRD "COMMAND LINE" [CPUS [DISK]]`.

use chipset::serial::SerialBackend;
use engine::cpu_model::CpuModel;
use machine::{BoardSettings, Disk, Machine, MachineSettings};
use std::io::Write;
use std::sync::Arc;

struct Stdout;
impl SerialBackend for Stdout {
    fn write(&self, bytes: &[u8]) {
        let mut out = std::io::stdout().lock();
        let _ = out.write_all(bytes).and_then(|()| out.flush());
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().collect();
    let [_, kernel, initrd, append, rest @ ..] = arguments.as_slice() else {
        return Err("usage: boot KERNEL INITRD \"COMMAND LINE\" [CPUS [DISK]]".into());
    };
    let open = |path: &String| block::RawFile::open(path.as_ref(), false);
    let disks = rest.get(1).map(open).transpose()?.map(|disk| Disk {
        backend: Arc::new(disk),
        serial: String::new(),
        queues: 1,
        packed: false,
        link: machine::DiskLink::reporting(),
    });
    let disks = disks.into_iter().collect();
    let settings = MachineSettings {
        engine: Arc::new(engine_soft::SoftEngine::new()),
        carrier: None,
        tsc_khz: None,
        cpus: rest.first().map_or(Ok(1), |cpus| cpus.parse())?,
        model: CpuModel::named("max")?,
        memory: 512 << 20,
        boot: loader::BootSource {
            kernel: kernel.into(),
            initrd: Some(initrd.into()),
            append: append.clone(),
            ..loader::BootSource::default()
        },
        board: BoardSettings { serial: Arc::new(Stdout), console: None, disks, debug_exit: Some(0xf4) },
    };
    let (machine, events) = Machine::new(settings)?;
    machine.resume();
    let event = events.recv()?;
    machine.pause();
    println!("{event:?}\n{:#?}", machine.counts());
    Ok(())
}
