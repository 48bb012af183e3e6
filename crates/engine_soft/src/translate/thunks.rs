//! The way into translated code, the ways out of it, and calls from it to the interpreter.
//!
//! ```text
//! enter(cpu, code) ─▶ code ─▶ leave_… ─▶ returns an [`Exit`] to the caller of enter
//!                      │ ▲
//!                      ▼ │ continue
//!                  call_site / call_note ─▶ Rust function ─▶ or leave
//! ```
//! Calls store the guest's registers, run a Rust function on the [`Cpu`](crate::cpu::Cpu), and load the
//! registers again, because the function may have changed any of them.

use super::asm::{Alu, Asm, HOST_RSP, RAX, S1, S2};
use super::cache::CodeMemory;
use super::operand::{HOST_OF, Place};
use super::shared::{
    ARGUMENT, FIP, FPU, FRAME, HOST_MXCSR, MXCSR, OWN, SPARE, STACK_ENTRY, STACK_LIMIT, UNSEEN_MISSES,
    VECTOR, X87, YMM, home,
};
use super::{returns, runtime};
use crate::mmu::{OFFSET, StackPage, TlbEntry};
use std::io;
use std::mem::offset_of;

/// Why translated code was left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub(super) enum Exit {
    /// Not left: what calls return to go on.
    Continue = 0,
    /// Somebody shall find the code at RIP.
    Lookup = 1,
    /// The link `Shared::argument` leads to code that is not translated yet.
    Link = 2,
    /// An event waits; RIP is at the link's target.
    EventAtLink = 3,
    /// An event waits, or code became stale; the argument is the address in the page.
    InPage = 4,
    /// The instruction at the address in the page is to be interpreted.
    Interpret = 5,
    /// A handler ended with a fault.
    Fault = 6,
    /// A handler ended with an exit.
    Stop = 7,
    /// An instruction is complete; everything shall be looked at.
    Done = 8,
    /// Not left: goes on at the outer entry in `Shared::spare`.
    Goto = 9,
}

/// Exits that blocks leave by themselves.
const LEFT_BY: [Exit; 5] = [Exit::Lookup, Exit::Link, Exit::EventAtLink, Exit::InPage, Exit::Interpret];

impl Exit {
    /// From the number that `enter` returned.
    pub fn of(number: u64) -> Exit {
        match number {
            1 => Exit::Lookup,
            2 => Exit::Link,
            3 => Exit::EventAtLink,
            4 => Exit::InPage,
            5 => Exit::Interpret,
            6 => Exit::Fault,
            7 => Exit::Stop,
            _ => Exit::Done,
        }
    }
}

/// Addresses of the fixed code.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Thunks {
    pub enter: u64,
    /// Runs the interpreter on the site whose number is in [`S2`].
    pub call_site: u64,
    /// Reports a store to the page whose tracker byte [`S2`] points to; the site's number is in [`S1`].
    pub call_note: u64,
    /// Makes the vector registers the guest's, or interprets the site in [`S2`]; the level is in [`S1`].
    pub call_vector: u64,
    /// Makes the x87 registers the guest's, or interprets the site in [`S2`].
    pub call_x87: u64,
    /// Whether the host can.
    pub x87: bool,
    /// Brings the page of a group's check into the TLB, or goes on without the group: its number is in [`S2`], the
    /// linear address in [`S1`].
    pub call_share: u64,
    /// Points [`S2`] to the TLB entry of the linear address in [`S1`], and leaves the offset in its page there, or more. If
    /// it is in the page, the entry becomes the stack's: for loads, and for stores.
    pub find_on_stack: [u64; 2],
    /// Returns to the address in [`S1`], which no landing is for, with the site of the return in [`S2`].
    pub return_elsewhere: u64,
    /// Reads the time-stamp counter into RAX; RDX is lost.
    pub call_clock: u64,
    /// Notes a missed hint, and keeps all registers but [`S2`]. Behind the call is `test eax, imm32` with the distance from the
    /// displacement of the jump past the hint to the return address.
    pub call_missed: u64,
    /// [`find_entry`](super::memory::find_entry).
    pub find_entry: u64,
    /// Whether the host has RORX.
    pub bmi2: bool,
    /// Leaves with an exit's number in EAX's place: see [`Thunks::leave`].
    leave: [u64; 6],
}

