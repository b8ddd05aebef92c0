//! A call of one of the four functions: what it does next, and what it waits for.
//!
//! A call is moved on by whoever drives it, and never blocks: a thread drives its own call and sleeps
//! in between ([`Client::wait`](crate::client::Client::wait)); an event loop drives those of its tasks
//! when there is a ticket in its mailbox. So there is one implementation of each function.
//!
//! | stage | waits for | next |
//! |---|---|---|
//! | `Queueing` | its turn among those of this process (acquire alone) | `Asking`; the end |
//! | `Asking` | the reply to its step | the end; `Sleeping` while somebody else holds the lock |
//! | `Sleeping` | news of the lock, or the end of its lease | `Asking`; the end |
//! | `Apart` | the parts of an update whose lock and stock are at different nodes | the end |
//! | `Closing` | what nobody waits for to be done | the end |
//! | `Over` | nothing | |
//!
//! A call that is given up before its end ([`Call::abandon`], or dropped) leaves nothing behind: its
//! step is not sent any more, and an acquire whose step may have been sent is undone.

mod acquiring;
mod apart;
mod hear;

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::{Duration, Instant};

use self::acquiring::Acquiring;
use self::apart::Apart;
use crate::caller::Caller;
use crate::client::Client;
use crate::clock;
use crate::combine::last_moment;
use crate::error::{Error, Result};
use crate::fork;
use crate::hold::{Change, Changed};
use crate::holdings::Owner;
use crate::names::Name;
use crate::safety::Safety;
use crate::step::{Ask, Extension, Right, Step, Token};
use crate::turnstile::Standing;
use crate::watch::{Look, Waiter};
use crate::wish::{Acquisition, Outcome, Terms, Wish};

/// How often a closing client looks whether all is done.
const CLOSING_LOOK: Duration = Duration::from_millis(2);

/// As a `time_out`: the wait for a lock has no end. A server that does not answer is waited for as in
/// a call without a `time_out`.
pub const FOR_EVER: Duration = Duration::MAX;

/// A hundred years, which every clock can add.
const VERY_LONG: Duration = Duration::from_hours(100 * 365 * 24);

/// How far [`Call::advance`] came.
#[derive(Debug)]
pub enum Progress {
    /// The call is over.
    Done(Result<Outcome>),
    /// Nothing to do until the caller is woken, or until then.
    Wait(Instant),
}

/// See the module's description.
pub struct Call {
    /// Leaked in a forked child, as the client itself is.
    client: ManuallyDrop<Arc<Client>>,
    wish: Wish,
    owner: Owner,
    caller: Caller,
    time_out: Duration,
    started: Instant,
    /// The place in the order of arrival.
    place: u64,
    /// When it stops to wait for a lock.
    patience: Instant,
    /// When it ends at the latest.
    deadline: Instant,
    /// It waits for the lock as long as it takes, but not for the server.
    endless: bool,
    /// How safe what is done must be before the caller is told.
    safety: Safety,
    stage: Stage,
    waiter: Option<Box<Waiter>>,
    acquiring: Option<Box<Acquiring>>,
    /// Of a lease.
    change: Option<Box<Change>>,
    generation: u64,
}

enum Stage {
    New,
    Queueing,
    Asking(Arc<Step>),
    Sleeping,
    Apart(Box<Apart>),
    Closing,
    Over,
}

impl Call {
    /// A call that has done nothing yet. Without a `time_out` of its own the client's is used.
    pub fn new(
        client: &Arc<Client>,
        wish: Wish,
        time_out: Option<Duration>,
        owner: Owner,
        caller: Caller,
    ) -> Self {
        let started = clock::now();
        let settings = client.settings();
        let endless = time_out == Some(FOR_EVER);
        let time_out = time_out.map_or(settings.timeout, |time_out| time_out.min(VERY_LONG));
        Self {
            client: ManuallyDrop::new(Arc::clone(client)),
            wish,
            owner,
            caller,
            time_out,
            place: client.route.arrive(),
            started,
            patience: started + time_out,
            // One attempt it gets.
            deadline: started + time_out.max(settings.socket_timeout),
            endless,
            safety: settings.safety,
            stage: Stage::New,
            waiter: None,
            acquiring: None,
            change: None,
            generation: fork::generation(),
        }
    }

