//! What the processors of a machine share.
#![expect(unsafe_code, reason = "gives guest RAM to KVM and borrows descriptors for raw calls")]

use crate::cpuid;
use crate::host::host;
use crate::kick::Kicker;
use crate::routing::{RESERVED_PINS, Routing, address_hi};
use crate::vcpu::KvmVcpu;
use engine::{EngineError, EngineKind, EventPaths, MsiMessage, Vcpu, Vm};
use guest_memory::GuestMemory;
use kvm_bindings::{
    KVM_CAP_EXCEPTION_PAYLOAD, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_X2APIC_API,
    KVM_MEM_LOG_DIRTY_PAGES, KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK, KVM_X2APIC_API_USE_32BIT_IDS,
    KvmIrqRouting, kvm_enable_cap, kvm_ioeventfd, kvm_msi, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VcpuFd, VmFd};
use parking_lot::Mutex;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use vmm_sys_util::eventfd::EventFd;

/// Four pages that KVM on Intel hosts needs for guests in real mode. Below the 16 MiB where firmware images
/// end at 4 GiB, above the IOAPIC and the local APICs.
const IDENTITY_MAP_ADDRESS: u64 = 0xfeff_c000;
const TSS_ADDRESS: usize = 0xfeff_d000;
/// The page below them, for the slot of [`Shared::forget_translations`].
const SPARE_ADDRESS: u64 = 0xfeff_b000;
/// From this number of processors on, the xAPIC's broadcast destination is a processor's ID.
const BROADCAST_ID: u32 = 0xff;
const IOEVENTFD_DEASSIGN: u32 = 1 << 2;

vmm_sys_util::ioctl_iow_nr!(KVM_IOEVENTFD, kvm_bindings::KVMIO, 0x79, kvm_ioeventfd);

/// The parts that processors look at while they run.
pub(crate) struct Shared {
    pub(crate) fd: VmFd,
    pub(crate) memory: Arc<GuestMemory>,
    pub(crate) cpus: u32,
    pub(crate) cpuid: cpuid::Source,
    /// Frequency of the TSC as asked for, and as it is.
    wanted_tsc_khz: Option<u32>,
    tsc_khz: OnceLock<u32>,
    /// Level of the PIC's INTR output.
    pub(crate) pic_line: AtomicBool,
    /// MSRs to save; found out by the first processor.
    pub(crate) msrs: OnceLock<Vec<u32>>,
    kickers: Vec<OnceLock<Arc<Kicker>>>,
    spare_page: Mutex<Box<SparePage>>,
}

const PAGE: usize = 4096;

/// What [`Shared::forget_translations`] shows KVM for a moment.
#[repr(align(4096))]
struct SparePage([u8; PAGE]);

impl SparePage {
    fn address(&self) -> u64 {
        self.0.as_ptr() as u64
    }
}

/// A machine on KVM.
pub struct KvmVm {
    shared: Arc<Shared>,
    routing: Mutex<Routing>,
}

impl KvmVm {
    /// Creates the machine; `cpuid` says what its processors are.
    pub(crate) fn create(
        kvm: &Kvm,
        memory: Arc<GuestMemory>,
        cpus: u32,
        cpuid: cpuid::Source,
        tsc_khz: Option<u32>,
    ) -> Result<Self, EngineError> {
        let fd = kvm.create_vm().map_err(host("KVM_CREATE_VM"))?;
        fd.set_identity_map_address(IDENTITY_MAP_ADDRESS).map_err(host("KVM_SET_IDENTITY_MAP_ADDR"))?;
        fd.set_tss_address(TSS_ADDRESS).map_err(host("KVM_SET_TSS_ADDR"))?;
        let mut x2apic = KVM_X2APIC_API_USE_32BIT_IDS;
        if cpus > BROADCAST_ID {
            x2apic |= KVM_X2APIC_API_DISABLE_BROADCAST_QUIRK;
        }
        enable(&fd, KVM_CAP_X2APIC_API, u64::from(x2apic)).map_err(host("Enabling KVM_CAP_X2APIC_API"))?;
        enable(&fd, KVM_CAP_SPLIT_IRQCHIP, u64::from(RESERVED_PINS))
            .map_err(host("Enabling KVM_CAP_SPLIT_IRQCHIP"))?;
        // Both make failures clearer; the engine copes with older kernels that lack them.
        if enable(&fd, KVM_CAP_EXCEPTION_PAYLOAD, 1).is_err() {
            tracing::debug!("KVM does not tell pending exceptions from those under delivery");
        }
        if enable(&fd, KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1).is_err() {
            tracing::debug!("KVM cannot exit on every emulation failure: user code may see #UD instead");
        }
        let shared = Shared {
            fd,
            memory,
            cpus,
            cpuid,
            wanted_tsc_khz: tsc_khz,
            tsc_khz: OnceLock::new(),
            pic_line: AtomicBool::new(false),
            msrs: OnceLock::new(),
            kickers: (0..cpus).map(|_| OnceLock::new()).collect(),
            spare_page: Mutex::new(Box::new(SparePage([0; PAGE]))),
        };
        shared.map_memory(false)?;
        Ok(KvmVm { shared: Arc::new(shared), routing: Mutex::default() })
    }

