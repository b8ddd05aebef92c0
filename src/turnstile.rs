//! Who is next for a lock in this process.
//!
//! One contender per process and name talks to the server; the others queue here in order of
//! arrival. What a crowd of waiters costs the server does not grow with the crowd.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::caller::Caller;
use crate::fork;
use crate::names::Name;
use crate::patrol::SLICE;
use crate::watch::ATTEMPT;

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
}

/// A place in the queue for a name; leaving it lets the next one step up.
pub struct Place {
    turnstile: Arc<Turnstile>,
    lock: Name,
    number: u64,
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
    pub fn join(self: &Arc<Self>, lock: &Name, caller: &Caller) -> Option<Place> {
        let mut queues = self.queues();
        let number = queues.next;
        queues.next += 1;
        let queue = queues.by_name.entry(Name::clone(lock)).or_default();
        if caller.can_lead() && queue.waiting.values().any(Caller::is_this_thread) {
            return None;
        }
        queue.waiting.insert(number, caller.clone());
        let generation = fork::generation();
        Some(Place { turnstile: Arc::clone(self), lock: Name::clone(lock), number, generation })
    }
}

impl Place {
    /// Whether it is the caller's turn, `end` being when its time is over.
    ///
    /// When it is over and the one in front has had no word from the server, nobody can say that the
    /// lock was held: then it is the caller's turn all the same, to find out.
    pub fn standing(&self, now: Instant, end: Instant) -> Standing {
        let left = end.saturating_duration_since(now);
        if left <= ATTEMPT && self.lock_is_held() {
            return if left.is_zero() { Standing::Held } else { Standing::Wait(end) };
        }
        if left.is_zero() || self.is_first() {
            return Standing::Turn;
        }
        Standing::Wait(now + left.saturating_sub(ATTEMPT).max(ATTEMPT))
    }

    fn look<T>(&self, look: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        self.turnstile.queues().by_name.get_mut(&self.lock).map(look)
    }

    fn is_first(&self) -> bool {
        let first = |queue: &mut Queue| queue.waiting.keys().next().copied();
        self.look(first).flatten() == Some(self.number)
    }

    /// Whether the server's last word was that the lock is held, and it has not fallen silent since.
    pub fn lock_is_held(&self) -> bool {
        let overdue = |since: Instant| since.elapsed() >= SLICE;
        self.look(|queue| queue.held && !queue.asking.is_some_and(overdue)).unwrap_or(false)
    }

    /// The caller asks the server. It counts from the first question that has no answer yet, whoever
    /// was in front then; and who asks past the queue does not count.
    pub fn asks(&self) {
        if self.is_first() {
            self.look(|queue| *queue.asking.get_or_insert_with(Instant::now));
        }
    }

    /// The server has answered, and whether somebody else holds the lock.
    pub fn hears(&self, held: bool) {
        if self.is_first() {
            self.look(|queue| (queue.asking, queue.held) = (None, held));
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
        let was_first = queue.waiting.keys().next() == Some(&self.number);
        queue.waiting.remove(&self.number);
        match queue.waiting.values().next() {
            Some(next) if was_first => next.wake(),
            Some(_) => {}
            None => {
                queues.by_name.remove(&self.lock);
            }
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
        let join = || turnstile.join(&lock, &Caller::Nobody).expect("a place");
        let (first, second, third) = (join(), join(), join());
        assert!(first.is_first() && !second.is_first() && !third.is_first());
        drop(second);
        drop(first);
        assert!(third.is_first());
        drop(third);
        assert!(turnstile.queues().by_name.is_empty());
    }

    #[test]
    fn a_thread_does_not_queue_behind_itself() {
        let (turnstile, lock) = (Arc::new(Turnstile::default()), name("lock"));
        let me = Caller::this_thread();
        let _mine = turnstile.join(&lock, &me);
        assert!(turnstile.join(&lock, &me).is_none());
        assert!(turnstile.join(&name("another"), &me).is_some());
    }
}
