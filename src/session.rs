//! A session: a connection plus its identity, and through both, exactly once.
//!
//! A session has a random id, which outlives its connections; each batch has the next number; one
//! batch is in flight at a time. The server records number and outcome in the same step as the
//! change. After a broken connection the same batch is asked for again, on a new connection, until
//! there is an answer: calls that were applied tell, the others apply. See `scripts/session.lua` for
//! the server's half. (Kafka's idempotent producer does the same.)
//!
//! | link | batch | what happens next |
//! |---|---|---|
//! | `Down` | any | wait for the pause to end, open a connection |
//! | `Opening` | any | `Up`, or `Down` with a longer pause; everybody fails if nobody was ever there |
//! | `Up` | none | nothing: the owner brings the next batch |
//! | `Up`, no flight | open | send the calls without an answer |
//! | `Up`, in flight | open | read; a silence of `socket_timeout` breaks the connection |
//!
//! Invariant: whatever is in flight belongs to the batch at hand. When a batch is given up while it
//! is in flight, so is the connection, for its replies would answer the next batch.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use redis::Value;

use crate::batch::Batch;
use crate::caller::Caller;
use crate::clock::ServerClock;
use crate::connect::{Opening, Trouble};
use crate::error::Error;
use crate::inherited::OpenFd;
use crate::mailbox::Mailbox;
use crate::random;
use crate::script_call::Heard;
use crate::settings::Settings;
use crate::step::Step;
use crate::transport::Wire;

/// What a session has done so far; read by `statistics()`.
#[derive(Debug, Default)]
pub struct Counts {
    /// Steps that the server answered.
    pub steps: AtomicU64,
    /// Script calls sent.
    pub calls: AtomicU64,
    /// Batches sent: round trips.
    pub batches: AtomicU64,
    /// Times that a connection broke under a batch, which is then asked for again.
    pub asked_again: AtomicU64,
    /// Connections made.
    pub connects: AtomicU64,
}

/// How far [`Session::advance`] came.
pub enum Advance {
    /// The batch is done with. These of its steps came too late and may try again.
    Done(Vec<Arc<Step>>),
    /// The slice is over; the batch goes on when somebody advances it again.
    Pending,
    /// There is no server to ask, and no hope: everybody who waits shall know.
    Hopeless(Error),
}

/// See the module's description.
pub struct Session {
    id: String,
    settings: Arc<Settings>,
    open: Arc<OpenFd>,
    counts: Arc<Counts>,
    trouble: Arc<Mutex<String>>,
    number: u64,
    /// Steps that wait for their batch, in order of arrival.
    backlog: VecDeque<Arc<Step>>,
    room: Vec<Arc<Step>>,
    /// The loops whose tasks are among the callers.
    audience: Vec<Arc<Mailbox>>,
    batch: Option<Batch>,
    late: Vec<Arc<Step>>,
    link: Link,
    /// A server was there once: its absence is ridden out.
    known: bool,
    failures: u32,
}

enum Link {
    Down { until: Instant },
    Opening(Opening),
    Up(Up),
}

struct Up {
    wire: Wire,
    clock: ServerClock,
    flight: Option<Flight>,
    socket_timeout: Duration,
    /// Not before this: the server was not ready.
    pause: Option<Instant>,
}

struct Flight {
    sent: Instant,
    end: Instant,
    expected: VecDeque<usize>,
    wrong_server: bool,
    not_now: Option<String>,
}

impl Session {
    /// A session that has not connected yet.
    pub fn new(
        settings: &Arc<Settings>,
        open: &Arc<OpenFd>,
        counts: &Arc<Counts>,
        trouble: &Arc<Mutex<String>>,
    ) -> Self {
        Self {
            id: random::hex(),
            settings: Arc::clone(settings),
            open: Arc::clone(open),
            counts: Arc::clone(counts),
            trouble: Arc::clone(trouble),
            number: 0,
            backlog: VecDeque::new(),
            room: Vec::new(),
            audience: Vec::new(),
            batch: None,
            late: Vec::new(),
            link: Link::Down { until: Instant::now() },
            known: false,
            failures: 0,
        }
    }

    /// Whether a batch is at hand.
    pub fn is_busy(&self) -> bool {
        self.batch.is_some()
    }

    /// Somebody who waits for the batch at hand, or for the next one.
    pub fn somebody(&self) -> Option<Arc<Step>> {
        let at_hand = self.batch.as_ref().and_then(Batch::somebody);
        at_hand.or_else(|| self.backlog.iter().find(|step| step.wanted())).cloned()
    }

    /// Room for steps that come in.
    pub fn room(&mut self) -> Vec<Arc<Step>> {
        std::mem::take(&mut self.room)
    }