impl Thunks {
    /// What blocks go to, in an order of its own.
    fn all(&self) -> impl Iterator<Item = u64> {
        let calls = [
            self.call_site,
            self.call_note,
            self.call_vector,
            self.call_x87,
            self.call_share,
            self.call_clock,
            self.find_on_stack[0],
            self.find_on_stack[1],
            self.return_elsewhere,
            self.call_missed,
            self.find_entry,
        ];
        LEFT_BY.map(|exit| self.leave(exit)).into_iter().chain(calls)
    }

    /// Number of the fixed code at an address.
    pub fn number_of(&self, address: u64) -> Option<u8> {
        self.all().position(|thunk| thunk == address).map(|number| number as u8)
    }

    /// Address of the fixed code with a number.
    pub fn with_number(&self, number: u8) -> Option<u64> {
        self.all().nth(usize::from(number))
    }

    /// Code that leaves for `exit`; its argument is in [`S2`].
    pub fn leave(&self, exit: Exit) -> u64 {
        self.leave[(exit as usize).min(5)]
    }
}

/// Host registers that the System V ABI wants back.
const CALLEE_SAVED: [u8; 6] = [3, 5, 12, 13, 14, 15];

fn store_guest(a: &mut Asm) {
    for (guest, place) in (0..).zip(HOST_OF) {
        if let Place::Host(host) = place {
            a.store_gs(home(guest), host);
        }
    }
}

fn load_guest(a: &mut Asm) {
    for (guest, place) in (0..).zip(HOST_OF) {
        if let Place::Host(host) = place {
            a.load_gs(host, home(guest));
        }
    }
}

/// `add rsp, value`.
fn add_rsp(a: &mut Asm, value: i8) {
    a.raw(&[0x48, 0x83, 0xc4, value as u8]);
}

fn enter(a: &mut Asm, fsgsbase: bool, bottom: u64) {
    for reg in CALLEE_SAVED {
        a.push(reg);
    }
    add_rsp(a, -8);
    if fsgsbase {
        // wrgsbase rdi
        a.raw(&[0xf3, 0x48, 0x0f, 0xae, 0xdf]);
    }
    returns::enter_frames(a, bottom);
    a.mov(S1, 6);
    load_guest(a);
    a.jmp_reg(S1);
}

/// Returns to the caller of `enter` with RAX.
fn unwind(a: &mut Asm) {
    a.load_gs(HOST_RSP, FRAME);
    add_rsp(a, 8);
    for reg in CALLEE_SAVED.into_iter().rev() {
        a.pop(reg);
    }
    a.raw(&[0xc3]);
}

/// `ldmxcsr` (2) or `stmxcsr` (3) of `gs:[offset]`.
fn mxcsr(a: &mut Asm, extension: u8, offset: usize) {
    a.raw(&[0x65, 0x0f, 0xae, extension << 3 | 4, 0x25]);
    a.raw(&(offset as u32).to_le_bytes());
}

/// Moves all vector registers to (`0x11`) or from (`0x10`) the processor's.
fn move_vectors(a: &mut Asm, opcode: u8, avx: bool) {
    for register in 0..16_u8 {
        let offset = (YMM + 32 * usize::from(register)) as u32;
        let modrm = (register & 7) << 3 | 4;
        if avx {
            // vmovups ymm, gs:[offset]
            let vex = if register >= 8 { 0x7c } else { 0xfc };
            a.raw(&[0x65, 0xc5, vex, opcode, modrm, 0x25]);
        } else if register >= 8 {
            a.raw(&[0x65, 0x44, 0x0f, opcode, modrm, 0x25]);
        } else {
            a.raw(&[0x65, 0x0f, opcode, modrm, 0x25]);
        }
        a.raw(&offset.to_le_bytes());
    }
}

