//! A bridge: where an event loop hears of the calls that its tasks await. One for each loop.
//!
//! The loop watches the bridge's mailbox like any other descriptor, and calls the bridge when there
//! are tickets in it: once for a batch that answers a thousand tasks. The bridge drives those calls
//! on and wakes the tasks whose calls are over, in portions, so that the loop's other callbacks run
//! in between.
//!
//! Deadlines are the loop's own timer: one for all calls, set for the first that may be due. Almost
//! every call is over long before, so nothing is done for a deadline that nobody reaches: when the
//! timer fires, whoever is due is looked for.
//!
//! A bridge keeps no loop alive. When its loop is closed, its descriptors go with the next bridge
//! that is made. In a forked child the parent's bridges are dropped, and a loop that came along gets
//! a new one; the loop itself is not touched, since it shares its selector with the parent's.

use std::collections::VecDeque;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::exceptions::PyRuntimeError;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{IntoPyDict, PyType, PyWeakrefMethods, PyWeakrefReference};
use pyo3::{PyTraverseError, PyVisit};
use slab::Slab;

use super::pending::{News, PendingCall};
use crate::call::Call;
use crate::caller::Caller;
use crate::fork;
use crate::mailbox::{Mailbox, Ticket};

/// How long tasks are woken before the loop's other callbacks run.
const PORTION: Duration = Duration::from_millis(1);

/// The least time between two looks for calls that are due, and how much longer than such a look.
const LEAST_PAUSE: Duration = Duration::from_millis(1);
const PAUSE_PER_LOOK: u32 = 10;

/// A task's wake-up, and the context to run it in.
pub type WakeUp = (Py<PyAny>, Py<PyAny>);

/// See the module's description.
#[pyclass(frozen, module = "seckill._core")]
pub struct Bridge {
    event_loop: Py<PyWeakrefReference>,
    /// The loop's address: a quick look before the sure one.
    address: usize,
    generation: u64,
    mailbox: Arc<Mailbox>,
    /// All that follows is only locked while attached to Python, and never while Python code runs.
    waiting: Mutex<Slab<Waiting>>,
    /// Tickets that were taken from the mailbox and are still to be looked at.
    tickets: Mutex<VecDeque<Ticket>>,
    alarm: Mutex<Alarm>,
}

struct Waiting {
    /// None in the moment before it is made.
    call: Option<Py<PendingCall>>,
    /// When it wants to be looked at, news or not.
    until: Instant,
}

/// The loop's timer.
#[derive(Default)]
struct Alarm {
    at: Option<Instant>,
    handle: Option<Py<PyAny>>,
}

/// Those of the process. Only locked while attached to Python.
static BRIDGES: Mutex<Vec<Py<Bridge>>> = Mutex::new(Vec::new());

impl Bridge {
    /// The bridge of the running loop.
    pub fn of_running_loop(py: Python<'_>) -> PyResult<Py<Self>> {
        static RUNNING_LOOP: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
        let running = RUNNING_LOOP.import(py, "asyncio", "get_running_loop")?;
        let event_loop = running.call0().map_err(|_| {
            PyRuntimeError::new_err(
                "seckill.aio needs a running asyncio event loop (asyncio, uvloop, or anyio on \
                 asyncio); trio is not supported; nothing was sent",
            )
        })?;
        let known = BRIDGES
            .lock()
            .iter()
            .find(|bridge| bridge.get().is_of(&event_loop))
            .map(|it| it.clone_ref(py));
        match known {
            Some(bridge) => Ok(bridge),
            None => Self::build(&event_loop),
        }
    }

    fn is_of(&self, event_loop: &Bound<'_, PyAny>) -> bool {
        self.address == event_loop.as_ptr().addr()
            && self.generation == fork::generation()
            && self.event_loop.bind(event_loop.py()).upgrade().is_some()
    }

