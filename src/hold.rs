//! One acquisition of a lock, and for how long it is provably ours.
//!
//! | phase | meaning | next |
//! |---|---|---|
//! | `Held` | ours at least until `ends`, by our clock; after that, who knows | all |
//! | `Leaving` | a release was begun: nobody relies on it, or renews it, any more | `Released`, `Lost` |
//! | `Released` | it was given back | none |
//! | `Lost` | the lease has ended, or the server said that the lock is another's | `Leaving` |
//!
//! `ends` is counted from before the question that was answered, so it comes before the server's own
//! end of the lease, whatever the answer's way took. And it is a millisecond earlier than that: Redis 8 is
//! seen to end a lease in the millisecond before, for its clock has no finer one. Invariant: the server's end is never before it,
//! also while questions that change it are under way, have got no answer, or got theirs in another
//! order than the server's:
//!
//! - who asks to *set* the end believes from then on in the sooner of the two, the old and the new;
//! - once one of them is known to have been set, the end is not before the soonest of all that were
//!   under way with it, whichever was the last on the server; what is added makes nothing sooner.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use crate::caller::Caller;
use crate::clock;
use crate::fork;
use crate::names::Name;
use crate::step::Token;

/// How much sooner than its time a server may end a lease.
const GRAIN: Duration = Duration::from_millis(1);

/// When a lease is provably held until, by a question asked then and an answer that so much is left.
#[must_use]
pub fn provable_end(asked: Instant, left: Duration) -> Option<Instant> {
    asked.checked_add(left.saturating_sub(GRAIN))
}

/// See the module's description.
#[derive(Debug)]
pub struct Hold {
    /// The lock's name.
    pub lock: Name,
    /// The token that stands there.
    pub token: Token,
    /// Grows with every acquisition of that name; 0 where none was wanted.
    pub fence: u64,
    tally: Option<Arc<Tally>>,
    /// Who looks after it, and has to know when it ends sooner.
    watcher: OnceLock<Caller>,
    /// In a child of a fork it may be locked for ever.
    state: Mutex<State>,
    generation: u64,
}

#[derive(Debug)]
struct State {
    phase: Phase,
    /// None: it does not end by itself.
    ends: Option<Instant>,
    /// How many changes of the end are under way.
    changes: usize,
    /// They were more than one at some time.
    mixed: bool,
    /// The soonest end that any of them may have set.
    soonest: Option<Instant>,
}

/// A change of the end that is under way.
#[derive(Debug)]
pub struct Change {
    asked: Instant,
    by: Duration,
    adds: bool,
    /// What was believed before.
    before: Option<Instant>,
}

/// How a [`Change`] went.
#[derive(Debug, Clone, Copy)]
pub enum Changed {
    /// The server says that from when it was made, so much was left.
    Left(Duration),
    /// It was not made, and will not be.
    Not,
    /// Nobody knows.
    Unknown,
}

/// See the module's description.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// See the table.
    Held,
    /// See the table.
    Leaving,
    /// See the table.
    Released,
    /// See the table.
    Lost,
}

/// What a handle, through all its acquisitions, has done so far.
#[derive(Debug, Default)]
pub struct Tally {
    /// Acquisitions.
    pub acquired: AtomicU64,
    /// Waits that ended without.
    pub refused: AtomicU64,
    /// Acquisitions that were given back.
    pub released: AtomicU64,
    /// Acquisitions that were over before they were given back.
    pub lost: AtomicU64,
    /// Renewals of leases.
    pub renewed: AtomicU64,
    /// Microseconds of waiting for the lock.
    pub waited: AtomicU64,
}

impl Tally {
    /// One more.
    pub fn add(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

impl Hold {
    /// An acquisition that the server has granted.
    pub fn new(
        lock: &Name,
        token: &Token,
        fence: u64,
        ends: Option<Instant>,
        tally: Option<&Arc<Tally>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            lock: Arc::clone(lock),
            token: Arc::clone(token),
            fence,
            tally: tally.map(Arc::clone),
            watcher: OnceLock::new(),
            state: Mutex::new(State {
                phase: Phase::Held,
                ends,
                changes: 0,
                mixed: false,
                soonest: None,
            }),
            generation: fork::generation(),
        })
    }

