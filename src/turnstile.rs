//! Who is next for a lock in this process.
//!
//! One contender per process and name talks to the server; the others queue here in order of
//! arrival. What a crowd of waiters costs the server does not grow with the crowd.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::Thread;
use std::time::Instant;

use crate::error::Result;
use crate::fork;
use crate::names::Name;
use crate::patrol::{Patrol, SLICE};
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
    waiting: VecDeque<(u64, Thread)>,
    /// Since when the first in the queue asks the server and has no answer.
    asking: Option<Instant>,
    /// The server's last word was that somebody else holds the lock.
    held: bool,
}

/// A place in the queue for a name; leaving it lets the next one step up.
pub struct Place<'a> {
    turnstile: &'a Turnstile,
    lock: Name,
    number: u64,
    generation: u64,
}

/// How a wait in the queue ended.
pub enum Entered<'a> {
    /// It is the caller's turn to ask the server; its place, unless it asks past the queue.
    Turn(Option<Place<'a>>),
    /// The time is over, and all the while the lock was held.
    Held,
}

impl Turnstile {
    fn queues(&self) -> MutexGuard<'_, Queues> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues for a name, and waits to be first, until `end`.
    ///
    /// When the time is over and the one in front has had no word from the server, nobody can say
    /// that the lock was held: then it is the caller's turn all the same, to find out.
    pub fn enter(&self, lock: &Name, end: Instant, patrol: &mut Patrol<'_>) -> Result<Entered<'_>> {
        // A signal handler in the middle of its own thread's wait would wait for itself.
        let Some(place) = self.join(lock) else { return Ok(Entered::Turn(None)) };
        loop {
            let now = Instant::now();
            let left = end.saturating_duration_since(now);
            if left <= ATTEMPT && place.lock_is_held() {
                std::thread::sleep(left);
                return Ok(Entered::Held);
            }
            if left.is_zero() || place.is_first() {
                return Ok(Entered::Turn(Some(place)));
            }
            patrol.pass(now)?;
            let until = (now + left.saturating_sub(ATTEMPT).max(ATTEMPT)).min(patrol.next());
            std::thread::park_timeout(until.saturating_duration_since(now));
        }
    }

    /// Takes the last place, unless the thread is in the queue already.
    fn join(&self, lock: &Name) -> Option<Place<'_>> {
        let me = std::thread::current();
        let mut queues = self.queues();
        let number = queues.next;
        queues.next += 1;
        let queue = queues.by_name.entry(Name::clone(lock)).or_default();
        if queue.waiting.iter().any(|(_, thread)| thread.id() == me.id()) {
            return None;
        }
        queue.waiting.push_back((number, me));
        let generation = fork::generation();
        Some(Place { turnstile: self, lock: Name::clone(lock), number, generation })
    }
}

impl Place<'_> {
    fn look<T>(&self, look: impl FnOnce(&mut Queue) -> T) -> Option<T> {
        self.turnstile.queues().by_name.get_mut(&self.lock).map(look)
    }

    fn is_first(&self) -> bool {
        let first = |queue: &mut Queue| queue.waiting.front().map(|(number, _)| *number);
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

impl Drop for Place<'_> {
    fn drop(&mut self) {
        // In a child of a fork the queues may be locked for ever.
        if self.generation != fork::generation() {
            return;
        }
        let mut queues = self.turnstile.queues();
        let Some(queue) = queues.by_name.get_mut(&self.lock) else { return };
        queue.waiting.retain(|(number, _)| *number != self.number);
        match queue.waiting.front() {
            Some((_, next)) => next.unpark(),
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
        let (turnstile, lock) = (Turnstile::default(), name("lock"));
        // A place belongs to the thread that joined; each has to be another one's.
        let join = || {
            std::thread::scope(|scope| scope.spawn(|| turnstile.join(&lock)).join())
                .expect("no panic")
                .expect("another thread")
        };
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
        let (turnstile, lock) = (Turnstile::default(), name("lock"));
        let _mine = turnstile.join(&lock);
        assert!(turnstile.join(&lock).is_none());
        assert!(turnstile.join(&name("another")).is_some());
    }
}
