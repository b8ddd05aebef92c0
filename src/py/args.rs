//! Arguments in: what redis-py takes, as redis-py encodes it, or an error that names the argument.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use pyo3::exceptions::{PyOverflowError, PyTypeError, PyValueError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBool, PyByteArray, PyBytes, PyFloat, PyInt, PyMemoryView, PyString, PyType};

use crate::names::Name;
use crate::step::Token;
use crate::wish::{Terms, Wish};

/// The longest time, in milliseconds: 139 years, which fits every clock on the way.
const LONGEST_MS: f64 = 4_398_046_511_104.0;

/// The same.
pub const LONGEST_LEASE_MS: u64 = 1 << 42;

/// The arguments of `acquire_lock`, and how long to wait.
pub fn acquire(
    lockname: &Bound<'_, PyAny>,
    acquire_time: &Given<'_, u64>,
    time_out: &Given<'_, u64>,
) -> PyResult<(Wish, Duration)> {
    let lock = name("lockname", lockname)?;
    let lease = Some(acquire_time.lease("acquire_time")?);
    let terms = Terms { lease, ..Terms::default() };
    Ok((Wish::Acquire { lock, terms }, time_out.time_out("time_out")?))
}

/// The arguments of `incr_inventory`.
pub fn incr(key: &Bound<'_, PyAny>, change_num: &Given<'_, i64>) -> PyResult<Wish> {
    Ok(Wish::Incr { key: name("key", key)?, change: change_num.change("change_num")? })
}

/// The arguments of `update_inventory`, and how long to wait. The lease is only checked.
pub fn update(
    lockname: &Bound<'_, PyAny>,
    key: &Bound<'_, PyAny>,
    change_num: &Given<'_, i64>,
    acquire_time: &Given<'_, u64>,
    time_out: &Given<'_, u64>,
) -> PyResult<(Wish, Duration)> {
    let (lock, proof) = lock_of("lockname", lockname)?;
    let key = name("key", key)?;
    let change = change_num.change("change_num")?;
    let lease = acquire_time.lease("acquire_time")?;
    Ok((Wish::Update { lock, key, change, proof, lease }, time_out.time_out("time_out")?))
}

fn wrong_type(argument: &str, wanted: &str, given: &Bound<'_, PyAny>) -> PyErr {
    match given.get_type().name() {
        Ok(name) => PyTypeError::new_err(format!("{argument} must be {wanted}, not {name}")),
        Err(error) => error,
    }
}

/// A lock by its name, or by a handle, which also says under which acquisition of it.
fn lock_of(argument: &str, given: &Bound<'_, PyAny>) -> PyResult<(Name, Option<Token>)> {
    if !given.is_instance_of::<PyString>()
        && let Some(proof) = given.getattr_opt(intern!(given.py(), "_proof"))?
    {
        let (name, token): (Bound<'_, PyBytes>, Bound<'_, PyBytes>) = proof.call0()?.extract()?;
        return Ok((name.as_bytes().into(), Some(token.as_bytes().into())));
    }
    Ok((name(argument, given)?, None))
}

/// The name of a lock or stock: the bytes that redis-py would send.
pub fn name(argument: &str, given: &Bound<'_, PyAny>) -> PyResult<Name> {
    let name: Name = if let Ok(text) = given.cast::<PyString>() {
        if let Some(known) = Recent::find(text) {
            return Ok(known);
        }
        let Ok(utf8) = text.to_cow() else {
            let words =
                format!("{argument} must be text that UTF-8 can encode, not {}", text.repr()?);
            return Err(PyValueError::new_err(words));
        };
        let name: Name = utf8.as_bytes().into();
        Recent::keep(text, &name);
        name
    } else if let Ok(bytes) = given.cast::<PyBytes>() {
        bytes.as_bytes().into()
    } else if let Ok(bytes) = given.cast::<PyByteArray>() {
        bytes.to_vec().into()
    } else if given.is_instance_of::<PyMemoryView>() {
        given.call_method0("tobytes")?.extract::<Vec<u8>>()?.into()
    } else if given.is_instance_of::<PyBool>() {
        return Err(wrong_type(argument, NAMES, given));
    } else if given.is_instance_of::<PyInt>() || given.is_instance_of::<PyFloat>() {
        if given.extract::<f64>().is_ok_and(f64::is_nan) {
            return Err(PyValueError::new_err(format!("{argument} must not be NaN")));
        }
        given.repr()?.to_cow()?.as_bytes().into()
    } else {
        return Err(wrong_type(argument, NAMES, given));
    };
    if name.is_empty() {
        return Err(PyValueError::new_err(format!("{argument} must not be empty")));
    }
    Ok(name)
}

/// The names that were given last: a crowd buys the same thing, by the same object.
///
/// Only locked while attached to Python.
struct Recent {
    names: [Option<(Py<PyString>, Name)>; 4],
    next: usize,
}

static RECENT: Mutex<Recent> = Mutex::new(Recent { names: [const { None }; 4], next: 0 });

impl Recent {
    /// Longer names are not kept.
    const LONGEST: usize = 256;