    /// Creates a processor with its own type.
    pub(crate) fn create_kvm_vcpu(&self, index: u32) -> Result<KvmVcpu, EngineError> {
        let vcpu = KvmVcpu::create(&self.shared, index)?;
        if let Some(kicker) = self.shared.kickers.get(index as usize) {
            // KVM refused the index already if it was there before.
            let _ = kicker.set(vcpu.own_kicker());
        }
        Ok(vcpu)
    }

    fn apply(&self, routing: &Routing) -> Result<(), EngineError> {
        let entries = routing.entries(self.shared.cpus > BROADCAST_ID);
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| EngineError::Host {
            operation: "Building the interrupt routing table",
            source: std::io::ErrorKind::OutOfMemory.into(),
        })?;
        self.shared.fd.set_gsi_routing(&table).map_err(host("KVM_SET_GSI_ROUTING"))
    }

    fn try_bind_irqfd(&self, event: RawFd, message: Option<MsiMessage>) -> Result<(), EngineError> {
        let mut routing = self.routing.lock();
        let known = routing.gsi(event);
        let event_fd = borrowed_event(event);
        let Some(message) = message else {
            let Some(gsi) = known else { return Ok(()) };
            self.shared.fd.unregister_irqfd(&event_fd, gsi).map_err(host("Removing an irqfd"))?;
            routing.unbind(event);
            return self.apply(&routing);
        };
        let gsi = routing.bind(event, message);
        let applied = self.apply(&routing).and_then(|()| match known {
            Some(_) => Ok(()),
            None => self.shared.fd.register_irqfd(&event_fd, gsi).map_err(host("KVM_IRQFD")),
        });
        if applied.is_err() && known.is_none() {
            routing.unbind(event);
        }
        applied
    }
}

impl Vm for KvmVm {
    fn create_vcpu(&self, index: u32) -> Result<Box<dyn Vcpu>, EngineError> {
        Ok(Box::new(self.create_kvm_vcpu(index)?))
    }

    fn tsc_khz(&self) -> u32 {
        self.shared.tsc_khz.get().copied().unwrap_or(0)
    }

    fn signal_msi(&self, message: MsiMessage) {
        let msi = kvm_msi {
            address_lo: message.address as u32,
            address_hi: address_hi(message.address),
            data: message.data,
            ..Default::default()
        };
        // A message that reaches nobody is lost on hardware, too.
        if let Err(error) = self.shared.fd.signal_msi(msi) {
            tracing::debug!(?message, %error, "MSI was not delivered");
        }
    }

    fn set_pic_line(&self, asserted: bool) {
        let before = self.shared.pic_line.swap(asserted, Ordering::SeqCst);
        if asserted
            && !before
            && let Some(kicker) = self.shared.kickers.first().and_then(OnceLock::get)
        {
            kicker.wake();
        }
    }

    fn set_level_vectors(&self, vectors: &[bool; 256]) {
        let mut routing = self.routing.lock();
        if routing.set_level_vectors(vectors)
            && let Err(error) = self.apply(&routing)
        {
            tracing::error!(%error, "EOIs of level-triggered interrupts may be lost");
        }
    }

    fn event_paths(&self) -> EventPaths {
        let has = |capability| self.shared.fd.check_extension(capability);
        EventPaths { irqfd: has(Cap::Irqfd) && has(Cap::IrqRouting), ioeventfd: has(Cap::Ioeventfd) }
    }

    fn bind_irqfd(&self, event: BorrowedFd<'_>, message: Option<MsiMessage>) -> bool {
        self.try_bind_irqfd(event.as_raw_fd(), message)
            .inspect_err(|error| tracing::debug!(%error, "No irqfd; the caller polls instead"))
            .is_ok()
    }

