//! A step: one thing that one caller wants the server to do, and the place where its reply arrives.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::caller::Caller;
use crate::clock;
use crate::combine::Combiner;
use crate::error::Error;
use crate::names::Name;
use crate::safety::Safety;

/// A lock's owner's proof: 128 random bits, in hexadecimal, or what the owner has chosen.
pub type Token = Arc<[u8]>;

/// What the server is asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ask {
    /// Change a stock, not below zero.
    Update {
        /// The lock's name.
        lock: Name,
        /// The stock's key.
        key: Name,
        /// What to add.
        change: i64,
        /// With what the caller may.
        right: Right,
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
        /// The lease, in milliseconds; for ever without.
        lease: Option<u64>,
        /// The token may hold the lock already.
        again: bool,
        /// A fence is wanted.
        fenced: bool,
        /// This attempt, whose place it is, too.
        attempt: Attempt,
        /// The place in the queue of all processes.
        place: Option<QueuePlace>,
    },
    /// Give a lock back.
    Release {
        /// The lock's name.
        lock: Name,
        /// The token that shall be there; none to give up a place only.
        token: Option<Token>,
        /// The attempt that must have left it there, if others may have chosen the same token.
        by: Option<Attempt>,
        /// The place to give up, too.
        place: Option<Attempt>,
    },
    /// Set how much longer the token holds a lock.
    Extend {
        /// The lock's name.
        lock: Name,
        /// The token that shall be there.
        token: Token,
        /// Milliseconds.
        ms: u64,
        /// What they are.
        how: Extension,
    },
    /// Look who holds a lock.
    Holder {
        /// The lock's name.
        lock: Name,
    },
}

/// With what right a caller changes a stock that a lock guards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Right {
    /// The lock is free.
    Free,
    /// The lock is free, or held with this token.
    Own(Token),
    /// The lock is held with this token, and no other right will do.
    Held(Token),
    /// The lock is at another node, and was seen to there.
    Elsewhere,
}

/// One attempt to take a lock, and who one is in the queue of all processes: 128 random bits.
pub type Attempt = [u8; 32];

/// A place in the queue of all processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueuePlace {
    /// When its owner came.
    pub arrived: Instant,
    /// Whether to wait there, if the lock is not to be had.
    pub waits: bool,
    /// Whether to overtake nobody, although the lock is free.
    pub fair: bool,
}

/// What becomes of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extension {
    /// So much longer than now.
    Add,
    /// So long from now on.
    Replace,
    /// The same, also for a lock that has no lease.
    Reset,
}

impl Ask {
    /// The name in whose slot, and under which, the outcome is recorded.
    pub fn recorded_under(&self) -> &Name {
        match self {
            Self::Update { key, .. } | Self::Incr { key, .. } => key,
            Self::Acquire { lock, .. }
            | Self::Release { lock, .. }
            | Self::Extend { lock, .. }
            | Self::Holder { lock } => lock,
        }
    }
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
    /// Somebody else is before the caller in the queue.
    Queued {
        /// Who that is.
        behind: Attempt,
        /// When that place is void, if it is not renewed.
        until: Instant,
    },
    /// The lock is the caller's, with this fence, if one was wanted.
    Acquired {
        /// 0 without.
        fence: u64,
    },
    /// The lease ends so long after the server has said so.
    Extended(Duration),
    /// This token holds the lock, or nobody.
    Holder(Option<Token>),
    /// The lock is not held by the token that must.
    Lost,
    /// The lock was given back.
    Released,
    /// The lock was not the token's.
    Foreign,
    /// It was not done, nor will it be: the right to it was over before.
    Late,
    /// It could not be done, or could not be told.
    Failed(Error),
}

/// A step in a queue or batch.
///
/// | `reply` | `fate` | meaning |
/// |---|---|---|
/// | empty | none | somebody waits for the reply; the step is in the queue or in a batch |
/// | empty | `SENT` | it may have been done |
/// | empty | `LEFT` | the caller has left before it was sent: it never will be |
/// | empty | both | the caller has left while it was under way |
/// | set | any | answered; the caller was told |
///
/// `reply` is set once, by the leader. `SENT` is set by the leader before the first byte leaves the
/// process, and taken back if the server says that it did not run it; `LEFT` is set once, by the
/// caller. Whichever comes first sees that the other did not: so what was not sent when its caller
/// left is not sent any more, and what was is known to be under way.
#[derive(Debug)]
pub struct Step {
    /// What the server is asked to do.
    pub ask: Ask,
    /// The server must not do it after this, and the caller is gone by then.
    pub deadline: Instant,
    /// The place in the order of arrival; a step that tries again keeps its caller's.
    pub place: u64,
    /// Who waits for the reply.
    pub caller: Caller,
    /// How safe what is done must be before the caller is told.
    pub safety: Safety,
    /// Nor must the server do it after this, though the caller is still there to be told whether it did:
    /// the lease ends under which it is asked for.
    pub right_ends: Option<Instant>,
    reply: OnceLock<Reply>,
    fate: AtomicU8,
    /// When the caller left; set before the mark, but for a step that was not sent by then.
    left: OnceLock<Instant>,
    /// In a cluster: with which node it waits; none while nobody knows which one it is for.
    home: Mutex<Weak<Combiner>>,
}

