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
//! | `Closing` | what nobody waits for to be done | the end |
//! | `Over` | nothing | |
//!
//! A call that is given up before its end ([`Call::abandon`], or dropped) leaves nothing behind: its
//! step is not sent any more, and an acquire whose step may have been sent is undone.

use std::fmt;
use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::caller::Caller;
use crate::client::Client;
use crate::combine::last_moment;
use crate::error::{Error, Result};
use crate::fork;
use crate::holdings::Owner;
use crate::names::Name;
use crate::patrol::SLICE;
use crate::random;
use crate::step::{Ask, Reply, Step, Token};
use crate::turnstile::{Place, Standing};
use crate::watch::{Look, Waiter};

/// How often a closing client looks whether all is done.
const CLOSING_LOOK: Duration = Duration::from_millis(2);

/// What a caller wants.
pub enum Wish {
    /// Take a lock; false when somebody else held it all the time.
    Acquire {
        /// The lock's name.
        lock: Name,
        /// How long it is held at the most.
        lease: Duration,
    },
    /// Give back what the owner, or else another owner of this process, has acquired. False when
    /// nothing was released, because nobody here held it or its lease had ended.
    Release {
        /// The lock's name.
        lock: Name,
    },
    /// Change a stock with no floor; create it if need be.
    Incr {
        /// The stock's key.
        key: Name,
        /// What to add.
        change: i64,
    },
    /// Change a stock, never below zero, while the lock is free or the owner's.
    Update {
        /// The lock's name.
        lock: Name,
        /// The stock's key.
        key: Name,
        /// What to add.
        change: i64,
    },
    /// Have everything done that is still to be undone, and close the connections.
    Close,
}

impl fmt::Display for Wish {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (function, name) = match self {
            Self::Acquire { lock, .. } => ("acquire_lock", lock),
            Self::Release { lock } => ("release_lock", lock),
            Self::Incr { key, .. } => ("incr_inventory", key),
            Self::Update { key, .. } => ("update_inventory", key),
            Self::Close => return f.write_str("close"),
        };
        write!(f, "{function} of '{}'", String::from_utf8_lossy(name))
    }
}

/// How far [`Call::advance`] came.
#[derive(Debug)]
pub enum Progress {
    /// The call is over.
    Done(Result<bool>),
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
    /// The place in the order of arrival.
    place: u64,
    /// When it stops to wait for a lock.
    patience: Instant,
    /// When it ends at the latest.
    deadline: Instant,
    stage: Stage,
    waiter: Option<Box<Waiter>>,
    acquiring: Option<Box<Acquiring>>,
    generation: u64,
}

enum Stage {
    New,
    Queueing,
    Asking(Arc<Step>),
    Sleeping,
    Closing,
    Over,
}

