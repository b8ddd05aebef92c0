//! The edge: the only place that knows Python.
//!
//! Each function here has three steps: typed arguments in, the core's call with the GIL released,
//! typed value or exception out.

// The docstrings are Python's; and pyo3 hands arguments over by value.
#![allow(clippy::doc_markdown, clippy::doc_link_with_quotes, clippy::needless_pass_by_value)]

mod aio;
mod args;
mod bridge;
mod client;
mod ending;
mod errors;
mod functions;
mod gate;
mod keeping;
mod locks;
mod login;
mod outcome;
mod owners;
mod pending;
mod place;
mod portion;
mod probe;

use pyo3::prelude::*;

/// The native half of `seckill`.
#[pymodule(name = "_core")]
mod core {
    #[pymodule_export]
    use super::aio::{
        begin_acquire_lock, begin_close, begin_incr_inventory, begin_release_lock,
        begin_update_inventory,
    };
    #[pymodule_export]
    use super::client::CoreClient;
    #[pymodule_export]
    use super::ending::settle;
    #[pymodule_export]
    use super::functions::{
        acquire_lock, get_default, incr_inventory, release_lock, set_default, update_inventory,
    };

    #[pymodule_export]
    use super::locks::{CoreLock, Held, generation};

    #[pymodule_export]
    use super::probe::Probe;

    #[pymodule_init]
    fn init(module: &super::Bound<'_, super::PyModule>) -> super::PyResult<()> {
        use pyo3::types::PyAnyMethods;
        // The functions are known, and pickled, under the name that their users import them by.
        for name in ["acquire_lock", "release_lock", "incr_inventory", "update_inventory"] {
            module.getattr(name)?.setattr("__module__", "seckill")?;
        }
        super::gate::set_up();
        super::owners::set_up();
        module.py().import("atexit")?.call_method1("register", (module.getattr("settle")?,))?;
        Ok(crate::fork::watch()?)
    }
}
