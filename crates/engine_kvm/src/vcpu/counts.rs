//! Exits by kind.

use engine::ExitCounts;

/// What `run` met so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Counts {
    pub(super) entries: u64,
    pub(super) port: u64,
    pub(super) mmio: u64,
    pub(super) eoi: u64,
    pub(super) interrupt_window: u64,
    pub(super) pic_interrupt: u64,
    pub(super) signal: u64,
    pub(super) emulation_failure: u64,
    pub(super) other: u64,
}

impl Counts {
    /// Under the names that `--stats` shows.
    pub(super) fn report(&self) -> ExitCounts {
        let Counts {
            entries,
            port,
            mmio,
            eoi,
            interrupt_window,
            pic_interrupt,
            signal,
            emulation_failure,
            other,
        } = *self;
        let named = [
            ("kvm_entries", entries),
            ("exit_port", port),
            ("exit_mmio", mmio),
            ("exit_eoi", eoi),
            ("exit_interrupt_window", interrupt_window),
            ("pic_interrupts", pic_interrupt),
            ("exit_signal", signal),
            ("exit_emulation_failure", emulation_failure),
            ("exit_other", other),
        ];
        let counts = named.into_iter().filter(|(_, count)| *count != 0);
        ExitCounts {
            instructions: None,
            counts: counts.map(|(name, count)| (name.to_string(), count)).collect(),
        }
    }
}
