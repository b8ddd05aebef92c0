//! The four functions of the module: those of the process's default client.

use parking_lot::RwLock;
use pyo3::prelude::*;

use super::args::Given;
use super::client::CoreClient;

/// Only locked while attached to Python, as the client's own lock.
static DEFAULT: RwLock<Option<Py<CoreClient>>> = RwLock::new(None);

/// The process's default client, which both faces share.
pub fn default(py: Python<'_>) -> PyResult<Py<CoreClient>> {
    if let Some(client) = &*DEFAULT.read() {
        return Ok(client.clone_ref(py));
    }
    first_default(py)
}

#[cold]
fn first_default(py: Python<'_>) -> PyResult<Py<CoreClient>> {
    // Python code runs here, so the lock is not held meanwhile.
    let made = py.import("seckill._client")?.call_method0("default_client")?;
    let made: Py<CoreClient> = made.cast_into::<CoreClient>()?.unbind();
    let mut default = DEFAULT.write();
    Ok(default.get_or_insert(made).clone_ref(py))
}

/// Set the client that the functions of this process use; None: what the environment says.
#[pyfunction]
#[pyo3(signature = (client))]
pub fn set_default(client: Option<Py<CoreClient>>) {
    let former = std::mem::replace(&mut *DEFAULT.write(), client);
    // Dropped after the lock: it may run Python code.
    drop(former);
}

/// Tell the client that the functions of this process use.
#[pyfunction]
#[pyo3(signature = ())]
pub fn get_default(py: Python<'_>) -> PyResult<Py<CoreClient>> {
    default(py)
}

#[doc = include_str!("docs/acquire_lock.txt")]
#[pyfunction]
#[pyo3(signature = (lockname, acquire_time=Given::Default(5000), time_out=Given::Default(10000)),
       text_signature = "(lockname, acquire_time=5000, time_out=10000)")]
pub fn acquire_lock(
    py: Python<'_>,
    lockname: &Bound<'_, PyAny>,
    acquire_time: Given<'_, u64>,
    time_out: Given<'_, u64>,
) -> PyResult<bool> {
    default(py)?.get().acquire_lock(py, lockname, acquire_time, time_out)
}

#[doc = include_str!("docs/release_lock.txt")]
#[pyfunction]
#[pyo3(signature = (lockname))]
pub fn release_lock(py: Python<'_>, lockname: &Bound<'_, PyAny>) -> PyResult<()> {
    default(py)?.get().release_lock(py, lockname)
}

#[doc = include_str!("docs/incr_inventory.txt")]
#[pyfunction]
#[pyo3(signature = (key, change_num=Given::Default(1)), text_signature = "(key, change_num=1)")]
pub fn incr_inventory(
    py: Python<'_>,
    key: &Bound<'_, PyAny>,
    change_num: Given<'_, i64>,
) -> PyResult<()> {
    default(py)?.get().incr_inventory(py, key, change_num)
}

#[doc = include_str!("docs/update_inventory.txt")]
#[pyfunction]
#[pyo3(signature = (lockname, key, change_num=Given::Default(1), acquire_time=Given::Default(5000), time_out=Given::Default(10000)),
       text_signature = "(lockname, key, change_num=1, acquire_time=5000, time_out=10000)")]
pub fn update_inventory(
    py: Python<'_>,
    lockname: &Bound<'_, PyAny>,
    key: &Bound<'_, PyAny>,
    change_num: Given<'_, i64>,
    acquire_time: Given<'_, u64>,
    time_out: Given<'_, u64>,
) -> PyResult<()> {
    default(py)?.get().update_inventory(py, lockname, key, change_num, acquire_time, time_out)
}
