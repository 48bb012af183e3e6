//! The registers that the debugger sees: which there are, in which order, and where each is in [`CpuState`].
//!
//! The first four features are GDB's own for x86-64 (GDB manual, G.5.5 "x86 Features"); their names and orders are
//! given there. The last holds what only a kernel sees.

use super::xsave;
use gdbstub::arch::{Arch, RegId, Registers};
use std::fmt::Write;
use std::num::NonZeroUsize;
use std::sync::LazyLock;
use x86::{CpuState, Segment};

/// The processor, for `gdbstub`.
#[derive(Debug)]
pub struct X86;

impl Arch for X86 {
    type Usize = u64;
    type Registers = Image;
    type BreakpointKind = usize;
    type RegId = Number;

    fn target_description_xml() -> Option<&'static str> {
        Some(&DESCRIPTION)
    }
}

/// A register's number in the description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Number(usize);

impl RegId for Number {
    fn from_raw_id(id: usize) -> Option<(Self, Option<NonZeroUsize>)> {
        let register = REGISTERS.get(id)?;
        Some((Number(id), NonZeroUsize::new(register.len())))
    }

    fn to_raw_id(&self) -> Option<usize> {
        Some(self.0)
    }
}

/// All registers, one after the other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Image(Vec<u8>);

impl Image {
    /// A processor's.
    pub fn of(state: &mut CpuState) -> Self {
        let mut bytes = Vec::with_capacity(1024);
        for register in REGISTERS.iter() {
            bytes.extend_from_slice(&register.place.get(state).to_le_bytes()[..register.len()]);
        }
        Image(bytes)
    }

    /// Puts all into a processor.
    pub fn apply(&self, state: &mut CpuState) {
        let mut at = 0;
        for register in REGISTERS.iter() {
            let Some(bytes) = self.0.get(at..at + register.len()) else { return };
            at += register.len();
            // What did not change keeps what the debugger cannot see of it.
            let value = value_of(bytes);
            if value != register.place.get(state) {
                register.place.set(state, value);
            }
        }
    }
}

impl Registers for Image {
    type ProgramCounter = u64;

    fn pc(&self) -> u64 {
        let before: usize =
            REGISTERS.iter().take_while(|r| !matches!(r.place, Place::Rip)).map(Register::len).sum();
        self.0.get(before..before + 8).map_or(0, |bytes| value_of(bytes) as u64)
    }

    fn gdb_serialize(&self, mut write_byte: impl FnMut(Option<u8>)) {
        self.0.iter().for_each(|byte| write_byte(Some(*byte)));
    }

    fn gdb_deserialize(&mut self, bytes: &[u8]) -> Result<(), ()> {
        let wanted: usize = REGISTERS.iter().map(Register::len).sum();
        if bytes.len() != wanted {
            return Err(());
        }
        self.0 = bytes.to_vec();
        Ok(())
    }
}

/// Reads one register into the start of `buffer`; its bytes.
pub fn read(state: &mut CpuState, number: Number, buffer: &mut [u8]) -> Option<usize> {
    let register = REGISTERS.get(number.0)?;
    let bytes = register.place.get(state).to_le_bytes();
    buffer.get_mut(..register.len())?.copy_from_slice(&bytes[..register.len()]);
    Some(register.len())
}

/// Changes one register; `false` if that is no value of it.
pub fn write(state: &mut CpuState, number: Number, bytes: &[u8]) -> bool {
    match REGISTERS.get(number.0).filter(|register| register.len() == bytes.len()) {
        Some(register) => {
            register.place.set(state, value_of(bytes));
            true
        }
        None => false,
    }
}

fn value_of(bytes: &[u8]) -> u128 {
    let mut value = [0; 16];
    let len = bytes.len().min(16);
    value[..len].copy_from_slice(&bytes[..len]);
    u128::from_le_bytes(value)
}

/// Where a register is.
#[derive(Clone, Copy, Debug)]
enum Place {
    Gpr(usize),
    Rip,
    Flags,
    Selector(usize),
    Base(usize),
    Xsave(xsave::Field),
    Word(fn(&mut CpuState) -> &mut u64),
    KernelGsBase,
    TableBase(bool),
    TableLimit(bool),
}

