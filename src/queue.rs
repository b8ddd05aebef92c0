//! The queue: steps that wait for somebody to take them to the server, and whether the pilot has to
//! be woken for them. It is what `combine` locks for moments.
//!
//! A loop that wakes a crowd of tasks *corks* the queue meanwhile: they ask again one after the other,
//! and a pilot that is quick would take them in small bites, each a round trip. So it waits until
//! they have asked, or there is [`ENOUGH`] for a batch. Whoever asks from anywhere else is not made to
//! wait: that uncorks it. And a task that keeps its loop busy does not keep the others' steps here: as
//! long as the queue may be corked, the pilot looks by itself once in a while.
//!
//! | corked | attentive | meaning |
//! |---|---|---|
//! | no | any | the pilot, or a thread, has been woken for what is here |
//! | yes | yes | all here are of tasks woken in portions that are not over: their ends uncork |
//! | yes | no | never |
//!
//! *Measured*, 1,000 tasks, others at work on the same two cores: 390,000 to 540,000 updates a second
//! without the cork, in batches of 15 to 26; 520,000 to 620,000 with it.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::caller::Caller;
use crate::clock;
use crate::combine::Combiner;
use crate::error::{Error, Result};
use crate::names::Name;
use crate::script_call::ScriptCall;
use crate::step::Step;

/// How many steps of tasks that are being woken make a batch, though there may be more to come.
const ENOUGH: usize = 128;

/// After a crowd of so many, the pilot looks by itself for so long.
const CROWD: usize = 8;
const ATTENTION: Duration = Duration::from_millis(10);

/// How many steps are taken for the batches to come.
const TAKE: usize = 16_384;

/// How many steps may wait. Who comes when so many do is better told at once.
const MOST: usize = 1 << 20;

/// See the module's description.
#[derive(Default)]
pub struct Queue {
    steps: VecDeque<Arc<Step>>,
    /// Calls that other nodes of a cluster have sent here.
    guests: Vec<ScriptCall>,
    /// Steps that try again were put behind others that came later.
    mixed: bool,
    /// How many more have been taken, and wait for their batch with the session.
    taken: usize,
    /// How many of them all, or so, have left.
    left: usize,
    corked: bool,
    /// When a crowd was taken last.
    crowd: Option<Instant>,
    /// The pilot, as far as the queue knows it.
    pub pilot: Pilot,
}

/// The thread that leads for those who cannot.
#[derive(Default)]
pub struct Pilot {
    /// None, when there is no thread.
    pub thread: Option<Thread>,
    /// It was woken, and has not looked yet.
    pub called: bool,
    /// It looks within a moment, woken or not.
    attentive: bool,
}

impl Queue {
    /// Whether there is room for a step.
    pub fn admit(&self) -> Result<()> {
        if self.steps.len() + self.taken < MOST {
            return Ok(());
        }
        let words = format!("{MOST} calls of this process are waiting for the server already");
        Err(Error::Unreachable(words))
    }

    /// Puts a step in. True when the pilot has to be woken for it.
    pub fn push(&mut self, step: Arc<Step>, combiner: &Weak<Combiner>) -> bool {
        self.mixed |= self.steps.back().is_some_and(|last| last.place > step.place);
        self.corked = match &step.caller {
            Caller::Task(mailbox, _) => {
                let may_wait = self.pilot.attentive && (self.corked || self.steps.is_empty());
                may_wait && mailbox.cork(combiner)
            }
            Caller::Thread(_) | Caller::Nobody => false,
        };
        let led = step.caller.can_lead();
        self.steps.push_back(step);
        !led && !self.is_corked() && !self.pilot.called
    }

    /// Takes in a call from another node. True when the pilot has to be woken for it.
    pub fn welcome(&mut self, guest: ScriptCall) -> bool {
        let led = guest.steps.iter().any(|step| step.wanted() && step.caller.can_lead());
        self.guests.push(guest);
        !led && !self.pilot.called
    }

    /// The calls from other nodes.
    pub fn guests(&mut self) -> Vec<ScriptCall> {
        std::mem::take(&mut self.guests)
    }

    /// Puts out the steps that are not for this node, as `here` says of a name.
    pub fn evict(&mut self, here: impl Fn(&Name) -> bool) -> VecDeque<Arc<Step>> {
        let steps = std::mem::take(&mut self.steps).into_iter();
        let (stay, go) = steps.partition(|step| here(step.ask.recorded_under()));
        self.steps = stay;
        go
    }

    /// Whether what is here is still to wait.
    pub fn is_corked(&self) -> bool {
        self.corked && self.steps.len() < ENOUGH
    }

    /// The tasks of a portion have asked what they had to ask. True when the pilot has to be woken.
    pub fn uncork(&mut self) -> bool {
        self.corked = false;
        !self.is_empty() && !self.pilot.called
    }

    fn is_empty(&self) -> bool {
        self.steps.is_empty() && self.guests.is_empty()
    }

    /// Moves the first who wait into `room`, where `waiting` have been taken before. True when they
    /// are not in order of arrival.
    pub fn take(&mut self, room: &mut Vec<Arc<Step>>, waiting: usize) -> bool {
        self.pilot.called = false;
        if waiting < TAKE {
            let take = self.steps.len().min(TAKE);
            room.extend(self.steps.drain(..take));
            if take >= CROWD {
                self.crowd = Some(clock::now());
            }
        }
        self.taken = waiting + room.len();
        let mixed = self.mixed;
        self.mixed &= !self.steps.is_empty();
        mixed
    }

    /// So many of those who were taken still wait.
    pub fn still_waiting(&mut self, waiting: usize) {
        self.taken = waiting;
    }

    /// Empties the queue.
    pub fn drain(&mut self) -> VecDeque<Arc<Step>> {
        std::mem::take(&mut self.steps)
    }

    /// The first who wants to be taken now.
    pub fn first(&self) -> Option<Arc<Step>> {
        let mut guests = self.guests.iter().flat_map(|guest| &guest.steps);
        if let Some(guest) = guests.find(|step| step.wanted()) {
            return Some(Arc::clone(guest));
        }
        let first = self.steps.iter().find(|step| step.wanted());
        first.filter(|_| !self.is_corked()).cloned()
    }

    /// Somebody has left. When most have, and they are many, they are cleared away.
    pub fn sweep(&mut self) {
        self.left += 1;
        if self.left > TAKE && self.left > self.steps.len() / 2 {
            self.left = 0;
            self.steps.retain(|step| step.wanted());
        }
    }

    /// The pilot looks. True when it is to look again in a moment, woken or not.
    pub fn pilot_looks(&mut self, now: Instant) -> bool {
        self.pilot.called = false;
        let crowd = self.crowd.is_some_and(|crowd| now < crowd + ATTENTION);
        self.pilot.attentive = crowd || !self.is_empty();
        self.pilot.attentive
    }

    /// The pilot goes, unless there is something for it to do.
    pub fn pilot_goes(&mut self) -> bool {
        let goes = !self.pilot.called && self.is_empty();
        if goes {
            self.pilot.thread = None;
        }
        goes
    }
}
