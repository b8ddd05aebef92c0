//! What an event loop calls: the reader, when there are tickets in a bridge's mailbox, and the alarm,
//! when a call may be due.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use pyo3::intern;
use pyo3::prelude::*;
use pyo3::{PyTraverseError, PyVisit};

use super::bridge::{Bridge, Woken};
use super::ending::stay_if_ending;

/// How long tasks are woken before the loop's other callbacks run.
const PORTION: Duration = Duration::from_millis(1);

/// The least time between two looks for calls that are due, and how much longer than such a look.
const LEAST_PAUSE: Duration = Duration::from_millis(1);
const PAUSE_PER_LOOK: u32 = 10;

/// What the loop watches a mailbox with; and when the loop lets go of it, the loop is closed.
#[pyclass(frozen, module = "seckill._core")]
pub struct Reader {
    pub bridge: Arc<Bridge>,
}

#[pymethods]
impl Reader {
    /// The tasks to wake now: each a context, a callback and its argument.
    fn __iter__(&self, py: Python<'_>) -> PyResult<Portion> {
        stay_if_ending(py);
        let event_loop = self.bridge.event_loop(py)?;
        let debug = event_loop.call_method0(intern!(py, "get_debug"))?.is_truthy()?;
        self.bridge.begin_portion();
        let (bridge, end) = (Arc::clone(&self.bridge), Instant::now() + PORTION);
        Ok(Portion { bridge, debug, end, over: AtomicBool::new(false) })
    }

    /// The calls refer to the loop, which refers to us.
    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        self.bridge.visit(|call| visit.call(call))
    }

    fn __clear__(&self) {
        self.bridge.close();
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.bridge.close();
    }
}

/// The tasks that are woken in one go.
///
/// The loop over them is Python's, and not ours: a daemon thread of an interpreter that ends is
/// unwound in the middle of Python code, and our frames must not lie below it.
#[pyclass(frozen, module = "seckill._core")]
pub struct Portion {
    bridge: Arc<Bridge>,
    debug: bool,
    end: Instant,
    over: AtomicBool,
}

#[pymethods]
impl Portion {
    fn __iter__(this: Py<Self>) -> Py<Self> {
        this
    }

    fn __next__(&self, py: Python<'_>) -> PyResult<Option<Woken>> {
        stay_if_ending(py);
        while self.goes_on() {
            let Some(ticket) = self.bridge.next_ticket() else { break };
            if let Some(woken) = self.bridge.deliver(py, ticket, self.debug)? {
                return Ok(Some(woken));
            }
        }
        self.finish();
        Ok(None)
    }
}

impl Portion {
    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed) && self.bridge.is_ours() && Instant::now() < self.end
    }

    fn finish(&self) {
        if self.over.swap(true, Ordering::Relaxed) || !self.bridge.is_ours() {
            return;
        }
        self.bridge.end_portion();
    }
}

impl Drop for Portion {
    fn drop(&mut self) {
        self.finish();
    }
}

/// What the loop's timer calls: a ticket for each call that is due, and the timer set for the next.
#[pyclass(frozen, module = "seckill._core")]
pub struct Alarm {
    pub bridge: Arc<Bridge>,
    pub at: Instant,
}

#[pymethods]
impl Alarm {
    fn __call__(&self, py: Python<'_>) -> PyResult<()> {
        stay_if_ending(py);
        let bridge = &self.bridge;
        let began = Instant::now();
        if !bridge.alarm_rings(self.at) {
            return Ok(()); // another was set, for earlier
        }
        let next = bridge.look_for_due(began);
        if let Some(next) = next {
            let looked = Instant::now();
            let pause = LEAST_PAUSE.max((looked - began) * PAUSE_PER_LOOK);
            bridge.arm(py, next.max(looked + pause))?;
        }
        Ok(())
    }
}
