//! What a caller wants, and what comes of it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::hold::{Hold, Tally};
use crate::names::Name;
use crate::renewer::Keep;
use crate::step::{Extension, Token};

/// What a caller wants.
pub enum Wish {
    /// Take a lock; [`Outcome::Done`] with false when somebody else held it, or was before us, all the
    /// time.
    Acquire {
        /// The lock's name.
        lock: Name,
        /// On what terms.
        terms: Terms,
    },
    /// Give back what the owner, or else another owner of this process, has acquired. False when
    /// nothing was released, because nobody here held it or its lease had ended.
    Release {
        /// The lock's name.
        lock: Name,
    },
    /// Give back what was acquired with this token. False when the lock was not the token's.
    GiveBack(Acquisition),
    /// Set how much longer the token holds the lock. False when the lock was not the token's.
    Extend {
        /// Which acquisition it is about.
        of: Acquisition,
        /// Milliseconds.
        ms: u64,
        /// What they are.
        how: Extension,
    },
    /// Look who holds the lock.
    Holder {
        /// The lock's name.
        lock: Name,
    },
    /// Change a stock with no floor; create it if need be.
    Incr {
        /// The stock's key.
        key: Name,
        /// What to add.
        change: i64,
    },
    /// Change a stock, never below zero, while the lock is free or the owner's.
    Update {
        /// The lock's name.
        lock: Name,
        /// The stock's key.
        key: Name,
        /// What to add.
        change: i64,
        /// Only while this token holds the lock.
        proof: Option<Token>,
        /// For how long the lock is taken, where no step can see both.
        lease: Duration,
    },
    /// Change a stock, never below zero, under a lock that is at another node.
    Change {
        /// The stock's key.
        key: Name,
        /// What to add.
        change: i64,
        /// Until when that lock is provably held; for ever without. [`Outcome::Done`] with false when
        /// the change was not made before, and never will be.
        until: Option<Instant>,
    },
    /// Have everything done that is still to be undone, and close the connections.
    Close,
}

/// On what terms a lock is taken.
#[derive(Default)]
pub struct Terms {
    /// How long it is held at the most, if nobody extends it; for ever without.
    pub lease: Option<Duration>,
    /// The token to leave there; a random one without.
    pub token: Option<Token>,
    /// In order of arrival among those of all processes who want that, too.
    pub fair: bool,
    /// A handle takes it: it is given back by its token, and has a fence.
    pub handle: Option<Handle>,
}

/// What a handle wants besides the lock.
pub struct Handle {
    /// Where to count.
    pub tally: Arc<Tally>,
    /// That it is looked after while it is held.
    pub keep: Option<Keep>,
}

/// An acquisition, by the token that stands at the lock; and what is known of it.
#[derive(Clone)]
pub struct Acquisition {
    /// The lock's name.
    pub lock: Name,
    /// The token.
    pub token: Token,
    /// None for a token that was handed over.
    pub hold: Option<Arc<Hold>>,
}

/// What came of a wish.
#[derive(Debug, Clone)]
pub enum Outcome {
    /// It was done, or it could not be.
    Done(bool),
    /// The lock is the caller's.
    Acquired(Arc<Hold>),
    /// This token holds the lock, or nobody.
    Holder(Option<Token>),
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (function, name) = match self {
            Self::Acquire { lock, .. } => ("acquire_lock", lock),
            Self::Release { lock } => ("release_lock", lock),
            Self::GiveBack(of) => ("release", &of.lock),
            Self::Extend { of, .. } => ("extend", &of.lock),
            Self::Holder { lock } => ("look", lock),
            Self::Incr { key, .. } => ("incr_inventory", key),
            Self::Update { key, .. } | Self::Change { key, .. } => ("update_inventory", key),
            Self::Close => return f.write_str("close"),
        };
        write!(f, "{function} of '{}'", String::from_utf8_lossy(name))
    }
}
