//! Answers out: what came of a call, as its caller in Python wants it.

use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes};

use super::client::log_not_held;
use super::locks::Held;
use crate::names::Name;
use crate::wish::{Outcome, Wish};

/// How an answer is told, which depends on what was asked.
pub enum Teller {
    /// Nothing is said of what was done.
    Nothing,
    /// Whether it was done.
    Bool,
    /// Nothing; that a lock was not held goes to the log.
    Log(Name),
    /// What a handle is to know.
    Handle,
}

impl Teller {
    /// The teller for a wish.
    pub fn of(wish: &Wish) -> Self {
        match wish {
            Wish::Acquire { terms, .. } if terms.handle.is_some() => Self::Handle,
            Wish::Acquire { .. } | Wish::GiveBack(_) | Wish::Extend { .. } => Self::Bool,
            Wish::Holder { .. } => Self::Handle,
            Wish::Release { lock } => Self::Log(Arc::clone(lock)),
            Wish::Incr { .. } | Wish::Update { .. } | Wish::Change { .. } | Wish::Close => {
                Self::Nothing
            }
        }
    }

    /// The answer; none for Python's None.
    pub fn tell(self, py: Python<'_>, outcome: Outcome) -> PyResult<Option<Py<PyAny>>> {
        match (self, outcome) {
            (Self::Handle, Outcome::Acquired(hold)) => {
                Ok(Some(Py::new(py, Held(hold))?.into_any()))
            }
            (Self::Handle, Outcome::Holder(Some(token))) => {
                Ok(Some(PyBytes::new(py, &token).into_any().unbind()))
            }
            (Self::Bool, outcome) => {
                let done = matches!(outcome, Outcome::Done(true) | Outcome::Acquired(_));
                Ok(Some(PyBool::new(py, done).to_owned().into_any().unbind()))
            }
            (Self::Log(lock), Outcome::Done(false)) => log_not_held(py, &lock).map(|()| None),
            _ => Ok(None),
        }
    }
}