const SENT: u8 = 1;
const LEFT: u8 = 2;

impl Step {
    /// A step that nobody has seen yet.
    pub fn new(ask: Ask, deadline: Instant, place: u64, caller: Caller) -> Self {
        let (reply, left, fate) = (OnceLock::new(), OnceLock::new(), AtomicU8::new(0));
        let (safety, right_ends, home) = Default::default();
        Self { ask, deadline, place, caller, safety, right_ends, reply, fate, left, home }
    }

    /// The same, but the right to it lasts until then only.
    pub fn with_right_until(self, right_ends: Option<Instant>) -> Self {
        Self { right_ends, ..self }
    }

    /// The same, but what is done must be so safe before the caller is told.
    pub fn with_safety(self, safety: Safety) -> Self {
        Self { safety, ..self }
    }

    /// In a cluster: with which node it waits.
    pub fn home(&self) -> Option<Arc<Combiner>> {
        self.home.lock().unwrap_or_else(PoisonError::into_inner).upgrade()
    }

    /// In a cluster: it waits there from now on.
    pub fn moves_to(&self, home: Option<&Arc<Combiner>>) {
        let home = home.map(Arc::downgrade).unwrap_or_default();
        *self.home.lock().unwrap_or_else(PoisonError::into_inner) = home;
    }

    /// Hands out the reply, and tells who waits for it: a task by leaving its ticket, and the leader
    /// rings for all of them.
    pub fn finish(&self, reply: Reply) {
        if self.reply.set(reply).is_ok() {
            self.caller.tell();
        }
    }

    /// There will be no answer. What may have been done already is not called undone.
    pub fn fail(&self, error: &Error) {
        self.finish(Reply::Failed(match error {
            Error::Unreachable(why) | Error::Authentication(why) if self.was_sent() => {
                Error::OutcomeUnknown(why.clone())
            }
            Error::NoLogin(unknown) if self.was_sent() => {
                Error::OutcomeUnknown(unknown.why.clone())
            }
            Error::Refused { code, detail } if self.was_sent() => Error::OutcomeUnknown(format!(
                "no answer came, and on connecting again: {code} {detail}"
            )),
            error => error.clone(),
        }));
    }

    /// The reply, if it is there.
    pub fn reply(&self) -> Option<&Reply> {
        self.reply.get()
    }

    /// Whether anybody still wants the reply.
    pub fn wanted(&self) -> bool {
        self.reply.get().is_none() && self.fate.load(Ordering::Acquire) & LEFT == 0
    }

    /// The caller goes away without a reply. True when the step may have been done, or may yet be.
    pub fn leave(&self) -> bool {
        let _ = self.left.set(clock::now());
        self.fate.fetch_or(LEFT, Ordering::AcqRel) & SENT != 0
    }

    /// The caller goes away if it has not been sent: then it never will be. False if it has been.
    pub fn leave_unsent(&self) -> bool {
        self.fate.compare_exchange(0, LEFT, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Until when it is of use, if an attempt may take `patience`: not for long after the caller has
    /// gone, however often the batch is asked for again for others.
    pub fn limit(&self, patience: Duration) -> Instant {
        let left = self.left.get();
        left.map_or(self.deadline, |left| self.deadline.min(*left + patience))
    }

    /// Until when the server may do it; whether it did may be asked for longer.
    pub fn applied_by(&self, patience: Duration) -> Instant {
        let limit = self.limit(patience);
        self.right_ends.map_or(limit, |ends| limit.min(ends))
    }

    /// Whether the right to it is over.
    pub fn is_past_right(&self, now: Instant) -> bool {
        self.right_ends.is_some_and(|ends| ends <= now)
    }

    /// The leader is about to send the step. False when its caller has left before: do not.
    pub fn mark_sent(&self) -> bool {
        let first = self.fate.compare_exchange(0, SENT, Ordering::AcqRel, Ordering::Acquire);
        first.map_or_else(|fate| fate & SENT != 0, |_| true)
    }

    /// The server has said that it did not run the step.
    pub fn mark_not_run(&self) {
        self.fate.fetch_and(!SENT, Ordering::AcqRel);
    }

    /// Whether the server may have run the step.
    pub fn was_sent(&self) -> bool {
        self.fate.load(Ordering::Acquire) & SENT != 0
    }
}
