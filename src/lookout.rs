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
//! | a primary | ended, for nobody used the connection | who uses it again has it started, and it looks at once |

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::candidates::Candidate;
use crate::clock;
use crate::connect::{Opening, Purpose};
use crate::random;
use crate::sentinel::Search;
use crate::settings::{Address, Place, Service, Settings};
use crate::thread;
use crate::tls::Tls;

/// How often a sentinel is asked, by chance up to half of it less, so that a crowd does not ask in step.
const INTERVAL_MS: u32 = 600;

/// How long the thread stays when the connection is not used.
const LINGER: Duration = Duration::from_secs(10);

/// How long the thread does nothing else while it looks.
const SLICE: Duration = Duration::from_millis(100);

/// See the module's description.
pub struct Lookout {
    settings: Arc<Settings>,
    /// How to talk to sentinels: its files are read once.
    tls: Option<Tls>,
    state: Mutex<State>,
    /// How often connections had to be left.
    moves: AtomicU64,
    /// Relaxed: a glance that misses it is followed by others.
    used: AtomicBool,
    /// The thread has ended, and somebody may want it again. Changed under the lock of the state.
    rests: AtomicBool,
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
        let Place::Sentinel(service) = &settings.place else { return None };
        let (settings, tls) = (Arc::clone(settings), service.tls.clone());
        let (state, moves, used, rests) = Default::default();
        Some(Arc::new(Self { settings, tls, state, moves, used, rests }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts the times at which connections had to be left: one that was begun at another count has to be.
    pub fn moves(&self) -> u64 {
        self.moves.load(Ordering::Acquire)
    }

    /// The connection is in use.
    pub fn used(self: &Arc<Self>) {
        self.used.store(true, Ordering::Relaxed);
        if self.rests.load(Ordering::Relaxed) {
            let mut state = self.state();
            if state.watched.is_some() {
                self.start(&mut state, true);
            }
        }
    }

    /// Looks after the primary that a connection leads to, which was begun at the count `begun`. The count
    /// at which it has not to be left.
    pub fn watch(self: &Arc<Self>, primary: Candidate, begun: u64) -> u64 {
        let mut state = self.state();
        let former = state.watched.replace(primary);
        // Who found the way without us leaves others behind.
        let moved = former.is_some_and(|former| Some(former.address) != state.address());
        if moved {
            self.moves.fetch_add(1, Ordering::Release);
        }
        state.closing = false;
        self.used.store(true, Ordering::Relaxed);
        self.start(&mut state, false);
        begun + u64::from(moved)
    }

    /// Whether another primary is looked after.
    pub fn is_elsewhere(&self, primary: &Candidate) -> bool {
        let state = self.state();
        state.watched.as_ref().is_some_and(|watched| watched.address != primary.address)
    }

    fn start(self: &Arc<Self>, state: &mut State, at_once: bool) {
        self.rests.store(false, Ordering::Relaxed);
        if state.thread.is_none() {
            let me = Arc::clone(self);
            // Without a thread it goes as it went before there was one: the server says so at last.
            state.thread = thread::start("seckill-lookout", move || me.run(at_once)).ok();
        }
    }

    /// Ends the thread.
    pub fn close(&self) {
        let mut state = self.state();
        state.closing = true;
        state.thread.iter().for_each(Thread::unpark);
    }

    fn run(&self, at_once: bool) {
        let mut turn = random::below(1 << 16) as usize;
        let (mut idle_since, mut waits) = (None, !at_once);
        loop {
            if std::mem::replace(&mut waits, true) {
                let pause = INTERVAL_MS - random::below(INTERVAL_MS / 2);
                std::thread::park_timeout(Duration::from_millis(u64::from(pause)));
            }
            if self.used.swap(false, Ordering::Relaxed) {
                idle_since = None;
            }
            let idle = clock::since(*idle_since.get_or_insert_with(clock::now)) >= LINGER;
            let watched = {
                let mut state = self.state();
                if idle || state.closing {
                    state.thread = None;
                    self.rests.store(!state.closing, Ordering::Relaxed);
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
        let mut search = Search::begin(&self.settings, &Arc::new(service), self.tls.as_ref());
        let named = self.patiently(|until| search.advance(until).map_err(|_no_answer| ()));
        named.is_some_and(|named| named.iter().any(|one| one.replaces(watched)))
    }

    /// Where one comes to who connects now. That confirms nothing to those who are connected elsewhere.
    fn look(&self) -> Option<Candidate> {
        let Place::Sentinel(service) = &self.settings.place else { return None };
        let place = Place::Sentinel(Arc::new((**service).clone()));
        let settings = Arc::new(Settings { place, ..(*self.settings).clone() });
        let mut opening = Opening::begin(&settings, &Arc::default(), Purpose::Work);
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
            // Whoever is connected has to connect anew.
            state.watched = None;
            self.moves.fetch_add(1, Ordering::Release);
        } else if found.address == watched.address {
            // It was replaced, and came back.
            state.watched = Some(found);
        }
    }
}

impl State {
    fn address(&self) -> Option<Address> {
        self.watched.as_ref().map(|watched| watched.address.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Newest;

    #[test]
    fn who_goes_elsewhere_by_himself_leaves_others_behind() {
        let service = Service {
            name: "mymaster".to_owned(),
            sentinels: Vec::new(),
            tls: None,
            username: None,
            password: None,
            newest: Newest::default(),
        };
        let place = Place::Sentinel(Arc::new(service));
        let lookout = Lookout::new(&Arc::new(Settings { place, ..Settings::default() }));
        let lookout = lookout.expect("there are sentinels");
        let at = |port| Candidate {
            address: Address::Tcp("10.0.0.1".to_owned(), port),
            epoch: 1,
            by_most: true,
            instead_of: None,
        };
        assert_eq!(lookout.watch(at(1), 0), 0);
        assert_eq!((lookout.watch(at(1), 0), lookout.moves()), (0, 0), "connected anew");
        assert!(!lookout.is_elsewhere(&at(1)));
        assert_eq!((lookout.watch(at(2), 0), lookout.moves()), (1, 1), "the ear has to go");
        assert!(lookout.is_elsewhere(&at(1)));
        let later = Candidate { epoch: 2, ..at(3) };
        lookout.compare(&at(1), later.clone());
        assert_eq!(lookout.moves(), 1, "that is not where anybody is");
        lookout.compare(&at(2), Candidate { by_most: false, ..later.clone() });
        assert_eq!(lookout.moves(), 1, "one of them says so");
        lookout.compare(&at(2), later);
        assert_eq!(lookout.moves(), 2);
        lookout.close();
    }
}