/// What only an acquire has to remember.
struct Acquiring {
    token: Token,
    turn: Option<Place>,
    /// When it last asked.
    asked: Instant,
    /// It was told so late that it asked anew.
    renewed: bool,
    /// The last word was that somebody else holds the lock.
    held: bool,
    /// The lock is ours.
    acquired: bool,
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
        let started = Instant::now();
        let settings = client.settings();
        let time_out = time_out.unwrap_or(settings.timeout);
        Self {
            client: ManuallyDrop::new(Arc::clone(client)),
            wish,
            owner,
            caller,
            time_out,
            place: client.combiner.arrive(),
            patience: started + time_out,
            // One attempt it gets.
            deadline: started + time_out.max(settings.socket_timeout),
            stage: Stage::New,
            waiter: None,
            acquiring: None,
            generation: fork::generation(),
        }
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
                    if let Some(reply) = step.reply() {
                        let reply = reply.clone();
                        self.hear(reply)
                    } else if Instant::now() < last_moment(step) {
                        return Progress::Wait(last_moment(step));
                    } else {
                        let error = self.client.combiner.too_late(step);
                        Some(self.fail(error))
                    }
                }
                Stage::Sleeping => self.sleep(),
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
            Wish::Acquire { lock, .. } => {
                // Who tries only once does not queue.
                let queues = !self.time_out.is_zero();
                let turn = queues.then(|| self.client.turnstile.join(lock, &self.caller)).flatten();
                self.acquiring = Some(Box::new(Acquiring {
                    token: random::hex_bytes(),
                    turn,
                    asked: Instant::now(),
                    renewed: false,
                    held: false,
                    acquired: false,
                }));
                self.stage = Stage::Queueing;
                None
            }
            Wish::Close => {
                self.deadline = Instant::now() + self.client.settings().socket_timeout;
                self.stage = Stage::Closing;
                None
            }
            _ => self.ask(),
        }
    }

    fn queue(&mut self) -> Option<Progress> {
        if let (Wish::Acquire { lock, .. }, Some(acquiring)) = (&self.wish, &mut self.acquiring)
            && let Some(turn) = &acquiring.turn
        {
            let told = self.client.ear.told(lock);
            match turn.standing(Instant::now(), self.patience, told) {
                Standing::Turn => acquiring.held = turn.lock_is_held(told),
                Standing::Held => return Some(Progress::Done(Ok(false))),
                Standing::Wait(until) => return Some(Progress::Wait(until)),
            }
        }
        self.ask()
    }

    fn ask(&mut self) -> Option<Progress> {
        let ask = match &self.wish {
            Wish::Acquire { lock, lease } => {
                let acquiring = self.acquiring.as_deref_mut()?;
                acquiring.asked = Instant::now();
                acquiring.turn.iter().for_each(Place::asks);
                let lease = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
                Ask::Acquire { lock: Arc::clone(lock), token: acquiring.token, lease }
            }
            Wish::Release { lock } => match self.client.holdings.to_release(lock, self.owner) {
                Some(token) => Ask::Release { lock: Arc::clone(lock), token },
                None => return Some(Progress::Done(Ok(false))),
            },
            Wish::Incr { key, change } => Ask::Incr { key: Arc::clone(key), change: *change },
            Wish::Update { lock, key, change } => Ask::Update {
                lock: Arc::clone(lock),
                key: Arc::clone(key),
                change: *change,
                token: self.client.holdings.token(lock, self.owner),
            },
            Wish::Close => return None,
        };
        let step = Arc::new(Step::new(ask, self.deadline, self.place, self.caller.clone()));
        let put = self.client.combiner.put(Arc::clone(&step));
        self.stage = Stage::Asking(step);
        Some(match put {
            Ok(()) => Progress::Wait(self.deadline),
            Err(error) => self.fail(error),
        })
    }

    fn hear(&mut self, reply: Reply) -> Option<Progress> {
        if let Some(Acquiring { turn: Some(turn), .. }) = self.acquiring.as_deref()
            && !matches!(reply, Reply::Failed(_))
        {
            match reply {
                Reply::Held { until } => turn.hears(true, until),
                _ => turn.hears(false, None),
            }
        }
        let outcome = match (&self.wish, reply) {
            (_, Reply::Failed(error)) => return Some(self.fail(error)),
            (Wish::Acquire { lock, .. } | Wish::Update { lock, .. }, Reply::Held { until }) => {
                if let Some(acquiring) = self.acquiring.as_deref_mut() {
                    acquiring.held = true;
                }
                let ear = &self.client.ear;
                self.waiter.get_or_insert_with(|| Box::new(ear.waiter(lock))).lie_down(until);
                self.stage = Stage::Sleeping;
                return None;
            }
            (Wish::Acquire { lock, lease }, Reply::Acquired) => {
                let acquiring = self.acquiring.as_deref_mut()?;
                // Told so late that the lease may be over: ask for it anew, with the same token. Once:
                // a lease shorter than a round trip is nobody's for long.
                if acquiring.asked.elapsed() >= *lease && !acquiring.renewed {
                    acquiring.renewed = true;
                    if Instant::now() < self.deadline {
                        return self.ask();
                    }
                    self.undo();
                    return Some(Progress::Done(Ok(false)));
                }
                acquiring.acquired = true;
                let ends = acquiring.asked + *lease;
                self.client.holdings.add(lock, self.owner, acquiring.token, ends);
                Ok(true)
            }
            (Wish::Release { lock }, reply @ (Reply::Released | Reply::Foreign)) => {
                if let Some(Ask::Release { token, .. }) = self.step().map(|step| &step.ask) {
                    self.client.holdings.remove(lock, token);
                }
                self.client.ear.tell(lock);
                Ok(reply == Reply::Released)
            }
            (Wish::Incr { key, change } | Wish::Update { key, change, .. }, reply) => {
                changed(key, *change, reply)
            }
            (_, reply) => Err(unexpected(&reply)),
        };
        Some(Progress::Done(outcome))
    }

    fn fail(&self, error: Error) -> Progress {
        if let Some(acquiring) = self.acquiring.as_deref() {
            if matches!(error, Error::OutcomeUnknown(_)) || acquiring.renewed {
                self.undo();
            }
            // The answer to an attempt of the last moment did not make it. What was heard a moment
            // ago is answer enough.
            let no_answer = matches!(error, Error::OutcomeUnknown(_) | Error::Unreachable(_));
            if no_answer && acquiring.held && acquiring.asked + SLICE >= self.patience {
                return Progress::Done(Ok(false));
            }
        }
        Progress::Done(Err(error))
    }

    fn sleep(&mut self) -> Option<Progress> {
        let waiter = self.waiter.as_mut()?;
        match waiter.look(Instant::now(), self.patience, &self.caller) {
            Look::Try => self.ask(),
            Look::Sleep(until) => Some(Progress::Wait(until)),
            Look::Over => Some(Progress::Done(match &self.wish {
                Wish::Update { lock, .. } => {
                    let lock = Arc::clone(lock);
                    Err(Error::LockTimeout { lock, time_out: self.time_out })
                }
                _ => Ok(false),
            })),
        }
    }

    fn close(&self) -> Progress {
        let now = Instant::now();
        if now < self.deadline && !self.client.combiner.settled() {
            return Progress::Wait(now + CLOSING_LOOK);
        }
        self.client.combiner.disconnect();
        self.client.ear.close();
        Progress::Done(Ok(true))
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
            let acquiring = self.acquiring.as_deref_mut();
            let renewed = acquiring.as_ref().is_some_and(|it| it.renewed);
            let acquired = acquiring.is_some_and(|it| std::mem::take(&mut it.acquired));
            if let Stage::Asking(step) = &self.stage {
                let under_way = self.client.combiner.leave(step);
                orphan = match &step.ask {
                    Ask::Acquire { .. } if under_way || renewed => self.undo(),
                    Ask::Release { lock, token } => Some(self.release(lock, *token)),
                    _ => None,
                };
            } else if acquired {
                orphan = self.undo();
            }
        }
        self.finish();
        orphan
    }

    /// The caller has been told the outcome: from here on it is the caller's.
    pub fn told(&mut self) {
        self.acquiring = None;
    }

    /// An acquire that may have succeeded, or may yet, must leave no lock that nobody holds.
    fn undo(&self) -> Option<Arc<Step>> {
        let (Wish::Acquire { lock, .. }, Some(acquiring)) = (&self.wish, &self.acquiring) else {
            return None;
        };
        self.client.holdings.remove(lock, &acquiring.token);
        Some(self.release(lock, acquiring.token))
    }

    /// Gives a lock back for nobody.
    fn release(&self, lock: &Name, token: Token) -> Arc<Step> {
        let settings = self.client.settings();
        // No longer than a call without a time-out of its own; then it is for the lease to end it.
        let lease = match &self.wish {
            Wish::Acquire { lease, .. } => *lease,
            _ => settings.timeout,
        };
        let until = Instant::now() + lease.min(settings.timeout) + settings.socket_timeout;
        self.client.combiner.run_orphan(Ask::Release { lock: Arc::clone(lock), token }, until)
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

fn changed(key: &Name, change: i64, reply: Reply) -> Result<bool> {
    let key = Arc::clone(key);
    match reply {
        Reply::Changed => Ok(true),
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