/// A function that stores the guest's vector registers and gives the host its own control word.
fn save_vectors(a: &mut Asm, avx: bool) {
    move_vectors(a, 0x11, avx);
    mxcsr(a, 3, MXCSR);
    mxcsr(a, 2, HOST_MXCSR);
    if avx {
        // vzeroupper
        a.raw(&[0xc5, 0xf8, 0x77]);
    }
    a.raw(&[0xc3]);
}

/// A function that loads the guest's vector registers and control word.
///
/// If the upper halves are zero, the processor is to know that: otherwise each change between SSE and AVX
/// instructions costs the guest a hundred cycles.
fn load_vectors(a: &mut Asm, avx: bool) {
    if avx {
        let some = a.label();
        for register in 0..16 {
            // vmovups xmm0, gs:[..] the first time, vpor xmm0, xmm0, gs:[..] then.
            let opcode = if register == 0 { [0xf8, 0x10] } else { [0xf9, 0xeb] };
            a.raw(&[0x65, 0xc5, opcode[0], opcode[1], 4, 0x25]);
            a.raw(&((YMM + 32 * register + 16) as u32).to_le_bytes());
        }
        // vptest xmm0, xmm0
        a.raw(&[0xc4, 0xe2, 0x79, 0x17, 0xc0]);
        a.jcc(super::asm::cc::NE, some);
        // vzeroupper
        a.raw(&[0xc5, 0xf8, 0x77]);
        move_vectors(a, 0x10, false);
        mxcsr(a, 2, MXCSR);
        a.raw(&[0xc3]);
        a.bind(some);
    }
    move_vectors(a, 0x10, avx);
    mxcsr(a, 2, MXCSR);
    a.raw(&[0xc3]);
}

/// `op gs:[offset]` for one of XSAVE64 (0F AE /4) and XRSTOR64 (/5), for the x87 only. Uses RAX and RDX.
fn move_x87(a: &mut Asm, extension: u8) {
    a.mov_imm32(RAX, 1);
    a.mov_imm32(2, 0);
    a.raw(&[0x65, 0x48, 0x0f, 0xae, extension << 3 | 4, 0x25]);
    a.raw(&(FPU as u32).to_le_bytes());
}

/// A function that stores the guest's x87 registers, with the guest's pointers, and gives the host empty ones.
fn save_x87(a: &mut Asm) {
    const RCX: u8 = 1;
    const RSI: u8 = 6;
    const OPCODE: usize = FPU + 6;
    const INSTRUCTION: usize = FPU + 8;
    const DATA: usize = FPU + 16;
    const COMPONENTS: usize = FPU + 512;
    a.load_gs(RSI, DATA);
    a.push_gs(OPCODE);
    move_x87(a, 4);
    a.store_gs(DATA, RSI);
    a.pop(RCX);
    // mov gs:[OPCODE], cx
    a.raw(&[0x65, 0x66, 0x89, 0x0c, 0x25]);
    a.raw(&(OPCODE as u32).to_le_bytes());
    a.load_gs(RCX, FIP);
    a.store_gs(INSTRUCTION, RCX);
    // The image is to be loaded, even if all registers are empty.
    a.store_gs(COMPONENTS, RAX);
    // fninit; ret
    a.raw(&[0xdb, 0xe3, 0xc3]);
}

/// A function that loads the guest's x87 registers.
fn load_x87(a: &mut Asm) {
    move_x87(a, 5);
    a.raw(&[0xc3]);
}

/// Calls `function` if what `flag` tells of is, or shall be, in the host's registers.
fn call_if(a: &mut Asm, flag: usize, function: u64) {
    a.cmp_gs8(flag, 0);
    let without = a.label();
    a.jcc(super::asm::cc::E, without);
    a.call_to(function);
    a.bind(without);
}

