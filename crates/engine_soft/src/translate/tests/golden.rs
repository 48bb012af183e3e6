//! The text of translated code for a few blocks. `VIREO_BLESS=1 cargo test -p engine_soft golden` writes it anew; what
//! changed is then to be read in the difference.

use super::super::block::{Builder, Context};
use super::super::shared;
use super::super::thunks::Thunks;
use super::super::unit::PAGE;
use crate::mmu::TlbEntry;
use crate::system::SystemState;
use crate::translate::kind::CodeKind;
use iced_x86::code_asm::*;
use iced_x86::{Decoder, Formatter, IntelFormatter, OpKind, Register};
use std::fmt::Write as _;
use std::mem::offset_of;
use std::path::Path;

type Assembled = Result<(), iced_x86::IcedError>;
/// A name, and what writes the block.
type Block = (&'static str, fn(&mut CodeAssembler) -> Assembled);

/// The blocks, by name.
const BLOCKS: [Block; 10] = [
    ("A load through a register, and its use", |a| {
        a.mov(rax, qword_ptr(rbx + 8))?;
        a.add(rax, rcx)?;
        a.ret()
    }),
    ("A store of a register kept in memory", |a| {
        a.mov(dword_ptr(rdi + r14 * 4 + 16), r13d)?;
        a.jmp(rax)
    }),
    ("Flags that nobody sees are made again on the side way", |a| {
        a.add(rax, rcx)?;
        a.mov(rdx, qword_ptr(rsi))?;
        a.sub(rax, rdx)?;
        a.ret()
    }),
    ("Flags that are needed behind a check are saved", |a| {
        a.cmp(rax, rcx)?;
        a.mov(rdx, qword_ptr(rsi))?;
        a.setb(al)?;
        a.ret()
    }),
    ("A loop in the page", |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.dec(ecx)?;
        a.jne(top)?;
        a.ret()
    }),
    ("A loop over an array", |a| {
        let mut top = a.create_label();
        a.set_label(&mut top)?;
        a.xor(r13d, dword_ptr(rbx + rcx * 4))?;
        a.rol(r13d, 5)?;
        a.inc(rcx)?;
        a.cmp(rcx, rdx)?;
        a.jne(top)?;
        a.ret()
    }),
    ("A push and a call", |a| {
        a.push(rbp)?;
        a.call(0x1_0000)
    }),
    ("Accesses that share a check", |a| {
        a.mov(rax, qword_ptr(rsp + 8))?;
        a.add(rax, qword_ptr(rsp + 16))?;
        a.mov(qword_ptr(rsp + 24), rax)?;
        a.adc(rdx, qword_ptr(rsp))?;
        a.ret()
    }),
    ("Vectors", |a| {
        a.movups(xmm0, xmmword_ptr(rdi))?;
        a.addps(xmm0, xmm1)?;
        a.ret()
    }),
    ("x87", |a| {
        a.fld(qword_ptr(rdi))?;
        a.faddp(st1, st0)?;
        a.ret()
    }),
];

/// Names of what code reaches through GS.
fn field(offset: u64) -> Option<String> {
    let fields = [
        (shared::FLAGS, "FLAGS"),
        (shared::RIP_PAGE, "RIP_PAGE"),
        (shared::JUMPS, "JUMPS"),
        (shared::EVENTS, "EVENTS"),
        (shared::ARGUMENT, "ARGUMENT"),
        (shared::SPARE, "SPARE"),
        (shared::SPARE_RAX, "SPARE_RAX"),
        (shared::VECTOR, "VECTOR"),
        (shared::BUDGET, "BUDGET"),
        (shared::LIMIT, "LIMIT"),
        (shared::X87, "X87"),
        (shared::FIP, "FIP"),
        (shared::EVENT_MASK, "EVENT_MASK"),
        (shared::TLB, "TLB"),
        (shared::TLB_MASK, "TLB_MASK"),
        (shared::FETCH_KEY, "FETCH_KEY"),
        (shared::RIP, "RIP"),
        (shared::STACK_ENTRY + offset_of!(TlbEntry, read), "STACK_READ"),
        (shared::STACK_ENTRY + offset_of!(TlbEntry, write), "STACK_WRITE"),
        (shared::STACK_ENTRY + offset_of!(TlbEntry, addend), "STACK_ADDEND"),
        (shared::STACK_ENTRY + offset_of!(TlbEntry, flags), "STACK_TRACKER"),
        (shared::STACK_LIMIT, "STACK_LIMIT"),
    ];
    let shares = (0..shared::SHARES).flat_map(|slot| {
        let at = 16 * slot;
        [
            (shared::SHARE_ADDEND + at, format!("ADDEND{slot}")),
            (shared::SHARE_TRACKER + at, format!("TRACKER{slot}")),
        ]
    });
    let homes = (0..16).map(|number| (shared::home(number), format!("R{number}")));
    let named = fields.into_iter().map(|(at, name)| (at, name.to_owned())).chain(homes).chain(shares);
    named.into_iter().find(|&(at, _)| at as u64 == offset).map(|(_, name)| name)
}

fn text_of(code: &[u8], base: u64) -> String {
    let mut text = String::new();
    for i in &mut Decoder::with_ip(64, code, base, 0) {
        let mut line = String::new();
        IntelFormatter::new().format(&i, &mut line);
        let through_gs =
            i.memory_segment() == Register::GS && (0..i.op_count()).any(|at| i.op_kind(at) == OpKind::Memory);
        if through_gs && let Some(name) = field(i.memory_displacement64()) {
            let from = line.find("gs:[").map_or(line.len(), |at| at + 4);
            let to = line[from..].find(']').map_or(line.len(), |at| from + at);
            line.replace_range(from..to, &name);
        }
        writeln!(text, "{:4x}  {line}", i.ip() - base).expect("a string takes all");
    }
    text
}

fn translated(assemble: fn(&mut CodeAssembler) -> Assembled) -> String {
    const BASE: u64 = 0x10_0000;
    let mut a = CodeAssembler::new(64).expect("64 is a mode");
    assemble(&mut a).expect("the block can be assembled");
    let code = a.assemble(0x100).expect("the block can be assembled");
    let mut page = Box::new([0; PAGE]);
    page[0x100..0x100 + code.len()].copy_from_slice(&code);
    let (mut sites, mut links, mut shares) = (Vec::new(), Vec::new(), Vec::new());
    let mut thunks = Thunks::default();
    (thunks.x87, thunks.bmi2) = (true, true);
    let context = Context {
        thunks,
        sites: &mut sites,
        links: &mut links,
        shares: &mut shares,
        verified: false,
        counted: false,
        system: &SystemState::default(),
        kind: CodeKind::LONG,
        unit: 0,
        page: &page,
        generation: (0x1234_5678_9abc, 7),
        hints: true,
        memory_start: BASE,
        cuts: None,
        portable: false,
    };
    let built = Builder::new(BASE, Vec::new(), context).build(0x100).expect("the block can be translated");
    text_of(&built.code, BASE)
}

#[test]
fn golden_text_of_translated_blocks() {
    let mut text = String::new();
    for (name, assemble) in BLOCKS {
        writeln!(text, "# {name}\n{}", translated(assemble)).expect("a string takes all");
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/translate/tests/golden.txt");
    if std::env::var_os("VIREO_BLESS").is_some() {
        std::fs::write(&path, &text).expect("the golden text can be written");
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(text == golden, "Translated code changed; VIREO_BLESS=1 writes {}:\n{text}", path.display());
}
