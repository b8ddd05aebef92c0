//! Waiting for a lock that somebody else holds: sleeping until one is *told*, or until the holder's
//! lease ends, whichever is first.
//!
//! An *ear* is a second connection with `CLIENT TRACKING`, and the thread that reads it. It only ever
//! asks `EXISTS` and `PTTL`, so nothing that happens to it can change anything. A waiter's way:
//!
//! 1. its attempt fails, and says when the holder's lease ends;
//! 2. the ear asks `EXISTS lock`: the server remembers the interest, and whether the lock was freed
//!    in between is in the answer, so no wake-up is lost;
//! 3. the waiter sleeps until the ear hears of a change (a DEL, a SET, an expiry, by whomever), or the
//!    lease ends by the clock: the announcement of an *expiry* may come seconds late;
//! 4. it tries again, and on failure begins anew at 2.
//!
//! Turned down: the attempts themselves on the tracking connection. It saves a question per failed
//! attempt, off the path that a hand-off takes, and costs a second session that must be exactly once.
//!
//! | state of a watch | meaning | next |
//! |---|---|---|
//! | `Idle` | nobody listens; a change since the last attempt is in `news` | a sleeper makes it `Wanted` |
//! | `Wanted` | the ear shall ask | `Asked`; `Deaf` when there is no ear to be had |
//! | `Asked` | the question is under way | `Listening`; `Idle`, with news, if the lock is free |
//! | `Listening` | the server will tell | `Idle`, with news, when it does |
//! | `Deaf` | no tracking here: sleepers try again by themselves, less and less often | `Wanted` when the ear works |
//!
//! The lock of the board is held for moments, and never while anything else is waited for.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::caller::Caller;
use crate::candidates::Candidate;
use crate::clock;
use crate::fork;
use crate::inherited::OpenFd;
use crate::lookout::Lookout;
use crate::names::Name;
use crate::random;
use crate::settings::Settings;
use crate::transport::Line;

/// The longest pause between two attempts where nobody tells.
const LONGEST_PAUSE_MS: u32 = 64;

/// What an attempt may take. One that begins later than so long before the end would be cut off in
/// the middle, and leave an outcome that nobody knows where "still held" is all there is to say.
pub(crate) const ATTEMPT: Duration = Duration::from_millis(5);

/// Who waits for what, shared between the sleepers and the ear.
pub struct Ear {
    pub(crate) settings: Arc<Settings>,
    pub(crate) lookout: Option<Arc<Lookout>>,
    pub(crate) open: Arc<OpenFd>,
    pub(crate) open_bell: [Arc<OpenFd>; 2],
    board: Mutex<Board>,
}

#[derive(Default)]
pub(crate) struct Board {
    pub(crate) watches: HashMap<Name, Watch>,
    /// Wakes the ear's thread; none without a thread.
    pub(crate) bell: Option<Line>,
    pub(crate) closing: bool,
    next_sleeper: u64,
}

#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) state: State,
    /// Counts what was heard; a sleeper compares it with what it knew before its attempt.
    news: u64,
    /// When the last of them came.
    told: Option<Instant>,
    /// When the lease ends, as the ear was told.
    pub(crate) ends: Option<Instant>,
    /// By number, which is the order in which they fell asleep.
    sleepers: BTreeMap<u64, Caller>,
    users: usize,
}

#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    #[default]
    Idle,
    Wanted,
    Asked,
    Listening,
    Deaf,
}

impl Watch {
    /// Something happened to the lock: everybody who sleeps tries again. Those are to be woken as soon as
    /// the board is free, for the first thing that they do is to look at it.
    #[must_use]
    pub(crate) fn tell(&mut self) -> Vec<Caller> {
        self.news += 1;
        self.told = Some(clock::now());
        self.ends = None;
        if self.state != State::Deaf {
            self.state = State::Idle;
        }
        self.sleepers()
    }

    /// Everybody who sleeps, to be woken and to look at the watch again.
    #[must_use]
    pub(crate) fn sleepers(&self) -> Vec<Caller> {
        self.sleepers.values().cloned().collect()
    }
}

impl Ear {
    /// An ear that listens to nothing yet: no thread, no connection.
    pub fn new(settings: &Arc<Settings>, lookout: Option<&Arc<Lookout>>) -> Arc<Self> {
        let (settings, lookout) = (Arc::clone(settings), lookout.cloned());
        let (open, open_bell) = Default::default();
        Arc::new(Self { settings, lookout, open, open_bell, board: Mutex::default() })
    }

    /// In a forked child: closes what the parent's ear has open.
    pub fn close_inherited(&self) {
        self.open.close_inherited();
        self.open_bell.iter().for_each(|open| open.close_inherited());
    }

    pub(crate) fn board(&self) -> MutexGuard<'_, Board> {
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This process has just changed the lock itself.
    pub fn tell(&self, lock: &[u8]) {
        let told = self.board().watches.get_mut(lock).map(Watch::tell);
        told.iter().flatten().for_each(Caller::wake);
    }

    /// When there was news of `lock` last, for those who wait for it.
    pub fn told(&self, lock: &[u8]) -> Option<Instant> {
        self.board().watches.get(lock)?.told
    }

    /// How often connections had to be left, for they led to a primary no more.
    pub(crate) fn moves(&self) -> u64 {
        self.lookout.as_ref().map_or(0, |lookout| lookout.moves())
    }

    /// Whether another primary than this is sold at.
    pub(crate) fn is_elsewhere(&self, primary: Option<&Candidate>) -> bool {
        let both = self.lookout.as_ref().zip(primary);
        both.is_some_and(|(lookout, primary)| lookout.is_elsewhere(primary))
    }