    /// The same, but what is done must be so safe before the caller is told.
    #[must_use]
    pub fn with_safety(mut self, safety: Safety) -> Self {
        self.safety = safety;
        self
    }

    /// What the caller wants.
    #[must_use]
    pub fn wish(&self) -> &Wish {
        &self.wish
    }

    /// The step that waits for its reply, if there is one.
    #[must_use]
    pub fn step(&self) -> Option<&Arc<Step>> {
        match &self.stage {
            Stage::Asking(step) => Some(step),
            Stage::Apart(apart) => apart.inner().step(),
            _ => None,
        }
    }

    /// Moves on as far as possible without waiting.
    pub fn advance(&mut self) -> Progress {
        loop {
            let moved = match &self.stage {
                Stage::New => self.start(),
                Stage::Queueing => self.queue(),
                Stage::Asking(step) => {
                    let now = clock::now();
                    if let Some(reply) = step.reply() {
                        let reply = reply.clone();
                        self.hear(reply)
                    } else if now < last_moment(step)
                        // Sent in this moment: its caller has time to hear what came of it.
                        || (now < step.deadline && !step.leave_unsent())
                    {
                        return Progress::Wait(last_moment(step));
                    } else {
                        let error = self.client.route.too_late(step);
                        Some(self.fail(error))
                    }
                }
                Stage::Sleeping => self.sleep(),
                Stage::Apart(_) => Some(self.go_on_apart()),
                Stage::Closing => Some(self.close()),
                Stage::Over => Some(Progress::Done(Err(Error::Interrupted))),
            };
            if let Some(progress) = moved {
                if matches!(progress, Progress::Done(_)) {
                    self.finish();
                }
                return progress;
            }
        }
    }

    fn start(&mut self) -> Option<Progress> {
        match &self.wish {
            Wish::Acquire { lock, terms } => {
                // Who tries only once does not queue.
                let queues = !self.time_out.is_zero();
                let join = || self.client.turnstile.join(lock, &self.caller, terms.fair);
                let turn = queues.then(join).flatten();
                self.acquiring = Some(Box::new(Acquiring::new(terms, turn, queues, self.started)));
                self.stage = Stage::Queueing;
                None
            }
            Wish::Close => {
                self.deadline = clock::now() + self.client.settings().socket_timeout;
                self.stage = Stage::Closing;
                None
            }
            Wish::GiveBack(of) => {
                of.hold.iter().for_each(|hold| hold.leave());
                self.ask()
            }
            Wish::Update { lock, key, .. } if !self.client.route.are_together(lock, key) => {
                let lock = Arc::clone(lock);
                let Some(apart) = Apart::begin(self) else {
                    return Some(Progress::Done(Err(Error::LockLost { lock })));
                };
                self.stage = Stage::Apart(Box::new(apart));
                None
            }
            _ => self.ask(),
        }
    }

    fn queue(&mut self) -> Option<Progress> {
        let Some(Acquiring { turn: Some(turn), .. }) = self.acquiring.as_deref() else {
            return self.ask();
        };
        let now = clock::now();
        let told = match &self.wish {
            Wish::Acquire { lock, .. } => self.client.route.ear(lock).told(lock),
            _ => None,
        };
        // Nobody waits for a silent server for longer because he was not the first to ask it.
        let silent = turn.unanswered_since().filter(|_| self.endless);
        let limit = silent.map(|since| since + self.client.settings().timeout);
        let standing = turn.standing(now, self.patience, told);
        let held = turn.lock_is_held(told);
        match standing {
            _ if limit.is_some_and(|limit| limit <= now) => {
                let error = self.client.route.unreached();
                return Some(self.fail(error));
            }
            Standing::Turn => self.acquiring.iter_mut().for_each(|it| it.held = held),
            Standing::Held => return Some(self.refuse()),
            Standing::Wait(until) => {
                return Some(Progress::Wait(limit.map_or(until, |limit| limit.min(until))));
            }
        }
        self.ask()
    }

