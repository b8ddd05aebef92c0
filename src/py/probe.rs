//! The probe as Python sees it: words in, the reply as Python objects out.

use parking_lot::Mutex;
use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList, PyTuple};
use redis::Value;

use super::client::{CoreClient, run_signal_handlers};
use super::errors;
use crate::connect::Purpose;
use crate::error::{Error, Result};
use crate::patrol::Patrol;
use crate::probe;

/// A connection for questions; what `seckill doctor` looks through.
#[pyclass(frozen, module = "seckill._core")]
pub struct Probe {
    /// Taken out while it is in use, so that nothing is locked meanwhile.
    probe: Mutex<Option<probe::Probe>>,
    remote: bool,
}

#[pymethods]
impl Probe {
    #[new]
    #[pyo3(signature = (client, *, anonymous=false, sentinel=false))]
    fn new(
        py: Python<'_>,
        client: &Bound<'_, CoreClient>,
        anonymous: bool,
        sentinel: bool,
    ) -> PyResult<Self> {
        let mut settings = client.get().settings.clone();
        if anonymous {
            (settings.username, settings.password, settings.provider) = (None, None, None);
        }
        // A sentinel has less to say for itself than a server.
        let purpose = if sentinel { Purpose::Inquire } else { Purpose::Work };
        let probe = waiting(py, |patrol| probe::Probe::open(settings, purpose, patrol))?;
        Ok(Self { remote: probe.is_remote(), probe: Mutex::new(Some(probe)) })
    }

    /// Whether the commands leave this machine.
    #[getter]
    fn remote(&self) -> bool {
        self.remote
    }

    /// Send a command and wait for its reply.
    ///
    /// Args:
    ///     words: the command and its arguments.
    ///
    /// Returns:
    ///     What the server says: `str` where it is UTF-8, else `bytes`, numbers, lists and dicts of
    ///     them, None; a `seckill.ServerError` where it says an error.
    ///
    /// Raises:
    ///     ConnectionError: no reply within `socket_timeout`; the connection is closed.
    ///
    /// Examples:
    ///     >>> import seckill
    ///     >>> from seckill import _core
    ///     >>> with seckill.embedded() as server:
    ///     ...     _core.Probe(server.client()).ask("PING")
    ///     'PONG'
    #[pyo3(signature = (*words))]
    fn ask(&self, py: Python<'_>, words: Vec<String>) -> PyResult<Py<PyAny>> {
        let mut command = redis::Cmd::new();
        for word in words {
            command.arg(word);
        }
        let Some(mut probe) = self.probe.lock().take() else {
            let words = "the connection is in use by another thread, or closed".to_owned();
            return Err(errors::exception(py, Error::Unreachable(words)));
        };
        let reply = waiting(py, |patrol| probe.ask(&command, patrol).map(|reply| (reply, probe)));
        let (reply, probe) = reply?;
        *self.probe.lock() = Some(probe);
        python(py, reply)
    }

    /// Tell what the server has said without being asked, since this was last called.
    ///
    /// Returns:
    ///     For each push its kind and what came with it.
    ///
    /// Examples:
    ///     >>> import seckill
    ///     >>> from seckill import _core
    ///     >>> with seckill.embedded() as server:
    ///     ...     _core.Probe(server.client()).pushes()
    ///     []
    fn pushes(&self, py: Python<'_>) -> PyResult<Vec<Py<PyAny>>> {
        let pushes = self.probe.lock().as_mut().map(probe::Probe::pushes).unwrap_or_default();
        pushes.into_iter().map(|push| python(py, push)).collect()
    }
}

/// Waits without the GIL; signal handlers run once a slice.
fn waiting<T: Send>(
    py: Python<'_>,
    work: impl FnOnce(&mut Patrol<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    let mut raised = None;
    let done = py.detach(|| {
        let mut look = || match Python::try_attach(run_signal_handlers) {
            Some(Err(error)) => {
                raised = Some(error);
                false
            }
            Some(Ok(())) | None => true,
        };
        work(&mut Patrol::new(&mut look))
    });
    match (done, raised) {
        (_, Some(raised)) => Err(raised),
        (Ok(value), None) => Ok(value),
        (Err(error), None) => Err(errors::exception(py, error)),
    }
}

fn python(py: Python<'_>, reply: Value) -> PyResult<Py<PyAny>> {
    let list = |items: Vec<Value>| {
        let items: PyResult<Vec<_>> = items.into_iter().map(|item| python(py, item)).collect();
        PyList::new(py, items?)?.into_py_any(py)
    };
    match reply {
        Value::Int(number) => number.into_py_any(py),
        Value::Double(number) => number.into_py_any(py),
        Value::Boolean(value) => value.into_py_any(py),
        Value::BulkString(bytes) | Value::BigNumber(bytes) => Ok(errors::text(py, &bytes).unbind()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => text.into_py_any(py),
        Value::Okay => "OK".into_py_any(py),
        Value::Array(items) | Value::Set(items) => list(items),
        Value::Map(pairs) => {
            let map = PyDict::new(py);
            for (key, value) in pairs {
                // What cannot be hashed is no key: nobody asks for it.
                let _ = map.set_item(python(py, key)?, python(py, value)?);
            }
            map.into_py_any(py)
        }
        Value::Attribute { data, .. } => python(py, *data),
        Value::Push { kind, data } => {
            let kind = kind.to_string().into_py_any(py)?;
            PyTuple::new(py, [kind, list(data)?])?.into_py_any(py)
        }
        Value::ServerError(error) => {
            let (code, detail) = (error.code().to_owned(), error.details().unwrap_or_default());
            let refused = Error::Refused { code, detail: detail.to_owned() };
            Ok(errors::exception(py, refused).into_value(py).into_any())
        }
        // Nil; and the crate may learn more kinds.
        _ => Ok(py.None()),
    }
}
