//! Who is next for a lock in this process.
//!
//! One contender per process and name talks to the server; the others queue here in order of
//! arrival. What a crowd of waiters costs the server does not grow with the crowd.
//!
//! A thread asks when it is its turn. A task does so when its loop runs, and somebody may block the loop,
//! or have stopped it: so the second looks after the first, and asks past one who seems unable to.
//!
//! Who queues among all processes, too (`fair`), takes a place there as soon as he is second: else he
//! would be unknown there in the moment in which the first takes the lock and gives it back.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::caller::Caller;
use crate::clock;
use crate::fork;
use crate::names::Name;
use crate::patrol::SLICE;
use crate::watch::ATTEMPT;

/// How often the second in a queue looks whether the first is able to ask.
const LOOK: Duration = Duration::from_secs(1);

/// See the module's description.
#[derive(Debug, Default)]
pub struct Turnstile(Mutex<Queues>);

#[derive(Debug, Default)]
struct Queues {
    by_name: HashMap<Name, Queue>,
    next: u64,
}

#[derive(Debug, Default)]
struct Queue {
    /// By number, which is the order of arrival.
    waiting: BTreeMap<u64, Caller>,
    /// Since when the first in the queue asks the server and has no answer.
    asking: Option<Instant>,
    /// The server's last word was that somebody else holds the lock.
    held: bool,
    /// When the holder's lease ends, by that word.
    ends: Option<Instant>,
    /// When the server was asked last.
    asked: Option<Instant>,
    /// When the first became the first.
    stepped_up: Option<Instant>,
}

impl Queue {
    /// Whether the first has had a reason to ask again for so long that it seems unable to: a task
    /// asks only when its loop runs. `told` is when the ear had news.
    fn is_stuck(&self, told: Option<Instant>, now: Instant) -> bool {
        let overdue = |since: Instant| now.saturating_duration_since(since) >= SLICE;
        let newer = |reason: &Instant| self.asked.is_none_or(|asked| asked < *reason);
        let reasons = [told, self.ends, self.stepped_up];
        self.asking.is_some_and(overdue) || reasons.into_iter().flatten().filter(newer).any(overdue)
    }
}

/// A place in the queue for a name; leaving it lets the next one step up.
pub struct Place {
    turnstile: Arc<Turnstile>,
    lock: Name,
    number: u64,
    fair: bool,
    generation: u64,
}

/// How it stands with a place.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is the caller's turn to ask the server.
    Turn,
    /// The time is over, and all the while the lock was held.
    Held,
    /// Wait, until woken or until then.
    Wait(Instant),
}

impl Turnstile {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the last place in the queue for a name. None for a thread that is in the queue already:
    /// a signal handler in the middle of its own thread's wait would wait for itself.
    pub fn join(self: &Arc<Self>, lock: &Name, caller: &Caller, fair: bool) -> Option<Place> {
        let mut queues = self.queues();
        let number = queues.next;
        queues.next += 1;
        let queue = queues.by_name.entry(Name::clone(lock)).or_default();
        if caller.can_lead() && queue.waiting.values().any(Caller::is_this_thread) {
            return None;
        }
        queue.waiting.insert(number, caller.clone());
        let generation = fork::generation();
        let (turnstile, lock) = (Arc::clone(self), Name::clone(lock));
        Some(Place { turnstile, lock, number, fair, generation })
    }
}

impl Place {
    /// Whether it is the caller's turn, `end` being when its time is over, and `told` when there was
    /// news of the lock.
    ///
    /// When it is over and the one in front has had no word from the server, or does not react, nobody
    /// can say that the lock was held: then it is the caller's turn all the same, to find out.
    pub fn standing(&self, now: Instant, end: Instant, told: Option<Instant>) -> Standing {
        let left = end.saturating_duration_since(now);
        if left <= ATTEMPT {
            return match self.lock_is_held(told) {
                true if left.is_zero() => Standing::Held,
                true => Standing::Wait(end),
                false => Standing::Turn,
            };
        }
        let last_look = now + left.saturating_sub(ATTEMPT).max(ATTEMPT);
        let stuck = || self.look(|queue| queue.is_stuck(told, now)) == Some(true);
        match self.before() {
            0 => Standing::Turn,
            1 if self.fair || stuck() => Standing::Turn,
            1 => Standing::Wait(last_look.min(now + LOOK)),
            _ => Standing::Wait(last_look),
        }
    }

    fn look<T>(&self, look: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        self.turnstile.queues().by_name.get_mut(&self.lock).map(look)
    }

    /// How many are in front, as far as it matters: none, one, or more.
    fn before(&self) -> usize {
        let before = |queue: &mut Queue| {
            queue.waiting.keys().take(2).take_while(|number| **number != self.number).count()
        };
        self.look(before).unwrap_or(0)
    }

