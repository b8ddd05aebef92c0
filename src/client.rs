//! A client: one per process and configuration.
//!
//! Here is what the four functions do; what they are made of is `combine` (the way to the server),
//! `watch` (waiting for a lock), `holdings` (whose lock it is), `turnstile` (who is next).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::combine::Combiner;
use crate::error::{Error, Result};
use crate::holdings::Holdings;
pub use crate::holdings::Owner;
use crate::inherited::OpenFd;
use crate::names::Name;
use crate::patrol::{Patrol, SLICE};
use crate::random;
use crate::script;
use crate::session::Counts;
use crate::settings::Settings;
use crate::step::{Ask, Reply, Token};
use crate::turnstile::{Entered, Place, Turnstile};
use crate::watch::Ear;

/// How long an interrupted acquire waits for its undoing, before it leaves that to a thread.
const UNDO: Duration = Duration::from_millis(50);

/// See the module's description.
pub struct Client {
    settings: Arc<Settings>,
    combiner: Arc<Combiner>,
    ear: Arc<Ear>,
    holdings: Holdings,
    turnstile: Turnstile,
    counts: Arc<Counts>,
    open: Arc<OpenFd>,
}

impl Client {
    /// A client that has not connected yet: no I/O, no thread.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        script::prepare();
        let settings = Arc::new(settings);
        let counts = Arc::default();
        let open = Arc::default();
        Self {
            combiner: Arc::new(Combiner::new(&settings, &open, &counts)),
            ear: Ear::new(&settings),
            holdings: Holdings::default(),
            turnstile: Turnstile::default(),
            settings,
            counts,
            open,
        }
    }

    /// Where the server is.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Takes the lock for `lease`, waiting for it up to `time_out`. False when somebody else held it
    /// all the time; with a `time_out` of nothing it tries once.
    pub fn acquire_lock(
        &self,
        lock: &Name,
        lease: Duration,
        time_out: Duration,
        owner: Owner,
        patrol: &mut Patrol<'_>,
    ) -> Result<bool> {
        let started = Instant::now();
        let (patience, deadline) = self.bounds(started, time_out);
        let turn = if time_out.is_zero() {
            None
        } else {
            match self.turnstile.enter(lock, patience, patrol)? {
                Entered::Turn(place) => place,
                Entered::Held => return Ok(false),
            }
        };
        let (token, place) = (random::hex_bytes(), self.combiner.arrive());
        let lease_ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        let mut waiter = self.ear.waiter(lock);
        let mut renewed = false;
        let mut held = turn.as_ref().is_some_and(Place::lock_is_held);
        loop {
            let asked = Instant::now();
            let ask = Ask::Acquire { lock: Arc::clone(lock), token, lease: lease_ms };
            turn.iter().for_each(Place::asks);
            let reply = self.combiner.run(ask, deadline, place, patrol);
            if let (Some(turn), Ok(reply)) = (&turn, &reply) {
                turn.hears(matches!(reply, Reply::Held { .. }));
            }
            match reply {
                // Told so late that the lease may be over: ask for it anew, with the same token. Once:
                // a lease shorter than a round trip is nobody's for long.
                Ok(Reply::Acquired) if asked.elapsed() >= lease && !renewed => renewed = true,
                Ok(Reply::Acquired) => {
                    self.holdings.add(lock, owner, token, asked + lease);
                    return Ok(true);
                }
                Ok(Reply::Held { until }) => {
                    held = true;
                    if !waiter.sleep(until, patience, patrol)? {
                        return Ok(false);
                    }
                }
                Ok(reply) => return Err(unexpected(&reply)),
                Err(error) => {
                    self.undo_acquire(lock, token, lease, &error);
                    // The answer to an attempt of the last moment did not make it. What was heard a
                    // moment ago is answer enough.
                    let no_answer =
                        matches!(error, Error::OutcomeUnknown(_) | Error::Unreachable(_));
                    if no_answer && held && asked + SLICE >= patience {
                        return Ok(false);
                    }
                    return Err(error);
                }
            }
        }
    }

    /// An acquire that may yet succeed must leave no lock behind that nobody holds.
    fn undo_acquire(&self, lock: &Name, token: Token, lease: Duration, error: &Error) {
        if !matches!(error, Error::Interrupted | Error::OutcomeUnknown(_)) {
            return;
        }
        // No longer than a call without a time-out of its own; then it is for the lease to end it.
        let until =
            Instant::now() + lease.min(self.settings.timeout) + self.settings.socket_timeout;
        let undoing =
            self.combiner.run_orphan(Ask::Release { lock: Arc::clone(lock), token }, until);
        let patience = if *error == Error::Interrupted { UNDO } else { Duration::ZERO };
        let end = Instant::now() + patience;
        while undoing.wanted() && Instant::now() < end {
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Gives back what `owner`, or else another thread of this process, has acquired under this name.
    /// False when nothing was released, because nobody here held it or its lease had ended.
    pub fn release_lock(&self, lock: &Name, owner: Owner, patrol: &mut Patrol<'_>) -> Result<bool> {
        let Some(token) = self.holdings.to_release(lock, owner) else { return Ok(false) };
        let (_, deadline) = self.bounds(Instant::now(), self.settings.timeout);
        let ask = Ask::Release { lock: Arc::clone(lock), token };
        let reply = self.combiner.run(ask, deadline, self.combiner.arrive(), patrol)?;
        self.holdings.remove(lock, &token);
        self.ear.tell(lock);
        match reply {
            Reply::Released => Ok(true),
            Reply::Foreign => Ok(false),
            reply => Err(unexpected(&reply)),
        }
    }

    /// Changes a stock with no floor; creates it if need be.
    pub fn incr_inventory(&self, key: &Name, change: i64, patrol: &mut Patrol<'_>) -> Result<()> {
        let (_, deadline) = self.bounds(Instant::now(), self.settings.timeout);
        let ask = Ask::Incr { key: Arc::clone(key), change };
        let reply = self.combiner.run(ask, deadline, self.combiner.arrive(), patrol)?;
        changed(key, change, reply)
    }

    /// Changes a stock, never below zero, while the lock is free or held by `owner`; waits for it up
    /// to `time_out`.
    pub fn update_inventory(
        &self,
        lock: &Name,
        key: &Name,
        change: i64,
        time_out: Duration,
        owner: Owner,
        patrol: &mut Patrol<'_>,
    ) -> Result<()> {
        let (patience, deadline) = self.bounds(Instant::now(), time_out);
        let place = self.combiner.arrive();
        let mut waiter = None;
        loop {
            let token = self.holdings.token(lock, owner);
            let ask = Ask::Update { lock: Arc::clone(lock), key: Arc::clone(key), change, token };
            match self.combiner.run(ask, deadline, place, patrol)? {
                Reply::Held { until } => {
                    let waiter = waiter.get_or_insert_with(|| self.ear.waiter(lock));
                    if !waiter.sleep(until, patience, patrol)? {
                        return Err(Error::LockTimeout { lock: Arc::clone(lock), time_out });
                    }
                }
                reply => return changed(key, change, reply),
            }
        }
    }

    /// Closes the connections that are not in use; the next call opens them again.
    pub fn close(&self) {
        self.combiner.disconnect();
        self.ear.close();
    }

    /// What was done so far, by name.
    pub fn statistics(&self) -> [(&'static str, u64); 5] {
        let counts = &self.counts;
        [
            ("steps", &counts.steps),
            ("calls", &counts.calls),
            ("batches", &counts.batches),
            ("asked_again", &counts.asked_again),
            ("connects", &counts.connects),
        ]
        .map(|(name, count)| (name, count.load(Ordering::Relaxed)))
    }

    /// In a forked child, before this client is leaked: closes the parent's descriptors, no more.
    pub fn close_inherited(&self) {
        self.open.close_inherited();
        self.ear.close_inherited();
    }

    /// When a call stops to wait for a lock, and when it ends at the latest: one attempt it gets.
    fn bounds(&self, started: Instant, time_out: Duration) -> (Instant, Instant) {
        (started + time_out, started + time_out.max(self.settings.socket_timeout))
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.ear.close();
    }
}

fn changed(key: &Name, change: i64, reply: Reply) -> Result<()> {
    let key = Arc::clone(key);
    match reply {
        Reply::Changed => Ok(()),
        Reply::NoStock => Err(Error::NoInventory { key }),
        Reply::Insufficient { available } => {
            Err(Error::InsufficientInventory { key, available, change })
        }
        Reply::Invalid { value, reason } => Err(Error::InvalidInventory { key, value, reason }),
        reply => Err(unexpected(&reply)),
    }
}

/// The batch gives each kind of step its own kind of reply; another one would be a bug of ours.
#[cold]
fn unexpected(reply: &Reply) -> Error {
    Error::OutcomeUnknown(format!("the answer is of another kind: {reply:?}"))
}
