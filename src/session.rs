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
//! In a cluster each node has a session of its own, and a call may turn out to be another node's: it is
//! *astray*, leaves with its identity, and the session takes a new id, so that nobody but that call goes
//! by the old one any more.
//!
//! Invariant: whatever is in flight belongs to the batch at hand. When a batch is given up while it
//! is in flight, so is the connection, for its replies would answer the next batch.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use redis::Value;

use crate::backoff::Failures;
use crate::batch::{Batch, Expected, Heeded, Packed};
use crate::caller::Caller;
use crate::clock::{self, ServerClock};
use crate::cluster::Cluster;
use crate::connect::{Opening, Purpose, Trouble};
use crate::error::Error;
use crate::inherited::OpenFd;
use crate::lookout::Lookout;
use crate::mailbox::Mailbox;
use crate::names::Name;
use crate::random;
use crate::safety::Proof;
use crate::script_call::{Follows, Heard, ScriptCall};
use crate::settings::{Place, Settings};
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
    /// The node is not there, and the cluster has changed: some of the calls may be for others.
    Unsettled,
}

/// See the module's description.
pub struct Session {
    id: Arc<str>,
    settings: Arc<Settings>,
    open: Arc<OpenFd>,
    counts: Arc<Counts>,
    trouble: Arc<Mutex<String>>,
    cluster: Option<Weak<Cluster>>,
    /// The state of the cluster that it knows.
    version: u64,
    lookout: Option<Arc<Lookout>>,
    /// The count of the lookout's at which the connection was begun.
    moves: u64,
    number: u64,
    /// Steps that wait for their batch, in order of arrival.
    backlog: VecDeque<Arc<Step>>,
    room: Vec<Arc<Step>>,
    /// The loops whose tasks are among the callers.
    audience: Vec<Arc<Mailbox>>,
    batch: Option<Batch>,
    late: Vec<Arc<Step>>,
    astray: Vec<ScriptCall>,
    link: Link,
    /// A server was there once: its absence is ridden out.
    known: bool,
    /// A server has taken writes.
    writes: bool,
    failures: Failures,
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
    follows: Follows,
    socket_timeout: Duration,
    /// Not before this: the server was not ready.
    pause: Option<Instant>,
}

struct Flight {
    packed: Packed,
    wrong_server: bool,
    not_now: Option<String>,
    demoted: Option<String>,
    proof: Proof,
}

impl Session {
    /// A session that has not connected yet.
    pub fn new(
        settings: &Arc<Settings>,
        open: &Arc<OpenFd>,
        counts: &Arc<Counts>,
        trouble: &Arc<Mutex<String>>,
        cluster: Option<Weak<Cluster>>,
        lookout: Option<&Arc<Lookout>>,
    ) -> Self {
        Self {
            id: random::hex().into(),
            settings: Arc::clone(settings),
            open: Arc::clone(open),
            counts: Arc::clone(counts),
            trouble: Arc::clone(trouble),
            // A node of a cluster is one that somebody has told us of.
            known: cluster.is_some(),
            writes: false,
            cluster,
            version: 0,
            lookout: lookout.cloned(),
            moves: 0,
            number: 0,
            backlog: VecDeque::new(),
            room: Vec::new(),
            audience: Vec::new(),
            batch: None,
            late: Vec::new(),
            astray: Vec::new(),
            link: Link::Down { until: clock::now() },
            failures: Failures::new(settings),
        }
    }

    /// Whether a batch is at hand.
    pub fn is_busy(&self) -> bool {
        self.batch.is_some()
    }

