//! An update whose lock and stock are in different slots of a cluster, where no step sees both: the lock
//! is taken, the stock changed, the lock given back. Each is a call of its own.
//!
//! | part | asks | next |
//! |---|---|---|
//! | `Look` | who holds the lock, if the caller has acquired it | `Stock`; `Take`; the end, if no other right will do |
//! | `Take` | for the lock, as `acquire_lock` does | `Stock`; the end |
//! | `Stock` | for the change | `GiveBack`, of what was taken; too late for the lease: `Look`, if that was extended, or `Take`; the end |
//! | `GiveBack` | to give the lock back | the end |
//!
//! Invariant: the stock is not changed after the lease has provably ended, which the server sees to. That
//! bounds the change alone: *whether* it was made is asked for until the caller's own time is over. If the
//! server says that it came too late, it never will be made, and the update begins anew.
//!
//! So when the update is given up while the change is under way, the lock is not given back: its lease is
//! cut down to the last moment at which the change may be made. (Whoever is told that the outcome is
//! unknown is told so after that moment.)

use std::sync::Arc;
use std::time::Instant;

use super::{Call, Progress, release};
use crate::clock;
use crate::combine::GRACE;
use crate::error::{Error, Result};
use crate::hold::{Hold, Tally};
use crate::safety::Safety;
use crate::step::{Ask, Extension, Right};
use crate::wish::{Acquisition, Handle, Outcome, Terms, Wish};

/// See the module's description.
pub struct Apart {
    part: Part,
    inner: Box<Call>,
    /// Under which the stock is changed.
    hold: Option<Arc<Hold>>,
    /// The acquisition was made for this.
    taken: bool,
    /// What became of the change.
    outcome: Option<Result<Outcome>>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Look,
    Take,
    Stock,
    GiveBack,
}

impl Apart {
    /// The first part of an update.
    pub fn begin(outer: &Call) -> Option<Self> {
        let Wish::Update { lock, proof, .. } = &outer.wish else { return None };
        let token = match proof {
            Some(token) => Some(Arc::clone(token)),
            None => match outer.client.holdings.right(lock, outer.owner) {
                Right::Held(token) | Right::Own(token) => Some(token),
                _ => None,
            },
        };
        let hold = token.and_then(|token| outer.client.holdings.find(lock, &token));
        let (part, wish) = match (&hold, proof) {
            (None, Some(_)) => return None,
            (Some(_), _) => (Part::Look, Wish::Holder { lock: Arc::clone(lock) }),
            (None, None) => (Part::Take, take(outer)?),
        };
        let inner = Box::new(outer.part(wish));
        Some(Self { part, inner, hold, taken: false, outcome: None })
    }

    /// The call that is under way.
    pub fn inner(&self) -> &Call {
        &self.inner
    }

    /// Moves on as far as possible without waiting.
    pub fn advance(&mut self, outer: &Call) -> Progress {
        loop {
            let result = match self.inner.advance() {
                Progress::Wait(until) => return Progress::Wait(until),
                Progress::Done(result) => result,
            };
            let next = match self.part {
                Part::Look => self.seen(outer, result),
                Part::Take => self.taken(outer, result),
                Part::Stock => self.changed(outer, result),
                Part::GiveBack => {
                    if result.is_err() {
                        self.give_back_later(outer);
                    }
                    None
                }
            };
            let Some((part, inner)) = next else {
                let nothing = || Err(Error::Interrupted);
                return Progress::Done(self.outcome.take().unwrap_or_else(nothing));
            };
            (self.part, self.inner) = (part, Box::new(inner));
        }
    }

    fn seen(&mut self, outer: &Call, result: Result<Outcome>) -> Option<(Part, Call)> {
        let Wish::Update { lock, .. } = &outer.wish else { return None };
        match (result, &self.hold) {
            (Err(error), _) => self.outcome = Some(Err(error)),
            (Ok(Outcome::Holder(Some(token))), Some(hold)) if token == hold.token => {
                return self.stock(outer);
            }
            (Ok(_), hold) => {
                if self.may_take(outer) {
                    self.hold = None;
                    return Some((Part::Take, outer.part(take(outer)?)));
                }
                if let Some(hold) = hold {
                    hold.lose();
                }
                self.outcome = Some(Err(Error::LockLost { lock: Arc::clone(lock) }));
            }
        }
        None
    }

    fn taken(&mut self, outer: &Call, result: Result<Outcome>) -> Option<(Part, Call)> {
        let Wish::Update { lock, .. } = &outer.wish else { return None };
        self.outcome = Some(match result {
            Ok(Outcome::Acquired(hold)) => {
                self.inner.told();
                (self.hold, self.taken) = (Some(hold), true);
                return self.stock(outer);
            }
            Ok(_) => {
                let (lock, time_out) = (Arc::clone(lock), outer.time_out);
                Err(Error::LockTimeout { lock, time_out })
            }
            Err(error) => Err(error),
        });
        None
    }

    fn stock(&self, outer: &Call) -> Option<(Part, Call)> {
        let Wish::Update { key, change, .. } = &outer.wish else { return None };
        let until = self.hold.as_ref().and_then(|hold| hold.ends());
        let wish = Wish::Change { key: Arc::clone(key), change: *change, until };
        Some((Part::Stock, outer.part(wish)))
    }