    #[cold]
    fn build(event_loop: &Bound<'_, PyAny>) -> PyResult<Py<Self>> {
        let py = event_loop.py();
        sweep(py);
        let mailbox = Arc::new(Mailbox::new()?);
        let fd = mailbox.fd().as_raw_fd();
        let bridge = Bound::new(
            py,
            Self {
                event_loop: PyWeakrefReference::new(event_loop)?.unbind(),
                address: event_loop.as_ptr().addr(),
                generation: fork::generation(),
                mailbox,
                waiting: Mutex::default(),
                tickets: Mutex::default(),
                alarm: Mutex::default(),
            },
        )?;
        // Not in the context of the task that happens to be the first: it would be kept for ever.
        let add_reader = event_loop.getattr("add_reader")?;
        empty_context(py)?.call_method1("run", (add_reader, fd, &bridge))?;
        BRIDGES.lock().push(bridge.clone().unbind());
        Ok(bridge.unbind())
    }

    /// The loop itself.
    pub fn event_loop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let gone = || PyRuntimeError::new_err("the event loop of this call is gone");
        self.event_loop.bind(py).upgrade().ok_or_else(gone)
    }

    /// Begins a call for the running task: drives it as far as it goes, and makes it awaitable.
    pub fn begin(
        this: &Bound<'_, Self>,
        call: impl FnOnce(Caller) -> Call,
    ) -> PyResult<Py<PendingCall>> {
        let (py, ours) = (this.py(), this.get());
        let until = Instant::now();
        let ticket = ours.waiting.lock().insert(Waiting { call: None, until });
        let call = call(Caller::Task(Arc::clone(&ours.mailbox), ticket));
        let pending = Py::new(py, PendingCall::new(this.clone().unbind(), ticket, call));
        let begun = pending.and_then(|pending| {
            let News::Wait(until) = pending.get().look() else {
                ours.forget(ticket);
                return Ok(pending);
            };
            if let Some(waiting) = ours.waiting.lock().get_mut(ticket) {
                *waiting = Waiting { call: Some(pending.clone_ref(py)), until };
            }
            ours.arm(this, until)?;
            Ok(pending)
        });
        begun.inspect_err(|_| ours.forget(ticket))
    }

    /// The call with this ticket needs no driving any more.
    pub fn forget(&self, ticket: Ticket) {
        let gone = self.waiting.lock().try_remove(ticket);
        drop(gone);
    }

    /// Has a task woken by the loop itself.
    pub fn call_soon(&self, call: &Bound<'_, PendingCall>, wake_up: WakeUp) -> PyResult<()> {
        let py = call.py();
        let options = [("context", wake_up.1)].into_py_dict(py)?;
        let event_loop = self.event_loop(py)?;
        event_loop.call_method("call_soon", (wake_up.0, call), Some(&options))?;
        Ok(())
    }

    /// Has the loop look for calls that are due, by `until`.
    fn arm(&self, this: &Bound<'_, Self>, until: Instant) -> PyResult<()> {
        if self.alarm.lock().at.is_some_and(|at| at <= until) {
            return Ok(());
        }
        let py = this.py();
        let delay = until.saturating_duration_since(Instant::now()).as_secs_f64();
        let options = [("context", empty_context(py)?)].into_py_dict(py)?;
        let look = this.getattr("look_for_due")?;
        let handle =
            self.event_loop(py)?.call_method("call_later", (delay, look), Some(&options))?;
        let alarm = Alarm { at: Some(until), handle: Some(handle.unbind()) };
        let former = std::mem::replace(&mut *self.alarm.lock(), alarm);
        if let Some(handle) = former.handle {
            handle.call_method0(py, "cancel")?;
        }
        Ok(())
    }

    /// Drives one call on. An error is for the loop to stop at: SystemExit, KeyboardInterrupt.
    fn deliver(&self, this: &Bound<'_, Self>, ticket: Ticket, debug: bool) -> PyResult<()> {
        let py = this.py();
        let found = {
            let waiting = self.waiting.lock();
            waiting.get(ticket).and_then(|waiting| Some(waiting.call.as_ref()?.clone_ref(py)))
        };
        let Some(call) = found else { return Ok(()) };
        match call.get().look() {
            News::None => Ok(()),
            News::Wait(until) => {
                if let Some(waiting) = self.waiting.lock().get_mut(ticket) {
                    waiting.until = until;
                }
                self.arm(this, until)
            }
            News::Done(wake_up) => {
                self.forget(ticket);
                match wake_up {
                    None => Ok(()),
                    // So that a slow task is named by its own name in the loop's log.
                    Some(wake_up) if debug => self.call_soon(call.bind(py), wake_up),
                    Some((wake_up, context)) => {
                        context.call_method1(py, "run", (wake_up, call))?;
                        Ok(())
                    }
                }
            }
        }
    }
}

