//! String instructions without REP.
//!
//! The pointers move forwards; if DF is set, or an access is no TLB hit, the interpreter runs the instruction before it
//! has changed anything.

use super::asm::{S1, S2, cc};
use super::block::{After, Builder, Unknown};
use super::flags::FlagHome;
use super::memory::{GuestAddress, Want, Width};
use super::shared::{DIRECTION, SPARE};
use crate::cpu::{gpr, seg};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

/// Number of RSI.
const RSI: u8 = gpr::RSI / 8;
/// Number of RDI.
const RDI: u8 = gpr::RDI / 8;
/// Number of RAX.
const RAX: u8 = gpr::RAX / 8;

/// What an instruction does with its elements.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Move,
    Store,
    Load,
    Scan,
    Compare,
}

fn action(i: &Instruction) -> Option<Action> {
    use Mnemonic as M;
    if i.has_rep_prefix() || i.has_repne_prefix() {
        return None;
    }
    let operands: Vec<OpKind> = (0..i.op_count()).map(|at| i.op_kind(at)).collect();
    // MOVSD and CMPSD are also vector instructions.
    let strings = operands.iter().any(|kind| address_width(*kind).is_some());
    match i.mnemonic() {
        _ if !strings => None,
        M::Movsb | M::Movsw | M::Movsd | M::Movsq => Some(Action::Move),
        M::Stosb | M::Stosw | M::Stosd | M::Stosq => Some(Action::Store),
        M::Lodsb | M::Lodsw | M::Lodsd | M::Lodsq => Some(Action::Load),
        M::Scasb | M::Scasw | M::Scasd | M::Scasq => Some(Action::Scan),
        M::Cmpsb | M::Cmpsw | M::Cmpsd | M::Cmpsq => Some(Action::Compare),
        _ => None,
    }
}

/// Address size of a string's operand.
fn address_width(kind: OpKind) -> Option<Width> {
    use OpKind as O;
    match kind {
        O::MemorySegSI | O::MemoryESDI => Some(Width::Word),
        O::MemorySegESI | O::MemoryESEDI => Some(Width::Double),
        O::MemorySegRSI | O::MemoryESRDI => Some(Width::Quad),
        _ => None,
    }
}

/// Whether an instruction is translated here.
pub(super) fn is_known(i: &Instruction) -> bool {
    action(i).is_some()
}

impl Builder<'_> {
    /// Translates a string instruction, or says that it is none that is known before emitting anything.
    pub fn string(&mut self, i: &Instruction) -> Result<After, Unknown> {
        let action = action(i).ok_or(Unknown)?;
        let width = (0..i.op_count()).find_map(|at| address_width(i.op_kind(at))).ok_or(Unknown)?;
        let size = i.memory_size().size() as u8;
        let segment = match i.segment_prefix() {
            Register::None => seg::DS,
            register => register.number() as u8,
        };
        let source = GuestAddress::at_pointer(self.context.kind, RSI, segment, width);
        let target = GuestAddress::at_pointer(self.context.kind, RDI, seg::ES, width);
        self.save_flags();
        let slow = self.slow_path();
        self.asm.test_gs8(DIRECTION.0, DIRECTION.1);
        self.asm.jcc(cc::NE, slow);
        self.clobbered();
        match action {
            Action::Load => self.load_element(&source, size),
            Action::Store => self.store_element(&target, size, false),
            Action::Move => {
                self.element(&source, size);
                self.asm.store_gs(SPARE, S1);
                self.store_element(&target, size, true);
            }
            Action::Scan => {
                self.element(&target, size);
                self.move_pointer(RDI, size, width);
                self.compare(RAX, S1, size);
            }
            Action::Compare => {
                self.element(&source, size);
                self.asm.store_gs(SPARE, S1);
                self.element(&target, size);
                self.asm.load_gs(S2, SPARE);
                self.move_pointer(RSI, size, width);
                self.move_pointer(RDI, size, width);
                self.compare(S2, S1, size);
            }
        }
        Ok(After::Next)
    }

    /// Loads an element into [`S1`].
    fn element(&mut self, at: &GuestAddress, size: u8) {
        let operand = self.check(at, size.into(), Want::LOAD);
        self.asm.operand_sized(0x8b, S1, operand.address(), size);
    }

    fn load_element(&mut self, at: &GuestAddress, size: u8) {
        self.element(at, size);
        self.move_pointer(RSI, size, at.width);
        match size {
            1 => self.asm.mov8(RAX, S1),
            2 => self.asm.mov16(RAX, S1),
            4 => self.asm.mov32(RAX, S1),
            _ => self.asm.mov(RAX, S1),
        }
    }

    /// Stores the accumulator, or what was loaded, and moves the pointers.
    fn store_element(&mut self, at: &GuestAddress, size: u8, loaded: bool) {
        let mut operand = self.check(at, size.into(), Want::STORE);
        let from = if loaded {
            let free = self.free_scratch(&mut operand);
            self.asm.load_gs(free, SPARE);
            free
        } else {
            RAX
        };
        self.asm.operand_sized(if size == 1 { 0x88 } else { 0x89 }, from, operand.address(), size);
        if loaded {
            self.move_pointer(RSI, size, at.width);
        }
        self.move_pointer(RDI, size, at.width);
        self.stored(&operand);
    }

    fn move_pointer(&mut self, pointer: u8, size: u8, width: Width) {
        let bytes = size.into();
        match width {
            Width::Quad => self.asm.lea(pointer, pointer, bytes),
            Width::Double => self.asm.lea_narrow(pointer, pointer, bytes, 4),
            Width::Word => self.asm.lea_narrow(pointer, pointer, bytes, 2),
        }
    }

    /// Compares two host registers for the guest.
    fn compare(&mut self, left: u8, right: u8, size: u8) {
        self.asm.compare_sized(left, right, size);
        // Its operands are gone.
        (self.flags, self.made, self.remake) = (FlagHome::Live, None, None);
    }
}