/// Segments in GDB's order, then those of the system.
fn segment(state: &mut CpuState, number: usize) -> &mut Segment {
    let s = &mut state.segments;
    match number {
        0 => &mut s.cs,
        1 => &mut s.ss,
        2 => &mut s.ds,
        3 => &mut s.es,
        4 => &mut s.fs,
        5 => &mut s.gs,
        6 => &mut s.ldtr,
        _ => &mut s.tr,
    }
}

impl Place {
    fn get(self, state: &mut CpuState) -> u128 {
        match self {
            Place::Gpr(number) => state.gprs[number].into(),
            Place::Rip => state.rip.into(),
            Place::Flags => state.rflags.into(),
            Place::Selector(number) => segment(state, number).selector.into(),
            Place::Base(number) => segment(state, number).base.into(),
            Place::Xsave(field) => field.get(&state.xsave.bytes),
            Place::Word(word) => (*word(state)).into(),
            Place::KernelGsBase => state.msr(x86::msr::KERNEL_GS_BASE).unwrap_or(0).into(),
            Place::TableBase(interrupts) => table(state, interrupts).base.into(),
            Place::TableLimit(interrupts) => table(state, interrupts).limit.into(),
        }
    }

    fn set(self, state: &mut CpuState, value: u128) {
        match self {
            Place::Gpr(number) => state.gprs[number] = value as u64,
            Place::Rip => state.rip = value as u64,
            Place::Flags => state.rflags = value as u64 & 0x3f_7fd5 | 2,
            Place::Selector(number) => segment(state, number).selector = value as u16,
            Place::Base(number) => segment(state, number).base = value as u64,
            Place::Xsave(field) => field.set(&mut state.xsave.bytes, value),
            Place::Word(word) => *word(state) = value as u64,
            Place::KernelGsBase => state.set_msr(x86::msr::KERNEL_GS_BASE, value as u64),
            Place::TableBase(true) => state.idtr.base = value as u64,
            Place::TableBase(false) => state.gdtr.base = value as u64,
            Place::TableLimit(true) => state.idtr.limit = value as u16,
            Place::TableLimit(false) => state.gdtr.limit = value as u16,
        }
    }
}

fn table(state: &CpuState, interrupts: bool) -> x86::DescriptorTable {
    if interrupts { state.idtr } else { state.gdtr }
}

/// One register.
struct Register {
    name: String,
    bits: usize,
    kind: &'static str,
    group: Option<&'static str>,
    feature: usize,
    place: Place,
}

impl Register {
    fn len(&self) -> usize {
        self.bits / 8
    }
}

/// Names of the features, and the types that they define.
const FEATURES: [(&str, &str); 5] = [
    ("org.gnu.gdb.i386.core", FLAGS),
    ("org.gnu.gdb.i386.sse", VECTORS),
    ("org.gnu.gdb.i386.avx", ""),
    ("org.gnu.gdb.i386.segments", ""),
    ("vireo.system", CONTROL),
];

const FLAGS: &str = r#"<flags id="i386_eflags" size="4">
<field name="" start="22" end="31"/><field name="ID" start="21" end="21"/><field name="VIP" start="20" end="20"/>
<field name="VIF" start="19" end="19"/><field name="AC" start="18" end="18"/><field name="VM" start="17" end="17"/>
<field name="RF" start="16" end="16"/><field name="NT" start="14" end="14"/><field name="IOPL" start="12" end="13"/>
<field name="OF" start="11" end="11"/><field name="DF" start="10" end="10"/><field name="IF" start="9" end="9"/>
<field name="TF" start="8" end="8"/><field name="SF" start="7" end="7"/><field name="ZF" start="6" end="6"/>
<field name="AF" start="4" end="4"/><field name="PF" start="2" end="2"/><field name="" start="1" end="1"/>
<field name="CF" start="0" end="0"/></flags>
"#;