    /// Whether it is this process's, and not that of one that forked us.
    #[must_use]
    pub fn is_ours(&self) -> bool {
        self.generation == fork::generation()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How it stands.
    pub fn phase(&self) -> Phase {
        self.state().phase
    }

    /// When the lease ends; none if it does not.
    pub fn ends(&self) -> Option<Instant> {
        self.state().ends
    }

    /// Whether it is over without having been given back.
    #[must_use]
    pub fn is_lost(&self, now: Instant) -> bool {
        if !self.is_ours() {
            return false;
        }
        let state = self.state();
        match state.phase {
            Phase::Held => state.ends.is_some_and(|ends| ends <= now),
            Phase::Lost => true,
            Phase::Leaving | Phase::Released => false,
        }
    }

    /// How long it is provably ours; [`Duration::MAX`] if it does not end by itself.
    #[must_use]
    pub fn remaining(&self, now: Instant) -> Duration {
        if !self.is_ours() {
            return Duration::ZERO;
        }
        let state = self.state();
        match (state.phase, state.ends) {
            (Phase::Held, Some(ends)) => ends.saturating_duration_since(now),
            (Phase::Held, None) => Duration::MAX,
            _ => Duration::ZERO,
        }
    }

    /// From now on this one looks after it.
    pub fn watch(&self, watcher: &Caller) {
        self.watcher.get_or_init(|| watcher.clone());
    }

    /// The server is about to be asked to set the end, or to add to what is left.
    pub fn change(&self, by: Duration, adds: bool) -> Change {
        let mut state = self.state();
        let (asked, before) = (clock::now(), state.ends);
        state.mixed = state.changes > 0;
        state.changes += 1;
        if state.changes == 1 {
            state.soonest = None;
        }
        if !adds && let Some(ends) = provable_end(asked, by) {
            state.soonest = sooner(state.soonest, Some(ends));
            let ends = sooner(before, Some(ends));
            self.set_end(state, ends);
        }
        Change { asked, by, adds, before }
    }

    /// A change has gone like this.
    pub fn changed(&self, change: &Change, how: Changed) {
        let mut state = self.state();
        state.changes -= 1;
        let alone = !state.mixed;
        let ends = match how {
            // What is added to makes nothing sooner; and an answer that took long is no reason to
            // believe in less than before, and what was added.
            Changed::Left(left) if change.adds && alone => {
                let added = change.before.and_then(|before| before.checked_add(change.by));
                provable_end(change.asked, left).max(added)
            }
            // Whichever was the last to be set, it is not before the soonest of them.
            Changed::Left(_) if !change.adds => state.soonest,
            Changed::Not if alone => change.before,
            Changed::Left(_) | Changed::Not | Changed::Unknown => state.ends,
        };
        self.set_end(state, ends);
    }

    fn set_end(&self, mut state: MutexGuard<'_, State>, ends: Option<Instant>) {
        let former = std::mem::replace(&mut state.ends, ends);
        let is_sooner = ends.is_some_and(|ends| former.is_none_or(|former| ends < former));
        drop(state);
        if is_sooner && let Some(watcher) = self.watcher.get() {
            watcher.wake();
        }
    }

    /// A release begins; also of what is lost, as far as we know.
    pub fn leave(&self) {
        let mut state = self.state();
        if state.phase != Phase::Released {
            state.phase = Phase::Leaving;
        }
    }

    /// It was given back.
    pub fn release(&self) {
        self.end(Phase::Leaving, Phase::Released, |tally| &tally.released);
    }

    /// It was to be given back, and was over already.
    pub fn release_lost(&self) {
        self.end(Phase::Leaving, Phase::Lost, |tally| &tally.lost);
    }

    /// It is over, and nobody was about to give it back.
    pub fn lose(&self) {
        self.end(Phase::Held, Phase::Lost, |tally| &tally.lost);
    }

    fn end(&self, from: Phase, to: Phase, counter: impl FnOnce(&Tally) -> &AtomicU64) {
        let mut state = self.state();
        if state.phase != from {
            return;
        }
        state.phase = to;
        drop(state);
        if let Some(tally) = &self.tally {
            Tally::add(counter(tally));
        }
        // There is something to tell, or nothing to look after any more.
        if let Some(watcher) = self.watcher.get() {
            watcher.wake();
        }
    }
}

/// The sooner of two ends, where none is never.
fn sooner(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    one.into_iter().chain(other).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn hold(ends: Option<Instant>, tally: &Arc<Tally>) -> Arc<Hold> {
        Hold::new(&Name::from(&b"lock"[..]), &Token::from(&b"token"[..]), 1, ends, Some(tally))
    }

    #[test]
    fn it_is_provably_held_until_its_end_and_lost_after() {
        let (now, tally) = (clock::now(), Arc::default());
        let ending = hold(Some(now + SECOND), &tally);
        assert_eq!((ending.remaining(now), ending.is_lost(now)), (SECOND, false));
        let after = now + SECOND;
        assert_eq!((ending.remaining(after), ending.is_lost(after)), (Duration::ZERO, true));
        let change = ending.change(2 * SECOND, false);
        ending.changed(&change, Changed::Left(2 * SECOND));
        assert!(ending.remaining(now) > SECOND, "it was ours after all");
        assert!(!ending.is_lost(after));
        let endless = hold(None, &tally);
        assert_eq!((endless.remaining(after), endless.is_lost(after)), (Duration::MAX, false));
    }

    #[test]
    fn who_leaves_relies_on_nothing_and_has_lost_nothing() {
        let (now, tally) = (clock::now(), Arc::default());
        let leaving = hold(Some(now + SECOND), &tally);
        leaving.leave();
        assert_eq!(leaving.remaining(now), Duration::ZERO);
        assert!(!leaving.is_lost(now + SECOND));
        let change = leaving.change(2 * SECOND, false);
        leaving.changed(&change, Changed::Left(2 * SECOND));
        assert_eq!(leaving.phase(), Phase::Leaving);
        leaving.lose();
        leaving.release();
        leaving.release_lost();
        assert_eq!(leaving.phase(), Phase::Released);
        let counts = (&tally.released, &tally.lost);
        assert_eq!((counts.0.load(Ordering::Relaxed), counts.1.load(Ordering::Relaxed)), (1, 0));
    }

    /// What stands at the server, and questions and answers in any order.
    #[derive(Debug, Clone, Copy)]
    enum Event {
        Ask { by: u64, adds: bool },
        Run(usize),
        Hear(usize),
        Forget(usize),
        Refuse(usize),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (1u64..100, any::<bool>()).prop_map(|(by, adds)| Event::Ask { by, adds }),
            (0usize..4).prop_map(Event::Run),
            (0usize..4).prop_map(Event::Run),
            (0usize..4).prop_map(Event::Hear),
            (0usize..4).prop_map(Event::Hear),
            (0usize..4).prop_map(Event::Forget),
            (0usize..4).prop_map(Event::Refuse),
        ]
    }

