//! Looking after signals while a call waits.
//!
//! A wait is cut into slices; after each one its caller's `look` runs: for Python the signal
//! handlers, which may do anything. They may end the wait. They may call this library, so nothing is
//! locked meanwhile. And they may fork: then the child finds itself in the middle of a call of its
//! parent's, and must go without touching anything that it shares with it.

use std::time::{Duration, Instant};

use crate::clock;
use crate::error::{Error, Result};
use crate::fork;

/// How long a wait lasts before it looks after signals.
pub const SLICE: Duration = Duration::from_millis(100);

/// One call's patrol, through all its waits.
pub struct Patrol<'a> {
    look: &'a mut dyn FnMut() -> bool,
    generation: u64,
    next: Instant,
}

impl<'a> Patrol<'a> {
    /// A patrol that runs `look` once a slice; its `false` ends the wait.
    pub fn new(look: &'a mut dyn FnMut() -> bool) -> Self {
        Self { look, generation: fork::generation(), next: clock::now() + SLICE }
    }

    /// When a wait that began by `now` has to end for the next look.
    #[must_use]
    pub fn next(&self) -> Instant {
        self.next
    }

    /// Looks, if it is time. An error ends the call; after [`Error::Forked`] at once, and with
    /// nothing undone, locked or woken.
    #[inline]
    pub fn pass(&mut self, now: Instant) -> Result<()> {
        if now < self.next { Ok(()) } else { self.look() }
    }

    #[cold]
    fn look(&mut self) -> Result<()> {
        let go_on = (self.look)();
        if fork::generation() != self.generation {
            return Err(Error::Forked);
        }
        self.next = clock::now() + SLICE;
        if go_on { Ok(()) } else { Err(Error::Interrupted) }
    }
}