    fn bind_ioeventfd(&self, event: BorrowedFd<'_>, address: u64, len: u32, bind: bool) -> bool {
        let request = kvm_ioeventfd {
            addr: address,
            len,
            fd: event.as_raw_fd(),
            flags: if bind { 0 } else { IOEVENTFD_DEASSIGN },
            ..Default::default()
        };
        // SAFETY: the request is a valid structure, and KVM takes its own reference to the event.
        let done = unsafe { vmm_sys_util::ioctl::ioctl_with_ref(&self.shared.fd, KVM_IOEVENTFD(), &request) };
        done == 0
    }

    fn set_dirty_log(&self, on: bool) -> Result<(), EngineError> {
        self.shared.map_memory(on)
    }

    fn sync_dirty_log(&self) -> Result<(), EngineError> {
        for (slot, region) in (0..).zip(self.shared.memory.regions()) {
            let size = usize::try_from(region.size()).unwrap_or(usize::MAX);
            let words = self.shared.fd.get_dirty_log(slot, size).map_err(host("KVM_GET_DIRTY_LOG"))?;
            for (index, word) in words.iter().enumerate().filter(|(_, word)| **word != 0) {
                for bit in (0..64).filter(|bit| word & 1 << bit != 0) {
                    region.tracker().note_write(index * 64 + bit);
                }
            }
        }
        Ok(())
    }
}

impl Shared {
    /// Gives a new processor the machine's TSC frequency and tells it; zero if KVM does not.
    pub(crate) fn settle_tsc(&self, vcpu: &VcpuFd) -> Result<u32, EngineError> {
        let native = vcpu.get_tsc_khz().unwrap_or(0);
        let khz = match self.wanted_tsc_khz {
            Some(wanted) if wanted.abs_diff(native) > tolerance_khz(native) => {
                vcpu.set_tsc_khz(wanted).map_err(|error| EngineError::Unavailable {
                    engine: EngineKind::Kvm,
                    reason: format!(
                        "the machine's time-stamp counter runs at {wanted} kHz, this host's at {native} kHz, and \
                         its KVM cannot scale it ({error})"
                    ),
                })?;
                wanted
            }
            _ => native,
        };
        Ok(*self.tsc_khz.get_or_init(|| khz))
    }

    /// Makes KVM forget every translation that it derived from the guest's page tables: after somebody else executed
    /// the guest's instructions, among which may have been stores to page tables and invalidations. KVM
    /// follows neither; one with shadow page tables would use the old ones for ever. The one request that makes
    /// it drop all of them is to remove a memory slot, so one is added for it, where no guest looks.
    pub(crate) fn forget_translations(&self) -> Result<(), EngineError> {
        let page = self.spare_page.lock();
        let slot = u32::try_from(self.memory.regions().len()).unwrap_or(u32::MAX);
        let there = kvm_userspace_memory_region {
            slot,
            flags: 0,
            guest_phys_addr: SPARE_ADDRESS,
            memory_size: PAGE as u64,
            userspace_addr: page.address(),
        };
        for region in [there, kvm_userspace_memory_region { memory_size: 0, ..there }] {
            // SAFETY: the page lives as long as `self`, and its slot is gone when this returns.
            unsafe { self.fd.set_user_memory_region(region) }.map_err(host("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Gives KVM one slot for each region; again to change the flags.
    fn map_memory(&self, log_writes: bool) -> Result<(), EngineError> {
        for (slot, region) in (0..).zip(self.memory.regions()) {
            let description = kvm_userspace_memory_region {
                slot,
                flags: if log_writes { KVM_MEM_LOG_DIRTY_PAGES } else { 0 },
                guest_phys_addr: region.start(),
                memory_size: region.size(),
                userspace_addr: region.host_address() as u64,
            };
            // SAFETY: the mapping lives as long as `self.memory`, which lives as long as the VM descriptor;
            // all other accesses to it expect changes by the guest.
            unsafe { self.fd.set_user_memory_region(description) }
                .map_err(host("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }
}

/// Differences in frequency that KVM and guests' clocks take for none: 250 parts in a million.
fn tolerance_khz(khz: u32) -> u32 {
    khz / 4000
}

fn enable(fd: &VmFd, cap: u32, argument: u64) -> Result<(), kvm_ioctls::Error> {
    let mut request = kvm_enable_cap { cap, ..Default::default() };
    request.args[0] = argument;
    fd.enable_cap(&request)
}

/// An event descriptor under the type that the bindings want, without its ownership.
fn borrowed_event(event: RawFd) -> ManuallyDrop<EventFd> {
    // SAFETY: the caller's descriptor is open; ManuallyDrop keeps it from being closed here.
    ManuallyDrop::new(unsafe { EventFd::from_raw_fd(event) })
}
