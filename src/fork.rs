//! Which generation of the process this is: a number that every fork's child finds one higher.
//!
//! A client is stamped with the generation it was made in. In a child the stamps of what it
//! inherited are old, and what is old is never locked, joined, dropped or written to: another thread
//! of the parent may have been in the middle of it.
//!
//! The handler is the C library's, which also sees a fork that a C host (uWSGI) does, and which
//! cannot be missed by a wrapper of `os.fork`.

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

static GENERATION: AtomicU64 = AtomicU64::new(0);

extern "C" fn in_child() {
    // Relaxed: a child has one thread at this moment.
    GENERATION.fetch_add(1, Ordering::Relaxed);
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
    // SAFETY: `in_child` is async-signal-safe (one atomic add), and lives as long as the process: an
    // extension module is never unloaded.
    let failed =
        WATCHING.get_or_init(|| unsafe { libc::pthread_atfork(None, None, Some(in_child)) });
    if *failed == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(*failed)) }
}
