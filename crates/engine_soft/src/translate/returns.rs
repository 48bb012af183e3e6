//! Return prediction: translated calls are calls of the host, and returns are returns of the host.
//!
//! So the host's own predictor knows where a return leads. The host's stack then holds a *frame* for each call: the page of the
//! calling code, and the host's return address, which is the call's *landing*. The landing compares the address that the guest
//! returns to with the one behind its call. If it is another one (the guest changed its stack, switched stacks, or a
//! call was interpreted), the frame is lost and the jump cache decides. No frame is believed beyond that, so the guest may do
//! with its own stack what it likes.
//!
//! ```text
//! Shared::frame    what `enter` saved
//!                  (8 bytes for alignment)
//! Shared::returns  bottom: leads to the jump cache, and is not taken away
//!                  page, landing
//!                  page, landing
//!                  …
//! Shared::deepest  a call below drops all frames
//! ```
//! Frames live from one entry of translated code to its exit, and while the fetch key stays the same: a landing knows
//! that its page is still mapped where it was, but looks for itself whether its code has changed, and at events.
//!
//! Only calls and returns of the full operand size in flat code are predicted, and only if the call is not the last thing
//! in its page.

use super::asm::{Alu, Asm, GUEST_RSP, HOST_RSP, Label, Refers, S1, S2, cc};
use super::block::Builder;
use super::cold::Cold;
use super::flags::FlagHome;
use super::jumps;
use super::shared::{DEEPEST, FETCH_KEY, FRAME, JUMPS_TAKEN, RETURNS, RETURNS_KEY, RIP, RIP_PAGE, SPARE};
use super::thunks::{Exit, Thunks};
use super::transfer::{Target, in_page};

/// Frames kept, at most.
const FRAMES: i32 = 512;
/// Bytes of a frame.
const FRAME_SIZE: i32 = 16;

impl Builder<'_> {
    /// The address behind the current call, if its return can be predicted.
    pub fn landing_place(&self, size: u8) -> Option<u16> {
        in_page(self.next).filter(|_| self.predicts_returns(size))
    }

    /// Whether calls and returns of an operand size are predicted.
    pub fn predicts_returns(&self, size: u8) -> bool {
        let kind = self.context.kind;
        // Blocks that are compared are left at their end.
        kind.is_flat() && size == (if kind.is_long() { 8 } else { 4 }) && !self.context.verified
    }

    /// A direct call, whose return address is pushed, with its landing at `next`.
    pub fn predicted_call(&mut self, to: Target, next: u16) {
        self.save_flags();
        let (from, at) = self.call_landing(next, in_page(to.at).is_some());
        match in_page(to.at) {
            Some(target) if target > self.offset => {
                self.cold.push(Cold::Link { from, at, target, flags: FlagHome::Saved });
            }
            Some(_) => {
                self.asm.bind(from);
                self.jump_back(to, None);
            }
            None => {
                self.asm.bind(from);
                self.jump_out(to);
            }
        }
    }

    /// Calls a label, which is to be bound, and emits the landing behind it. Gives the displacement's address, too.
    /// Flags are saved. A call that stays in the page is `near`.
    pub fn call_landing(&mut self, next: u16, near: bool) -> (Label, u64) {
        let (deep, back, body) = (self.asm.label(), self.asm.label(), self.asm.label());
        self.asm.alu_gs(Alu::Cmp, HOST_RSP, DEEPEST);
        self.asm.jcc(cc::B, deep);
        self.asm.bind(back);
        self.asm.push_gs(RIP_PAGE);
        let at = self.asm.call(body);
        self.cold.push(Cold::Deep { from: deep, back });
        self.clobbered();
        self.emit_landing(next, near);
        (body, at)
    }

    /// Where the call's return arrives with the guest's target in [`S1`] and the site of the return in [`S2`]; from the same
    /// page if the call was `near`, as a rule.
    fn emit_landing(&mut self, next: u16, near: bool) {
        let (other, leave) = (self.asm.label(), self.asm.label());
        let a = &mut self.asm;
        a.lea(S1, S1, -i32::from(next));
        a.alu_rm(Alu::Cmp, S1, HOST_RSP, 0);
        a.lea(HOST_RSP, HOST_RSP, 8);
        a.jcc(cc::NE, other);
        if near {
            // Without a store the next call need not wait for one.
            let far = self.asm.label();
            self.asm.alu_gs(Alu::Cmp, S1, RIP_PAGE);
            self.asm.jcc(cc::NE, far);
            let back = self.asm.mark();
            self.cold.push(Cold::FarReturn { from: far, back });
        } else {
            self.asm.store_gs(RIP_PAGE, S1);
        }
        self.count_return();
        self.look_at_events(leave);
        self.look_at_generation(leave);
        self.cold.push(Cold::Landing { other, next });
        self.cold.push(Cold::Leave { from: leave, start: next, exit: Exit::InPage });
        let from = self.asm.label();
        let at = self.asm.jmp(from);
        self.cold.push(Cold::Link { from, at, target: next, flags: FlagHome::Saved });
    }

    /// The guest does not return behind the call.
    pub fn emit_other_return(&mut self, other: Label, next: u16) {
        self.asm.bind(other);
        self.asm.lea(S1, S1, next.into());
        self.asm.jmp_to(self.context.thunks.return_elsewhere);
    }

    /// A call in the page returns from another page.
    pub fn emit_far_return(&mut self, from: Label, back: Label) {
        self.asm.bind(from);
        self.asm.store_gs(RIP_PAGE, S1);
        self.asm.jmp(back);
    }

    /// There are too many frames: forgets them.
    pub fn emit_too_deep(&mut self, from: Label, back: Label) {
        self.asm.bind(from);
        self.asm.load_gs(HOST_RSP, RETURNS);
        self.asm.jmp(back);
    }

    /// Returns to the address in [`S1`]; flags are saved.
    pub fn predicted_return(&mut self) {
        let site = self.site();
        self.asm.mov_number(S2, site as u32, Refers::Site);
        self.asm.ret();
    }
}