/// Functions that store and load registers which are not always the guest's.
struct Moves {
    vectors: [u64; 2],
    x87: Option<[u64; 2]>,
}

impl Moves {
    fn save(&self, a: &mut Asm) {
        call_if(a, VECTOR, self.vectors[0]);
        if let Some([save, _]) = self.x87 {
            call_if(a, X87, save);
        }
    }

    fn load(&self, a: &mut Asm) {
        call_if(a, VECTOR, self.vectors[1]);
        if let Some([_, load]) = self.x87 {
            call_if(a, X87, load);
        }
    }
}

/// A call of `function(cpu, S2, S1)`; goes on if it returns zero, else leaves with what it returned. Vector
/// registers of the guest are stored before, and loaded again if `Shared::vector` says so afterwards.
fn call(a: &mut Asm, function: u64, unwind: u64, moves: &Moves) {
    store_guest(a);
    add_rsp(a, -8);
    moves.save(a);
    a.mov(6, S2);
    a.mov(2, S1);
    a.load_gs(7, OWN);
    a.mov_imm64(RAX, function);
    // call rax
    a.raw(&[0xff, 0xd0]);
    add_rsp(a, 8);
    // test eax, eax
    a.raw(&[0x85, 0xc0]);
    let (leave, other) = (a.label(), a.label());
    a.jcc(super::asm::cc::NE, other);
    moves.load(a);
    load_guest(a);
    a.raw(&[0xc3]);
    a.bind(other);
    a.cmp_imm32(RAX, Exit::Goto as i32);
    a.jcc(super::asm::cc::NE, leave);
    // The return address into the block is not needed.
    add_rsp(a, 8);
    returns::check_frames(a);
    moves.load(a);
    load_guest(a);
    a.load_gs(S1, SPARE);
    a.jmp_reg(S1);
    a.bind(leave);
    a.jmp_to(unwind);
}

/// [`Thunks::find_on_stack`]: keeps all registers but scratch ones.
fn find_on_stack(a: &mut Asm, bmi2: bool, tag: usize) {
    let elsewhere = a.label();
    super::memory::find_entry(a, bmi2);
    a.alu_rm(Alu::Xor, S1, S2, tag as i32);
    a.cmp_imm(S1, OFFSET as i32);
    a.jcc(super::asm::cc::A, elsewhere);
    a.push(RAX);
    for word in (0..size_of::<TlbEntry>()).step_by(8) {
        a.alu_rm(Alu::Mov, RAX, S2, word as i32);
        a.store_gs(STACK_ENTRY + word, RAX);
    }
    a.mov_imm32(RAX, StackPage::LIMIT as u32);
    a.store_gs(STACK_LIMIT, RAX);
    a.pop(RAX);
    a.bind(elsewhere);
    a.raw(&[0xc3]);
}

/// A call of a function of the processor that looks at nothing of the guest's registers, and answers with RAX.
fn call_query(a: &mut Asm, function: u64, moves: &Moves) {
    // What the System V ABI lets the function change, but for RDX and scratch registers.
    const CALLER_SAVED: [u8; 7] = [1, 6, 7, 8, 9, 10, 11];
    for reg in CALLER_SAVED {
        a.push(reg);
    }
    moves.save(a);
    a.load_gs(7, OWN);
    a.mov_imm64(RAX, function);
    // call rax
    a.raw(&[0xff, 0xd0]);
    a.store_gs(SPARE, RAX);
    moves.load(a);
    for reg in CALLER_SAVED.into_iter().rev() {
        a.pop(reg);
    }
    a.load_gs(RAX, SPARE);
    a.raw(&[0xc3]);
}