    fn changed(&mut self, outer: &Call, result: Result<Outcome>) -> Option<(Part, Call)> {
        let Wish::Update { lock, .. } = &outer.wish else { return None };
        let (hold, now) = (self.hold.clone()?, clock::now());
        let is_late = match &result {
            Ok(Outcome::Done(made)) => !made,
            // The lease was over before the change was on its way.
            Err(Error::Unreachable(_)) => self.is_past_right(now),
            _ => false,
        };
        if is_late {
            let in_time = now < outer.patience;
            if in_time && !hold.remaining(now).is_zero() {
                // It was extended meanwhile.
                let look = Wish::Holder { lock: Arc::clone(lock) };
                return Some((Part::Look, outer.part(look)));
            }
            if in_time && self.may_take(outer) {
                self.give_back_later(outer);
                return Some((Part::Take, outer.part(take(outer)?)));
            }
            self.outcome = Some(Err(if self.taken {
                outer.client.route.unreached()
            } else {
                Error::LockLost { lock: Arc::clone(lock) }
            }));
            self.give_back_later(outer);
            return None;
        }
        self.outcome = Some(result);
        if !self.taken {
            return None;
        }
        if now >= outer.patience {
            self.give_back_later(outer);
            return None;
        }
        let (lock, token) = (Arc::clone(lock), Arc::clone(&hold.token));
        let of = Acquisition { lock, token, hold: Some(hold) };
        Some((Part::GiveBack, outer.part(Wish::GiveBack(of))))
    }

    /// Whether the lease is over under which the change was asked for.
    fn is_past_right(&self, now: Instant) -> bool {
        matches!(&self.inner.wish, Wish::Change { until: Some(until), .. } if *until <= now)
    }

    /// Whether the lock may be taken, and not only be held already.
    fn may_take(&self, outer: &Call) -> bool {
        let Wish::Update { lock, proof, .. } = &outer.wish else { return false };
        let right = || outer.client.holdings.right(lock, outer.owner);
        self.taken || (proof.is_none() && !matches!(right(), Right::Held(_)))
    }

    /// Gives the update up.
    pub fn abandon(&mut self, outer: &Call) {
        let step = self.inner.step().cloned();
        self.inner.abandon();
        if self.part != Part::Stock {
            return;
        }
        // Only now: whatever has not been sent by this moment never will be.
        match step.filter(|step| step.was_sent() && step.reply().is_none()) {
            Some(step) => {
                self.end_after(outer, step.applied_by(outer.client.settings().socket_timeout));
            }
            None => self.give_back_later(outer),
        }
    }

    /// What was taken ends by itself soon after `last`, until when the change may still be made: not
    /// sooner, for the server counts from when it hears of it. Nobody waits for that.
    fn end_after(&mut self, outer: &Call, last: Instant) {
        let (true, Some(hold)) = (std::mem::take(&mut self.taken), &self.hold) else { return };
        let (now, settings) = (clock::now(), outer.client.settings());
        let left = last.saturating_duration_since(now) + GRACE;
        // So late, at the latest, that it does not make the lease any longer.
        let until = hold.ends().and_then(|ends| ends.checked_sub(left));
        let Some(until) = until.filter(|until| *until > now) else { return };
        let until = until.min(now + settings.timeout + settings.socket_timeout);
        let ms = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
        let (lock, token) = (Arc::clone(&hold.lock), Arc::clone(&hold.token));
        let ask = Ask::Extend { lock, token, ms, how: Extension::Replace };
        outer.client.route.run_orphan(ask, until);
    }

    /// What was taken is given back, and nobody waits for that.
    fn give_back_later(&mut self, outer: &Call) {
        if let (true, Some(hold)) = (std::mem::take(&mut self.taken), &self.hold) {
            outer.run_orphan(release(&hold.lock, &hold.token));
        }
    }
}

/// The lock is taken as by a handle: nobody gives it back but whoever has it. And for an attempt's time
/// at least, for a lease that is over before the change is on its way is of no use.
fn take(outer: &Call) -> Option<Wish> {
    let Wish::Update { lock, lease, .. } = &outer.wish else { return None };
    let handle = Some(Handle { tally: Arc::new(Tally::default()), keep: None });
    let lease = (*lease).max(outer.client.settings().socket_timeout);
    let terms = Terms { lease: Some(lease), handle, ..Terms::default() };
    Some(Wish::Acquire { lock: Arc::clone(lock), terms })
}

impl Call {
    /// A part of this call, in what is left of its time.
    fn part(&self, wish: Wish) -> Call {
        let left = self.patience.saturating_duration_since(clock::now());
        // Nobody, so that what is held meanwhile is not taken for the caller's own.
        let mut part = Call::new(&self.client, wish, Some(left), 0, self.caller.clone());
        part.deadline = part.deadline.min(self.deadline);
        // What the caller is told of is the stock: that is what has to be safe.
        let is_stock = matches!(part.wish, Wish::Change { .. });
        part.with_safety(if is_stock { self.safety } else { Safety::default() })
    }
}
