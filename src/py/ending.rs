//! The end of the interpreter, while event loops run on in daemon threads.
//!
//! Before Python 3.14, a thread that asks for the GIL while the interpreter ends is unwound, from
//! wherever it is; and the process is aborted if there are Rust frames on the way, as there are when
//! asyncio's Python code runs below ours. So from the moment that the exit begins, loops of other
//! threads go no further than to the next thing that they want of us, where they stay, without the
//! GIL, as they would in 3.14. Unless the end does not come: an exit handler may wait for one of them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use pyo3::prelude::*;

use super::bridge::Bridge;
use super::owners;
use crate::client::Client;
use crate::fork;

/// How long an exit waits for what is still to be undone: a server that is there takes a hundredth.
const SETTLING: Duration = Duration::from_millis(300);

/// How long other loops have to get to where they stay.
const STOPPING: Duration = Duration::from_millis(20);

/// How long an interpreter takes to end, once nothing is in its way.
const END: Duration = Duration::from_millis(500);

/// The thread that ends the interpreter, as an owner; 0 before that, and when the end does not come.
static ENDED_BY: AtomicU64 = AtomicU64::new(0);

/// The clients of the process, each with the generation it was made in. Only locked while attached to
/// Python.
static CLIENTS: Mutex<Vec<(u64, Weak<Client>)>> = Mutex::new(Vec::new());

/// Remembers a client until it is gone.
pub fn remember(client: &Arc<Client>, generation: u64) {
    let mut clients = CLIENTS.lock();
    // What was inherited is not even looked at.
    clients.retain(|(made, client)| *made == generation && client.strong_count() > 0);
    clients.push((generation, Arc::downgrade(client)));
}

/// Before the interpreter ends: stops the loops of other threads, and has everything done that is
/// still to be undone, unless the server is away.
#[pyfunction]
#[pyo3(signature = ())]
pub fn settle(py: Python<'_>) {
    ENDED_BY.store(owners::this_thread(), Ordering::Relaxed);
    let clients = CLIENTS.lock().clone();
    let ours = clients.into_iter().filter(|(made, _)| *made == fork::generation());
    let ours: Vec<_> = ours.filter_map(|(_, client)| client.upgrade()).collect();
    let loops = Bridge::any();
    py.detach(|| {
        if loops {
            std::thread::sleep(STOPPING);
        }
        let end = Instant::now() + SETTLING;
        for client in &ours {
            client.settle(end);
        }
    });
}

/// To be called wherever an event loop comes to us.
#[inline]
pub fn stay_if_ending(py: Python<'_>) {
    let ended_by = ENDED_BY.load(Ordering::Relaxed);
    if ended_by != 0 && ended_by != owners::this_thread() {
        stay(py);
    }
}

#[cold]
fn stay(py: Python<'_>) {
    // If the interpreter has ended meanwhile, PyO3 keeps the thread from coming back.
    py.detach(|| std::thread::sleep(END));
    ENDED_BY.store(0, Ordering::Relaxed);
}
