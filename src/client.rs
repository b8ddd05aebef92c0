//! A client: one per process and configuration.
//!
//! What the four functions do is in `call`; what they are made of is `route` (the way to the
//! server), `watch` (waiting for a lock), `holdings` (whose lock it is), `turnstile` (who is next).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::call::{Call, Progress};
use crate::clock;
use crate::error::{Error, Result};
use crate::holdings::Holdings;
use crate::patrol::Patrol;
use crate::route::Route;
use crate::script;
use crate::session::Counts;
use crate::settings::Settings;
use crate::turnstile::Turnstile;
use crate::wish::Outcome;

/// How long an interrupted acquire waits for its undoing, before it leaves that to a thread.
const UNDO: Duration = Duration::from_millis(50);

/// See the module's description.
pub struct Client {
    settings: Arc<Settings>,
    pub(crate) route: Route,
    pub(crate) holdings: Holdings,
    pub(crate) turnstile: Arc<Turnstile>,
    counts: Arc<Counts>,
}

impl Client {
    /// A client that has not connected yet: no I/O, no thread.
    #[must_use]
    pub fn new(settings: Settings) -> Self {
        script::prepare();
        let settings = Arc::new(settings);
        let counts = Arc::default();
        Self {
            route: Route::new(&settings, &counts),
            holdings: Holdings::default(),
            turnstile: Arc::default(),
            settings,
            counts,
        }
    }

    /// Where the server is.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Drives a call of the calling thread to its end, and sleeps in between.
    pub fn wait(&self, mut call: Call, patrol: &mut Patrol<'_>) -> Result<Outcome> {
        loop {
            let until = match call.advance() {
                Progress::Wait(until) => until.min(patrol.next()),
                Progress::Done(outcome) => {
                    call.told();
                    return outcome;
                }
            };
            let asking = call.step();
            let led = asking.is_some_and(|step| self.route.lead(step, until));
            if !led && asking.is_none_or(|step| step.reply().is_none()) {
                std::thread::park_timeout(until.saturating_duration_since(clock::now()));
            }
            if let Err(error) = patrol.pass(clock::now()) {
                if error == Error::Interrupted {
                    interrupt(&mut call);
                }
                return Err(error);
            }
        }
    }

    /// Waits until all that nobody waits for is done, but not beyond `end`: before the process ends,
    /// and its threads with it.
    pub fn settle(&self, end: Instant) {
        while !self.route.settled() && clock::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Whether anybody of this process may hold a lock.
    #[must_use]
    pub fn holds_locks(&self) -> bool {
        !self.holdings.is_empty()
    }

    /// Closes the connections that are not in use; the next call opens them again.
    pub fn close(&self) {
        self.route.close();
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
        self.route.close_inherited();
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.close();
    }
}

#[cold]
fn interrupt(call: &mut Call) {
    let Some(undoing) = call.abandon() else { return };
    let end = clock::now() + UNDO;
    while undoing.wanted() && clock::now() < end {
        std::thread::sleep(Duration::from_micros(200));
    }
}
