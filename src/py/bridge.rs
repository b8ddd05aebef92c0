//! A bridge: where an event loop hears of the calls that its tasks await. One for each loop.
//!
//! The loop watches the bridge's mailbox like any other descriptor. When there are tickets in it, once
//! for a batch that answers a thousand tasks, the loop runs a portion (`portion`): calls are driven
//! on, and the tasks whose calls are over are woken, until all are or the portion's time is over, so
//! that the loop's other callbacks run in between.
//!
//! Deadlines are a timer of the loop's: one for all calls, set for the first that may be due. Almost
//! every call is over long before, so nothing is done for a deadline that nobody reaches: when the
//! timer fires, whoever is due is looked for.
//!
//! The loop alone owns its bridge, through the [`Reader`] that it watches with, and the bridge owns
//! the calls. So a loop that is closed takes its bridge along, and gives the calls up. In a forked
//! child the bridge of a loop that came along is not used; nor is the loop itself touched, since it
//! shares its selector with the parent's.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::exceptions::PyRuntimeError;
use pyo3::ffi;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyString, PyType, PyWeakrefMethods, PyWeakrefReference};
use slab::Slab;

use super::pending::{News, PendingCall};
use super::portion::{Alarm, Reader};
use crate::call::Call;
use crate::caller::Caller;
use crate::fork;
use crate::mailbox::{Mailbox, Ticket};

/// How far ahead the loop's timer is set at the most.
const LONGEST_ALARM: Duration = Duration::from_secs(1);

/// A task's own callback on the future that it waits for, and the context to run it in.
type WakeUp = (Py<PyAny>, Py<PyAny>);

/// See the module's description. All its locks are only taken while attached to Python, and never
/// held while Python code runs.
pub struct Bridge {
    event_loop: Py<PyWeakrefReference>,
    /// The loop's address: a quick look before the sure one.
    address: usize,
    generation: u64,
    mailbox: Arc<Mailbox>,
    waiting: Mutex<Slab<Waiting>>,
    /// Tickets that were taken from the mailbox and are still to be looked at.
    tickets: Mutex<VecDeque<Ticket>>,
    /// When the loop's timer fires.
    alarm: Mutex<Option<Instant>>,
    built: Instant,
}

struct Waiting {
    /// None until a task waits for it.
    call: Option<Py<PendingCall>>,
    /// When it wants to be looked at, news or not.
    until: Instant,
}

thread_local! {
    /// The bridge whose portion this thread runs: that of a task that is being woken.
    static AT_WORK: RefCell<Option<Arc<Bridge>>> = const { RefCell::new(None) };
}

/// Those of the process. Only locked while attached to Python.
static BRIDGES: Mutex<Vec<Weak<Bridge>>> = Mutex::new(Vec::new());

impl Bridge {
    /// The bridge of the running loop.
    pub fn of_running_loop(py: Python<'_>) -> PyResult<Arc<Self>> {
        static RUNNING_LOOP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        // To ask asyncio costs as much as all the rest of a call.
        let at_work = AT_WORK.with_borrow(Clone::clone);
        if let Some(bridge) = at_work.filter(|bridge| bridge.is_ours()) {
            return Ok(bridge);
        }
        let running = RUNNING_LOOP.import(py, "asyncio", "get_running_loop")?;
        let event_loop = running.call0().map_err(|_| {
            PyRuntimeError::new_err(
                "seckill.aio needs a running asyncio event loop (asyncio, uvloop, or anyio on \
                 asyncio); trio is not supported; nothing was sent",
            )
        })?;
        let known =
            BRIDGES.lock().iter().filter_map(Weak::upgrade).find(|it| it.is_of(&event_loop));
        match known {
            Some(bridge) => Ok(bridge),
            None => Self::build(&event_loop),
        }
    }

    /// Whether there is a loop that is not closed.
    pub fn any() -> bool {
        BRIDGES.lock().iter().filter_map(Weak::upgrade).any(|bridge| bridge.is_ours())
    }

    /// Whether it was made in this process, and not in one that forked us.
    pub fn is_ours(&self) -> bool {
        self.generation == fork::generation()
    }

    fn is_of(&self, event_loop: &Bound<'_, PyAny>) -> bool {
        self.address == event_loop.as_ptr().addr()
            && self.is_ours()
            && self.event_loop.bind(event_loop.py()).upgrade().is_some()
    }

