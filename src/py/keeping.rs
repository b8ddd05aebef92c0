//! The process's renewer, and how Python hears from it.

use std::mem::ManuallyDrop;
use std::sync::Arc;

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::PyTuple;

use crate::fork;
use crate::renewer::Renewer;

/// The renewer, and the generation of the process that it belongs to: a child leaks its parent's. Only
/// locked while attached to Python.
static RENEWER: Mutex<Option<(u64, ManuallyDrop<Arc<Renewer>>)>> = Mutex::new(None);

/// The one renewer of this process.
pub fn renewer() -> Arc<Renewer> {
    let mut current = RENEWER.lock();
    match &*current {
        Some((generation, renewer)) if *generation == fork::generation() => Arc::clone(renewer),
        _ => {
            let renewer = Renewer::new();
            *current = Some((fork::generation(), ManuallyDrop::new(Arc::clone(&renewer))));
            renewer
        }
    }
}

/// Calls a Python callable in a thread of its own: the renewer must not wait for the GIL, which
/// somebody may hold for longer than a lease lasts.
///
/// A thread of Python's: before Python 3.14 one that asks for the GIL while the interpreter ends is
/// unwound, which must not go through Rust. Ours only starts it, and runs no Python code.
pub fn in_a_thread(callable: Py<PyAny>) -> Arc<dyn Fn() + Send + Sync> {
    let callable = Arc::new(callable);
    Arc::new(move || {
        let callable = Arc::clone(&callable);
        let start = move || {
            // None while the interpreter ends: then there is nobody to tell.
            let _started = Python::try_attach(|py| {
                if let Err(error) = start_thread(py, &callable) {
                    error.write_unraisable(py, Some(callable.bind(py)));
                }
            });
        };
        // Without a thread, `lost` tells whoever asks.
        let _spawned = std::thread::Builder::new().name("seckill-lost".to_owned()).spawn(start);
    })
}

fn start_thread(py: Python<'_>, callable: &Py<PyAny>) -> PyResult<()> {
    static START: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let start = START.import(py, "_thread", "start_new_thread")?;
    start.call1((callable.bind(py), PyTuple::empty(py))).map(drop)
}
