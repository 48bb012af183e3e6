//! Random user-mode code.
//!
//! Instructions are drawn as bytes (prefixes, opcode map, opcode, ModRM, displacement, immediate), decoded, and kept
//! if they are what the group asks for. Registers, and where it matters memory, then get values that point most
//! operands into the data pages; some are left to fault, straddle the end, or be misaligned.

mod aim;
mod draw;
mod select;
mod state;

use crate::case::{Case, Mode, Selectors};
use crate::layout::{self, USER_DS, local};
use crate::random::Random;
use crate::undefined;
use crate::{CODE_ADDRESS, CODE_MAX, CODE_SIZE, DATA_ADDRESS, DATA_SIZE};
use aim::Aim;
use iced_x86::Instruction;

/// Which part of the instruction set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Group {
    /// Every group, in shares.
    All,
    /// General-purpose instructions.
    Integer,
    /// x87 and MMX.
    X87,
    /// SSE to AVX2, FMA, AES, SHA, GFNI.
    Simd,
    /// FXSAVE, XSAVE, FNSTENV and their kin, MXCSR, FS and GS bases.
    State,
    /// Segment loads, far transfers, descriptor queries, flags, privileged and port instructions, software interrupts.
    System,
    /// Every kind of instruction, in 32-bit and 16-bit segments.
    Compat,
    /// Encodings that are not instructions, or are too long, or have prefixes that they must not have.
    Invalid,
}

impl Group {
    /// The groups that [`Group::All`] draws from, with their shares of sixteen.
    pub const SHARES: [(Group, u64); 7] = [
        (Group::Integer, 4),
        (Group::X87, 2),
        (Group::Simd, 4),
        (Group::State, 1),
        (Group::System, 2),
        (Group::Compat, 2),
        (Group::Invalid, 1),
    ];

    /// The group of a case of this one.
    fn narrowed(self, random: &mut Random) -> Group {
        if self != Group::All {
            return self;
        }
        let mut at = random.below(16);
        for (group, share) in Group::SHARES {
            if at < share {
                return group;
            }
            at -= share;
        }
        Group::Integer
    }
}

/// An instruction that was drawn.
struct Drawn {
    instruction: Instruction,
    bytes: Vec<u8>,
    /// Where in `bytes` the displacement is, and its size.
    displacement: Option<(usize, usize)>,
}

/// A case of one to six instructions, and the group it is of. The same seed gives the same case.
pub fn case(seed: u64, group: Group) -> (Case, Group) {
    let mut random = Random::new(seed);
    let group = group.narrowed(&mut random);
    loop {
        if let Some(case) = attempt(&mut random, group) {
            return (case, group);
        }
    }
}

fn draw_mode(random: &mut Random, group: Group) -> Mode {
    match group {
        Group::Compat => random.pick(&Mode::ALL[1..]),
        Group::System | Group::Invalid if random.one_in(2) => random.pick(&Mode::ALL[1..]),
        Group::State if random.one_in(6) => random.pick(&Mode::ALL[1..]),
        _ => Mode::Long,
    }
}

fn draw_selectors(random: &mut Random, mode: Mode) -> Selectors {
    if mode == Mode::Long {
        // Without meaning in this mode, but they are kept and can be read.
        let any = |random: &mut Random| random.pick(&[0, 0, USER_DS, local(2), local(4)]);
        return [any(random), USER_DS, any(random), 0, 0];
    }
    let usual = match mode {
        Mode::Segmented16 => [local(2), local(3), local(3), local(11)],
        Mode::Segmented32 => [local(2), local(2), local(3), USER_DS],
        _ => [USER_DS, USER_DS, USER_DS, local(2)],
    };
    let data = |random: &mut Random| match random.below(8) {
        0 => random.pick(&[0, local(4), local(5), local(6), local(10), local(11)]),
        _ => random.pick(&usual),
    };
    let stack = match random.below(8) {
        0 => random.pick(&[local(5), local(6), local(10), local(11)]),
        _ => random.pick(&usual),
    };
    [data(random), stack, data(random), data(random), data(random)]
}