    fn is_first(&self) -> bool {
        self.before() == 0
    }

    /// Whether the server's last word was that the lock is held, and it has not fallen silent since,
    /// nor has whoever is to ask it.
    pub fn lock_is_held(&self, told: Option<Instant>) -> bool {
        let now = clock::now();
        self.look(|queue| queue.held && !queue.is_stuck(told, now)).unwrap_or(false)
    }

    /// Since when the first question, of whomever, has had no answer.
    pub fn unanswered_since(&self) -> Option<Instant> {
        self.look(|queue| queue.asking).flatten()
    }

    /// The caller asks the server. It counts from the first question that has no answer yet, whoever
    /// was in front then; and who asks past the queue does not count.
    pub fn asks(&self) {
        if self.is_first() {
            let now = clock::now();
            self.look(|queue| {
                queue.asked = Some(now);
                queue.asking.get_or_insert(now);
            });
        }
    }

    /// The server has answered: somebody else holds the lock, with a lease that ends then; or not.
    pub fn hears(&self, held: bool, ends: Option<Instant>) {
        if self.is_first() {
            self.look(|queue| (queue.asking, queue.held, queue.ends) = (None, held, ends));
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // In a child of a fork the queues may be locked for ever.
        if self.generation != fork::generation() {
            return;
        }
        let mut queues = self.turnstile.queues();
        let Some(queue) = queues.by_name.get_mut(&self.lock) else { return };
        let before = queue.waiting.keys().take(2).position(|number| *number == self.number);
        queue.waiting.remove(&self.number);
        if queue.waiting.is_empty() {
            queues.by_name.remove(&self.lock);
            return;
        }
        // The first steps up, and the second begins to look at what the first does.
        if before == Some(0) {
            queue.stepped_up = Some(clock::now());
        }
        if before.is_some() {
            queue.waiting.values().take(2).for_each(Caller::wake);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::from(text.as_bytes())
    }

    #[test]
    fn a_queue_serves_in_order_of_arrival_and_forgets_who_left() {
        let (turnstile, lock) = (Arc::new(Turnstile::default()), name("lock"));
        let join = || turnstile.join(&lock, &Caller::Nobody, false).expect("a place");
        let (first, second, third) = (join(), join(), join());
        assert!(first.is_first() && !second.is_first() && !third.is_first());
        drop(second);
        drop(first);
        assert!(third.is_first());
        drop(third);
        assert!(turnstile.queues().by_name.is_empty());
    }

    #[test]
    fn the_second_of_those_who_queue_among_all_processes_asks_for_his_place_there() {
        let (turnstile, lock) = (Arc::new(Turnstile::default()), name("lock"));
        let join = || turnstile.join(&lock, &Caller::Nobody, true).expect("a place");
        let (first, second, third) = (join(), join(), join());
        let (now, end) = (clock::now(), clock::now() + Duration::from_mins(1));
        assert_eq!(first.standing(now, end, None), Standing::Turn);
        assert_eq!(second.standing(now, end, None), Standing::Turn);
        assert!(matches!(third.standing(now, end, None), Standing::Wait(_)));
    }

    #[test]
    fn a_thread_does_not_queue_behind_itself() {
        let (turnstile, lock) = (Arc::new(Turnstile::default()), name("lock"));
        let me = Caller::this_thread();
        let _mine = turnstile.join(&lock, &me, false);
        assert!(turnstile.join(&lock, &me, false).is_none());
        assert!(turnstile.join(&name("another"), &me, false).is_some());
    }

    #[test]
    fn nobody_believes_the_word_of_one_who_does_not_react() {
        let (turnstile, lock) = (Arc::new(Turnstile::default()), name("lock"));
        let join = || turnstile.join(&lock, &Caller::Nobody, false).expect("a place");
        let (first, second) = (join(), join());
        first.asks();
        let asked = clock::now();
        first.hears(true, Some(asked + Duration::from_mins(1)));
        assert_eq!(second.standing(asked, asked, None), Standing::Held);
        let told = asked.checked_sub(Duration::from_millis(1));
        assert!(second.lock_is_held(told), "that was before it asked");
        let told = asked + Duration::from_millis(1);
        let stuck = |now| second.look(|queue| queue.is_stuck(Some(told), now));
        assert_eq!(stuck(told), Some(false), "it has a moment to react");
        assert_eq!(stuck(told + SLICE), Some(true));
        first.hears(true, Some(told));
        let stuck = |now| second.look(|queue| queue.is_stuck(None, now));
        assert_eq!(stuck(told), Some(false));
        assert_eq!(stuck(told + SLICE), Some(true), "nor at the end of the lease");
    }
}