    /// Whether there is a connection.
    pub fn is_up(&self) -> bool {
        matches!(self.link, Link::Up(_))
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

    /// The loop that waits for a step is to be rung.
    fn admit(&mut self, step: &Step) {
        if let Caller::Task(mailbox, _) = &step.caller
            && !self.audience.iter().any(|known| Arc::ptr_eq(known, mailbox))
        {
            self.audience.push(Arc::clone(mailbox));
        }
    }

    /// Takes in the steps that came since the last batch; `mixed` when they are out of order.
    pub fn take_in(&mut self, mut steps: Vec<Arc<Step>>, mixed: bool) {
        for step in steps.drain(..) {
            self.admit(&step);
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

    /// Makes a batch of what can travel together, `guests` from other nodes first. False when there is
    /// nothing to send.
    pub fn gather(&mut self, guests: Vec<ScriptCall>) -> bool {
        debug_assert!(self.batch.is_none());
        guests.iter().flat_map(|guest| &guest.steps).for_each(|step| self.admit(step));
        let (id, number) = (&self.id, self.number + 1);
        let batch = Batch::gather(id, number, guests, &mut self.backlog, clock::now());
        if batch.calls() == 0 {
            return false;
        }
        self.number += 1;
        self.batch = Some(batch);
        true
    }

    /// The calls that have turned out to be for another node.
    pub fn astray(&mut self) -> Vec<ScriptCall> {
        std::mem::take(&mut self.astray)
    }

    /// Puts out what is not for this node, as `here` says of a name: calls, and steps that wait.
    pub fn evict(
        &mut self,
        here: impl Fn(&Name) -> bool,
    ) -> (Vec<ScriptCall>, VecDeque<Arc<Step>>) {
        let backlog = std::mem::take(&mut self.backlog).into_iter();
        let (stay, steps) = backlog.partition(|step| here(step.ask.recorded_under()));
        self.backlog = stay;
        let calls = self.batch.as_mut().map(|batch| batch.evict(here)).unwrap_or_default();
        if !calls.is_empty() {
            self.id = random::hex().into();
        }
        if self.batch.as_ref().is_some_and(Batch::answered) {
            self.batch = None;
        }
        (calls, steps)
    }

    /// Gives the batch at hand up, if nobody waits for it any more.
    pub fn let_go(&mut self) {
        if self.batch.as_ref().is_some_and(|batch| !batch.wanted())
            && let Advance::Done(late) = self.give_up()
        {
            self.take_in(late, true);
        }
    }

    /// Closes the connection, unless it is in use.
    pub fn disconnect(&mut self) {
        if self.batch.is_none() {
            self.link = Link::Down { until: clock::now() };
        }
    }

    /// Moves the batch at hand on, until it is done or `until` is over.
    pub fn advance(&mut self, until: Instant) -> Advance {
        loop {
            if self.is_unsettled() {
                return Advance::Unsettled;
            }
            let Some(batch) = &mut self.batch else { return Advance::Done(Vec::new()) };
            if batch.answered() && !matches!(self.link, Link::Up(_)) {
                self.batch = None;
                return Advance::Done(std::mem::take(&mut self.late));
            }
            if !batch.wanted() && !batch.answered() {
                return self.give_up();
            }
            self.look_around();
            let Some(batch) = &mut self.batch else { return Advance::Done(Vec::new()) };
            match &mut self.link {
                Link::Down { until: pause } => {
                    if !sleep(*pause, until) {
                        return Advance::Pending;
                    }
                    self.moves = self.lookout.as_ref().map_or(0, |lookout| lookout.moves());
                    self.link =
                        Link::Opening(Opening::begin(&self.settings, &self.open, Purpose::Work));
                }
                Link::Opening(opening) => match opening.advance(until) {
                    Ok(None) => return Advance::Pending,
                    Ok(Some(opened)) => {
                        self.known = true;
                        self.counts.connects.fetch_add(1, Ordering::Relaxed);
                        if let (Some(lookout), Some(primary)) = (&self.lookout, opened.primary) {
                            self.moves = lookout.watch(primary, self.moves);
                        }
                        let (wire, clock) = (opened.wire, opened.clock);
                        let socket_timeout = self.settings.socket_timeout;
                        let (follows, flight, pause) = (self.follows(), None, None);
                        self.link =
                            Link::Up(Up { wire, clock, flight, follows, socket_timeout, pause });
                    }
                    Err(trouble) => {
                        if let Some(error) = self.not_opened(trouble) {
                            return self.hopeless(error);
                        }
                    }
                },
                Link::Up(up) => match up.advance(batch, &self.counts, &mut self.late, until) {
                    Ok(Moved::Answered { wrong_server }) => {
                        self.writes |= up.follows == Follows::Name;
                        self.put_out_astray();
                        if self.failures.forget() {
                            self.note(String::new());
                        }
                        self.batch = None;
                        if wrong_server {
                            self.link = Link::Down { until: clock::now() };
                        }
                        return Advance::Done(std::mem::take(&mut self.late));
                    }
                    Ok(Moved::NotNow(why)) => {
                        let pause = self.failures.fail(Duration::ZERO);
                        up.pause = Some(clock::now() + pause);
                        self.note(why);
                        self.put_out_astray();
                        self.look_again();
                    }
                    Ok(Moved::Pending) => return Advance::Pending,
                    Err(why) => self.broken(why),
                },
            }
        }
    }

    /// Leaves the connection, if it leads to a primary that was replaced.
    fn look_around(&mut self) {
        let (Some(lookout), Link::Up(up)) = (&self.lookout, &self.link) else { return };
        lookout.used();
        if lookout.moves() == self.moves {
            return;
        }
        if up.flight.is_some() {
            self.broken("the sentinels name another primary".to_owned());
        } else {
            self.link = Link::Down { until: clock::now() };
        }
    }

    fn follows(&self) -> Follows {
        match (&self.settings.place, &self.cluster) {
            (_, Some(_)) => Follows::Calls,
            (Place::Sentinel(_), None) => Follows::Connection,
            _ if self.writes => Follows::Name,
            _ => Follows::Nothing,
        }
    }

    /// What has turned out to be another node's does not wait for this one.
    fn put_out_astray(&mut self) {
        let Some(batch) = &mut self.batch else { return };
        let astray = batch.evict(|_| true);
        if !astray.is_empty() {
            self.id = random::hex().into();
            self.astray.extend(astray);
        }
    }

    /// Whether there is nobody to ask, and the cluster has changed since it was looked at.
    fn is_unsettled(&mut self) -> bool {
        let Some(cluster) = self.cluster.as_ref().and_then(Weak::upgrade) else { return false };
        let at_work = matches!(&self.link, Link::Up(Up { pause: None, .. }));
        let version = cluster.version();
        !at_work && std::mem::replace(&mut self.version, version) != version
    }

    /// The node does not do what is asked of it: another may have taken its place.
    fn look_again(&self) {
        if let Some(cluster) = self.cluster.as_ref().and_then(Weak::upgrade) {
            cluster.look_again();
        }
    }

    fn not_opened(&mut self, trouble: Trouble) -> Option<Error> {
        match trouble {
            Trouble::Unreachable(why) if !self.known => return Some(Error::Unreachable(why)),
            Trouble::Unreachable(why) | Trouble::NotReady(why) => self.broken(why),
            Trouble::Refused(error) => {
                // Who is told now must not see it done by a copy that is still under way.
                let last = self.batch.as_ref().and_then(Batch::doubtful_until);
                let Some(last) = last.filter(|last| clock::now() <= *last) else {
                    return Some(error);
                };
                self.link = Link::Down { until: last + Duration::from_millis(1) };
            }
        }
        None
    }

    /// The connection is of no use any more; the batch will be asked for again on the next one.
    fn broken(&mut self, why: String) {
        self.note(why);
        if let (Some(batch), Link::Up(Up { flight: Some(_), .. })) = (&mut self.batch, &self.link) {
            batch.doubt();
            self.counts.asked_again.fetch_add(1, Ordering::Relaxed);
        }
        self.put_out_astray();
        let took = match &self.link {
            Link::Opening(opening) => opening.took(),
            Link::Down { .. } | Link::Up(_) => Duration::ZERO,
        };
        let pause = self.failures.fail(took);
        self.link = Link::Down { until: clock::now() + pause };
        self.look_again();
    }

    fn note(&self, why: String) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    fn hopeless(&mut self, error: Error) -> Advance {
        self.link = Link::Down { until: clock::now() };
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
            self.link = Link::Down { until: clock::now() };
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
                    &self.clock,
                    counts,
                    self.socket_timeout,
                )),
            };
            while !flight.packed.expected.is_empty() {
                let end = flight.packed.end();
                let slice = until.min(end);
                let written = self.wire.flush(slice).map_err(|error| error.to_string())?;
                let reply = if written {
                    self.wire.receive(slice).map_err(|error| error.to_string())?
                } else {
                    None
                };
                let received = clock::now();
                match reply {
                    None | Some(Value::Push { .. }) if received >= end => {
                        let waited = received - flight.packed.sent;
                        return Err(format!("no answer within {} ms", waited.as_millis()));
                    }
                    None => return Ok(Moved::Pending),
                    // However many of them come.
                    Some(Value::Push { .. }) if received >= until => return Ok(Moved::Pending),
                    Some(Value::Push { .. }) => {}
                    Some(reply) => {
                        let (clock, follows) = (&mut self.clock, &mut self.follows);
                        flight.hear(batch, reply, received, clock, follows, late)?;
                        // Who does not want it safe, or was refused, does not wait for the proof.
                        if flight.awaits_proof() && batch.has_told_somebody() {
                            return Ok(Moved::Pending);
                        }
                    }
                }
            }
            let (wrong_server, not_now) = (flight.wrong_server, flight.not_now.take());
            let demoted = flight.demoted.take();
            self.flight = None;
            if let Some(why) = demoted {
                return Err(why);
            }
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
    clock: &ServerClock,
    counts: &Counts,
    socket_timeout: Duration,
) -> Flight {
    let packed = batch.pack(clock::now(), socket_timeout, clock, wire.out());
    // None, when all callers have left meanwhile.
    counts.batches.fetch_add(u64::from(!packed.expected.is_empty()), Ordering::Relaxed);
    counts.calls.fetch_add(packed.calls() as u64, Ordering::Relaxed);
    let (wrong_server, not_now, demoted, proof) = Default::default();
    Flight { packed, wrong_server, not_now, demoted, proof }
}

impl Flight {
    /// Whether all is there but how safe it is, of which nothing is known.
    fn awaits_proof(&self) -> bool {
        let next = self.packed.expected.front();
        matches!(next, Some(Expected::Safety(_))) && self.proof.is_empty()
    }