    struct Asked {
        change: Change,
        by: Duration,
        adds: bool,
        /// What the server said.
        left: Option<Duration>,
    }

    proptest! {
        /// Whatever is under way, unanswered, or answered out of order.
        #[test]
        fn the_server_never_ends_it_before_we_do(events in proptest::collection::vec(event(), 1..60)) {
            let (begun, tally) = (clock::now(), Arc::default());
            // Far enough away that no time passes to speak of.
            let scale = Duration::from_mins(1);
            let mut server = begun + 50 * scale;
            let ours = hold(Some(server), &tally);
            let mut asked: Vec<Asked> = Vec::new();
            for event in events {
                match event {
                    Event::Ask { by, adds } => {
                        let by = scale * u32::try_from(by).expect("small");
                        asked.push(Asked { change: ours.change(by, adds), by, adds, left: None });
                    }
                    Event::Run(index) if index < asked.len() => {
                        let it = &mut asked[index];
                        if it.left.is_none() {
                            let now = clock::now();
                            server = if it.adds { server + it.by } else { now + it.by };
                            it.left = Some(server - now);
                        }
                    }
                    Event::Hear(index) if index < asked.len() && asked[index].left.is_some() => {
                        let it = asked.remove(index);
                        ours.changed(&it.change, Changed::Left(it.left.expect("it ran")));
                    }
                    // The session sees to it that what nobody waits for does not run after what came later.
                    Event::Forget(index) if index < asked.len() => {
                        let it = asked.remove(index);
                        ours.changed(&it.change, Changed::Unknown);
                    }
                    Event::Refuse(index) if index < asked.len() && asked[index].left.is_none() => {
                        let it = asked.remove(index);
                        ours.changed(&it.change, Changed::Not);
                    }
                    _ => {}
                }
                prop_assert!(ours.ends().expect("it ends") <= server);
            }
        }
    }
}
