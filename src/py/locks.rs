//! What a lock's handle asks of the core, and what it gets for an acquisition.
//!
//! The handles themselves, `seckill.Lock` and `seckill.aio.Lock`, are Python's: they keep redis-py's
//! contract. Each has a [`CoreLock`], and for each acquisition a [`Held`].

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use super::aio;
use super::args;
use super::client::CoreClient;
use super::functions::default;
use super::keeping;
use super::outcome;
use super::pending::PendingCall;
use crate::call::FOR_EVER;
use crate::fork;
use crate::hold::{Hold, Tally};
use crate::names::Name;
use crate::renewer::Keep;
use crate::settings::duration;
use crate::step::{Extension, Token};
use crate::wish::{Acquisition, Handle, Terms, Wish};

/// One acquisition of a lock; what `CoreLock.acquire` returns.
#[pyclass(frozen, module = "seckill._core")]
pub struct Held(pub Arc<Hold>);

#[pymethods]
impl Held {
    /// The token that stands at the lock.
    #[getter]
    fn token<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.0.token)
    }

    /// A number that grows with every acquisition of that name.
    #[getter]
    fn fence(&self) -> u64 {
        self.0.fence
    }

    /// Whether it is over without having been given back, as far as is known here.
    #[getter]
    fn lost(&self) -> bool {
        self.0.is_lost(Instant::now())
    }

    /// Take note that it is over: the server says that the lock is another's.
    ///
    /// Examples:
    ///     >>> import seckill
    ///     >>> with seckill.embedded() as server, server.client() as client:
    ///     ...     seckill.Lock(client, "sku:1").lost
    ///     False
    fn lose(&self) {
        if self.0.is_ours() {
            self.0.lose();
        }
    }

    /// Tell for how many seconds it is provably ours, whatever the server does.
    ///
    /// Returns:
    ///     Seconds; infinity if it does not end by itself, 0.0 when it is over, given back, or was
    ///     inherited through a fork.
    ///
    /// Examples:
    ///     >>> import seckill
    ///     >>> with seckill.embedded() as server, server.client() as client:
    ///     ...     seckill.Lock(client, "sku:1", timeout=5).remaining()
    ///     0.0
    fn remaining(&self) -> f64 {
        match self.0.remaining(Instant::now()) {
            Duration::MAX => f64::INFINITY,
            left => left.as_secs_f64(),
        }
    }
}

/// What the handles of one lock ask of the server.
#[pyclass(frozen, module = "seckill._core")]
pub struct CoreLock {
    /// None: the process's default client, whichever that is.
    client: Option<Py<CoreClient>>,
    name: Name,
    /// What was counted, and in which generation: a child counts afresh. Only locked while attached.
    tally: Mutex<(u64, Arc<Tally>)>,
}

type Answer = PyResult<Option<Py<PyAny>>>;

impl CoreLock {
    fn tally(&self) -> Arc<Tally> {
        let mut tally = self.tally.lock();
        if tally.0 != fork::generation() {
            *tally = (fork::generation(), Arc::default());
        }
        Arc::clone(&tally.1)
    }

    fn run(&self, py: Python<'_>, wish: Wish, time_out: Option<Duration>) -> Answer {
        // What is told depends on the wish, and the call takes the wish along.
        let teller = outcome::Teller::of(&wish);
        let outcome = match &self.client {
            Some(client) => client.get().run(py, wish, time_out)?,
            None => default(py)?.get().run(py, wish, time_out)?,
        };
        teller.tell(py, outcome)
    }

    fn begin(
        &self,
        py: Python<'_>,
        wish: Wish,
        time_out: Option<Duration>,
        task: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PendingCall>> {
        let client = self.client.as_ref().map(|client| client.bind(py));
        aio::begin(py, client, wish, time_out, task)
    }

    #[allow(clippy::too_many_arguments, clippy::fn_params_excessive_bools)]
    fn acquisition(
        &self,
        token: Option<&[u8]>,
        lease: Option<u64>,
        wait: Option<f64>,
        fair: bool,
        renew: bool,
        max_hold: Option<f64>,
        on_lost: Option<Py<PyAny>>,
    ) -> PyResult<(Wish, Option<Duration>)> {
        let wait = match wait {
            None => FOR_EVER,
            Some(seconds) if seconds <= 0.0 => Duration::ZERO,
            Some(seconds) => seconds_of(seconds, "wait")?,
        };
        if lease.is_some_and(|ms| !(1..=args::LONGEST_LEASE_MS).contains(&ms)) {
            return Err(PyValueError::new_err("lease must be from 1 ms to 2**42 ms (139 years)"));
        }
        let keep = if renew || on_lost.is_some() {
            let max_hold = max_hold.map(|seconds| seconds_of(seconds, "max_hold")).transpose()?;
            let on_lost = on_lost.map(keeping::in_a_thread);
            Some(Keep { renewer: keeping::renewer(), renew, max_hold, on_lost })
        } else {
            None
        };
        let terms = Terms {
            lease: lease.map(Duration::from_millis),
            token: token.map(Token::from),
            fair,
            handle: Some(Handle { tally: self.tally(), keep }),
        };
        Ok((Wish::Acquire { lock: Arc::clone(&self.name), terms }, Some(wait)))
    }

    fn of(&self, token: &[u8], held: Option<&Bound<'_, Held>>) -> Acquisition {
        Acquisition {
            lock: Arc::clone(&self.name),
            token: token.into(),
            // One that came through a fork is the parent's to tell about.
            hold: held.map(|held| Arc::clone(&held.get().0)).filter(|hold| hold.is_ours()),
        }
    }

    fn extension(
        &self,
        token: &[u8],
        ms: u64,
        how: &str,
        held: Option<&Bound<'_, Held>>,
    ) -> PyResult<Wish> {
        let how = match how {
            "add" => Extension::Add,
            "replace" => Extension::Replace,
            "reset" => Extension::Reset,
            other => {
                let words = format!("how must be 'add', 'replace' or 'reset', not '{other}'");
                return Err(PyValueError::new_err(words));
            }
        };
        if !(1..=args::LONGEST_LEASE_MS).contains(&ms) {
            return Err(PyValueError::new_err("ms must be from 1 to 2**42 (139 years)"));
        }
        Ok(Wish::Extend { of: self.of(token, held), ms, how })
    }
}

fn seconds_of(seconds: f64, argument: &str) -> PyResult<Duration> {
    duration(seconds, argument).map_err(PyValueError::new_err)
}

// One argument for each of the Python class's options.
#[allow(clippy::too_many_arguments, clippy::fn_params_excessive_bools)]
#[pymethods]
impl CoreLock {
    #[new]
    #[pyo3(signature = (client, name, /))]
    fn new(client: Option<Py<CoreClient>>, name: &Bound<'_, PyAny>) -> PyResult<Self> {
        Ok(Self { client, name: args::name("name", name)?, tally: Mutex::default() })
    }

