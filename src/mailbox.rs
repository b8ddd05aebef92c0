//! Where tasks of an event loop are told that there is something for them.
//!
//! Each call that a task awaits has a *ticket*, a number that its loop knows it by. Whoever has news
//! for it (the leader a reply, the ear a lock that was freed, ...) leaves the ticket here, from any
//! thread. The bell makes a descriptor readable, which the loop watches like any other.
//!
//! A batch answers a thousand tasks: the leader [`leave`](Mailbox::leave)s all their tickets first and
//! [`ring`](Mailbox::ring)s once, so the loop is woken once per batch and not once per caller.
//!
//! | tickets | rung | meaning | next |
//! |---|---|---|---|
//! | none | no | idle | tickets are left |
//! | some | no | a leader is still at it | it rings |
//! | some | yes | the loop has been woken, and will take them all | none, not rung |
//!
//! Invariant: who leaves a ticket rings after it. So no ticket lies here unheard. A ticket that is out
//! of date, or left twice, does no harm: its call looks for news and finds none.

use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use rustix::event::PollFlags;
use socket2::{Domain, Socket, Type};

use crate::combine::Combiner;
use crate::inherited::OpenFd;
use crate::transport::Line;

/// The number that a loop knows one of its waiting calls by.
pub type Ticket = usize;

/// See the module's description.
#[derive(Debug)]
pub struct Mailbox {
    left: Mutex<Left>,
    /// The loop is waking tasks, who may ask again at once.
    in_portion: AtomicBool,
    /// Whose queues are to be uncorked when they have.
    corked: Mutex<Vec<Weak<Combiner>>>,
    bell: Line,
    watched: Line,
}

#[derive(Debug, Default)]
struct Left {
    tickets: Vec<Ticket>,
    rung: bool,
}

impl Mailbox {
    /// An empty one. The descriptor to watch is [`fd`](Self::fd).
    pub fn new() -> io::Result<Self> {
        let (bell, watched) = Socket::pair(Domain::UNIX, Type::STREAM, None)?;
        // A child of a fork does nothing with them: neither end means anything to a server.
        let [one, other]: [Arc<OpenFd>; 2] = Default::default();
        let (bell, watched) = (Line::new(bell, &one)?, Line::new(watched, &other)?);
        Ok(Self {
            left: Mutex::default(),
            in_portion: AtomicBool::new(false),
            corked: Mutex::default(),
            bell,
            watched,
        })
    }

    /// What becomes readable when there are tickets to take.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.watched.socket().as_fd()
    }

    /// For a loop of ours: sleeps until it rings, or until then.
    pub fn wait(&self, until: Instant) {
        // A broken pair would ring for ever, and so make its owner look at everything all the time.
        let _rings_or_over = self.watched.wait(PollFlags::IN, until);
    }

    fn left(&self) -> MutexGuard<'_, Left> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// There is news for this ticket. To be followed by [`ring`](Self::ring).
    pub fn leave(&self, ticket: Ticket) {
        self.left().tickets.push(ticket);
    }

    /// Wakes the loop, if there are tickets and nobody has rung for them.
    pub fn ring(&self) {
        let mut left = self.left();
        if !left.tickets.is_empty() && !std::mem::replace(&mut left.rung, true) {
            drop(left);
            self.ring_anyway();
        }
    }

    /// Wakes the loop, for a reason of its own.
    pub fn ring_anyway(&self) {
        // A full one rings already. No SIGPIPE: the loop's end may be closed.
        let _ = self.bell.socket().send_with_flags(&[0], libc::MSG_NOSIGNAL);
    }

    /// In the loop: silences the bell, and takes all tickets. `into` is empty, and lends its room.
    pub fn take(&self, into: &mut Vec<Ticket>) {
        // First the bell: what is left after this rings anew.
        while matches!(self.watched.socket().read(&mut [0; 64]), Ok(64)) {}
        let mut left = self.left();
        left.rung = false;
        std::mem::swap(&mut left.tickets, into);
    }

    fn corked(&self) -> MutexGuard<'_, Vec<Weak<Combiner>>> {
        self.corked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// In the loop: begins to wake tasks. Relaxed, here and below: only the loop's thread looks.
    pub fn begin_portion(&self) {
        self.in_portion.store(true, Ordering::Relaxed);
    }

    /// In the loop: all of the portion have been woken, and have asked what they had to ask.
    pub fn end_portion(&self) {
        self.in_portion.store(false, Ordering::Relaxed);
        let corked = std::mem::take(&mut *self.corked());
        for combiner in corked.iter().filter_map(Weak::upgrade) {
            combiner.uncork();
        }
    }

    /// A task has asked. True when its loop is in a portion, whose end will uncork `combiner`.
    pub(crate) fn cork(&self, combiner: &Weak<Combiner>) -> bool {
        let in_portion = self.in_portion.load(Ordering::Relaxed);
        if in_portion {
            let mut corked = self.corked();
            if !corked.iter().any(|known| known.ptr_eq(combiner)) {
                corked.push(Weak::clone(combiner));
            }
        }
        in_portion
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock;

    fn rings(mailbox: &Mailbox) -> bool {
        mailbox.watched.wait(PollFlags::IN, clock::now()).expect("alive")
    }

    #[test]
    fn a_batch_rings_once_and_what_comes_later_rings_anew() {
        let mailbox = Mailbox::new().expect("a pair");
        let mut taken = Vec::new();
        mailbox.ring();
        assert!(!rings(&mailbox), "nothing to ring for");
        for ticket in 0..3 {
            mailbox.leave(ticket);
        }
        assert!(!rings(&mailbox), "the leader is still at it");
        mailbox.ring();
        mailbox.ring();
        assert!(rings(&mailbox));
        mailbox.take(&mut taken);
        assert_eq!(taken, [0, 1, 2]);
        assert!(!rings(&mailbox), "one ring was one byte");
        mailbox.leave(7);
        mailbox.ring();
        assert!(rings(&mailbox));
        taken.clear();
        mailbox.take(&mut taken);
        assert_eq!(taken, [7]);
    }
}
