//! What only an acquire has to remember: what it leaves behind if it is given up.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::hold::{Hold, Tally};
use crate::names::Name;
use crate::random;
use crate::script_call::PLACE_LIFE;
use crate::step::{Ask, PlaceId, QueuePlace, Token};
use crate::turnstile::Place;
use crate::wish::Terms;

/// See the module's description.
pub struct Acquiring {
    /// What to leave at the lock.
    pub token: Token,
    /// The place in the queue of this process.
    pub turn: Option<Place>,
    /// The place in the queue of all processes, and whether the server may know of it.
    place: Option<(PlaceId, bool)>,
    waits: bool,
    /// Somebody is before us there, and is gone by then if he does not ask again.
    pub behind: Option<Instant>,
    began: Instant,
    /// When it last asked.
    pub asked: Instant,
    /// It was told so late that it asked anew.
    pub renewed: bool,
    /// The last word was that somebody else holds the lock, or is first.
    pub held: bool,
    /// The lock is ours, and its owner has not been told.
    pub hold: Option<Arc<Hold>>,
}

impl Acquiring {
    /// An acquire that has not asked yet.
    pub fn new(terms: &Terms, turn: Option<Place>, waits: bool, began: Instant) -> Self {
        let random = || Token::from(random::hex_bytes());
        Self {
            token: terms.token.as_ref().map_or_else(random, Arc::clone),
            turn,
            place: (waits || terms.fair).then(|| (random::hex_bytes(), false)),
            waits,
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
        let waits = self.waits;
        (self.asked, self.behind) = (Instant::now(), None);
        self.turn.iter().for_each(Place::asks);
        let place = self.place.as_mut().map(|(id, known)| {
            *known |= waits;
            QueuePlace { id: *id, arrived: self.began, waits, fair: terms.fair }
        });
        let ms = |lease: std::time::Duration| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
        Ask::Acquire {
            lock: Arc::clone(lock),
            token: Arc::clone(&self.token),
            lease: terms.lease.map(ms),
            // A token of the caller's choice may be somebody else's as well.
            again: self.renewed || terms.token.is_none(),
            fenced: terms.handle.is_some(),
            place,
        }
    }

    /// When to ask again, told or not: to renew the place in the queue of all processes, and because
    /// whoever is before us may be gone.
    pub fn ask_again(&self) -> Option<Instant> {
        let (_, known) = self.place?;
        let renew = known.then(|| self.asked + PLACE_LIFE / 3);
        renew.into_iter().chain(self.behind).min()
    }

    /// The server has granted it, with this fence. None when it was told so late that the lease may be
    /// over: then it is asked for anew, with the same token. Once: a lease shorter than a round trip is
    /// nobody's for long.
    pub fn grant(&mut self, lock: &Name, terms: &Terms, fence: u64) -> Option<Arc<Hold>> {
        if let Some((_, known)) = &mut self.place {
            *known = false;
        }
        let late = terms.lease.is_some_and(|lease| self.asked.elapsed() >= lease);
        if late && !self.renewed {
            self.renewed = true;
            return None;
        }
        let tally = terms.handle.as_ref().map(|handle| &handle.tally);
        let ends = terms.lease.and_then(|lease| self.asked.checked_add(lease));
        let hold = Hold::new(lock, &self.token, fence, ends, tally);
        self.hold = Some(Arc::clone(&hold));
        Some(hold)
    }

    /// Counts how it ended, if a handle wants to know.
    pub fn count(&self, terms: &Terms, acquired: bool) {
        let Some(handle) = &terms.handle else { return };
        let tally = &handle.tally;
        Tally::add(if acquired { &tally.acquired } else { &tally.refused });
        let waited = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        tally.waited.fetch_add(waited, Ordering::Relaxed);
    }

    /// What undoes it; `under_way` when the server may still do what it was asked for. None if there
    /// is nothing to undo.
    pub fn undo(&mut self, lock: &Name, under_way: bool) -> Option<Ask> {
        let granted = self.hold.take().is_some();
        let place = self.place.and_then(|(id, known)| known.then_some(id));
        let needed = under_way || granted || self.renewed || place.is_some();
        let (lock, token) = (Arc::clone(lock), Arc::clone(&self.token));
        needed.then_some(Ask::Release { lock, token, place })
    }
}
