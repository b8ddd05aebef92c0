//! A gate before the GIL: callers that were answered together come back to Python one at a time.
//!
//! A batch answers a crowd, and the crowd wants the GIL. Left alone, the woken threads fight for it
//! from all cores, and each loser goes to sleep on the GIL's condition variable and has to be woken
//! once more, on another core: 64 threads on 2 cores spent 60 % of their time in that and made
//! 130,000 calls a second, where one core alone would have made 300,000. So who comes back waits
//! here first, in `sched_yield`, which costs little and takes turns: 230,000, and no difference
//! where there is no crowd.
//!
//! The gate holds back nobody for long. It is taken before the GIL is asked for and given back when
//! its holder comes with its next call; a holder that does something else in Python first is
//! overtaken after [`TURN`], and after [`PATIENCE`] one goes to the GIL in any case.
//!
//! | `TAKEN_AT` | meaning | next |
//! |---|---|---|
//! | 0 | free | taken by who comes |
//! | a moment within `TURN` | somebody took it then, and is at the GIL, in Python, or on the way back | 0, by the holder alone |
//! | an older moment | the holder is busy elsewhere (or is in the process that forked us) | taken by who comes |
//!
//! Nothing depends on it but speed, so all orderings are relaxed.

use std::cell::Cell;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Instant;

/// How long a holder may keep it, in nanoseconds: a few calls' worth of Python.
const TURN: u64 = 20_000;

/// How long anybody waits at it, in nanoseconds.
const PATIENCE: u64 = 80_000;

static TAKEN_AT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The moment at which this thread took the gate; 0: it has not.
    static MINE: Cell<u64> = const { Cell::new(0) };
}

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Looks at the clock for the first time. To be called while the module is being imported: with the
/// GIL held, no other thread can fork in the middle of it.
pub fn set_up() {
    LazyLock::force(&START);
}

/// Takes the gate, or loses patience. To be called without the GIL, right before asking for it.
pub fn enter() {
    let came = now();
    let mut at = came;
    loop {
        let taken_at = TAKEN_AT.load(Relaxed);
        let free = taken_at == 0 || at > taken_at.saturating_add(TURN);
        if free && TAKEN_AT.compare_exchange(taken_at, at, Relaxed, Relaxed).is_ok() {
            MINE.set(at);
            return;
        }
        if at > came + PATIENCE {
            return;
        }
        std::thread::yield_now();
        at = now();
    }
}

/// Gives the gate back, if this thread has it still. To be called as soon as the GIL was let go.
pub fn leave() {
    let mine = MINE.take();
    if mine != 0 {
        // A failure means that somebody has overtaken us, whose it is now.
        let _ = TAKEN_AT.compare_exchange(mine, 0, Relaxed, Relaxed);
    }
}

/// Nanoseconds since the import, and never 0.
fn now() -> u64 {
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX).max(1)
}