    #[cold]
    fn build(event_loop: &Bound<'_, PyAny>) -> PyResult<Arc<Self>> {
        static WAKE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let py = event_loop.py();
        let mailbox = Arc::new(Mailbox::new()?);
        let fd = mailbox.fd().as_raw_fd();
        let bridge = Arc::new(Self {
            event_loop: PyWeakrefReference::new(event_loop)?.unbind(),
            address: event_loop.as_ptr().addr(),
            generation: fork::generation(),
            mailbox,
            waiting: Mutex::default(),
            tickets: Mutex::default(),
            alarm: Mutex::default(),
            built: Instant::now(),
        });
        let reader = Reader { bridge: Arc::clone(&bridge) };
        let wake = WAKE.import(py, "seckill.aio", "_wake")?;
        // Not in the context of the task that happens to be the first: it would be kept for ever.
        let add_reader = event_loop.getattr(intern!(py, "add_reader"))?;
        empty_context(py)?.call_method1(intern!(py, "run"), (add_reader, fd, wake, reader))?;
        let mut bridges = BRIDGES.lock();
        bridges.retain(|bridge| bridge.strong_count() > 0);
        bridges.push(Arc::downgrade(&bridge));
        Ok(bridge)
    }

    /// The loop itself.
    pub fn event_loop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let gone = || PyRuntimeError::new_err("the event loop of this call is gone");
        self.event_loop.bind(py).upgrade().ok_or_else(gone)
    }

    /// A future of the loop's, for a task to wait for.
    pub fn future<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        static FUTURE: PyOnceLock<Py<PyType>> = PyOnceLock::new();
        let options = [(intern!(py, "loop"), self.event_loop(py)?)].into_py_dict(py)?;
        FUTURE.import(py, "asyncio", "Future")?.call((), Some(&options))
    }

    /// Begins a call for the running task: drives it as far as it goes, and makes it awaitable.
    pub fn begin(
        self: &Arc<Self>,
        py: Python<'_>,
        call: impl FnOnce(Caller) -> Call,
    ) -> PyResult<Py<PendingCall>> {
        let ticket = self.waiting.lock().insert(Waiting { call: None, until: self.built });
        let call = call(Caller::Task(Arc::clone(&self.mailbox), ticket));
        let pending = Py::new(py, PendingCall::new(self, ticket, call));
        let begun = pending.and_then(|pending| {
            let News::Wait(until) = pending.get().look() else {
                self.forget(ticket);
                return Ok(pending);
            };
            if let Some(waiting) = self.waiting.lock().get_mut(ticket) {
                waiting.until = until;
            }
            self.arm(py, until)?;
            Ok(pending)
        });
        begun.inspect_err(|_| self.forget(ticket))
    }

    /// A task waits for the call with this ticket: it is to be driven on.
    pub fn keep(&self, ticket: Ticket, call: Py<PendingCall>) {
        if let Some(waiting) = self.waiting.lock().get_mut(ticket) {
            waiting.call = Some(call);
        }
    }

    /// The call with this ticket needs no driving any more.
    pub fn forget(&self, ticket: Ticket) {
        let gone = self.waiting.lock().try_remove(ticket);
        drop(gone);
    }

    /// Has the loop look for calls that are due, by `until`, or within a second: a timer that was set
    /// for later fires for nothing, and there shall not be many.
    pub fn arm(self: &Arc<Self>, py: Python<'_>, until: Instant) -> PyResult<()> {
        if self.alarm.lock().is_some_and(|at| at <= until) {
            return Ok(());
        }
        let now = Instant::now();
        let until = until.min(now + LONGEST_ALARM);
        *self.alarm.lock() = Some(until);
        let delay = until.saturating_duration_since(now).as_secs_f64();
        let options = [(intern!(py, "context"), empty_context(py)?)].into_py_dict(py)?;
        let alarm = Alarm { bridge: Arc::clone(self), at: until };
        let event_loop = self.event_loop(py)?;
        event_loop.call_method(intern!(py, "call_later"), (delay, alarm), Some(&options))?;
        Ok(())
    }

    /// Drives one call on. What comes back is a task to wake.
    pub fn deliver(
        self: &Arc<Self>,
        py: Python<'_>,
        ticket: Ticket,
        debug: bool,
    ) -> PyResult<Option<Woken>> {
        let found = {
            let waiting = self.waiting.lock();
            waiting.get(ticket).and_then(|waiting| Some(waiting.call.as_ref()?.clone_ref(py)))
        };
        let Some(call) = found else { return Ok(None) };
        match call.get().look() {
            News::None => Ok(None),
            News::Wait(until) => {
                if let Some(waiting) = self.waiting.lock().get_mut(ticket) {
                    waiting.until = until;
                }
                self.arm(py, until)?;
                Ok(None)
            }
            News::Done(future) => {
                self.forget(ticket);
                future.map_or(Ok(None), |future| wake(future.into_bound(py), debug))
            }
        }
    }

    /// The loop begins to wake tasks: whoever has a ticket in the mailbox is next.
    pub fn begin_portion(self: &Arc<Self>) {
        let mut fresh = Vec::new();
        self.mailbox.take(&mut fresh);
        self.tickets.lock().extend(fresh);
        drop(AT_WORK.replace(Some(Arc::clone(self))));
        self.mailbox.begin_portion();
    }

    /// The next ticket to look at.
    pub fn next_ticket(&self) -> Option<Ticket> {
        self.tickets.lock().pop_front()
    }

    /// The tasks have been woken; or some, and the loop comes back for the others.
    pub fn end_portion(&self) {
        drop(AT_WORK.take());
        self.mailbox.end_portion();
        if !self.tickets.lock().is_empty() {
            self.mailbox.ring_anyway();
        }
    }

    /// Whether the alarm that rings is the one that was set last.
    pub fn alarm_rings(&self, at: Instant) -> bool {
        let mut alarm = self.alarm.lock();
        let last = *alarm == Some(at);
        if last {
            *alarm = None;
        }
        last
    }

    /// Has every call that is due looked at, and says when the next one will be.
    pub fn look_for_due(&self, now: Instant) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        let mut due = Vec::new();
        for (ticket, waiting) in &*self.waiting.lock() {
            if waiting.until <= now {
                due.push(ticket);
            } else {
                next = Some(next.map_or(waiting.until, |next| next.min(waiting.until)));
            }
        }
        if !due.is_empty() {
            self.tickets.lock().extend(due);
            self.mailbox.ring_anyway();
        }
        next
    }

    /// Visits the calls that wait.
    pub fn visit<E>(
        &self,
        mut visit: impl FnMut(&Py<PendingCall>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Some(waiting) = self.waiting.try_lock() else { return Ok(()) };
        waiting.iter().filter_map(|(_, waiting)| waiting.call.as_ref()).try_for_each(&mut visit)
    }

    /// The loop is closed, or gone: nobody drives these calls any more, nor wants their answers.
    pub fn close(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        for call in waiting.iter().filter_map(|(_, waiting)| waiting.call.as_ref()) {
            call.get().give_up();
        }
    }
}

