//! A step: one thing that one caller wants the server to do, and the place where its reply arrives.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Instant;

use crate::error::Error;
use crate::names::Name;

/// A lock's owner's proof: 128 random bits, in hexadecimal.
pub type Token = [u8; 32];

/// What the server is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Change a stock, not below zero, if the lock is free or held with `token`.
    Update {
        /// The lock's name.
        lock: Name,
        /// The stock's key.
        key: Name,
        /// What to add.
        change: i64,
        /// The token with which the caller holds the lock.
        token: Option<Token>,
    },
    /// Change a stock with no floor, and create it if need be.
    Incr {
        /// The stock's key.
        key: Name,
        /// What to add.
        change: i64,
    },
    /// Take a lock.
    Acquire {
        /// The lock's name.
        lock: Name,
        /// The token to leave there.
        token: Token,
        /// The lease, in milliseconds.
        lease: u64,
    },
    /// Give a lock back.
    Release {
        /// The lock's name.
        lock: Name,
        /// The token that shall be there.
        token: Token,
    },
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    /// The stock was changed.
    Changed,
    /// There is no stock.
    NoStock,
    /// The stock does not hold that much.
    Insufficient {
        /// What it held when the step was judged.
        available: i64,
    },
    /// The stock cannot be changed like that.
    Invalid {
        /// What stands there.
        value: Vec<u8>,
        /// What is wrong with it.
        reason: String,
    },
    /// Somebody else holds the lock.
    Held {
        /// When its lease ends, if it has one.
        until: Option<Instant>,
    },
    /// The lock is the caller's.
    Acquired,
    /// The lock was given back.
    Released,
    /// The lock was not the token's.
    Foreign,
    /// It could not be done, or could not be told.
    Failed(Error),
}

/// A step in a queue or batch.
///
/// | `reply` | `gone` | meaning |
/// |---|---|---|
/// | empty | false | somebody waits for the reply |
/// | set | false | answered; the waiter was woken |
/// | any | true | the waiter has left; a step still in the queue is not sent any more |
///
/// `reply` is set once, by the leader; `gone` once, by the waiter. `sent` is set by the leader before
/// the first byte of the step leaves the process, and taken back if the server says that it did not
/// run it.
#[derive(Debug)]
pub struct Step {
    /// What the server is asked to do.
    pub ask: Ask,
    /// The server must not do it after this, and the waiter is gone by then.
    pub deadline: Instant,
    /// The place in the order of arrival; a step that tries again keeps its caller's.
    pub place: u64,
    waiter: Option<Thread>,
    reply: OnceLock<Reply>,
    gone: AtomicBool,
    sent: AtomicBool,
}

impl Step {
    /// A step that the calling thread will wait for.
    pub fn waited_for(ask: Ask, deadline: Instant, place: u64) -> Self {
        Self::new(ask, deadline, place, Some(std::thread::current()))
    }

    /// A step that nobody waits for: something to be undone.
    pub fn orphan(ask: Ask, deadline: Instant, place: u64) -> Self {
        Self::new(ask, deadline, place, None)
    }

    fn new(ask: Ask, deadline: Instant, place: u64, waiter: Option<Thread>) -> Self {
        let (gone, sent) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { ask, deadline, place, waiter, reply: OnceLock::new(), gone, sent }
    }

    /// Hands out the reply, and wakes who waits for it.
    pub fn finish(&self, reply: Reply) {
        if self.reply.set(reply).is_ok() {
            self.wake();
        }
    }

    /// There will be no answer. What may have been done already is not called undone.
    pub fn fail(&self, error: &Error) {
        self.finish(Reply::Failed(match error {
            Error::Unreachable(why) | Error::Authentication(why) if self.was_sent() => {
                Error::OutcomeUnknown(why.clone())
            }
            Error::Refused { code, detail } if self.was_sent() => Error::OutcomeUnknown(format!(
                "no answer came, and on connecting again: {code} {detail}"
            )),
            error => error.clone(),
        }));
    }

    /// Wakes the waiter. False when there is none.
    pub fn wake(&self) -> bool {
        if let Some(waiter) = &self.waiter {
            waiter.unpark();
        }
        self.waiter.is_some()
    }

    /// The reply, if it is there.
    pub fn reply(&self) -> Option<&Reply> {
        self.reply.get()
    }

    /// Whether anybody still wants the reply.
    pub fn wanted(&self) -> bool {
        // Acquire/Release pairs with `leave`: what the waiter saw before it left stays before.
        self.reply.get().is_none() && !self.gone.load(Ordering::Acquire)
    }

    /// The waiter goes away without a reply.
    pub fn leave(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// The leader is about to send the step.
    pub fn mark_sent(&self) {
        self.sent.store(true, Ordering::Release);
    }

    /// The server has said that it did not run the step.
    pub fn mark_not_run(&self) {
        self.sent.store(false, Ordering::Release);
    }

    /// Whether the server may have run the step.
    pub fn was_sent(&self) -> bool {
        self.sent.load(Ordering::Acquire)
    }
}
