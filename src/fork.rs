//! Which generation of the process this is: a number that every fork's child finds one higher.
//!
//! A client is stamped with the generation it was made in. In a child the stamps of what it
//! inherited are old, and what is old is never locked, joined, dropped or written to: another thread
//! of the parent may have been in the middle of it.
//!
//! The handler is the C library's, which also sees a fork that a C host (uWSGI) does, and which
//! cannot be missed by a wrapper of `os.fork`.

//!
//! And what the C library does not mend in a child: a thread that is inside `getaddrinfo` when
//! another one forks may hold the resolver's locks, and a child that inherits them locked never
//! looks a name up again. So a fork waits until nobody is inside, and meanwhile nobody enters.
//!
//! | `FORKING` | `INSIDE` | meaning | next |
//! |---|---|---|---|
//! | 0 | any | look-ups begin and end | one more inside; a fork begins |
//! | 1 or more | above 0 | a fork waits, for [`PATIENCE`] at most | those inside leave |
//! | 1 or more | 0 | the fork happens; who would enter waits | the parent takes its fork off, a child begins at 0 and 0 |
//!
//! It cannot wait for ever: who forks may hold the GIL. One that takes longer waits for an answer
//! from the network, and holds no lock of the resolver's.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock;

static GENERATION: AtomicU64 = AtomicU64::new(0);

/// How many forks are being prepared or made. Sequentially consistent, as `INSIDE` is: one side
/// writes its own and then reads the other's, and one of the two has to see it.
static FORKING: AtomicU32 = AtomicU32::new(0);

/// How many threads are where no fork may happen.
static INSIDE: AtomicU32 = AtomicU32::new(0);

/// How long a fork waits for those inside. A look-up in a file or a cache takes a millisecond.
const PATIENCE: Duration = Duration::from_millis(100);

/// How often either side looks. It is rare that anybody has to.
const GLANCE: Duration = Duration::from_micros(100);

extern "C" fn before() {
    FORKING.fetch_add(1, Ordering::SeqCst);
    let end = clock::now() + PATIENCE;
    while INSIDE.load(Ordering::SeqCst) > 0 && clock::now() < end {
        clock::sleep_until(clock::now() + GLANCE);
    }
}

extern "C" fn in_parent() {
    FORKING.fetch_sub(1, Ordering::SeqCst);
}

extern "C" fn in_child() {
    // Relaxed: a child has one thread at this moment.
    FORKING.store(0, Ordering::Relaxed);
    INSIDE.store(0, Ordering::Relaxed);
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// While it exists, a fork of this process waits.
pub struct Inside {
    generation: u64,
}

/// Holds forks off. Returns when those that are under way are done.
pub fn hold_off() -> Inside {
    loop {
        INSIDE.fetch_add(1, Ordering::SeqCst);
        if FORKING.load(Ordering::SeqCst) == 0 {
            return Inside { generation: generation() };
        }
        INSIDE.fetch_sub(1, Ordering::SeqCst);
        clock::sleep_until(clock::now() + GLANCE);
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        // A child has begun at 0.
        if self.generation == generation() {
            INSIDE.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// The generation of this process. Without [`watch`] it never changes.
#[inline]
#[must_use]
pub fn generation() -> u64 {
    GENERATION.load(Ordering::Relaxed)
}

/// Installs the fork handler, once; before anything is made that a child could inherit.
pub fn watch() -> io::Result<()> {
    static WATCHING: OnceLock<i32> = OnceLock::new();
    // SAFETY: `in_child` is async-signal-safe (atomics only), and so are the others (a clock and a
    // sleep besides). They live as long as the process: an extension module is never unloaded.
    let failed = WATCHING.get_or_init(|| unsafe {
        libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child))
    });
    if *failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(*failed)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_fork_waits_for_those_inside_and_nobody_enters_meanwhile() {
        let inside = hold_off();
        let forking = std::thread::spawn(|| before());
        while FORKING.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
        let entered = Arc::new(AtomicBool::new(false));
        let entering = std::thread::spawn({
            let entered = Arc::clone(&entered);
            move || {
                let _inside = hold_off();
                entered.store(true, Ordering::SeqCst);
            }
        });
        drop(inside);
        forking.join().expect("nobody is inside any more");
        assert!(!entered.load(Ordering::SeqCst), "the fork is not over");
        in_parent();
        entering.join().expect("the fork is over");
        assert!(entered.load(Ordering::SeqCst));
        // One who stays inside does not stop a fork for ever.
        let _inside = hold_off();
        before();
        in_parent();
    }
}