/// [`Thunks::call_missed`].
fn call_missed(a: &mut Asm, moves: &Moves) {
    // What the System V ABI lets the function change.
    const CALLER_SAVED: [u8; 9] = [RAX, 1, 2, 6, 7, 8, 9, 10, 11];
    let seen = a.label();
    a.sub_gs32(UNSEEN_MISSES, 1);
    a.jcc(super::asm::cc::S, seen);
    a.ret();
    a.bind(seen);
    for reg in CALLER_SAVED {
        a.push(reg);
    }
    moves.save(a);
    // From the return address, the number in the instruction there.
    a.alu_rm(Alu::Mov, 6, HOST_RSP, 8 * CALLER_SAVED.len() as i32);
    a.load32(S2, 6, 1);
    a.alu_rr(Alu::Sub, 6, S2);
    a.load_gs(7, OWN);
    a.mov_imm64(RAX, runtime::note_missed_hint as *const () as u64);
    // call rax
    a.raw(&[0xff, 0xd0]);
    moves.load(a);
    for reg in CALLER_SAVED.into_iter().rev() {
        a.pop(reg);
    }
    a.ret();
}

/// Features of the host that change how blocks are translated: [`Thunks::bmi2`] and [`Thunks::x87`].
pub(super) fn host_features() -> [bool; 2] {
    [is_x86_feature_detected!("bmi2"), is_x86_feature_detected!("xsave")]
}

/// Writes the fixed code to the front of `memory`.
pub(super) fn build(memory: &mut CodeMemory, fsgsbase: bool, counted: bool) -> io::Result<Thunks> {
    let mut a = Asm::new(memory.next_address());
    let mut thunks = Thunks::default();
    let unwind_at = a.here();
    unwind(&mut a);
    let avx = is_x86_feature_detected!("avx");
    let save_at = a.here();
    save_vectors(&mut a, avx);
    let load_at = a.here();
    load_vectors(&mut a, avx);
    let [_, has_x87] = host_features();
    let x87 = has_x87.then(|| {
        let at = a.here();
        save_x87(&mut a);
        let load_at = a.here();
        load_x87(&mut a);
        [at, load_at]
    });
    [thunks.bmi2, thunks.x87] = host_features();
    let moves = Moves { vectors: [save_at, load_at], x87 };
    thunks.call_site = a.here();
    call(&mut a, runtime::run_site as *const () as u64, unwind_at, &moves);
    thunks.call_note = a.here();
    call(&mut a, runtime::note_store as *const () as u64, unwind_at, &moves);
    thunks.call_vector = a.here();
    call(&mut a, runtime::want_vector as *const () as u64, unwind_at, &moves);
    thunks.call_share = a.here();
    call(&mut a, runtime::fill_share as *const () as u64, unwind_at, &moves);
    thunks.call_x87 = a.here();
    call(&mut a, runtime::want_x87 as *const () as u64, unwind_at, &moves);
    thunks.call_clock = a.here();
    call_query(&mut a, runtime::time_stamp as *const () as u64, &moves);
    thunks.call_missed = a.here();
    call_missed(&mut a, &moves);
    thunks.find_entry = a.here();
    super::memory::find_entry(&mut a, thunks.bmi2);
    a.ret();
    for (thunk, tag) in [offset_of!(TlbEntry, read), offset_of!(TlbEntry, write)].into_iter().enumerate() {
        thunks.find_on_stack[thunk] = a.here();
        find_on_stack(&mut a, thunks.bmi2, tag);
    }
    for exit in LEFT_BY {
        thunks.leave[exit as usize] = a.here();
        a.store_gs(ARGUMENT, S2);
        store_guest(&mut a);
        moves.save(&mut a);
        a.mov_imm32(RAX, exit as u32);
        a.jmp_to(unwind_at);
    }
    let [bottom, elsewhere] = returns::emit_bottom(&mut a, &thunks, counted);
    thunks.return_elsewhere = elsewhere;
    thunks.enter = a.here();
    enter(&mut a, fsgsbase, bottom);
    a.finish();
    if !memory.add(&a.bytes) {
        return Err(io::Error::from(io::ErrorKind::OutOfMemory));
    }
    memory.keep();
    Ok(thunks)
}
