//! What a reply means for the call that waits for it.

use std::sync::Arc;
use std::time::Instant;

use super::{Call, Progress, Stage};
use crate::clock;
use crate::error::{Error, Result};
use crate::hold::{Changed, Hold};
use crate::names::{Name, place_key};
use crate::patrol::SLICE;
use crate::renewer::Entry;
use crate::step::{Ask, Reply, Right};
use crate::wish::{Handle, Outcome, Wish};

impl Call {
    /// The step is answered: what next?
    pub(super) fn hear(&mut self, reply: Reply) -> Option<Progress> {
        self.tell_the_queue(&reply);
        let done = |done| Ok(Outcome::Done(done));
        let outcome = match (&self.wish, reply) {
            (_, Reply::Failed(error)) => return Some(self.fail(error)),
            (Wish::Acquire { lock, .. } | Wish::Update { lock, .. }, Reply::Held { until }) => {
                let lock = Arc::clone(lock);
                self.acquiring.iter_mut().for_each(|it| it.waits(None));
                self.lie_down(&lock, until);
                return None;
            }
            (Wish::Acquire { lock, .. }, Reply::Queued { behind, until }) => {
                let before = place_key(&behind, lock).into();
                self.acquiring.iter_mut().for_each(|it| it.waits(Some(until)));
                self.lie_down(&before, Some(until));
                return None;
            }
            (Wish::Acquire { .. }, Reply::Acquired { fence }) => return self.granted(fence),
            (Wish::Release { lock }, reply @ (Reply::Released | Reply::Foreign)) => {
                if let Some(Ask::Release { token: Some(token), .. }) =
                    self.step().map(|step| &step.ask)
                {
                    self.client.holdings.remove(lock, token);
                }
                self.tell(lock);
                done(reply == Reply::Released)
            }
            (Wish::GiveBack(of), reply @ (Reply::Released | Reply::Foreign)) => {
                let released = reply == Reply::Released;
                let end = if released { Hold::release } else { Hold::release_lost };
                of.hold.iter().for_each(|hold| end(hold));
                self.client.holdings.remove(&of.lock, &of.token);
                self.tell(&of.lock);
                done(released)
            }
            (Wish::Extend { .. }, Reply::Extended(left)) => {
                self.changed(Changed::Left(left));
                done(true)
            }
            (Wish::Extend { of, .. }, Reply::Foreign) => {
                of.hold.iter().for_each(|hold| hold.lose());
                self.changed(Changed::Not);
                done(false)
            }
            (Wish::Holder { .. }, Reply::Holder(token)) => Ok(Outcome::Holder(token)),
            (Wish::Update { lock, .. }, Reply::Lost) => {
                if let Some(Ask::Update { right: Right::Held(token), .. }) =
                    self.step().map(|step| &step.ask)
                    && let Some(hold) = self.client.holdings.find(lock, token)
                {
                    hold.lose();
                }
                Err(Error::LockLost { lock: Arc::clone(lock) })
            }
            (Wish::Change { .. }, Reply::Late) => done(false),
            (
                Wish::Incr { key, change }
                | Wish::Update { key, change, .. }
                | Wish::Change { key, change, .. },
                reply,
            ) => changed(key, *change, reply),
            (_, reply) => Err(unexpected(&reply)),
        };
        Some(Progress::Done(outcome))
    }

    /// What those who wait behind us in this process are to know.
    fn tell_the_queue(&self, reply: &Reply) {
        let (Wish::Acquire { terms, .. }, Some(acquiring)) = (&self.wish, &self.acquiring) else {
            return;
        };
        let Some(turn) = &acquiring.turn else { return };
        match reply {
            Reply::Failed(_) => {}
            Reply::Held { until } => turn.hears(true, *until),
            Reply::Queued { until, .. } => turn.hears(true, Some(*until)),
            // To them we are somebody else.
            Reply::Acquired { .. } => {
                turn.hears(true, terms.lease.and_then(|lease| acquiring.asked.checked_add(lease)));
            }
            _ => turn.hears(false, None),
        }
    }

