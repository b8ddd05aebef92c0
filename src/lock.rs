//! Locks: who holds what, and who is next in this process.
//!
//! # Holdings
//!
//! What this process has acquired and not released, by name and owner (a thread or a task). An entry
//! stays when its lease has ended: its owner's `finally: release` must find *its own* token there,
//! which then changes nothing in Redis, and not that of somebody who acquired since.
//!
//! | the caller of `release_lock` | what is released |
//! |---|---|
//! | acquired it itself | its own acquisition, also if the lease has ended |
//! | did not, but another thread of the process did | the newest one whose lease has not ended |
//! | did not, nor anybody here | nothing |
//!
//! # Turnstile
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
use crate::step::Token;
use crate::watch::ATTEMPT;

/// Who holds a lock within the process: a thread, later also a task.
pub type Owner = u64;

/// Ended leases are forgotten, oldest first, when there are more entries than this and twice as many
/// as are alive: a program that locks a new name for each order and never releases must not grow.
const KEPT: usize = 4096;

/// See the module's description.
#[derive(Debug, Default)]
pub struct Holdings(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    by_name: HashMap<Name, Vec<Holding>>,
    count: usize,
    sweep_at: usize,
}

#[derive(Debug)]
struct Holding {
    owner: Owner,
    token: Token,
    /// The lease has ended by then at the latest... by our clock, counted from before the asking.
    ends: Instant,
}

impl Holdings {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Remembers an acquisition.
    pub fn add(&self, lock: &Name, owner: Owner, token: Token, ends: Instant) {
        let mut table = self.table();
        table.sweep();
        let held = table.by_name.entry(Name::clone(lock)).or_default();
        let before = held.len();
        // Its owner's earlier acquisition of the same name has ended, or this one would have failed.
        held.retain(|holding| holding.owner != owner);
        held.push(Holding { owner, token, ends });
        table.count = table.count + 1 - (before + 1 - table.by_name[lock].len());
    }

    /// The token under which `owner` holds the lock, as far as we know.
    pub fn token(&self, lock: &[u8], owner: Owner) -> Option<Token> {
        let table = self.table();
        let held = table.by_name.get(lock)?;
        held.iter().find(|holding| holding.owner == owner).map(|holding| holding.token)
    }

    /// Which acquisition a release by `owner` is about.
    pub fn to_release(&self, lock: &[u8], owner: Owner) -> Option<Token> {
        let table = self.table();
        let held = table.by_name.get(lock)?;
        let own = held.iter().find(|holding| holding.owner == owner);
        let now = Instant::now();
        let newest = || held.iter().rev().find(|holding| holding.ends > now);
        own.or_else(newest).map(|holding| holding.token)
    }

    /// Forgets an acquisition that was released.
    pub fn remove(&self, lock: &[u8], token: &Token) {
        let mut table = self.table();
        if let Some(held) = table.by_name.get_mut(lock) {
            let before = held.len();
            held.retain(|holding| holding.token != *token);
            let (gone, none_left) = (before - held.len(), held.is_empty());
            if none_left {
                table.by_name.remove(lock);
            }
            table.count -= gone;
        }
    }
}

impl Table {
    fn sweep(&mut self) {
        if self.count < self.sweep_at.max(KEPT) {
            return;
        }
        let now = Instant::now();
        self.by_name.retain(|_, held| {
            held.retain(|holding| holding.ends > now);
            !held.is_empty()
        });
        self.count = self.by_name.values().map(Vec::len).sum();
        self.sweep_at = self.count * 2;
    }
}

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

    fn lock_is_held(&self) -> bool {
        let overdue = |since: Instant| since.elapsed() >= SLICE;
        self.look(|queue| queue.held && !queue.asking.is_some_and(overdue)).unwrap_or(false)
    }

    /// The caller asks the server.
    pub fn asks(&self) {
        self.look(|queue| queue.asking = Some(Instant::now()));
    }

    /// The server has answered, and whether somebody else holds the lock.
    pub fn hears(&self, held: bool) {
        self.look(|queue| (queue.asking, queue.held) = (None, held));
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
    use std::time::Duration;

    fn name(text: &str) -> Name {
        Name::from(text.as_bytes())
    }

    #[test]
    fn a_release_is_about_the_owners_own_acquisition_even_when_its_lease_has_ended() {
        let (holdings, lock, now) = (Holdings::default(), name("lock"), Instant::now());
        holdings.add(&lock, 1, [b'1'; 32], now);
        holdings.add(&lock, 2, [b'2'; 32], now + Duration::from_mins(1));
        assert_eq!(holdings.to_release(&lock, 1), Some([b'1'; 32]));
        assert_eq!(holdings.to_release(&lock, 2), Some([b'2'; 32]));
        assert_eq!(holdings.to_release(&lock, 3), Some([b'2'; 32]), "the live one");
        holdings.remove(&lock, &[b'2'; 32]);
        assert_eq!(holdings.to_release(&lock, 3), None, "an ended lease is nobody else's");
        assert_eq!(holdings.token(&lock, 1), Some([b'1'; 32]));
        assert_eq!(holdings.token(b"other", 1), None);
    }

    #[test]
    fn locks_that_are_never_released_do_not_fill_the_memory() {
        let (holdings, now) = (Holdings::default(), Instant::now());
        let alive = name("alive");
        holdings.add(&alive, 1, [b'a'; 32], now + Duration::from_mins(10));
        for order in 0..10 * KEPT {
            holdings.add(&name(&format!("order:{order}")), 1, [b'o'; 32], now);
        }
        assert!(holdings.table().count <= KEPT + 1);
        assert_eq!(holdings.token(&alive, 1), Some([b'a'; 32]));
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