    fn ask(&mut self) -> Option<Progress> {
        let ask = match &self.wish {
            Wish::Acquire { lock, terms } => {
                let acquiring = self.acquiring.as_deref_mut()?;
                acquiring.ask(lock, terms)
            }
            Wish::Release { lock } => match self.client.holdings.to_release(lock, self.owner) {
                Some(hold) => release(lock, &hold.token),
                None => return Some(Progress::Done(Ok(Outcome::Done(false)))),
            },
            Wish::GiveBack(of) => release(&of.lock, &of.token),
            Wish::Extend { of, ms, how } => {
                let (lock, token) = (Arc::clone(&of.lock), Arc::clone(&of.token));
                let (by, adds) = (Duration::from_millis(*ms), *how == Extension::Add);
                self.change = of.hold.as_ref().map(|hold| Box::new(hold.change(by, adds)));
                Ask::Extend { lock, token, ms: *ms, how: *how }
            }
            Wish::Holder { lock } => Ask::Holder { lock: Arc::clone(lock) },
            Wish::Incr { key, change } => Ask::Incr { key: Arc::clone(key), change: *change },
            Wish::Change { key, change, .. } => Ask::Update {
                lock: Arc::clone(key),
                key: Arc::clone(key),
                change: *change,
                right: Right::Elsewhere,
            },
            Wish::Update { lock, key, change, proof, .. } => Ask::Update {
                lock: Arc::clone(lock),
                key: Arc::clone(key),
                change: *change,
                right: match proof {
                    Some(token) => Right::Held(Arc::clone(token)),
                    None => self.client.holdings.right(lock, self.owner),
                },
            },
            Wish::Close => return None,
        };
        let deadline = if self.endless {
            clock::now() + self.client.settings().timeout
        } else {
            self.deadline
        };
        // What is given back too early is no harm.
        let safety = match &ask {
            Ask::Release { .. } | Ask::Holder { .. } => Safety::default(),
            _ => self.safety,
        };
        let right_ends = match &self.wish {
            Wish::Change { until, .. } => *until,
            _ => None,
        };
        let step = Step::new(ask, deadline, self.place, self.caller.clone());
        let step = Arc::new(step.with_safety(safety).with_right_until(right_ends));
        let put = self.client.route.put(Arc::clone(&step));
        let until = last_moment(&step);
        self.stage = Stage::Asking(step);
        Some(match put {
            Ok(()) => Progress::Wait(until),
            Err(error) => self.fail(error),
        })
    }

    fn go_on_apart(&mut self) -> Progress {
        let stage = std::mem::replace(&mut self.stage, Stage::Over);
        let Stage::Apart(mut apart) = stage else { return Progress::Done(Err(Error::Interrupted)) };
        let progress = apart.advance(self);
        self.stage = Stage::Apart(apart);
        progress
    }

    fn sleep(&mut self) -> Option<Progress> {
        let now = clock::now();
        let again = self.acquiring.as_deref().and_then(|it| it.ask_again(self.patience));
        let Some(waiter) = self.waiter.as_mut() else { return self.ask() };
        match waiter.look(now, self.patience, &self.caller) {
            Look::Try => self.ask(),
            Look::Sleep(until) => match again {
                Some(due) if due <= now => {
                    waiter.get_up();
                    self.ask()
                }
                due => Some(Progress::Wait(due.map_or(until, |due| due.min(until)))),
            },
            Look::Over => Some(match &self.wish {
                Wish::Update { lock, .. } => {
                    let lock = Arc::clone(lock);
                    Progress::Done(Err(Error::LockTimeout { lock, time_out: self.time_out }))
                }
                _ => self.refuse(),
            }),
        }
    }