    /// Takes in the steps that came since the last batch; `mixed` when they are out of order.
    pub fn take_in(&mut self, mut steps: Vec<Arc<Step>>, mixed: bool) {
        for step in steps.drain(..) {
            if let Caller::Task(mailbox, _) = &step.caller
                && !self.audience.iter().any(|known| Arc::ptr_eq(known, mailbox))
            {
                self.audience.push(Arc::clone(mailbox));
            }
            self.backlog.push_back(step);
        }
        self.room = steps;
        if mixed {
            self.backlog.make_contiguous().sort_by_key(|step| step.place);
        }
    }

    /// Wakes the loops whose tasks were answered.
    pub fn ring(&mut self) {
        self.audience.iter().for_each(|mailbox| mailbox.ring());
        // Those of closed loops are nobody else's any more.
        self.audience.retain(|mailbox| Arc::strong_count(mailbox) > 1);
    }

    /// How many steps wait for their batch.
    pub fn waiting(&self) -> usize {
        self.backlog.len()
    }

    /// Makes a batch of what can travel together. False when there is nothing to send.
    pub fn gather(&mut self) -> bool {
        debug_assert!(self.batch.is_none());
        let batch = Batch::gather(self.number + 1, &mut self.backlog, Instant::now());
        if batch.calls() == 0 {
            return false;
        }
        self.number += 1;
        self.batch = Some(batch);
        true
    }

    /// Closes the connection, unless it is in use.
    pub fn disconnect(&mut self) {
        if self.batch.is_none() {
            self.link = Link::Down { until: Instant::now() };
        }
    }

    /// Moves the batch at hand on, until it is done or `until` is over.
    pub fn advance(&mut self, until: Instant) -> Advance {
        loop {
            let Some(batch) = &mut self.batch else { return Advance::Done(Vec::new()) };
            if !batch.wanted() && !batch.answered() {
                return self.give_up();
            }
            match &mut self.link {
                Link::Down { until: pause } => {
                    if !sleep(*pause, until) {
                        return Advance::Pending;
                    }
                    self.link = Link::Opening(Opening::begin(&self.settings, &self.open, false));
                }
                Link::Opening(opening) => match opening.advance(until) {
                    Ok(None) => return Advance::Pending,
                    Ok(Some(opened)) => {
                        self.known = true;
                        self.counts.connects.fetch_add(1, Ordering::Relaxed);
                        let (wire, clock) = (opened.wire, opened.clock);
                        let socket_timeout = self.settings.socket_timeout;
                        self.link =
                            Link::Up(Up { wire, clock, flight: None, socket_timeout, pause: None });
                    }
                    Err(trouble) => {
                        if let Some(error) = self.not_opened(trouble) {
                            return self.hopeless(error);
                        }
                    }
                },
                Link::Up(up) => {
                    match up.advance(batch, &self.id, &self.counts, &mut self.late, until) {
                        Ok(Moved::Answered { wrong_server }) => {
                            if self.failures > 0 {
                                self.failures = 0;
                                self.note(String::new());
                            }
                            self.batch = None;
                            if wrong_server {
                                self.link = Link::Down { until: Instant::now() };
                            }
                            return Advance::Done(std::mem::take(&mut self.late));
                        }
                        Ok(Moved::NotNow(why)) => {
                            let pause = backoff(self.failures, longest_pause(&self.settings));
                            up.pause = Some(Instant::now() + pause);
                            self.failures += 1;
                            self.note(why);
                        }
                        Ok(Moved::Pending) => return Advance::Pending,
                        Err(why) => self.broken(why),
                    }
                }
            }
        }
    }

    fn not_opened(&mut self, trouble: Trouble) -> Option<Error> {
        match trouble {
            Trouble::Unreachable(why) if !self.known => return Some(Error::Unreachable(why)),
            Trouble::Unreachable(why) | Trouble::NotReady(why) => self.broken(why),
            Trouble::Refused(error) => return Some(error),
        }
        None
    }

    /// The connection is of no use any more; the batch will be asked for again on the next one.
    fn broken(&mut self, why: String) {
        self.note(why);
        if let (Some(batch), Link::Up(Up { flight: Some(_), .. })) = (&mut self.batch, &self.link) {
            batch.in_doubt = true;
            self.counts.asked_again.fetch_add(1, Ordering::Relaxed);
        }
        let pause = backoff(self.failures, longest_pause(&self.settings));
        self.link = Link::Down { until: Instant::now() + pause };
        self.failures += 1;
    }

    fn note(&self, why: String) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn hopeless(&mut self, error: Error) -> Advance {
        self.link = Link::Down { until: Instant::now() };
        if let Some(mut batch) = self.batch.take() {
            batch.fail(&error);
        }
        for step in self.late.drain(..).chain(self.backlog.drain(..)) {
            step.fail(&error);
        }
        Advance::Hopeless(error)
    }