fn draw_rflags(random: &mut Random) -> u64 {
    let mut rflags = 0x202 | random.bits() & 0x8d5;
    for (bit, rarity) in [(10, 4), (18, 12), (8, 25), (14, 50), (21, 8)] {
        if random.one_in(rarity) {
            rflags |= 1 << bit;
        }
    }
    rflags
}

fn attempt(random: &mut Random, group: Group) -> Option<Case> {
    let mode = draw_mode(random, group);
    let mut case = Case {
        mode,
        code: Vec::new(),
        code_offset: 0,
        gprs: std::array::from_fn(|_| random.value()),
        rflags: draw_rflags(random),
        selectors: draw_selectors(random, mode),
        fs_base: draw_base(random, mode),
        gs_base: draw_base(random, mode),
        xsave: state::draw_xsave(random),
        data_seed: random.bits(),
        patches: Vec::new(),
        undefined_flags: 0,
        instructions: 0,
    };
    if mode != Mode::Long {
        case.gprs.iter_mut().take(8).for_each(|value| *value &= 0xffff_ffff);
    }
    case.gprs[4] = DATA_ADDRESS + 0x800 - layout::base(case.selectors[1]);
    if mode != Mode::Long && !layout::is_big(case.selectors[1]) {
        case.gprs[4] &= 0xffff;
    }
    let wanted = if random.one_in(8) { 4 + random.below(3) } else { 1 + random.below(4) };
    // Code whose last byte is the page's last faults behind it; its length is not known yet, so it is drawn twice.
    let at_end = random.one_in(24);
    let mut drawn = Vec::new();
    let mut aim = Aim::new();
    let mut undefined = 0;
    let mut len = 0;
    let start = if at_end { CODE_SIZE - CODE_MAX } else { (random.below(8) * 64) as usize };
    while (drawn.len() as u64) < wanted && len < CODE_MAX - 48 {
        let ip = CODE_ADDRESS + (start + len) as u64 - layout::code_base(mode);
        let mut next = draw::instruction(random, group, mode, ip);
        if next.instruction.rflags_read() & undefined != 0 {
            continue;
        }
        let far_target = CODE_ADDRESS + (start + CODE_MAX + 16) as u64 % CODE_SIZE as u64;
        if !aim.point(random, &mut case, &mut next, far_target) {
            continue;
        }
        undefined = undefined::after(&next.instruction, undefined);
        case.undefined_flags |= undefined::architectural(undefined);
        len += next.bytes.len();
        drawn.push(next);
    }
    case.instructions = drawn.len() as u32;
    case.code_offset = if at_end { CODE_SIZE - len } else { start };
    lands_on_instructions(&drawn).then(|| {
        case.code = drawn.into_iter().flat_map(|next| next.bytes).collect();
        case
    })
}

/// Bases that make FS and GS operands reach the data pages, and some that do not.
fn draw_base(random: &mut Random, mode: Mode) -> u64 {
    if mode != Mode::Long {
        return 0;
    }
    match random.below(8) {
        0 => 0,
        1 => random.value() << 16 >> 16 & 0x7fff_ffff_ffff,
        _ => DATA_ADDRESS + random.below(DATA_SIZE as u64),
    }
}

/// Whether every near branch leads to the start of a later instruction, or behind the last: nothing that was not
/// drawn must be executed.
fn lands_on_instructions(drawn: &[Drawn]) -> bool {
    let starts: Vec<u64> = drawn.iter().map(|next| next.instruction.ip()).collect();
    let Some(last) = drawn.last() else { return false };
    drawn.iter().all(|next| {
        let target = next.instruction.near_branch_target();
        let direct = select::is_direct_branch(&next.instruction);
        !direct || target >= last.instruction.next_ip() || starts.contains(&target)
    })
}