    fn close(&self) -> Progress {
        let now = clock::now();
        if now < self.deadline && !self.client.route.settled() {
            return Progress::Wait(now + CLOSING_LOOK);
        }
        self.client.route.close();
        Progress::Done(Ok(Outcome::Done(true)))
    }

    /// Lets go of what the call held while it waited.
    fn finish(&mut self) {
        self.stage = Stage::Over;
        self.waiter = None;
        if let Some(acquiring) = self.acquiring.as_deref_mut() {
            acquiring.turn = None;
        }
    }

    /// Gives the call up. What comes back, if anything, is a step that nobody waits for any more.
    ///
    /// Also a lock is given back that was acquired for a caller who has not been told; and a release is
    /// carried out all the same.
    pub fn abandon(&mut self) -> Option<Arc<Step>> {
        let mut orphan = None;
        // In a forked child the call is the parent's.
        if self.generation == fork::generation() {
            if let Stage::Asking(step) = &self.stage {
                let under_way = self.client.route.leave(step);
                orphan = match &step.ask {
                    Ask::Acquire { .. } => self.undo(under_way),
                    ask @ Ask::Release { .. } => Some(self.run_orphan(ask.clone())),
                    Ask::Extend { .. } => {
                        self.changed(if under_way { Changed::Unknown } else { Changed::Not });
                        None
                    }
                    _ => None,
                };
            } else if let Stage::Apart(_) = &self.stage {
                if let Stage::Apart(mut apart) = std::mem::replace(&mut self.stage, Stage::Over) {
                    apart.abandon(self);
                }
            } else {
                orphan = self.undo(false);
            }
        }
        self.finish();
        orphan
    }

    /// The caller has been told the outcome: from here on it is the caller's.
    pub fn told(&mut self) {
        self.acquiring = None;
    }

    /// An acquire that may have succeeded, or may yet, must leave no lock that nobody holds, and no
    /// place in a queue that nobody waits in.
    ///
    /// A delayed copy of it is refused as stale, for the release has a later number. Not so in a cluster,
    /// if the slot moved meanwhile: then a copy that comes later still leaves a lock until its lease ends.
    fn undo(&mut self, under_way: bool) -> Option<Arc<Step>> {
        let Wish::Acquire { lock, .. } = &self.wish else { return None };
        let acquiring = self.acquiring.as_deref_mut()?;
        if acquiring.hold.is_some() {
            self.client.holdings.remove(lock, &acquiring.token);
        }
        let undoing = acquiring.undo(lock, under_way)?;
        Some(self.run_orphan(undoing))
    }

    /// So went the change of a lease, if that is what it is about.
    fn changed(&mut self, how: Changed) {
        if let (Wish::Extend { of: Acquisition { hold: Some(hold), .. }, .. }, Some(change)) =
            (&self.wish, self.change.take())
        {
            hold.changed(&change, how);
        }
    }

    /// Has something given back for nobody.
    fn run_orphan(&self, ask: Ask) -> Arc<Step> {
        let settings = self.client.settings();
        // No longer than a call without a time-out of its own; then it is for the lease to end it.
        let lease = match &self.wish {
            Wish::Acquire { terms: Terms { lease: Some(lease), .. }, .. } => *lease,
            _ => settings.timeout,
        };
        let until = clock::now() + lease.min(settings.timeout) + settings.socket_timeout;
        self.client.route.run_orphan(ask, until)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if !matches!(self.stage, Stage::Over) || self.acquiring.is_some() {
            self.abandon();
        }
        if self.generation == fork::generation() {
            // SAFETY: dropped here only, and never used after.
            unsafe { ManuallyDrop::drop(&mut self.client) };
        }
    }
}

fn release(lock: &Name, token: &Token) -> Ask {
    let (lock, token) = (Arc::clone(lock), Some(Arc::clone(token)));
    Ask::Release { lock, token, by: None, place: None }
}