    fn find(text: &Bound<'_, PyString>) -> Option<Name> {
        let recent = RECENT.lock();
        let mut known = recent.names.iter().flatten();
        known.find(|(given, _)| given.is(text)).map(|(_, name)| Arc::clone(name))
    }

    fn keep(text: &Bound<'_, PyString>, name: &Name) {
        // An empty one is refused, each time; and only a str itself never changes.
        if !(1..=Self::LONGEST).contains(&name.len()) || !text.is_exact_instance_of::<PyString>() {
            return;
        }
        let mut recent = RECENT.lock();
        let next = recent.next;
        recent.next = (next + 1) % recent.names.len();
        let former = recent.names[next].replace((text.clone().unbind(), Arc::clone(name)));
        drop(recent);
        drop(former);
    }
}

const NAMES: &str = "str, bytes, bytearray, memoryview, int or float";

/// An argument that has a default; `None` is not it.
pub enum Given<'py, T> {
    /// Nothing was given.
    Default(T),
    /// Something was.
    Value(Bound<'py, PyAny>),
}

impl<'py, T> FromPyObject<'_, 'py> for Given<'py, T> {
    type Error = PyErr;

    fn extract(object: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        Ok(Self::Value(object.to_owned()))
    }
}

impl Given<'_, i64> {
    /// A change of stock.
    pub fn change(&self, argument: &str) -> PyResult<i64> {
        let given = match self {
            Self::Default(change) => return Ok(*change),
            Self::Value(given) => given,
        };
        if given.is_instance_of::<PyBool>() {
            return Err(wrong_type(argument, "an int", given));
        }
        given.extract::<i64>().map_err(|error| {
            let py = given.py();
            if error.is_instance_of::<PyOverflowError>(py) {
                let words =
                    format!("{argument} must be an int between -2**63 and 2**63-1, not {given}");
                PyValueError::new_err(words)
            } else if error.is_instance_of::<PyTypeError>(py) {
                wrong_type(argument, "an int", given)
            } else {
                error // of the argument's own making
            }
        })
    }
}

impl Given<'_, u64> {
    /// How long to wait.
    pub fn time_out(&self, argument: &str) -> PyResult<Duration> {
        let given = match self {
            Self::Default(ms) => return Ok(Duration::from_millis(*ms)),
            Self::Value(given) => given,
        };
        if let Some(ms) = whole_milliseconds(given) {
            return Ok(ms);
        }
        let ms = milliseconds(argument, given)?;
        if ms < 0.0 {
            let words = format!("{argument} must not be negative, not {given} ms");
            return Err(PyValueError::new_err(words));
        }
        Ok(Duration::from_secs_f64(ms / 1000.0))
    }

    /// How long a lock is held at the most; whole milliseconds are what Redis knows.
    pub fn lease(&self, argument: &str) -> PyResult<Duration> {
        let given = match self {
            Self::Default(ms) => return Ok(Duration::from_millis(*ms)),
            Self::Value(given) => given,
        };
        if let Some(ms) = whole_milliseconds(given).filter(|ms| !ms.is_zero()) {
            return Ok(ms);
        }
        let ms = milliseconds(argument, given)?;
        if ms <= 0.0 {
            let words = format!("{argument} must be more than 0 ms, not {given}");
            return Err(PyValueError::new_err(words));
        }
        if ms < 1.0 {
            let words = format!("{argument} must be at least 1 ms, not {given}");
            return Err(PyValueError::new_err(words));
        }
        Ok(Duration::from_secs_f64(ms.floor() / 1000.0))
    }
}

/// The usual case, an int of a usual size; none for any other, which is then looked at closely.
fn whole_milliseconds(given: &Bound<'_, PyAny>) -> Option<Duration> {
    let ms = given.cast_exact::<PyInt>().ok()?.extract::<u32>().ok()?;
    Some(Duration::from_millis(ms.into()))
}

fn milliseconds(argument: &str, given: &Bound<'_, PyAny>) -> PyResult<f64> {
    const TIMES: &str = "an int or float of milliseconds, or a timedelta";
    let ms = if given.is_instance_of::<PyBool>() {
        return Err(wrong_type(argument, TIMES, given));
    } else if given.is_instance_of::<PyInt>() || given.is_instance_of::<PyFloat>() {
        // An int that no float can hold is too long in any case.
        given.extract::<f64>().unwrap_or(f64::INFINITY)
    } else if given.is_instance(timedelta(given.py())?)? {
        given.call_method0("total_seconds")?.extract::<f64>()? * 1000.0
    } else {
        return Err(wrong_type(argument, TIMES, given));
    };
    if ms.is_nan() {
        return Err(PyValueError::new_err(format!("{argument} must not be NaN")));
    }
    if ms > LONGEST_MS {
        let words = format!("{argument} must be at most 2**42 ms (139 years), not {given}");
        return Err(PyValueError::new_err(words));
    }
    Ok(ms)
}

fn timedelta(py: Python<'_>) -> PyResult<&Bound<'_, PyType>> {
    static TIMEDELTA: PyOnceLock<Py<PyType>> = PyOnceLock::new();
    TIMEDELTA.import(py, "datetime", "timedelta")
}
