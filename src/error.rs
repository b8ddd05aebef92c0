//! What can go wrong, in the core's words. The edge maps it to Python's exceptions in one place.

use std::time::Duration;

use crate::login::Unknown;
use crate::names::Name;

/// Why a call did not do what it was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Error {
    /// The stock's key does not exist; nothing was created.
    NoInventory {
        /// The stock's key.
        key: Name,
    },
    /// The change would take the stock below zero; nothing was changed.
    InsufficientInventory {
        /// The stock's key.
        key: Name,
        /// What the stock was when the call was judged.
        available: i64,
        /// The change that was asked for.
        change: i64,
    },
    /// The stock is not a number that can be changed; nothing was changed.
    InvalidInventory {
        /// The stock's key.
        key: Name,
        /// What stands there, or its first bytes.
        value: Vec<u8>,
        /// What is wrong with it.
        reason: String,
    },
    /// The lock was held by somebody else all the time; nothing was changed.
    LockTimeout {
        /// The lock's name.
        lock: Name,
        /// How long the caller waited.
        time_out: Duration,
    },
    /// The lock under which the change was to be made is not held any more; nothing was changed.
    LockLost {
        /// The lock's name.
        lock: Name,
    },
    /// The server could not be reached, and the call's step was never sent.
    Unreachable(String),
    /// The step was sent, and no answer came in time.
    OutcomeUnknown(String),
    /// The server does not accept the credentials; nothing was sent but them.
    Authentication(String),
    /// Who was to tell user and password did not; nothing was sent.
    NoLogin(Unknown),
    /// It was done, but is not as safe as the caller wants it: a fail-over may undo it.
    NotReplicated {
        /// How many replicas are known to have it.
        acknowledged: u32,
        /// How many were to have it.
        wanted: u32,
        /// What is missing.
        why: String,
    },
    /// The same of a lock, which is given back: one that a fail-over may take away is none.
    LockNotReplicated {
        /// How many replicas are known to have it.
        acknowledged: u32,
        /// How many were to have it.
        wanted: u32,
        /// What is missing.
        why: String,
    },
    /// The server refused, and changed nothing.
    Refused {
        /// The first word of the server's error.
        code: String,
        /// The rest of it.
        detail: String,
    },
    /// The caller's own look (a signal handler) ended the wait.
    Interrupted,
    /// A signal handler forked, and this is the child: the call is the parent's.
    Forked,
}

impl Error {
    /// Why a server will not have us, in words: part of a longer sentence, where it is not the last word.
    pub(crate) fn words(&self) -> String {
        match self {
            Self::Unreachable(why) | Self::Authentication(why) => why.clone(),
            Self::NoLogin(unknown) => unknown.why.clone(),
            Self::Refused { code, detail } => format!("{code} {detail}"),
            other => format!("{other:?}"),
        }
    }
}

/// What the core's calls return.
pub type Result<T> = std::result::Result<T, Error>;

/// Whether an error is said instead of running a script, by a server that will be ready later.
#[must_use]
pub fn is_passing(code: &str) -> bool {
    matches!(code, "LOADING" | "BUSY" | "MASTERDOWN" | "TRYAGAIN" | "CLUSTERDOWN")
}