#[pymethods]
impl Bridge {
    /// There are tickets in the mailbox, or some were left over.
    fn __call__(this: &Bound<'_, Self>) -> PyResult<()> {
        let ours = this.get();
        let mut fresh = Vec::new();
        ours.mailbox.take(&mut fresh);
        let mut tickets = std::mem::take(&mut *ours.tickets.lock());
        tickets.extend(fresh);
        let debug = ours.event_loop(this.py())?.call_method0("get_debug")?.is_truthy()?;
        let end = Instant::now() + PORTION;
        let mut outcome = Ok(());
        while outcome.is_ok()
            && let Some(ticket) = tickets.pop_front()
        {
            outcome = ours.deliver(this, ticket, debug);
            if Instant::now() >= end {
                break;
            }
        }
        if !tickets.is_empty() {
            let mut rest = ours.tickets.lock();
            tickets.append(&mut rest);
            *rest = tickets;
            drop(rest);
            ours.mailbox.ring_anyway();
        }
        outcome
    }

    /// The timer: a ticket for each call that is due, and the timer set for the next.
    fn look_for_due(this: &Bound<'_, Self>) -> PyResult<()> {
        let ours = this.get();
        let began = Instant::now();
        let fired = std::mem::take(&mut *ours.alarm.lock());
        let mut next: Option<Instant> = None;
        let mut due = Vec::new();
        for (ticket, waiting) in &*ours.waiting.lock() {
            if waiting.until <= began {
                due.push(ticket);
            } else {
                next = Some(next.map_or(waiting.until, |next| next.min(waiting.until)));
            }
        }
        drop(fired);
        if !due.is_empty() {
            ours.tickets.lock().extend(due);
            ours.mailbox.ring_anyway();
        }
        if let Some(next) = next {
            let looked = Instant::now();
            let pause = LEAST_PAUSE.max((looked - began) * PAUSE_PER_LOOK);
            ours.arm(this, next.max(looked + pause))?;
        }
        Ok(())
    }

    fn __repr__(&self) -> String {
        format!("<seckill bridge, {} calls waiting>", self.waiting.lock().len())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        if let Some(waiting) = self.waiting.try_lock() {
            for (_, waiting) in &*waiting {
                visit.call(&waiting.call)?;
            }
        }
        Ok(())
    }

    fn __clear__(&self) {
        let waiting = std::mem::take(&mut *self.waiting.lock());
        drop(waiting);
    }
}

/// Drops the bridges of loops that are closed or gone, and those of the process that forked us.
fn sweep(py: Python<'_>) {
    let all = std::mem::take(&mut *BRIDGES.lock());
    let (kept, gone): (Vec<_>, Vec<_>) = all.into_iter().partition(|bridge| {
        let bridge = bridge.get();
        let open = |event_loop: Bound<'_, PyAny>| {
            let closed = event_loop.call_method0("is_closed").and_then(|closed| closed.is_truthy());
            !closed.unwrap_or(true)
        };
        bridge.generation == fork::generation()
            && bridge.event_loop.bind(py).upgrade().is_some_and(open)
    });
    BRIDGES.lock().extend(kept);
    for bridge in &gone {
        bridge.get().__clear__();
    }
}

fn empty_context(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    static CONTEXT: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    CONTEXT.import(py, "contextvars", "Context")?.call0()
}
