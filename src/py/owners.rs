//! Who holds a lock, as Python sees it: a thread, or a task of an event loop.

use std::collections::HashMap;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyWeakrefMethods, PyWeakrefReference};

pub use crate::holdings::NOBODY;
use crate::holdings::Owner;

/// Entries of tasks that are gone are swept when there are more than this, and twice as many as are
/// alive.
const KEPT: usize = 1024;

/// Numbers are never used again, as addresses and thread ids are.
fn next() -> Owner {
    static NEXT: AtomicU64 = AtomicU64::new(NOBODY + 1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// The calling thread.
pub fn this_thread() -> Owner {
    thread_local!(static OWNER: Owner = next());
    OWNER.with(|owner| *owner)
}

/// The tasks that have asked for a lock, by address; whether the one at an address is still the same
/// is for its weak reference to say.
#[derive(Default)]
struct Tasks {
    by_address: HashMap<usize, (Py<PyWeakrefReference>, Owner)>,
    sweep_at: usize,
}

/// Only locked while attached to Python.
static TASKS: LazyLock<Mutex<Tasks>> = LazyLock::new(Mutex::default);

/// How many there are, so that who never locks anything never looks.
static KNOWN: AtomicUsize = AtomicUsize::new(0);

/// Sets up what is to exist before a thread could fork in the middle of it.
pub fn set_up() {
    LazyLock::force(&TASKS);
}

/// The running task, as somebody who is about to take a lock.
pub fn this_task(py: Python<'_>) -> PyResult<Owner> {
    running(py)?.map_or_else(|| Ok(this_thread()), |task| of_task(&task))
}

/// A task that is about to take a lock.
pub fn of_task(task: &Bound<'_, PyAny>) -> PyResult<Owner> {
    let py = task.py();
    if let Some(owner) = known(task) {
        return Ok(owner);
    }
    let owner = next();
    let reference = PyWeakrefReference::new(task)?.unbind();
    let mut tasks = TASKS.lock();
    if tasks.by_address.len() >= tasks.sweep_at.max(KEPT) {
        tasks.by_address.retain(|_, (task, _)| task.bind(py).upgrade().is_some());
        tasks.sweep_at = tasks.by_address.len() * 2;
    }
    let former = tasks.by_address.insert(task.as_ptr().addr(), (reference, owner));
    KNOWN.store(tasks.by_address.len(), Ordering::Relaxed);
    drop(tasks);
    drop(former);
    Ok(owner)
}

/// The running task, as somebody who may hold a lock.
pub fn this_task_if_known(py: Python<'_>) -> PyResult<Owner> {
    if KNOWN.load(Ordering::Relaxed) == 0 {
        return Ok(NOBODY);
    }
    let Some(task) = running(py)? else { return Ok(this_thread()) };
    Ok(known(&task).unwrap_or(NOBODY))
}

fn known(task: &Bound<'_, PyAny>) -> Option<Owner> {
    let tasks = TASKS.lock();
    let (reference, owner) = tasks.by_address.get(&task.as_ptr().addr())?;
    let alive = reference.bind(task.py()).upgrade();
    alive.is_some_and(|alive| alive.is(task)).then_some(*owner)
}

fn running(py: Python<'_>) -> PyResult<Option<Bound<'_, PyAny>>> {
    static CURRENT_TASK: PyOnceLock<Py<PyAny>> = PyOnceLock::new();
    let task = CURRENT_TASK.import(py, "asyncio", "current_task")?.call0()?;
    Ok((!task.is_none()).then_some(task))
}
