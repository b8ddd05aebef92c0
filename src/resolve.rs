//! From a host's name to its addresses, by the C library's `getaddrinfo`.
//!
//! It has no time-out and cannot be interrupted, so it is called in threads of its own, which stay
//! for a while: where the C library makes and ends threads at a high rate while other threads fork,
//! a child may find the memory of the stacks torn. And no fork happens while one is inside.
//!
//! | a thread is | counted as idle | next |
//! |---|---|---|
//! | asleep, for [`LINGER`] at most | yes | takes a question; ends |
//! | inside `getaddrinfo`, for as long as it takes | no | answers, takes the next or falls asleep |
//!
//! Who asks wakes an idle one for each question that waits, and starts a thread where there is none:
//! a look-up that hangs delays no other. A forked child has a desk of its own.

use std::collections::VecDeque;
use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::fork;
use crate::thread;

/// How long a thread stays when there is nothing to look up.
const LINGER: Duration = Duration::from_secs(5);

/// What comes of a look-up.
pub type Found = io::Result<Vec<SocketAddr>>;

/// Begins to look a name up. The channel closes without a word where there is no thread to be had.
pub fn resolve(host: String, port: u16) -> Receiver<Found> {
    let (answer, receiver) = channel();
    desk().ask(Question { host, port, answer });
    receiver
}

struct Question {
    host: String,
    port: u16,
    answer: Sender<Found>,
}

struct Desk {
    generation: u64,
    state: Mutex<State>,
    asked: Condvar,
}

#[derive(Default)]
struct State {
    questions: VecDeque<Question>,
    idle: usize,
}

/// That of this process. Those of its ancestors are left alone: somebody may have been at them.
fn desk() -> &'static Desk {
    static DESK: AtomicPtr<Desk> = AtomicPtr::new(ptr::null_mut());
    loop {
        let current = DESK.load(Ordering::Acquire);
        // SAFETY: null, or one that was leaked below: it is never freed, and only shared.
        if let Some(desk) = unsafe { current.as_ref() }
            && desk.generation == fork::generation()
        {
            return desk;
        }
        let desk =
            Desk { generation: fork::generation(), state: Mutex::default(), asked: Condvar::new() };
        let made = Box::into_raw(Box::new(desk));
        if DESK.compare_exchange(current, made, Ordering::AcqRel, Ordering::Acquire).is_err() {
            // SAFETY: it was made here, and nobody has seen it.
            drop(unsafe { Box::from_raw(made) });
        }
    }
}

impl Desk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&'static self, question: Question) {
        let mut state = self.state();
        state.questions.push_back(question);
        if state.questions.len() <= state.idle {
            self.asked.notify_one();
        } else if thread::start("seckill-resolve", || self.serve()).is_err() {
            // The channel closes, which its receiver sees.
            state.questions.pop_back();
        }
    }

    fn serve(&self) {
        let mut state = self.state();
        loop {
            if let Some(Question { host, port, answer }) = state.questions.pop_front() {
                drop(state);
                // Nobody listens any more when it took too long.
                let _ = answer.send(look_up(&host, port));
                state = self.state();
                continue;
            }
            state.idle += 1;
            let (back, waited) = self
                .asked
                .wait_timeout_while(state, LINGER, |state| state.questions.is_empty())
                .unwrap_or_else(PoisonError::into_inner);
            state = back;
            state.idle -= 1;
            if waited.timed_out() && state.questions.is_empty() {
                return;
            }
        }
    }
}

fn look_up(host: &str, port: u16) -> Found {
    let _no_fork = fork::hold_off();
    (host, port).to_socket_addrs().map(Iterator::collect)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_names_are_looked_up_at_once_and_the_threads_are_used_again() {
        for _ in 0..3 {
            let asked: Vec<_> =
                (1..=20).map(|port| resolve("localhost".to_owned(), port)).collect();
            for (port, receiver) in (1..=20).zip(asked) {
                let found = receiver.recv().expect("there are threads").expect("it has addresses");
                assert!(found.iter().all(|address| address.port() == port), "{found:?}");
            }
        }
        let unknown = resolve("no such name".to_owned(), 1).recv().expect("there are threads");
        assert!(unknown.is_err());
    }
}
