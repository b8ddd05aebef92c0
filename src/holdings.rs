//! What this process has acquired and not released, by name and owner (a thread or a task).
//!
//! An entry stays when its lease has ended: its owner's `finally: release` must find *its own* token
//! there, which then changes nothing in Redis, and not that of somebody who acquired since.
//!
//! | the caller of `release_lock` | what is released |
//! |---|---|
//! | acquired it itself | its own acquisition, also if the lease has ended |
//! | did not, but another thread or task of the process did | the newest one whose lease has not ended |
//! | did not, nor anybody here | nothing |
//!
//! What a handle (`seckill.Lock`) has acquired is released by the handle alone, and forgotten with it.
//! Its owner changes stock under that lock with the right of *that* acquisition, or not at all.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Instant;

use crate::clock;
use crate::hold::Hold;
use crate::names::Name;
use crate::step::Right;

/// Who holds a lock within the process, a thread or a task: a number that is never used again.
pub type Owner = u64;

/// Nobody who could hold a lock for longer than one call.
pub const NOBODY: Owner = 0;

/// Ended leases are forgotten, oldest first, when there are more entries than this and twice as many
/// as are alive: a program that locks a new name for each order and never releases must not grow.
const KEPT: usize = 4096;

/// See the module's description.
#[derive(Debug, Default)]
pub struct Holdings {
    table: Mutex<Table>,
    /// How many entries there are: most processes sell and hold nothing.
    count: AtomicUsize,
}

#[derive(Debug, Default)]
struct Table {
    by_name: HashMap<Name, Vec<Holding>>,
    count: usize,
    sweep_at: usize,
}

#[derive(Debug)]
struct Holding {
    owner: Owner,
    keeper: Keeper,
}

/// Who keeps what was acquired.
#[derive(Debug)]
enum Keeper {
    Table(Arc<Hold>),
    Handle(Weak<Hold>),
}

impl Holding {
    fn hold(&self) -> Option<Arc<Hold>> {
        match &self.keeper {
            Keeper::Table(hold) => Some(Arc::clone(hold)),
            Keeper::Handle(hold) => hold.upgrade(),
        }
    }

    /// Whether it may be forgotten when there are too many.
    fn is_stale(&self, now: Instant) -> bool {
        match &self.keeper {
            Keeper::Table(hold) => hold.is_lost(now),
            Keeper::Handle(hold) => hold.strong_count() == 0,
        }
    }
}

impl Holdings {
    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is nothing here.
    pub fn is_empty(&self) -> bool {
        // Relaxed: who holds a lock has stored this itself, or was told by who did.
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Remembers an acquisition; without keeping it alive, if a handle does.
    pub fn add(&self, owner: Owner, hold: &Arc<Hold>, by_handle: bool) {
        let mut table = self.table();
        table.sweep();
        let known = table.by_name.entry(Name::clone(&hold.lock)).or_default();
        let before = known.len();
        let keeper = if by_handle {
            known.retain(|holding| holding.hold().is_some());
            Keeper::Handle(Arc::downgrade(hold))
        } else {
            // Its owner's earlier acquisition of the same name has ended, or this one would have failed.
            let earlier = |holding: &Holding| matches!(holding.keeper, Keeper::Table(_));
            known.retain(|holding| holding.owner != owner || !earlier(holding));
            Keeper::Table(Arc::clone(hold))
        };
        known.push(Holding { owner, keeper });
        let after = known.len();
        table.count = table.count + after - before;
        self.count.store(table.count, Ordering::Relaxed);
    }

    /// With what right `owner` changes a stock under the lock, as far as we know.
    pub fn right(&self, lock: &[u8], owner: Owner) -> Right {
        // What nobody holds, a part of an update does, for itself alone.
        if owner == NOBODY || self.is_empty() {
            return Right::Free;
        }
        let table = self.table();
        let mut known = table.by_name.get(lock).into_iter().flatten().rev();
        let newest = known.find_map(|holding| {
            let hold = (holding.owner == owner).then(|| holding.hold()).flatten()?;
            Some((hold, matches!(holding.keeper, Keeper::Handle(_))))
        });
        match newest {
            Some((hold, true)) => Right::Held(Arc::clone(&hold.token)),
            Some((hold, false)) => Right::Own(Arc::clone(&hold.token)),
            None => Right::Free,
        }
    }

    /// Which acquisition a release by `owner` is about.
    pub fn to_release(&self, lock: &[u8], owner: Owner) -> Option<Arc<Hold>> {
        let table = self.table();
        let of_table = |holding: &'_ Holding| match &holding.keeper {
            Keeper::Table(hold) => Some((holding.owner, Arc::clone(hold))),
            Keeper::Handle(_) => None,
        };
        let held: Vec<_> = table.by_name.get(lock)?.iter().filter_map(of_table).collect();
        let own = held.iter().find(|(whose, _)| *whose == owner);
        let now = clock::now();
        let newest = || held.iter().rev().find(|(_, hold)| !hold.is_lost(now));
        own.or_else(newest).map(|(_, hold)| Arc::clone(hold))
    }