/// What to run, its argument, and the context to run it in.
pub type Woken = (Py<PyAny>, Py<PyAny>, Py<PyAny>);

/// Calls a method with one argument, without the tuple and the bound method that it costs otherwise.
fn call_method(
    object: &Bound<'_, PyAny>,
    method: &Bound<'_, PyString>,
    argument: &Bound<'_, PyAny>,
) -> PyResult<()> {
    let (py, end) = (object.py(), std::ptr::null_mut::<ffi::PyObject>());
    // SAFETY: we are attached, all three are live objects, and the arguments end with a null.
    let returned = unsafe {
        let (object, method, argument) = (object.as_ptr(), method.as_ptr(), argument.as_ptr());
        let returned = ffi::PyObject_CallMethodObjArgs(object, method, argument, end);
        Bound::from_owned_ptr_or_err(py, returned)
    };
    returned.map(drop)
}

/// Makes a future done. What comes back is the task that waits for it, to be woken at once.
///
/// Left alone, the future would have the loop call the task later, which costs more than all the rest
/// of a call. So the task's own callback is taken off it first. (In debug mode the loop does call the
/// task, so that a slow one is named by its own name in the log.)
fn wake(future: Bound<'_, PyAny>, debug: bool) -> PyResult<Option<Woken>> {
    let py = future.py();
    let callbacks = if debug { None } else { future.getattr_opt(intern!(py, "_callbacks"))? };
    let only = callbacks.and_then(|callbacks| callbacks.extract::<[WakeUp; 1]>().ok());
    if let Some([(callback, context)]) = only {
        call_method(&future, intern!(py, "remove_done_callback"), callback.bind(py))?;
        call_method(&future, intern!(py, "set_result"), py.None().bind(py))?;
        return Ok(Some((context, callback, future.unbind())));
    }
    if future.call_method0(intern!(py, "done"))?.is_truthy()? {
        return Ok(None); // cancelled, and the task is about to be told
    }
    let set_result = future.getattr(intern!(py, "set_result"))?.unbind();
    Ok(Some((empty_context(py)?.unbind(), set_result, py.None())))
}

fn empty_context(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static CONTEXT: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CONTEXT.import(py, "contextvars", "Context")?.call0()
}