    fn hear(
        &mut self,
        batch: &mut Batch,
        reply: Value,
        received: Instant,
        clock: &mut ServerClock,
        follows: &mut Follows,
        late: &mut Vec<Arc<Step>>,
    ) -> Result<(), String> {
        let index = match self.packed.expected.pop_front() {
            Some(Expected::Call(index)) => index,
            Some(Expected::Safety(about)) => {
                self.proof.hear(about, &reply)?;
                if self.packed.expected.is_empty() {
                    batch.proved(&self.proof, &self.packed);
                }
                return Ok(());
            }
            Some(Expected::Asking) => {
                if let (Value::ServerError(error), Some(Expected::Call(index))) =
                    (reply, self.packed.expected.front())
                {
                    batch.not_let_in(*index, &error);
                }
                return Ok(());
            }
            None => return Ok(()),
        };
        let heeded = Heeded { reply, sent: self.packed.sent, received };
        match batch.hear(index, heeded, clock, *follows, late) {
            Heard::Written if *follows == Follows::Nothing => *follows = Follows::Name,
            Heard::Written | Heard::Answer | Heard::Again | Heard::Astray => {}
            Heard::NotNow(why) => self.not_now = Some(why),
            Heard::Demoted(why) => self.demoted = Some(why),
            Heard::WrongServer => self.wrong_server = true,
        }
        Ok(())
    }
}

/// Sleeps to the end of a pause: true, or to the end of the slice, if that comes first: false.
fn sleep(pause: Instant, until: Instant) -> bool {
    clock::sleep_until(pause.min(until)) && pause <= until
}