    /// The lock's name, as the server knows it.
    #[getter]
    fn name<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.name)
    }

    #[pyo3(signature = (token, lease, wait, fair=false, renew=false, max_hold=None, on_lost=None))]
    fn acquire(
        &self,
        py: Python<'_>,
        token: Option<&[u8]>,
        lease: Option<u64>,
        wait: Option<f64>,
        fair: bool,
        renew: bool,
        max_hold: Option<f64>,
        on_lost: Option<Py<PyAny>>,
    ) -> Answer {
        let (wish, time_out) =
            self.acquisition(token, lease, wait, fair, renew, max_hold, on_lost)?;
        self.run(py, wish, time_out)
    }

    #[pyo3(signature = (token, held=None))]
    fn release(&self, py: Python<'_>, token: &[u8], held: Option<&Bound<'_, Held>>) -> Answer {
        self.run(py, Wish::GiveBack(self.of(token, held)), None)
    }

    #[pyo3(signature = (token, ms, how, held=None))]
    fn extend(
        &self,
        py: Python<'_>,
        token: &[u8],
        ms: u64,
        how: &str,
        held: Option<&Bound<'_, Held>>,
    ) -> Answer {
        self.run(py, self.extension(token, ms, how, held)?, None)
    }

    #[pyo3(signature = ())]
    fn holder(&self, py: Python<'_>) -> Answer {
        self.run(py, Wish::Holder { lock: Arc::clone(&self.name) }, None)
    }

    #[pyo3(signature = (token, lease, wait, fair=false, renew=false, max_hold=None, on_lost=None, task=None))]
    fn begin_acquire(
        &self,
        py: Python<'_>,
        token: Option<&[u8]>,
        lease: Option<u64>,
        wait: Option<f64>,
        fair: bool,
        renew: bool,
        max_hold: Option<f64>,
        on_lost: Option<Py<PyAny>>,
        task: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<Py<PendingCall>> {
        let (wish, time_out) =
            self.acquisition(token, lease, wait, fair, renew, max_hold, on_lost)?;
        self.begin(py, wish, time_out, task)
    }

    #[pyo3(signature = (token, held=None))]
    fn begin_release(
        &self,
        py: Python<'_>,
        token: &[u8],
        held: Option<&Bound<'_, Held>>,
    ) -> PyResult<Py<PendingCall>> {
        self.begin(py, Wish::GiveBack(self.of(token, held)), None, None)
    }

    #[pyo3(signature = (token, ms, how, held=None))]
    fn begin_extend(
        &self,
        py: Python<'_>,
        token: &[u8],
        ms: u64,
        how: &str,
        held: Option<&Bound<'_, Held>>,
    ) -> PyResult<Py<PendingCall>> {
        self.begin(py, self.extension(token, ms, how, held)?, None, None)
    }

    #[pyo3(signature = ())]
    fn begin_holder(&self, py: Python<'_>) -> PyResult<Py<PendingCall>> {
        self.begin(py, Wish::Holder { lock: Arc::clone(&self.name) }, None, None)
    }

    /// Tell what the handle has done so far in this process.
    ///
    /// Returns:
    ///     `acquired`, `refused` (waits that ended without the lock), `released`, `lost`, `renewed`
    ///     (by the renewer), and `waited`: seconds spent in `acquire`, in all.
    ///
    /// Examples:
    ///     >>> import seckill
    ///     >>> seckill.Lock(seckill.Client(), "sku:1").statistics()["acquired"]
    ///     0
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = PyDict::new(py);
        let tally = self.tally();
        for (name, counter) in [
            ("acquired", &tally.acquired),
            ("refused", &tally.refused),
            ("released", &tally.released),
            ("lost", &tally.lost),
            ("renewed", &tally.renewed),
        ] {
            counts.set_item(name, counter.load(Ordering::Relaxed))?;
        }
        let waited = Duration::from_micros(tally.waited.load(Ordering::Relaxed));
        counts.set_item("waited", waited.as_secs_f64())?;
        Ok(counts)
    }
}

/// Tell which generation of forked processes this one is: a number that grows in every child.
///
/// Returns:
///     The number.
///
/// Examples:
///     >>> from seckill import _core
///     >>> _core.generation() == _core.generation()
///     True
#[pyfunction]
#[pyo3(signature = ())]
pub fn generation() -> u64 {
    fork::generation()
}
