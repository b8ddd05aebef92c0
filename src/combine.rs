//! Group commit: whoever finds the connection free leads, takes all that is waiting, and sends it as
//! one batch.
//!
//! | queue | session | meaning |
//! |---|---|---|
//! | empty | free | idle |
//! | any | locked | somebody leads: sends, reads, hands out replies |
//! | steps, or a batch at hand | free | somebody has been woken to lead, or looks within a slice |
//!
//! Invariant: whoever frees the session while there is work wakes one who waits ([`Combiner::free`]);
//! and who was woken leads, or finds the session locked by another who will pass it on, or leaves and
//! passes it on ([`Combiner::leave`]). So a step never waits for nobody.
//!
//! An uncontended call of a thread leads itself: one round trip, no hand-over. A leader goes as soon
//! as its own step is answered, or its slice is over: the batch stays with the session, and the next
//! leader goes on with it, so a leader may run signal handlers, or give up, in mid-batch.
//!
//! The *pilot* is a thread that leads for those who cannot: tasks, whose event loop must not wait,
//! and steps that nobody waits for. It is started when the first of them comes, and ends when none
//! has come for a while. It knows no Python. Turned down: the event loop itself as leader. It saves a
//! hand-over, and has the loop read and write sockets in the time in which it could run tasks.
//!
//! All mutexes are std's, bare futexes, and sound across fork: a child makes itself a new combiner
//! and never touches the parent's. None is held while somebody wants the GIL; and that of the queue
//! is held for moments only, since the threads of event loops take it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering, fence};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak};
use std::time::{Duration, Instant};

use crate::clock;
use crate::cluster::Cluster;
use crate::error::Result;
use crate::inherited::OpenFd;
use crate::lookout::Lookout;
use crate::names::Name;
use crate::patrol::SLICE;
use crate::queue::Queue;
use crate::script_call::ScriptCall;
use crate::session::{Advance, Counts, Session};
use crate::settings::Settings;
use crate::step::Step;
use crate::thread;

/// How long after the deadline, which is the server's limit for applying a step, its answer may be on
/// its way back. A step that was never sent is not waited for.
pub const GRACE: Duration = Duration::from_millis(50);

/// How long the pilot stays when there is nothing to do.
const LINGER: Duration = Duration::from_secs(2);

/// How often the pilot looks by itself after a crowd.
const LOOK: Duration = Duration::from_millis(1);