    /// Nobody waits for the batch any more. Its number is burnt: a copy that is still under way is
    /// refused as stale by whoever came later, or as late.
    fn give_up(&mut self) -> Advance {
        self.batch = None;
        // Nor does a connection that is being opened go on by itself: its time would run out.
        if matches!(&self.link, Link::Opening(_) | Link::Up(Up { flight: Some(_), .. })) {
            self.link = Link::Down { until: Instant::now() };
        }
        Advance::Done(std::mem::take(&mut self.late))
    }
}

/// How far a batch came on a connection.
enum Moved {
    Answered { wrong_server: bool },
    NotNow(String),
    Pending,
}

impl Up {
    /// Sends what has no answer yet, and reads answers. An error means that the connection is broken.
    fn advance(
        &mut self,
        batch: &mut Batch,
        session: &str,
        counts: &Counts,
        late: &mut Vec<Arc<Step>>,
        until: Instant,
    ) -> Result<Moved, String> {
        if let Some(pause) = self.pause {
            if !sleep(pause, until) {
                return Ok(Moved::Pending);
            }
            self.pause = None;
        }
        loop {
            let flight = match &mut self.flight {
                Some(flight) => flight,
                None => self.flight.insert(send(
                    &mut self.wire,
                    batch,
                    session,
                    &self.clock,
                    counts,
                    self.socket_timeout,
                )),
            };
            while !flight.expected.is_empty() {
                let slice = until.min(flight.end);
                let written = self.wire.flush(slice).map_err(|error| error.to_string())?;
                let reply = if written {
                    self.wire.receive(slice).map_err(|error| error.to_string())?
                } else {
                    None
                };
                let received = Instant::now();
                match reply {
                    None | Some(Value::Push { .. }) if received >= flight.end => {
                        let waited = received - flight.sent;
                        return Err(format!("no answer within {} ms", waited.as_millis()));
                    }
                    None => return Ok(Moved::Pending),
                    // However many of them come.
                    Some(Value::Push { .. }) if received >= until => return Ok(Moved::Pending),
                    Some(Value::Push { .. }) => {}
                    Some(reply) => flight.hear(batch, reply, received, &mut self.clock, late),
                }
            }
            let (wrong_server, not_now) = (flight.wrong_server, flight.not_now.take());
            self.flight = None;
            if let Some(why) = not_now {
                return Ok(Moved::NotNow(why));
            }
            if batch.answered() {
                counts.steps.fetch_add(batch.steps() as u64, Ordering::Relaxed);
                return Ok(Moved::Answered { wrong_server });
            }
        }
    }
}

fn send(
    wire: &mut Wire,
    batch: &mut Batch,
    session: &str,
    clock: &ServerClock,
    counts: &Counts,
    socket_timeout: Duration,
) -> Flight {
    let sent = Instant::now();
    let expected = batch.pack(sent, socket_timeout, session, clock, wire.out());
    // None, when all callers have left meanwhile.
    counts.batches.fetch_add(u64::from(!expected.is_empty()), Ordering::Relaxed);
    counts.calls.fetch_add(expected.len() as u64, Ordering::Relaxed);
    Flight {
        sent,
        end: sent + socket_timeout,
        expected: expected.into(),
        wrong_server: false,
        not_now: None,
    }
}

impl Flight {
    fn hear(
        &mut self,
        batch: &mut Batch,
        reply: Value,
        received: Instant,
        clock: &mut ServerClock,
        late: &mut Vec<Arc<Step>>,
    ) {
        let Some(index) = self.expected.pop_front() else { return };
        match batch.hear(index, reply, self.sent, received, clock, late) {
            Heard::Answer | Heard::Again => {}
            Heard::NotNow(why) => self.not_now = Some(why),
            Heard::WrongServer => self.wrong_server = true,
        }
    }
}

/// No longer than that, so that each call gets an attempt: it lasts `socket_timeout` at least.
fn longest_pause(settings: &Settings) -> Duration {
    Duration::from_millis(500).min(settings.socket_timeout / 2)
}

/// How long to stay away after so many failures in a row: not at all the first time, then longer and
/// longer up to `most`, each time by chance up to half of it less, so that a crowd of processes does
/// not come back in step.
fn backoff(failures: u32, most: Duration) -> Duration {
    const FIRST: Duration = Duration::from_millis(16);
    if failures == 0 {
        return Duration::ZERO;
    }
    let full = FIRST.saturating_mul(1 << (failures - 1).min(16)).min(most);
    full.mul_f64(1.0 - f64::from(random::below(1000)) / 2000.0)
}

/// Sleeps to the end of a pause: true, or to the end of the slice, if that comes first: false.
fn sleep(pause: Instant, until: Instant) -> bool {
    let now = Instant::now();
    if pause > now {
        std::thread::sleep(pause.min(until).saturating_duration_since(now));
    }
    pause <= until
}