const VECTORS: &str = r#"<vector id="v4f" type="ieee_single" count="4"/><vector id="v2d" type="ieee_double" count="2"/>
<vector id="v16i8" type="int8" count="16"/><vector id="v8i16" type="int16" count="8"/>
<vector id="v4i32" type="int32" count="4"/><vector id="v2i64" type="int64" count="2"/>
<union id="vec128"><field name="v4_float" type="v4f"/><field name="v2_double" type="v2d"/>
<field name="v16_int8" type="v16i8"/><field name="v8_int16" type="v8i16"/><field name="v4_int32" type="v4i32"/>
<field name="v2_int64" type="v2i64"/><field name="uint128" type="uint128"/></union>
<flags id="i386_mxcsr" size="4"><field name="IE" start="0" end="0"/><field name="DE" start="1" end="1"/>
<field name="ZE" start="2" end="2"/><field name="OE" start="3" end="3"/><field name="UE" start="4" end="4"/>
<field name="PE" start="5" end="5"/><field name="DAZ" start="6" end="6"/><field name="IM" start="7" end="7"/>
<field name="DM" start="8" end="8"/><field name="ZM" start="9" end="9"/><field name="OM" start="10" end="10"/>
<field name="UM" start="11" end="11"/><field name="PM" start="12" end="12"/><field name="FZ" start="15" end="15"/></flags>
"#;

const CONTROL: &str = r#"<flags id="cr0_flags" size="8"><field name="PG" start="31" end="31"/>
<field name="CD" start="30" end="30"/><field name="NW" start="29" end="29"/><field name="AM" start="18" end="18"/>
<field name="WP" start="16" end="16"/><field name="NE" start="5" end="5"/><field name="ET" start="4" end="4"/>
<field name="TS" start="3" end="3"/><field name="EM" start="2" end="2"/><field name="MP" start="1" end="1"/>
<field name="PE" start="0" end="0"/></flags>
<flags id="cr4_flags" size="8"><field name="PKE" start="22" end="22"/><field name="SMAP" start="21" end="21"/>
<field name="SMEP" start="20" end="20"/><field name="OSXSAVE" start="18" end="18"/>
<field name="PCIDE" start="17" end="17"/><field name="FSGSBASE" start="16" end="16"/>
<field name="LA57" start="12" end="12"/><field name="UMIP" start="11" end="11"/>
<field name="OSXMMEXCPT" start="10" end="10"/><field name="OSFXSR" start="9" end="9"/>
<field name="PCE" start="8" end="8"/><field name="PGE" start="7" end="7"/><field name="MCE" start="6" end="6"/>
<field name="PAE" start="5" end="5"/><field name="PSE" start="4" end="4"/><field name="DE" start="3" end="3"/>
<field name="TSD" start="2" end="2"/><field name="PVI" start="1" end="1"/><field name="VME" start="0" end="0"/></flags>
<flags id="efer_flags" size="8"><field name="NXE" start="11" end="11"/><field name="LMA" start="10" end="10"/>
<field name="LME" start="8" end="8"/><field name="SCE" start="0" end="0"/></flags>
"#;

static REGISTERS: LazyLock<Vec<Register>> = LazyLock::new(registers);
static DESCRIPTION: LazyLock<String> = LazyLock::new(description);

