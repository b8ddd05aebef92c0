//! The four functions for tasks of an event loop: what the coroutines of `seckill.aio` await.
//!
//! Each begins a call and returns what is to be awaited; `client` is whose call it is, None for the
//! process's default client.

use std::time::Duration;

use pyo3::prelude::*;

use super::args::{self, Given};
use super::bridge::Bridge;
use super::client::CoreClient;
use super::ending::stay_if_ending;
use super::functions::default;
use super::owners;
use super::pending::PendingCall;
use crate::call::Call;
use crate::wish::Wish;

/// Begins a call for the running task, or for another one: `task`.
pub fn begin(
    py: Python<'_>,
    client: Option<&Bound<'_, CoreClient>>,
    wish: Wish,
    time_out: Option<Duration>,
    task: Option<&Bound<'_, PyAny>>,
) -> PyResult<Py<PendingCall>> {
    stay_if_ending(py);
    // First, for outside of a loop there is no task either.
    let bridge = Bridge::of_running_loop(py)?;
    let (client, safety) = if let Some(client) = client {
        client.get().to_call()
    } else {
        default(py)?.get().to_call()
    };
    // To ask which task it is costs more than a sale, and matters only where locks are taken.
    let owner = match wish {
        Wish::Acquire { .. } => task.map_or_else(|| owners::this_task(py), owners::of_task)?,
        _ if client.holds_locks() => owners::this_task_if_known(py)?,
        _ => owners::NOBODY,
    };
    let call = |caller| Call::new(&client, wish, time_out, owner, caller).with_safety(safety);
    bridge.begin(py, call)
}

/// What `seckill.aio.acquire_lock` awaits.
#[pyfunction]
#[pyo3(signature = (client, lockname, acquire_time, time_out))]
pub fn begin_acquire_lock(
    py: Python<'_>,
    client: Option<&Bound<'_, CoreClient>>,
    lockname: &Bound<'_, PyAny>,
    acquire_time: Given<'_, u64>,
    time_out: Given<'_, u64>,
) -> PyResult<Py<PendingCall>> {
    let (wish, time_out) = args::acquire(lockname, &acquire_time, &time_out)?;
    begin(py, client, wish, Some(time_out), None)
}

/// What `seckill.aio.release_lock` awaits.
#[pyfunction]
#[pyo3(signature = (client, lockname))]
pub fn begin_release_lock(
    py: Python<'_>,
    client: Option<&Bound<'_, CoreClient>>,
    lockname: &Bound<'_, PyAny>,
) -> PyResult<Py<PendingCall>> {
    let wish = Wish::Release { lock: args::name("lockname", lockname)? };
    begin(py, client, wish, None, None)
}

/// What `seckill.aio.incr_inventory` awaits.
#[pyfunction]
#[pyo3(signature = (client, key, change_num))]
pub fn begin_incr_inventory(
    py: Python<'_>,
    client: Option<&Bound<'_, CoreClient>>,
    key: &Bound<'_, PyAny>,
    change_num: Given<'_, i64>,
) -> PyResult<Py<PendingCall>> {
    begin(py, client, args::incr(key, &change_num)?, None, None)
}

/// What `seckill.aio.update_inventory` awaits.
#[pyfunction]
#[pyo3(signature = (client, lockname, key, change_num, acquire_time, time_out))]
pub fn begin_update_inventory(
    py: Python<'_>,
    client: Option<&Bound<'_, CoreClient>>,
    lockname: &Bound<'_, PyAny>,
    key: &Bound<'_, PyAny>,
    change_num: Given<'_, i64>,
    acquire_time: Given<'_, u64>,
    time_out: Given<'_, u64>,
) -> PyResult<Py<PendingCall>> {
    let (wish, time_out) = args::update(lockname, key, &change_num, &acquire_time, &time_out)?;
    begin(py, client, wish, Some(time_out), None)
}

/// What `seckill.aio.Client.close` awaits: that nothing is left to be undone.
#[pyfunction]
#[pyo3(signature = (client))]
pub fn begin_close(py: Python<'_>, client: &Bound<'_, CoreClient>) -> PyResult<Py<PendingCall>> {
    begin(py, Some(client), Wish::Close, None, None)
}
