//! What a task awaits: a call of the core, driven by the task's event loop.
//!
//! It speaks the protocol that asyncio's tasks await by (`_asyncio_future_blocking`,
//! `add_done_callback`, `cancel`, `result`), with one thing done otherwise than by `asyncio.Future`:
//! the task is woken by the bridge directly and not through `loop.call_soon`, which costs more than
//! all the rest of a call. So between an answer that is handed out and the task that has it, nothing
//! else runs, and a cancellation comes either before or after.
//!
//! | phase | meaning | `cancel()` |
//! |---|---|---|
//! | `Waiting` | the bridge will drive it on | gives the call up: True |
//! | `Done` | answered; in debug mode, the task's wake-up is scheduled | takes the answer back: True |
//! | `Cancelled` | given up; the task's wake-up is scheduled | False |
//! | `Told` | the task has its answer | False |

use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;
use pyo3::exceptions::PyStopIteration;
use pyo3::gc::{PyTraverseError, PyVisit};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyType;

use super::bridge::{Bridge, WakeUp};
use super::{client, errors};
use crate::call::{Call, Progress, Wish};
use crate::error::Result;
use crate::mailbox::Ticket;

/// See the module's description. Private to `seckill.aio`, whose coroutines await it.
#[pyclass(frozen, module = "seckill._core")]
pub struct PendingCall {
    bridge: Py<Bridge>,
    ticket: Ticket,
    blocking: AtomicBool,
    /// Only locked while attached to Python, and never while Python code runs.
    state: Mutex<State>,
}

struct State {
    call: Call,
    phase: Phase,
    /// What wakes the task, and the context to run it in.
    wake_up: Option<WakeUp>,
}

enum Phase {
    Waiting,
    Done(Result<bool>),
    Cancelled(Option<Py<PyAny>>),
    Told,
}

/// What the bridge has to do about a call that it has looked at.
pub enum News {
    /// Look again when there is a ticket, or then.
    Wait(std::time::Instant),
    /// Wake the task, if it waits already.
    Done(Option<WakeUp>),
    /// It was out of date.
    None,
}

impl PendingCall {
    /// A call that `bridge` knows by `ticket`.
    pub fn new(bridge: Py<Bridge>, ticket: Ticket, call: Call) -> Self {
        let state = Mutex::new(State { call, phase: Phase::Waiting, wake_up: None });
        Self { bridge, ticket, blocking: AtomicBool::new(false), state }
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
                News::Done(state.wake_up.take())
            }
        }
    }

    /// The call's answer for the task; the exception where it is one.
    fn tell(&self, py: Python<'_>) -> PyResult<Option<Py<PyAny>>> {
        let mut state = self.state.lock();
        match std::mem::replace(&mut state.phase, Phase::Told) {
            Phase::Done(outcome) => {
                state.call.told();
                let acquires = matches!(state.call.wish(), Wish::Acquire { .. });
                let not_held = match (&outcome, state.call.wish()) {
                    (Ok(false), Wish::Release { lock }) => Some(lock.clone()),
                    _ => None,
                };
                drop(state);
                if let Some(lock) = not_held {
                    client::log_not_held(py, &lock)?;
                }
                match outcome {
                    Ok(held) if acquires => Err(PyStopIteration::new_err(held)),
                    Ok(_) => Ok(None),
                    Err(error) => Err(errors::exception(py, error)),
                }
            }
            Phase::Cancelled(message) => Err(cancelled(py, message)?),
            phase @ (Phase::Waiting | Phase::Told) => {
                state.phase = phase;
                Ok(None)
            }
        }
    }

    /// Gives the call up, if its task has not been told. The wake-up is for the caller to schedule.
    fn give_up(&self, message: Option<Py<PyAny>>) -> (bool, Option<WakeUp>) {
        let mut state = self.state.lock();
        if matches!(state.phase, Phase::Cancelled(_) | Phase::Told) {
            return (false, None);
        }
        state.call.abandon();
        state.phase = Phase::Cancelled(message);
        let wake_up = state.wake_up.take();
        drop(state);
        self.bridge.get().forget(self.ticket);
        (true, wake_up)
    }
}

fn cancelled(py: Python<'_>, message: Option<Py<PyAny>>) -> PyResult<PyErr> {
    static CANCELLED: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    let cancelled = CANCELLED.import(py, "asyncio", "CancelledError")?;
    let error = match message {
        Some(message) => cancelled.call1((message,))?,
        None => cancelled.call0()?,
    };
    Ok(PyErr::from_value(error))
}

#[pymethods]
impl PendingCall {
    fn __await__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __iter__(this: Py<Self>) -> Py<Self> {
        this
    }

    /// The first time, tells the task to wait; then, has the answer.
    fn __next__(this: &Bound<'_, Self>) -> PyResult<Option<Py<PyAny>>> {
        let ours = this.get();
        if matches!(ours.state.lock().phase, Phase::Waiting) {
            ours.blocking.store(true, Ordering::Relaxed);
            return Ok(Some(this.clone().into_any().unbind()));
        }
        ours.tell(this.py())
    }

    /// (error), or (type, error, traceback) by those who still throw that way.
    #[pyo3(signature = (kind, error=None, _trace=None))]
    fn throw(
        &self,
        kind: Bound<'_, PyAny>,
        error: Option<Bound<'_, PyAny>>,
        _trace: Option<Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        self.give_up(None);
        Err(PyErr::from_value(error.unwrap_or(kind)))
    }

    fn close(&self) {
        self.give_up(None);
    }

    #[getter(_asyncio_future_blocking)]
    fn blocking(&self) -> bool {
        self.blocking.load(Ordering::Relaxed)
    }

    #[setter(_asyncio_future_blocking)]
    fn set_blocking(&self, blocking: bool) {
        self.blocking.store(blocking, Ordering::Relaxed);
    }

    fn get_loop<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.bridge.get().event_loop(py)
    }

    #[pyo3(signature = (callback, *, context))]
    fn add_done_callback(
        this: &Bound<'_, Self>,
        callback: Py<PyAny>,
        context: Py<PyAny>,
    ) -> PyResult<()> {
        let ours = this.get();
        let mut state = ours.state.lock();
        if matches!(state.phase, Phase::Waiting) {
            state.wake_up = Some((callback, context));
            return Ok(());
        }
        drop(state);
        ours.bridge.get().call_soon(this, (callback, context))
    }

    #[pyo3(signature = (msg=None))]
    fn cancel(this: &Bound<'_, Self>, msg: Option<Py<PyAny>>) -> PyResult<bool> {
        let ours = this.get();
        let (given_up, wake_up) = ours.give_up(msg);
        if let Some(wake_up) = wake_up {
            ours.bridge.get().call_soon(this, wake_up)?;
        }
        Ok(given_up)
    }

    /// The answer is for the coroutine alone; the task only asks whether to throw one into it.
    #[staticmethod]
    fn result() {}

    fn __repr__(&self) -> String {
        let state = self.state.lock();
        let phase = match state.phase {
            Phase::Waiting => "waiting",
            Phase::Done(_) | Phase::Told => "done",
            Phase::Cancelled(_) => "cancelled",
        };
        format!("<seckill {} {phase}>", state.call.wish())
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        visit.call(&self.bridge)?;
        if let Some(state) = self.state.try_lock()
            && let Some((callback, context)) = &state.wake_up
        {
            visit.call(callback)?;
            visit.call(context)?;
        }
        Ok(())
    }

    fn __clear__(&self) {
        let wake_up = self.state.lock().wake_up.take();
        drop(wake_up);
    }
}