    /// Somebody waits, and wants to be told by the primary.
    pub(crate) fn used(&self) {
        if let Some(lookout) = &self.lookout {
            lookout.used();
        }
    }

    /// Ends the thread and its connection.
    pub fn close(&self) {
        let mut board = self.board();
        board.closing = board.bell.is_some();
        board.ring();
    }

    /// Prepares to wait for `lock`.
    pub fn waiter(self: &Arc<Self>, lock: &Name) -> Waiter {
        let (ear, lock) = (Arc::clone(self), Arc::clone(lock));
        Waiter { ear, lock, known: None, tries: 0, nap: None, generation: fork::generation() }
    }
}

impl Board {
    /// Something may have happened to any lock. Those are to be woken who sleep.
    #[must_use]
    pub(crate) fn tell_all(&mut self) -> Vec<Caller> {
        self.watches.values_mut().flat_map(Watch::tell).collect()
    }

    /// Wakes the ear's thread.
    pub(crate) fn ring(&self) {
        if let Some(bell) = &self.bell {
            // A full one rings already. No SIGPIPE if the thread has just gone.
            let _ = bell.socket().send_with_flags(&[0], libc::MSG_NOSIGNAL);
        }
    }
}

/// One caller that waits for a lock, through all its attempts.
pub struct Waiter {
    ear: Arc<Ear>,
    lock: Name,
    /// The news that were known before the attempt at hand; none before the first wait.
    known: Option<u64>,
    tries: u32,
    nap: Option<Nap>,
    generation: u64,
}

/// The sleep between two attempts.
struct Nap {
    /// When the holder's lease ends, as the failed attempt said.
    held_until: Option<Instant>,
    /// How long to leave the server alone where nobody tells.
    pause: Instant,
    /// The number among the sleepers, once it is on the board.
    number: Option<u64>,
}

/// What a look at the watch says.
pub enum Look {
    /// Another attempt makes sense.
    Try,
    /// The time is over.
    Over,
    /// Sleep, until woken or until then.
    Sleep(Instant),
}

impl Waiter {
    /// Whether it waits for this, and is told by that ear.
    pub fn waits_for(&self, name: &Name, ear: &Arc<Ear>) -> bool {
        self.lock == *name && Arc::ptr_eq(&self.ear, ear)
    }

    /// After a failed attempt, which said when the holder's lease ends: begins to sleep.
    pub fn lie_down(&mut self, held_until: Option<Instant>) {
        self.known.get_or_insert_with(|| {
            let mut board = self.ear.board();
            let watch = board.watches.entry(Arc::clone(&self.lock)).or_default();
            watch.users += 1;
            watch.news
        });
        self.tries += 1;
        let pause = clock::now() + self.pause();
        self.nap = Some(Nap { held_until, pause, number: None });
    }

    /// Whether to sleep on, until `end`. It takes somebody awake to ask: the caller is woken when
    /// there is news.
    pub fn look(&mut self, now: Instant, end: Instant, caller: &Caller) -> Look {
        let left = end.saturating_duration_since(now);
        let look = if left.is_zero() {
            Look::Over
        } else if left <= ATTEMPT {
            Look::Sleep(end)
        } else {
            self.look_at_the_board(now, now + left.saturating_sub(ATTEMPT), caller)
        };
        if !matches!(look, Look::Sleep(_)) {
            self.get_up();
        }
        look
    }

    fn look_at_the_board(&mut self, now: Instant, until: Instant, caller: &Caller) -> Look {
        let (Some(nap), Some(known)) = (&mut self.nap, self.known) else { return Look::Try };
        let mut board = self.ear.board();
        let next = board.next_sleeper;
        let Some(watch) = board.watches.get_mut(&self.lock) else { return Look::Try };
        if watch.news != known {
            return Look::Try;
        }
        let wanted = watch.state == State::Idle;
        if wanted {
            watch.state = State::Wanted;
        }
        let due = match (watch.state, watch.ends.or(nap.held_until)) {
            (State::Listening, ends) => ends,
            (_, ends) => Some(ends.map_or(nap.pause, |ends| ends.min(nap.pause))),
        };
        if due.is_some_and(|due| due <= now) {
            if watch.state == State::Listening {
                // If the attempt fails again, this lease was not the last: ask anew.
                (watch.state, watch.ends) = (State::Idle, None);
            }
            return Look::Try;
        }
        if nap.number.is_none() {
            nap.number = Some(next);
            watch.sleepers.insert(next, caller.clone());
            board.next_sleeper += 1;
        }
        if wanted {
            crate::ear::wake(&self.ear, &mut board);
        }
        Look::Sleep(due.map_or(until, |due| due.min(until)))
    }

    /// Leaves the sleepers, and knows the news so far.
    pub fn get_up(&mut self) {
        let Some(nap) = self.nap.take() else { return };
        let mut board = self.ear.board();
        let watch = board.watches.get_mut(&self.lock);
        self.known = watch.map(|watch| {
            if let Some(number) = nap.number {
                watch.sleepers.remove(&number);
            }
            watch.news
        });
    }

    /// How long to leave the server alone where it does not tell: 2 ms, doubled with each try up to
    /// 64 ms, and by chance up to half of it less, so that a crowd does not ask in step.
    fn pause(&self) -> Duration {
        let most = (1u32 << self.tries.min(16)).min(LONGEST_PAUSE_MS) * 1000;
        Duration::from_micros(u64::from(most - random::below(most / 2)))
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        // In a child of a fork the board may be locked for ever.
        if self.known.is_none() || self.generation != fork::generation() {
            return;
        }
        self.get_up();
        let mut board = self.ear.board();
        if let Some(watch) = board.watches.get_mut(&self.lock) {
            watch.users -= 1;
            if watch.users == 0 {
                board.watches.remove(&self.lock);
            }
        }
    }
}
