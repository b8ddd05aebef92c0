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
//! An uncontended call leads itself, in its own thread: one round trip, no hand-over. A leader goes
//! as soon as its own step is answered, or its slice is over: the batch stays with the session, and
//! the next leader goes on with it, so a leader may run signal handlers, or give up, in mid-batch.
//! Both mutexes are std's, bare futexes, and sound across fork: a child makes itself a new combiner
//! and never touches the parent's. Neither is held while somebody wants the GIL.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::inherited::OpenFd;
use crate::patrol::{Patrol, SLICE};
use crate::session::{Advance, Counts, Session};
use crate::settings::Settings;
use crate::step::{Ask, Reply, Step};

/// How long after the deadline, which is the server's limit for applying a step, its answer may be on
/// its way back. A step that was never sent is not waited for.
const GRACE: Duration = Duration::from_millis(50);

/// See the module's description.
pub struct Combiner {
    queue: Mutex<Queue>,
    session: Mutex<Session>,
    arrivals: AtomicU64,
    trouble: Arc<Mutex<String>>,
    orphans: Mutex<Orphans>,
}

#[derive(Default)]
struct Queue {
    steps: Vec<Arc<Step>>,
    /// Steps that try again were put behind others that came later.
    mixed: bool,
}

/// Steps that nobody waits for, and the thread that leads for them when nobody else does.
#[derive(Default)]
struct Orphans {
    steps: Vec<Arc<Step>>,
    guardian: Option<Thread>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// When the waiter of a step goes.
fn last_moment(step: &Step) -> Instant {
    if step.was_sent() { step.deadline + GRACE } else { step.deadline }
}

impl Combiner {
    /// A combiner that has not connected yet.
    pub fn new(settings: &Arc<Settings>, open: &Arc<OpenFd>, counts: &Arc<Counts>) -> Self {
        let trouble = Arc::default();
        let session = Mutex::new(Session::new(settings, open, counts, &trouble));
        let (queue, orphans) = (Mutex::default(), Mutex::default());
        Self { queue, session, arrivals: AtomicU64::new(0), trouble, orphans }
    }

    /// A place in the order of arrival, for a caller's step and its repetitions.
    pub fn arrive(&self) -> u64 {
        self.arrivals.fetch_add(1, Ordering::Relaxed)
    }

    /// Has a step done, and waits for the reply until its deadline.
    pub fn run(
        &self,
        ask: Ask,
        deadline: Instant,
        place: u64,
        patrol: &mut Patrol<'_>,
    ) -> Result<Reply> {
        let step = Arc::new(Step::waited_for(ask, deadline, place));
        self.put(Arc::clone(&step));
        loop {
            let slice = last_moment(&step).min(patrol.next());
            if !self.lead(Some(&step), slice) && step.reply().is_none() {
                std::thread::park_timeout(slice.saturating_duration_since(Instant::now()));
            }
            match step.reply() {
                None => {}
                Some(Reply::Failed(error)) => return Err(error.clone()),
                Some(reply) => return Ok(reply.clone()),
            }
            let now = Instant::now();
            if now >= last_moment(&step) {
                return Err(self.too_late(&step));
            }
            patrol.pass(now).inspect_err(|error| {
                if *error != Error::Forked {
                    self.leave(&step);
                }
            })?;
        }
    }

    /// Has a step done for nobody. A thread sees to it if no caller does.
    pub fn run_orphan(self: &Arc<Self>, ask: Ask, deadline: Instant) -> Arc<Step> {
        let step = Arc::new(Step::orphan(ask, deadline, self.arrive()));
        let mut orphans = lock(&self.orphans);
        orphans.steps.push(Arc::clone(&step));
        self.put(Arc::clone(&step));
        if let Some(guardian) = &orphans.guardian {
            guardian.unpark();
        } else {
            let combiner = Arc::clone(self);
            // Without a thread the next caller takes the step along.
            orphans.guardian = std::thread::Builder::new()
                .name("seckill-orphans".to_owned())
                .spawn(move || combiner.guard_orphans())
                .ok()
                .map(|handle| handle.thread().clone());
        }
        drop(orphans);
        step
    }

    /// Closes the connection, unless it is in use.
    pub fn disconnect(&self) {
        if let Some(mut session) = self.try_session() {
            session.disconnect();
            self.free(session, None);
        }
    }

    fn put(&self, step: Arc<Step>) {
        let mut queue = lock(&self.queue);
        queue.mixed |= queue.steps.last().is_some_and(|last| last.place > step.place);
        queue.steps.push(step);
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
    fn lead(&self, own: Option<&Arc<Step>>, until: Instant) -> bool {
        let Some(mut session) = self.try_session() else { return false };
        while own.is_none_or(|step| step.wanted()) {
            if !session.is_busy() && !self.gather(&mut session) {
                break;
            }
            match session.advance(until) {
                Advance::Done(late) => {
                    for step in late {
                        self.put(step);
                    }
                    if Instant::now() >= until {
                        break;
                    }
                }
                Advance::Pending => break,
                Advance::Hopeless(error) => {
                    for step in lock(&self.queue).steps.drain(..) {
                        step.fail(&error);
                    }
                }
            }
        }
        self.free(session, own);
        true
    }

    /// The only way to let go of the session: whoever does wakes somebody to lead, if there is work.
    fn free(&self, session: MutexGuard<'_, Session>, own: Option<&Arc<Step>>) {
        let heir = session.somebody();
        drop(session);
        self.pass_on(heir, own);
    }

    fn gather(&self, session: &mut Session) -> bool {
        let mut queue = lock(&self.queue);
        if std::mem::take(&mut queue.mixed) {
            queue.steps.sort_by_key(|step| step.place);
        }
        session.gather(&mut queue.steps)
    }

    /// Wakes one of the batch at hand, or the first in the queue.
    fn pass_on(&self, heir: Option<Arc<Step>>, own: Option<&Arc<Step>>) {
        let heir = heir.or_else(|| {
            let queue = lock(&self.queue);
            queue.steps.iter().find(|step| step.wanted()).cloned()
        });
        let Some(heir) = heir else { return };
        if own.is_some_and(|own| Arc::ptr_eq(own, &heir)) {
            return; // still here, and about to lead again or to leave
        }
        if !heir.wake()
            && let Some(guardian) = &lock(&self.orphans).guardian
        {
            guardian.unpark();
        }
    }

    /// The waiter goes without a reply: its step is not sent any more, and somebody else leads.
    fn leave(&self, step: &Arc<Step>) {
        step.leave();
        lock(&self.queue).steps.retain(|queued| !Arc::ptr_eq(queued, step));
        if let Some(session) = self.try_session() {
            self.free(session, None);
        }
    }

    #[cold]
    fn too_late(&self, step: &Arc<Step>) -> Error {
        self.leave(step);
        let trouble = lock(&self.trouble).clone();
        let because = if trouble.is_empty() { String::new() } else { format!(" ({trouble})") };
        if step.was_sent() {
            Error::OutcomeUnknown(format!("no answer came in time{because}"))
        } else {
            Error::Unreachable(format!("the server could not be reached in time{because}"))
        }
    }

    fn guard_orphans(&self) {
        loop {
            {
                let mut orphans = lock(&self.orphans);
                let now = Instant::now();
                orphans.steps.retain(|step| step.wanted() && step.deadline > now);
                if orphans.steps.is_empty() {
                    orphans.guardian = None;
                    return;
                }
            }
            if !self.lead(None, Instant::now() + SLICE) {
                std::thread::park_timeout(SLICE);
            }
        }
    }
}