    /// The acquisition with this token.
    pub fn find(&self, lock: &[u8], token: &[u8]) -> Option<Arc<Hold>> {
        let table = self.table();
        let mut held = table.by_name.get(lock)?.iter().filter_map(Holding::hold);
        held.find(|hold| *hold.token == *token)
    }

    /// Forgets an acquisition that was released.
    pub fn remove(&self, lock: &[u8], token: &[u8]) {
        let mut table = self.table();
        if let Some(held) = table.by_name.get_mut(lock) {
            let before = held.len();
            held.retain(|holding| holding.hold().is_some_and(|hold| *hold.token != *token));
            let (gone, none_left) = (before - held.len(), held.is_empty());
            if none_left {
                table.by_name.remove(lock);
            }
            table.count -= gone;
            self.count.store(table.count, Ordering::Relaxed);
        }
    }
}

impl Table {
    fn sweep(&mut self) {
        if self.count < self.sweep_at.max(KEPT) {
            return;
        }
        let now = clock::now();
        self.by_name.retain(|_, held| {
            held.retain(|holding| !holding.is_stale(now));
            !held.is_empty()
        });
        self.count = self.by_name.values().map(Vec::len).sum();
        self.sweep_at = self.count * 2;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::step::Token;
    use std::time::Duration;

    fn hold(lock: &str, token: &str, ends: Instant) -> Arc<Hold> {
        let (lock, token) = (Name::from(lock.as_bytes()), Token::from(token.as_bytes()));
        Hold::new(&lock, &token, 0, Some(ends), None)
    }

    fn to_release(holdings: &Holdings, owner: Owner) -> Option<Token> {
        holdings.to_release(b"lock", owner).map(|hold| Arc::clone(&hold.token))
    }

    fn token(text: &str) -> Token {
        Token::from(text.as_bytes())
    }

    #[test]
    fn a_release_is_about_the_owners_own_acquisition_even_when_its_lease_has_ended() {
        let (holdings, now) = (Holdings::default(), clock::now());
        holdings.add(1, &hold("lock", "one", now), false);
        holdings.add(2, &hold("lock", "two", now + Duration::from_mins(1)), false);
        assert_eq!(to_release(&holdings, 1), Some(token("one")));
        assert_eq!(to_release(&holdings, 2), Some(token("two")));
        assert_eq!(to_release(&holdings, 3), Some(token("two")), "the live one");
        holdings.remove(b"lock", b"two");
        assert_eq!(to_release(&holdings, 3), None, "an ended lease is nobody else's");
        assert_eq!(holdings.right(b"lock", 1), Right::Own(token("one")));
        assert_eq!(holdings.right(b"other", 1), Right::Free);
    }

    #[test]
    fn what_a_handle_holds_is_its_own_to_release_and_the_owners_only_right() {
        let (holdings, now) = (Holdings::default(), clock::now());
        let (outer, inner) = (hold("lock", "outer", now), hold("lock", "inner", now));
        holdings.add(1, &outer, true);
        assert_eq!(to_release(&holdings, 1), None);
        assert_eq!(holdings.right(b"lock", 1), Right::Held(token("outer")), "ended or not");
        assert_eq!(holdings.right(b"lock", 2), Right::Free);
        holdings.add(1, &inner, true);
        assert_eq!(holdings.right(b"lock", 1), Right::Held(token("inner")));
        drop(inner);
        assert_eq!(holdings.right(b"lock", 1), Right::Held(token("outer")));
        holdings.remove(b"lock", b"outer");
        assert_eq!(holdings.right(b"lock", 1), Right::Free);
        assert!(holdings.is_empty());
    }

    #[test]
    fn locks_that_are_never_released_do_not_fill_the_memory() {
        let (holdings, now) = (Holdings::default(), clock::now());
        holdings.add(1, &hold("alive", "alive", now + Duration::from_mins(10)), false);
        for order in 0..5 * KEPT {
            holdings.add(1, &hold(&format!("order:{order}"), "ended", now), false);
            holdings.add(1, &hold(&format!("handle:{order}"), "dropped", now), true);
        }
        assert!(holdings.table().count <= KEPT + 2);
        assert_eq!(holdings.right(b"alive", 1), Right::Own(token("alive")));
    }
}