fn registers() -> Vec<Register> {
    use xsave::Field;
    let mut all = Vec::new();
    let mut add = |feature, name: &str, bits, kind, group, place| {
        all.push(Register { name: name.to_owned(), bits, kind, group, feature, place });
    };
    let names = ["rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp"];
    for (name, number) in names.into_iter().zip([0, 3, 1, 2, 6, 7, 5, 4]) {
        let kind = if matches!(name, "rbp" | "rsp") { "data_ptr" } else { "int64" };
        add(0, name, 64, kind, None, Place::Gpr(number));
    }
    for number in 8..16 {
        add(0, &format!("r{number}"), 64, "int64", None, Place::Gpr(number));
    }
    add(0, "rip", 64, "code_ptr", None, Place::Rip);
    add(0, "eflags", 32, "i386_eflags", None, Place::Flags);
    for (number, name) in ["cs", "ss", "ds", "es", "fs", "gs"].into_iter().enumerate() {
        add(0, name, 32, "int32", None, Place::Selector(number));
    }
    for number in 0..8 {
        add(0, &format!("st{number}"), 80, "i387_ext", None, Place::Xsave(Field::Stack(number)));
    }
    for (name, field) in xsave::CONTROLS {
        add(0, name, 32, "int32", Some("float"), Place::Xsave(field));
    }
    for number in 0..16 {
        add(1, &format!("xmm{number}"), 128, "vec128", None, Place::Xsave(Field::Xmm(number)));
    }
    add(1, "mxcsr", 32, "i386_mxcsr", Some("vector"), Place::Xsave(Field::Mxcsr));
    for number in 0..16 {
        add(2, &format!("ymm{number}h"), 128, "uint128", None, Place::Xsave(Field::YmmHigh(number)));
    }
    add(3, "fs_base", 64, "int64", None, Place::Base(4));
    add(3, "gs_base", 64, "int64", None, Place::Base(5));
    add_system(&mut add);
    all
}

type Add<'a> = dyn FnMut(usize, &str, usize, &'static str, Option<&'static str>, Place) + 'a;

fn add_system(add: &mut Add<'_>) {
    const SYSTEM: Option<&str> = Some("system");
    let mut word = |name: &str, kind, place| add(4, name, 64, kind, SYSTEM, Place::Word(place));
    word("cr0", "cr0_flags", |state| &mut state.cr0);
    word("cr2", "data_ptr", |state| &mut state.cr2);
    word("cr3", "int64", |state| &mut state.cr3);
    word("cr4", "cr4_flags", |state| &mut state.cr4);
    word("cr8", "int64", |state| &mut state.cr8);
    word("efer", "efer_flags", |state| &mut state.efer);
    word("xcr0", "int64", |state| &mut state.xcr0);
    word("dr0", "data_ptr", |state| &mut state.dr[0]);
    word("dr1", "data_ptr", |state| &mut state.dr[1]);
    word("dr2", "data_ptr", |state| &mut state.dr[2]);
    word("dr3", "data_ptr", |state| &mut state.dr[3]);
    word("dr6", "int64", |state| &mut state.dr6);
    word("dr7", "int64", |state| &mut state.dr7);
    add(4, "k_gs_base", 64, "int64", SYSTEM, Place::KernelGsBase);
    for (name, number) in [("cs_base", 0), ("ss_base", 1), ("ds_base", 2), ("es_base", 3)] {
        add(4, name, 64, "int64", SYSTEM, Place::Base(number));
    }
    for (name, number) in [("ldtr", 6), ("tr", 7)] {
        add(4, name, 32, "int32", SYSTEM, Place::Selector(number));
        add(4, &format!("{name}_base"), 64, "int64", SYSTEM, Place::Base(number));
    }
    for (name, interrupts) in [("gdt", false), ("idt", true)] {
        add(4, &format!("{name}_base"), 64, "data_ptr", SYSTEM, Place::TableBase(interrupts));
        add(4, &format!("{name}_limit"), 32, "int32", SYSTEM, Place::TableLimit(interrupts));
    }
}

fn description() -> String {
    let mut xml = String::from(
        "<?xml version=\"1.0\"?><!DOCTYPE target SYSTEM \"gdb-target.dtd\"><target>\
         <architecture>i386:x86-64</architecture>\n",
    );
    for (number, (feature, types)) in FEATURES.iter().enumerate() {
        let _ = writeln!(xml, "<feature name=\"{feature}\">\n{types}");
        for register in REGISTERS.iter().filter(|register| register.feature == number) {
            let group = register.group.map(|group| format!(" group=\"{group}\"")).unwrap_or_default();
            let _ = writeln!(
                xml,
                "<reg name=\"{}\" bitsize=\"{}\" type=\"{}\"{group}/>",
                register.name, register.bits, register.kind
            );
        }
        xml += "</feature>\n";
    }
    xml += "</target>\n";
    xml
}

#[cfg(test)]
mod tests;