    /// Has those of this process who wait for a lock that was given back try again.
    fn tell(&self, lock: &Name) {
        self.client.route.ear(lock).tell(lock);
    }

    /// Somebody else holds the lock, or is before us: sleeps until `name` is gone, or `until`.
    fn lie_down(&mut self, name: &Name, until: Option<Instant>) {
        // The node that has the lock may be another one by now.
        let ear = self.client.route.ear(name);
        if self.waiter.as_ref().is_none_or(|waiter| !waiter.waits_for(name, &ear)) {
            self.waiter = Some(Box::new(ear.waiter(name)));
        }
        self.waiter.iter_mut().for_each(|waiter| waiter.lie_down(until));
        self.stage = Stage::Sleeping;
    }

    fn granted(&mut self, fence: u64) -> Option<Progress> {
        let Wish::Acquire { lock, terms } = &self.wish else { return None };
        let acquiring = self.acquiring.as_deref_mut()?;
        let Some(hold) = acquiring.grant(lock, terms, fence) else {
            if clock::now() < self.deadline {
                return self.ask();
            }
            return Some(self.refuse());
        };
        if let Some(Handle { tally, keep: Some(keep) }) = &terms.handle {
            let entry = Entry::new(keep, &self.client, tally, &hold, terms.lease, self.safety);
            if let Err(error) = keep.renewer.watch(entry) {
                let why = format!("no thread can be had to look after the lock: {error}");
                return Some(self.fail(Error::Unreachable(why)));
            }
        }
        acquiring.count(terms, true);
        self.client.holdings.add(self.owner, &hold, terms.handle.is_some());
        Some(Progress::Done(Ok(Outcome::Acquired(hold))))
    }

    /// An acquire ends without the lock: another held it all the time.
    pub(super) fn refuse(&mut self) -> Progress {
        self.undo(false);
        if let (Wish::Acquire { terms, .. }, Some(acquiring)) = (&self.wish, &self.acquiring) {
            acquiring.count(terms, false);
        }
        Progress::Done(Ok(Outcome::Done(false)))
    }

    /// The call ends with an error.
    pub(super) fn fail(&mut self, error: Error) -> Progress {
        // A lock that a fail-over may take away is none.
        let unknown = matches!(error, Error::OutcomeUnknown(_) | Error::NotReplicated { .. });
        self.undo(unknown);
        self.changed(if unknown { Changed::Unknown } else { Changed::Not });
        if let Some(acquiring) = self.acquiring.as_deref() {
            // The answer to an attempt of the last moment did not make it. What was heard a moment
            // ago is answer enough.
            let no_answer = matches!(error, Error::OutcomeUnknown(_) | Error::Unreachable(_));
            if no_answer && acquiring.held && acquiring.asked + SLICE >= self.patience {
                return Progress::Done(Ok(Outcome::Done(false)));
            }
        }
        Progress::Done(Err(match (&self.wish, error) {
            (Wish::Acquire { .. }, Error::NotReplicated { acknowledged, wanted, why }) => {
                Error::LockNotReplicated { acknowledged, wanted, why }
            }
            (_, error) => error,
        }))
    }
}

fn changed(key: &Name, change: i64, reply: Reply) -> Result<Outcome> {
    let key = Arc::clone(key);
    match reply {
        Reply::Changed => Ok(Outcome::Done(true)),
        Reply::NoStock => Err(Error::NoInventory { key }),
        Reply::Insufficient { available } => {
            Err(Error::InsufficientInventory { key, available, change })
        }
        Reply::Invalid { value, reason } => Err(Error::InvalidInventory { key, value, reason }),
        reply => Err(unexpected(&reply)),
    }
}

/// The batch gives each kind of step its own kind of reply; another one would be a bug of ours.
#[cold]
fn unexpected(reply: &Reply) -> Error {
    Error::OutcomeUnknown(format!("the answer is of another kind: {reply:?}"))
}