/// See the module's description.
pub struct Combiner {
    me: Weak<Self>,
    queue: Mutex<Queue>,
    session: Mutex<Session>,
    trouble: Arc<Mutex<String>>,
    /// Steps that nobody waits for, until they are answered.
    orphans: Mutex<Vec<Arc<Step>>>,
    /// Whoever frees the session with nothing left to do closes the connection.
    closing: AtomicBool,
    /// What it is a node of.
    cluster: Option<Weak<Cluster>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What is known of why there is no answer.
pub fn because(trouble: &Mutex<String>) -> String {
    let trouble = lock(trouble);
    if trouble.is_empty() { String::new() } else { format!(" ({trouble})") }
}

/// When the caller of a step goes. What was not sent by the end of the right to it need not be sent.
pub fn last_moment(step: &Step) -> Instant {
    if step.was_sent() {
        return step.deadline + GRACE;
    }
    step.right_ends.map_or(step.deadline, |ends| ends.min(step.deadline))
}

impl Combiner {
    /// A combiner that has not connected yet.
    pub fn new(
        settings: &Arc<Settings>,
        open: &Arc<OpenFd>,
        counts: &Arc<Counts>,
        trouble: &Arc<Mutex<String>>,
        cluster: Option<Weak<Cluster>>,
        lookout: Option<&Arc<Lookout>>,
    ) -> Arc<Self> {
        let trouble = Arc::clone(trouble);
        let session = Session::new(settings, open, counts, &trouble, cluster.clone(), lookout);
        let session = Mutex::new(session);
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            queue: Mutex::default(),
            session,
            trouble,
            orphans: Mutex::default(),
            closing: AtomicBool::new(false),
            cluster,
        })
    }

    /// Puts a step into the queue. A caller that can lead then does; for others the pilot is called.
    pub fn put(&self, step: Arc<Step>) -> Result<()> {
        let queue = lock(&self.queue);
        queue.admit()?;
        self.push(queue, step);
        Ok(())
    }

    fn push(&self, mut queue: MutexGuard<'_, Queue>, step: Arc<Step>) {
        if queue.push(step, &self.me) {
            self.call_pilot(queue);
        }
    }

    /// The tasks that were being woken have asked what they had to ask.
    pub(crate) fn uncork(&self) {
        let mut queue = lock(&self.queue);
        if queue.uncork() {
            self.call_pilot(queue);
        }
    }

    /// Has a step done that nobody waits for.
    pub fn put_orphan(&self, step: &Arc<Step>) {
        lock(&self.orphans).push(Arc::clone(step));
        self.push(lock(&self.queue), Arc::clone(step));
    }

    /// Takes in a step that another node was to have done, and has somebody lead.
    pub fn take_over(&self, step: Arc<Step>) {
        let caller = step.caller.clone();
        self.push(lock(&self.queue), step);
        if caller.can_lead() {
            caller.wake();
        }
    }

    /// Takes in a call from another node, or from no node, and has somebody lead.
    pub fn welcome(&self, guest: ScriptCall) {
        let mut queue = lock(&self.queue);
        let somebody = guest.steps.iter().find(|step| step.wanted() && step.caller.can_lead());
        let somebody = somebody.cloned();
        if queue.welcome(guest) {
            self.call_pilot(queue);
        } else if let Some(somebody) = somebody {
            drop(queue);
            somebody.caller.wake();
        }
    }

    /// The node is not there, and the cluster has changed: finds new places for what is not for this
    /// node any more.
    fn settle(&self, session: &mut Session) {
        let Some(cluster) = self.cluster.as_ref().and_then(Weak::upgrade) else { return };
        let here = |name: &Name| cluster.is_at(name, self);
        let (calls, mut steps) = session.evict(here);
        steps.extend(lock(&self.queue).evict(here));
        let guests = lock(&self.queue).guests();
        for call in calls.into_iter().chain(guests) {
            cluster.place(call);
        }
        for step in steps {
            cluster.move_step(step);
        }
    }

    /// Whether it is here that the step waits.
    fn is_home_of(&self, step: &Step) -> bool {
        self.cluster.is_none()
            || step.home().is_some_and(|home| std::ptr::eq(Arc::as_ptr(&home), self))
    }

    /// Whether there is nothing under way that nobody waits for.
    pub fn settled(&self) -> bool {
        lock(&self.orphans).iter().all(|step| !step.wanted())
    }

    /// Closes the connection, as soon as it is not in use.
    pub fn disconnect(&self) {
        self.closing.store(true, Ordering::Relaxed);
        // Pairs with the one in `free`: one of the two sees what the other did.
        fence(Ordering::SeqCst);
        if let Some(session) = self.try_session() {
            self.free(session, None);
        }
    }

    fn try_session(&self) -> Option<MutexGuard<'_, Session>> {
        match self.session.try_lock() {
            Ok(session) => Some(session),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Leads until the own step (or, without one, everybody's) is answered, or `until` is over.
    /// False when somebody else leads.
    pub fn lead(&self, own: Option<&Arc<Step>>, until: Instant) -> bool {
        self.lead_with(own, until, false)
    }

    /// Leads; `patient`, it does not take what is corked.
    fn lead_with(&self, own: Option<&Arc<Step>>, until: Instant, mut patient: bool) -> bool {
        let Some(mut session) = self.try_session() else { return false };
        while own.is_none_or(|step| step.wanted() && self.is_home_of(step)) {
            if !session.is_busy() && !self.gather(&mut session, patient) {
                break;
            }
            patient = own.is_none();
            let advanced = session.advance(until);
            session.ring();
            if let Some(cluster) = self.cluster.as_ref().and_then(Weak::upgrade) {
                session.astray().into_iter().for_each(|call| cluster.place(call));
            }
            match advanced {
                Advance::Unsettled => self.settle(&mut session),
                Advance::Done(late) => {
                    session.take_in(late, true);
                    if clock::now() >= until {
                        break;
                    }
                }
                Advance::Pending => break,
                Advance::Hopeless(error) => {
                    let (waiting, guests) = {
                        let mut queue = lock(&self.queue);
                        (queue.drain(), queue.guests())
                    };
                    for step in waiting.iter().chain(guests.iter().flat_map(|guest| &guest.steps)) {
                        step.fail(&error);
                        step.caller.wake();
                    }
                }
            }
        }
        self.free(session, own);
        true
    }

    /// The only way to let go of the session: whoever does wakes somebody to lead, if there is work.
    fn free(&self, mut session: MutexGuard<'_, Session>, own: Option<&Arc<Step>>) {
        let close = self.closing.load(Ordering::Relaxed);
        if close {
            session.let_go();
        }
        if close && !session.is_busy() && session.waiting() == 0 {
            self.closing.store(false, Ordering::Relaxed);
            session.disconnect();
        }
        let heir = session.somebody();
        drop(session);
        self.pass_on(heir, own);
        // Asked to close in the moment before we let go.
        fence(Ordering::SeqCst);
        if !close
            && self.closing.load(Ordering::Relaxed)
            && let Some(session) = self.try_session()
        {
            self.free(session, own);
        }
    }

    /// Makes a batch of the first who wait.
    fn gather(&self, session: &mut Session, patient: bool) -> bool {
        let mut steps = session.room();
        let guests;
        let mixed = {
            let mut queue = lock(&self.queue);
            guests = queue.guests();
            let waiting = session.waiting();
            if waiting > 0 || !patient || !queue.is_corked() {
                queue.take(&mut steps, waiting)
            } else {
                false
            }
        };
        session.take_in(steps, mixed);
        let mut gathered = session.gather(guests);
        if gathered && self.cluster.is_some() && !session.is_up() {
            // Something may have come here after the node had gone, and its slot to another one.
            self.settle(session);
            gathered = session.is_busy();
        }
        lock(&self.queue).still_waiting(session.waiting());
        gathered
    }

    /// Wakes one of the batch at hand, or the first of those who wait for theirs.
    fn pass_on(&self, heir: Option<Arc<Step>>, own: Option<&Arc<Step>>) {
        let queue = lock(&self.queue);
        let Some(heir) = heir.or_else(|| queue.first()) else { return };
        if own.is_some_and(|own| Arc::ptr_eq(own, &heir)) {
            return; // still here, and about to lead again or to leave
        }
        if heir.caller.can_lead() {
            drop(queue);
            heir.caller.wake();
        } else {
            self.call_pilot(queue);
        }
    }

    /// The caller goes without a reply, and somebody else leads. False when the step was not sent, and
    /// never will be.
    pub fn leave(&self, step: &Step) -> bool {
        let under_way = step.leave();
        self.left(step);
        under_way
    }

    /// The caller has gone: somebody else leads.
    pub fn left(&self, step: &Step) {
        lock(&self.queue).sweep();
        if step.caller.can_lead()
            && let Some(session) = self.try_session()
        {
            self.free(session, None);
        }
    }

    /// What is known of why there is no answer.
    pub fn because(&self) -> String {
        because(&self.trouble)
    }

    /// Wakes the pilot, or starts it.
    fn call_pilot(&self, mut queue: MutexGuard<'_, Queue>) {
        queue.pilot.called = true;
        if let Some(pilot) = queue.pilot.thread.clone() {
            drop(queue);
            pilot.unpark();
        } else if let Some(me) = self.me.upgrade() {
            match thread::start("seckill-pilot", move || me.pilot()) {
                Ok(thread) => queue.pilot.thread = Some(thread),
                // A thread that calls will take the steps along; else their time runs out.
                Err(error) => {
                    queue.pilot.called = false;
                    *lock(&self.trouble) = format!("no thread can be started: {error}");
                }
            }
        }
    }

    fn pilot(&self) {
        let mut called = true;
        loop {
            let now = clock::now();
            let attentive = lock(&self.queue).pilot_looks(now);
            self.expire_orphans();
            let led = self.lead_with(None, now + SLICE, called);
            // Who leads now passes it on to us, when it is for us to lead.
            let nap = if attentive {
                LOOK
            } else if led {
                LINGER
            } else {
                SLICE
            };
            let since = clock::now();
            std::thread::park_timeout(nap);
            called = clock::since(since) < nap;
            let idle = led && !called && !attentive && self.settled();
            if idle && lock(&self.queue).pilot_goes() {
                return;
            }
        }
    }

    /// Whether the pilot has been called, and has not looked.
    #[cfg(test)]
    pub(crate) fn calls_pilot(&self) -> bool {
        lock(&self.queue).pilot.called
    }

    /// A round of the pilot's, for a simulation that plays its part.
    #[cfg(test)]
    pub(crate) fn fly(&self, until: Instant) {
        lock(&self.queue).pilot_looks(clock::now());
        self.expire_orphans();
        self.lead_with(None, until, false);
    }

    fn expire_orphans(&self) {
        let now = clock::now();
        lock(&self.orphans).retain(|step| {
            let over = now >= last_moment(step);
            if over {
                step.leave();
            }
            step.wanted()
        });
    }
}

impl fmt::Debug for Combiner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Combiner")
    }
}
