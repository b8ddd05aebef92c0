//! The lookout: under Sentinel, whether connections still lead to the primary.
//!
//! A primary that was replaced may live on and take writes, until the sentinels have reached it: for ten
//! seconds with their usual settings, and for as long as a partition lasts. Nothing on a connection to
//! it tells of that. So a thread asks the sentinels, one after the other, for as long as the connection
//! is used. When one of them names another primary it looks itself, as who connects does: all
//! sentinels, the largest epoch, the server's own word. If that leads elsewhere, and most sentinels say
//! so, connections are left; a single one may be wrong, and a minority cut off.
//!
//! | `watched` | thread | meaning |
//! |---|---|---|
//! | none | any | nobody is connected, or who is has been told to leave |
//! | a primary | runs | it is looked after |
//! | none | ended, for nobody used it | `moves` was counted up: who comes back connects anew |

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::candidates::Candidate;
use crate::clock;
use crate::connect::{Opening, Purpose};
use crate::random;
use crate::sentinel::Search;
use crate::settings::{Place, Service, Settings};
use crate::thread;

/// How often a sentinel is asked, by chance up to half of it less, so that a crowd does not ask in step.
const INTERVAL_MS: u32 = 600;

/// How long the thread stays when the connection is not used.
const LINGER: Duration = Duration::from_secs(10);

/// How long the thread does nothing else while it looks.
const SLICE: Duration = Duration::from_millis(100);

/// See the module's description.
pub struct Lookout {
    settings: Arc<Settings>,
    state: Mutex<State>,
    /// How often connections had to be left.
    moves: AtomicU64,
    used: AtomicBool,
}

#[derive(Default)]
struct State {
    watched: Option<Candidate>,
    thread: Option<Thread>,
    closing: bool,
}

impl Lookout {
    /// One that looks at nothing yet, if there are sentinels to ask.
    pub fn new(settings: &Arc<Settings>) -> Option<Arc<Self>> {
        let Place::Sentinel(_) = settings.place else { return None };
        let (state, moves, used) = Default::default();
        Some(Arc::new(Self { settings: Arc::clone(settings), state, moves, used }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the times at which connections had to be left: one that was begun at another count has to be.
    pub fn moves(&self) -> u64 {
        self.moves.load(Ordering::Acquire)
    }

    /// The connection is in use.
    pub fn used(&self) {
        // Relaxed: a glance of the thread that misses it is followed by others.
        self.used.store(true, Ordering::Relaxed);
    }

    /// Looks after the primary that a connection leads to from now on.
    pub fn watch(self: &Arc<Self>, primary: Candidate) {
        self.used();
        let mut state = self.state();
        state.watched = Some(primary);
        state.closing = false;
        if state.thread.is_none() {
            let me = Arc::clone(self);
            // Without a thread it goes as it went before there was one: the server says so at last.
            state.thread = thread::start("seckill-lookout", move || me.run()).ok();
        }
    }

    /// Ends the thread.
    pub fn close(&self) {
        let mut state = self.state();
        state.closing = true;
        state.thread.iter().for_each(Thread::unpark);
    }

    fn run(&self) {
        let mut turn = random::below(1 << 16) as usize;
        let mut idle_since = None;
        loop {
            let pause = INTERVAL_MS - random::below(INTERVAL_MS / 2);
            std::thread::park_timeout(Duration::from_millis(u64::from(pause)));
            if self.used.swap(false, Ordering::Relaxed) {
                idle_since = None;
            }
            let idle = clock::since(*idle_since.get_or_insert_with(clock::now)) >= LINGER;
            let watched = {
                let mut state = self.state();
                if idle || state.closing {
                    self.leave(&mut state);
                    state.thread = None;
                    return;
                }
                state.watched.clone()
            };
            turn += 1;
            if let Some(watched) = watched
                && self.is_named_another(&watched, turn)
                && let Some(found) = self.look()
            {
                self.compare(&watched, found);
            }
        }
    }

    /// Whether the sentinel whose turn it is names a later primary.
    fn is_named_another(&self, watched: &Candidate, turn: usize) -> bool {
        let Place::Sentinel(service) = &self.settings.place else { return false };
        let Some(one) = service.sentinels.get(turn % service.sentinels.len().max(1)) else {
            return false;
        };
        let service = Service { sentinels: vec![one.clone()], ..(**service).clone() };
        let mut search = Search::begin(&self.settings, &Arc::new(service));
        let named = self.patiently(|until| search.advance(until).map_err(|_no_answer| ()));
        named.is_some_and(|named| named.iter().any(|one| one.replaces(watched)))
    }

    /// Where one comes to who connects now.
    fn look(&self) -> Option<Candidate> {
        let mut opening = Opening::begin(&self.settings, &Arc::default(), Purpose::Work);
        self.patiently(|until| opening.advance(until).map_err(|_no_way| ()))?.primary
    }

    /// Moves something on until there is an answer; none if there is no time for that any more.
    fn patiently<T>(&self, mut advance: impl FnMut(Instant) -> Result<Option<T>, ()>) -> Option<T> {
        while !self.state().closing {
            match advance(clock::now() + SLICE) {
                Ok(None) => {}
                Ok(found) => return found,
                Err(()) => return None,
            }
        }
        None
    }

    fn compare(&self, watched: &Candidate, found: Candidate) {
        let mut state = self.state();
        if state.watched.as_ref() != Some(watched) {
            return;
        }
        if found.by_most && found.replaces(watched) {
            self.leave(&mut state);
        } else if found.address == watched.address {
            // It was replaced, and came back.
            state.watched = Some(found);
        }
    }

    /// Whoever is connected has to connect anew.
    fn leave(&self, state: &mut State) {
        if state.watched.take().is_some() {
            self.moves.fetch_add(1, Ordering::Release);
        }
    }
}
