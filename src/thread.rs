//! Starting the threads of ours: the pilot, the ear, the renewer, ... None of them knows Python.

use std::io;
use std::thread::{Builder, Thread};

/// Starts a thread that nobody joins: it ends when there is nothing to do for it.
pub fn start(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<Thread> {
    #[cfg(test)]
    if let Some(thread) = crate::stage::start(name) {
        return thread;
    }
    Ok(Builder::new().name(name.to_owned()).spawn(work)?.thread().clone())
}
