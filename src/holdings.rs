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

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use crate::names::Name;
use crate::step::Token;

/// Who holds a lock within the process, a thread or a task: a number that is never used again.
pub type Owner = u64;

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
    token: Token,
    /// The lease has ended by then at the latest... by our clock, counted from before the asking.
    ends: Instant,
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
        self.count.store(table.count, Ordering::Relaxed);
    }

    /// The token under which `owner` holds the lock, as far as we know.
    pub fn token(&self, lock: &[u8], owner: Owner) -> Option<Token> {
        if self.is_empty() {
            return None;
        }
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
            self.count.store(table.count, Ordering::Relaxed);
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
}
