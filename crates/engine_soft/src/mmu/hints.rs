//! [`Hints`]: entries of the current array that translated code looks at first; see `translate::hints`.

use super::TlbEntry;

/// Hints: one for each general register, and two more.
const HINTS: usize = 18;

/// An array's address, and the mask of an entry's place in it, which tells its size.
type Place = (*const TlbEntry, u64);

/// Pointers to entries of an array, which is the current one. Those into a user's array wait while others are current, because
/// a user soon comes back from the kernel. The array need not be the same then, as long as another one at its address is as large:
/// hints are only where to look first.
#[repr(C)]
pub(crate) struct Hints {
    /// The layout is known to translated code.
    pub entries: [*const TlbEntry; HINTS],
    place: Place,
    of_user: bool,
    waiting: [*const TlbEntry; HINTS],
    waiting_place: Place,
}

impl Hints {
    /// Hints into an array.
    pub fn new(place: Place) -> Self {
        let entries = [place.0; HINTS];
        Hints { entries, place, of_user: false, waiting: entries, waiting_place: place }
    }

    /// Another array is the current one, perhaps a user's.
    pub fn enter(&mut self, place: Place, of_user: bool) {
        if self.of_user {
            (self.waiting, self.waiting_place) = (self.entries, self.place);
        }
        if of_user && self.waiting_place == place {
            self.entries = self.waiting;
        } else {
            self.entries.fill(place.0);
        }
        (self.place, self.of_user) = (place, of_user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_hints_wait_for_the_same_place() {
        let array = [TlbEntry::empty(1); 4];
        let [user, kernel] = [0, 2].map(|at| (&raw const array[at], 1));
        let mut hints = Hints::new(kernel);
        hints.enter(user, true);
        assert_eq!(hints.entries, [user.0; HINTS]);
        hints.entries[3] = &raw const array[1];
        hints.enter(kernel, false);
        assert_eq!(hints.entries, [kernel.0; HINTS]);
        hints.enter(user, true);
        assert_eq!(hints.entries[3], &raw const array[1]);
        // Another size at the same address.
        hints.enter(kernel, false);
        hints.enter((user.0, 0), true);
        assert_eq!(hints.entries, [user.0; HINTS]);
    }
}
