//! What a task awaits: a call of the core, driven by the task's event loop.
//!
//! To the coroutine that awaits it, it is an iterator that yields a future and ends with the answer.
//! The future is only there to be waited for: asyncio's own, which its tasks have a short way for. So
//! between an answer that arrives and the task that has it, a cancellation may still come, and the
//! call, which is told by `throw`, takes the answer back.
//!
//! | phase | meaning | `throw`, `close` |
//! |---|---|---|
//! | `Waiting` | the bridge will drive it on | gives the call up |
//! | `Done` | answered, and the task is about to run | takes the answer back |
//! | `Told` | the task has its answer, or has given up | nothing |
//!
//! The bridge learns of it when a task waits for it, and not before: an interrupt may come between the
//! call of a coroutine and its first wait, and then it goes with the coroutine, and gives the call up.

use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::exceptions::PyStopIteration;
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::bridge::Bridge;
use super::ending::stay_if_ending;
use super::errors;
use super::outcome::Teller;
use crate::call::{Call, Progress};
use crate::error::Result;
use crate::mailbox::Ticket;
use crate::wish::Outcome;

/// See the module's description. Private to `seckill.aio`, whose coroutines await it.
#[pyclass(frozen, module = "seckill._core")]
pub struct PendingCall {
    bridge: Arc<Bridge>,
    ticket: Ticket,
    /// Only locked while attached to Python, and never while Python code runs.
    state: Mutex<State>,
}

struct State {
    call: Call,
    phase: Phase,
    /// What the task waits for.
    future: Option<Py<PyAny>>,
}

enum Phase {
    Waiting,
    Done(Result<Outcome>),
    Told,
}

/// What the bridge has to do about a call that it has looked at.
pub enum News {
    /// Look again when there is a ticket, or then.
    Wait(std::time::Instant),
    /// The call is over; this is what its task waits for.
    Done(Option<Py<PyAny>>),
    /// The ticket was out of date.
    None,
}

impl PendingCall {
    /// A call that `bridge` knows by `ticket`.
    pub fn new(bridge: &Arc<Bridge>, ticket: Ticket, call: Call) -> Self {
        let state = State { call, phase: Phase::Waiting, future: None };
        Self { bridge: Arc::clone(bridge), ticket, state: Mutex::new(state) }
    }

    /// Drives the call on.
    pub fn look(&self) -> News {
        let mut state = self.state.lock();
        if !matches!(state.phase, Phase::Waiting) {
            return News::None;
        }
        match state.call.advance() {
            Progress::Wait(until) => News::Wait(until),
            Progress::Done(outcome) => {
                state.phase = Phase::Done(outcome);
                News::Done(state.future.take())
            }
        }
    }

    /// Gives the call up, unless its task has been told.
    pub fn give_up(&self) {
        let mut state = self.state.lock();
        let former = std::mem::replace(&mut state.phase, Phase::Told);
        if matches!(former, Phase::Told) {
            return;
        }
        state.call.abandon();
        let future = state.future.take();
        drop(state);
        drop(future);
        // When it is done, its ticket is somebody else's already.
        if matches!(former, Phase::Waiting) {
            self.bridge.forget(self.ticket);
        }
    }

    /// Something for the task to wait for.
    fn future(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let future = self.bridge.future(py)?;
        future.setattr(intern!(py, "_asyncio_future_blocking"), true)?;
        let future = future.unbind();
        let former = self.state.lock().future.replace(future.clone_ref(py));
        drop(former);
        Ok(future)
    }
}

impl Drop for PendingCall {
    fn drop(&mut self) {
        self.give_up();
    }
}

#[pymethods]
impl PendingCall {
    fn __await__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __iter__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __next__(this: &Bound<'_, Self>) -> PyResult<Option<Py<PyAny>>> {
        let py = this.py();
        stay_if_ending(py);
        let mut state = this.get().state.lock();
        let outcome = match std::mem::replace(&mut state.phase, Phase::Told) {
            Phase::Waiting => {
                state.phase = Phase::Waiting;
                drop(state);
                let future = this.get().future(py)?;
                this.get().bridge.keep(this.get().ticket, this.clone().unbind());
                return Ok(Some(future));
            }
            Phase::Told => return Ok(None),
            Phase::Done(outcome) => outcome,
        };
        state.call.told();
        let teller = Teller::of(state.call.wish());
        drop(state);
        match outcome {
            // A generator that returns None ends, and one that returns something ends with it.
            Ok(outcome) => match teller.tell(py, outcome)? {
                Some(answer) => Err(PyStopIteration::new_err(answer)),
                None => Ok(None),
            },
            Err(error) => Err(errors::exception(py, error)),
        }
    }

    /// Takes (error), or (type, error, traceback) of those who still throw that way.
    #[pyo3(signature = (kind, error=None, _trace=None))]
    fn throw(
        &self,
        kind: Bound<'_, PyAny>,
        error: Option<Bound<'_, PyAny>>,
        _trace: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.give_up();
        Err(PyErr::from_value(error.unwrap_or(kind)))
    }

    fn close(&self) {
        self.give_up();
    }

    /// The future refers to the loop, and to the task, which refers to us.
    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        let state = self.state.try_lock();
        state.iter().try_for_each(|state| visit.call(&state.future))
    }

    fn __clear__(&self) {
        self.give_up();
    }

    fn __repr__(&self) -> String {
        let state = self.state.lock();
        let phase = if matches!(state.phase, Phase::Waiting) { "waiting" } else { "over" };
        format!("<seckill {}: {phase}>", state.call.wish())
    }
}
