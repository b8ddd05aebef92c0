//! What only an acquire has to remember: what it leaves behind if it is given up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::clock;
use crate::hold::{Hold, Tally, provable_end};
use crate::names::Name;
use crate::random;
use crate::script_call::PLACE_LIFE;
use crate::step::{Ask, Attempt, QueuePlace, Token};
use crate::turnstile::Place;
use crate::watch::ATTEMPT;
use crate::wish::Terms;

/// See the module's description.
pub struct Acquiring {
    /// What to leave at the lock.
    pub token: Token,
    /// The place in the queue of this process.
    pub turn: Option<Place>,
    /// The token was chosen by the caller: others may have chosen the same.
    chosen: bool,
    attempt: Attempt,
    place: Spot,
    /// Somebody is before us there, and is gone by then if he does not ask again.
    behind: Option<Instant>,
    began: Instant,
    /// When it last asked.
    pub asked: Instant,
    /// It was told so late that it asked anew.
    renewed: bool,
    /// The last word was that somebody else holds the lock, or is first.
    pub held: bool,
    /// The lock is ours, and its owner has not been told.
    pub hold: Option<Arc<Hold>>,
}

/// The place in the queue of all processes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spot {
    /// None: it tries once, and overtakes whoever waits.
    Nowhere,
    /// None, but it overtakes nobody.
    Passing,
    /// It is to wait there.
    Wanted,
    /// It waits there.
    Known,
}

impl Acquiring {
    /// An acquire that has not asked yet.
    pub fn new(terms: &Terms, turn: Option<Place>, waits: bool, began: Instant) -> Self {
        let random = || Token::from(random::hex_bytes());
        Self {
            token: terms.token.as_ref().map_or_else(random, Arc::clone),
            turn,
            chosen: terms.token.is_some(),
            attempt: random::hex_bytes(),
            place: match (waits, terms.fair) {
                (true, _) => Spot::Wanted,
                (false, true) => Spot::Passing,
                (false, false) => Spot::Nowhere,
            },
            behind: None,
            began,
            asked: began,
            renewed: false,
            held: false,
            hold: None,
        }
    }

    /// What to ask the server for. Who does not wait takes no place in the queue.
    pub fn ask(&mut self, lock: &Name, terms: &Terms) -> Ask {
        (self.asked, self.behind) = (clock::now(), None);
        self.turn.iter().for_each(Place::asks);
        let waits = matches!(self.place, Spot::Wanted | Spot::Known);
        let place = QueuePlace { arrived: self.began, waits, fair: terms.fair };
        let ms = |lease: std::time::Duration| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        Ask::Acquire {
            lock: Arc::clone(lock),
            token: Arc::clone(&self.token),
            lease: terms.lease.map(ms),
            again: !self.chosen,
            fenced: terms.handle.is_some(),
            attempt: self.attempt,
            place: (self.place != Spot::Nowhere).then_some(place),
        }
    }

    /// Somebody else has the lock, or is before us and gone by then if he does not ask again.
    pub fn waits(&mut self, behind: Option<Instant>) {
        (self.held, self.behind) = (true, behind);
        if self.place == Spot::Wanted {
            self.place = Spot::Known;
        }
    }

    /// When to ask again, told or not: to renew the place in the queue of all processes; because whoever
    /// is before us there may be gone; and once more before `end`, for those before us may have missed
    /// that the lock was freed.
    pub fn ask_again(&self, end: Instant) -> Option<Instant> {
        let renew = (self.place == Spot::Known).then(|| self.asked + PLACE_LIFE / 3);
        let last = end.checked_sub(2 * ATTEMPT).filter(|last| *last > self.asked);
        let behind = self.behind.map(|until| last.map_or(until, |last| until.min(last)));
        renew.into_iter().chain(behind).min()
    }

    /// The server has granted it, with this fence. None when it was told so late that the lease may be
    /// over: then it is asked for anew, with the same token. Once: a lease shorter than a round trip is
    /// nobody's for long.
    pub fn grant(&mut self, lock: &Name, terms: &Terms, fence: u64) -> Option<Arc<Hold>> {
        if self.place == Spot::Known {
            self.place = Spot::Wanted;
        }
        let late = terms.lease.is_some_and(|lease| clock::since(self.asked) >= lease);
        if late && !self.renewed && !self.chosen {
            self.renewed = true;
            return None;
        }
        let tally = terms.handle.as_ref().map(|handle| &handle.tally);
        let ends = terms.lease.and_then(|lease| provable_end(self.asked, lease));
        let hold = Hold::new(lock, &self.token, fence, ends, tally);
        self.hold = Some(Arc::clone(&hold));
        Some(hold)
    }

    /// Counts how it ended, if a handle wants to know.
    pub fn count(&self, terms: &Terms, acquired: bool) {
        let Some(handle) = &terms.handle else { return };
        let tally = &handle.tally;
        Tally::add(if acquired { &tally.acquired } else { &tally.refused });
        let waited = u64::try_from(clock::since(self.began).as_micros()).unwrap_or(u64::MAX);
        tally.waited.fetch_add(waited, Ordering::Relaxed);
    }

    /// What undoes it; `under_way` when the server may still do what it was asked for. None if there
    /// is nothing to undo, or it has been said before.
    pub fn undo(&mut self, lock: &Name, under_way: bool) -> Option<Ask> {
        let granted = self.hold.take().is_some();
        let may_hold = under_way || granted || std::mem::take(&mut self.renewed);
        let place = std::mem::replace(&mut self.place, Spot::Nowhere);
        let known = place == Spot::Known || (under_way && place == Spot::Wanted);
        let token = may_hold.then(|| Arc::clone(&self.token));
        let by = (may_hold && self.chosen).then_some(self.attempt);
        let (lock, place) = (Arc::clone(lock), known.then_some(self.attempt));
        (may_hold || known).then_some(Ask::Release { lock, token, by, place })
    }
}
