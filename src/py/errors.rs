//! Errors out: the one place where the core's error becomes Python's exception.
//!
//! The classes are Python's own, in `_exceptions.py`: they have several bases and attributes, travel
//! through pickle, and are redis-py's too where redis-py is in use.

use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyBytes, PyString};

use crate::error::Error;

/// The exception for an error; never `Interrupted`, which has an exception of its own already.
pub fn exception(py: Python<'_>, error: Error) -> PyErr {
    match make(py, error) {
        Ok(exception) | Err(exception) => exception,
    }
}

fn make(py: Python<'_>, error: Error) -> PyResult<PyErr> {
    static MAKE: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let make = MAKE.import(py, "seckill._exceptions", "make")?;
    let exception = match error {
        Error::NoInventory { key } => make.call1(("NoInventory", text(py, &key)))?,
        Error::InsufficientInventory { key, available, change } => {
            // How many units were asked for; -(-2**63) needs more than 64 bits.
            let requested = -i128::from(change);
            make.call1(("InsufficientInventory", text(py, &key), available, requested))?
        }
        Error::InvalidInventory { key, value, reason } => {
            make.call1(("InvalidInventory", text(py, &key), text(py, &value), reason))?
        }
        Error::LockTimeout { lock, time_out } => {
            let ms = u64::try_from(time_out.as_millis()).unwrap_or(u64::MAX);
            make.call1(("LockTimeout", text(py, &lock), ms))?
        }
        Error::LockLost { lock } => {
            let why =
                "the lease has ended, or somebody has taken the lock away; nothing was changed";
            make.call1(("LockLostError", why, text(py, &lock)))?
        }
        Error::Unreachable(why) => make.call1(("ConnectionError", why))?,
        Error::OutcomeUnknown(why) => make.call1(("OutcomeUnknown", why))?,
        Error::Authentication(why) => make.call1(("AuthenticationError", why))?,
        Error::NoLogin(unknown) => {
            let exception = make.call1(("AuthenticationError", unknown.why))?;
            if let Some(cause) = unknown.cause.downcast_ref::<Py<PyAny>>() {
                exception.setattr("__cause__", cause)?;
            }
            exception
        }
        Error::NotReplicated { acknowledged, wanted, why } => {
            make.call1(("NotReplicated", acknowledged, wanted, why))?
        }
        Error::LockNotReplicated { acknowledged, wanted, why } => {
            make.call1(("NotReplicated", acknowledged, wanted, why, true))?
        }
        Error::Refused { code, detail } => make.call1(("ServerError", code, detail))?,
        Error::Interrupted => make.call1(("ConnectionError", "the call was interrupted"))?,
        Error::Forked => {
            let why = "a signal handler forked in the middle of the call, which stays the parent's";
            make.call1(("ConnectionError", why))?
        }
    };
    Ok(PyErr::from_value(exception))
}

/// Text where the bytes are UTF-8, else the bytes.
pub fn text<'py>(py: Python<'py>, bytes: &[u8]) -> Bound<'py, PyAny> {
    match std::str::from_utf8(bytes) {
        Ok(text) => PyString::new(py, text).into_any(),
        Err(_) => PyBytes::new(py, bytes).into_any(),
    }
}
