//! Who is asked for user and password: a Python object, in a Python thread of its own.
//!
//! Whoever opens a connection holds the session, and may be a native thread: it never waits for the
//! GIL, only for the answer, and under its deadline. A thread of ours asks for the GIL, just to start
//! one of Python's, so that no Rust frames lie below what the provider does: before Python 3.14 they
//! would abort a process that ends meanwhile.

use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};

use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};

use crate::login::{Login, Provider, Told, Unknown};

/// A provider as the core knows it.
pub fn provider(py: Python<'_>, provider: &Py<PyAny>) -> PyResult<Provider> {
    let ask = py.import("seckill._login")?.getattr("ask")?;
    let start = py.import("_thread")?.getattr("start_new_thread")?;
    let known = Arc::new((start.unbind(), ask.unbind(), provider.clone_ref(py)));
    Ok(Provider::new(Arc::new(move |told: Sender<Told>| {
        let known = Arc::clone(&known);
        let begin = move || {
            // None while the interpreter ends; the channel closes, which the receiver sees.
            let _asked = Python::try_attach(|py| {
                let (start, ask, provider) = &*known;
                let begun = answer(py, told.clone())
                    .and_then(|answer| start.call1(py, (ask, (provider, answer))));
                if let Err(error) = begun {
                    let _ = told.send(Err(unknown(py, error.into_value(py).into_any())));
                }
            });
        };
        // Without a thread the channel closes as well.
        let _ = std::thread::Builder::new().name("seckill-login".to_owned()).spawn(begin);
    })))
}

/// What the provider's thread calls with user, password, and error.
fn answer(py: Python<'_>, told: Sender<Told>) -> PyResult<Bound<'_, PyCFunction>> {
    let told = Mutex::new(told);
    let answer = move |arguments: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| {
        let py = arguments.py();
        let (username, password, error): (Option<String>, String, Option<Py<PyAny>>) =
            arguments.extract()?;
        let answer = match error {
            Some(error) => Err(unknown(py, error)),
            None => Ok(Login { username, password }),
        };
        // Nobody listens any more when it took too long.
        let _ = told.lock().unwrap_or_else(PoisonError::into_inner).send(answer);
        PyResult::Ok(())
    };
    PyCFunction::new_closure(py, None, None, answer)
}

fn unknown(py: Python<'_>, error: Py<PyAny>) -> Unknown {
    let kind = error.bind(py).get_type().name();
    let kind = kind.map_or_else(|_| "an error".to_owned(), |name| name.to_string());
    let why = format!("the credential provider did not tell user and password: {kind}");
    Unknown { why, cause: Arc::new(error) }
}