/// Makes the bottom of the frames, on the way into translated code: it is at `bottom`. Uses [`S2`].
pub(super) fn enter_frames(a: &mut Asm, bottom: u64) {
    a.store_gs(FRAME, HOST_RSP);
    a.lea(HOST_RSP, HOST_RSP, -8);
    a.mov_imm64(S2, bottom);
    a.push(S2);
    a.store_gs(RETURNS, HOST_RSP);
    a.lea(S2, HOST_RSP, -FRAMES * FRAME_SIZE);
    a.store_gs(DEEPEST, S2);
    a.load_gs(S2, FETCH_KEY);
    a.store_gs(RETURNS_KEY, S2);
}

/// Drops the frames if the fetch key is not theirs. Uses [`S2`] and RFLAGS.
pub(super) fn check_frames(a: &mut Asm) {
    let same = a.label();
    a.load_gs(S2, FETCH_KEY);
    a.alu_gs(Alu::Cmp, S2, RETURNS_KEY);
    a.jcc(cc::E, same);
    a.store_gs(RETURNS_KEY, S2);
    a.load_gs(HOST_RSP, RETURNS);
    a.bind(same);
}

/// Emits the bottom, and behind it [`Thunks::return_elsewhere`]; gives the addresses of both.
///
/// What the bottom's return took is still there: a signal leaves the 128 bytes below the stack pointer alone (System V ABI,
/// section 3.2.2).
pub(super) fn emit_bottom(a: &mut Asm, thunks: &Thunks, counted: bool) -> [u64; 2] {
    let bottom = a.here();
    a.lea(HOST_RSP, HOST_RSP, -8);
    let elsewhere = a.here();
    let (from, reload, bad) = (a.label(), a.label(), a.label());
    a.store_gs(SPARE, S2);
    jumps::emit_search(a, thunks.bmi2, from, reload);
    a.store_gs(RIP_PAGE, S1);
    if counted {
        a.load_gs(S1, JUMPS_TAKEN);
        a.lea(S1, S1, 1);
        a.store_gs(JUMPS_TAKEN, S1);
    }
    a.jmp_mem(S2, jumps::HOST);
    a.bind(reload);
    a.alu_rm(Alu::Mov, S1, S2, jumps::LINEAR);
    a.bind(from);
    jumps::check_canonical(a, bad);
    a.store_gs(RIP, S1);
    a.jmp_to(thunks.leave(Exit::Lookup));
    a.bind(bad);
    // The return has popped 8 bytes; the interpreter does it again, and faults.
    a.lea(GUEST_RSP, GUEST_RSP, -8);
    a.load_gs(S2, SPARE);
    a.call_to(thunks.call_site);
    a.raw(&[0x0f, 0x0b]);
    [bottom, elsewhere]
}
