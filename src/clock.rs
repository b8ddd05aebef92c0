//! The time: ours, and deadlines in the server's.
//!
//! All of the core asks [`now`] and waits through here (`clippy.toml` sees to it), so that a simulation
//! can take the place of the clock.
//!
//! A batch carries its deadline as a time of the *server's* clock, because it is the server that
//! refuses to apply it later. What is known of that clock is one number: the offset from our
//! monotonic clock. It is only ever learnt from "the server said `now` at some moment between our
//! sending and our receiving", so the true offset lies in `[now - received, now - sent]`. We keep a
//! *lower* bound of it: a deadline that is converted with it is never later than the caller's.

use std::time::{Duration, Instant};

/// Our time.
#[inline]
#[must_use]
#[allow(clippy::disallowed_methods)]
pub fn now() -> Instant {
    #[cfg(test)]
    if let Some(now) = crate::stage::now() {
        return now;
    }
    Instant::now()
}

/// How long ago that was.
#[inline]
#[must_use]
pub fn since(then: Instant) -> Duration {
    now().saturating_duration_since(then)
}

/// Sleeps until then. False if it has not come all the same: in a simulation, whose time does not go
/// on while somebody waits for it.
#[allow(clippy::disallowed_methods)]
pub fn sleep_until(then: Instant) -> bool {
    let now = now();
    if then <= now {
        return true;
    }
    if waits_for_nothing(then) {
        return false;
    }
    std::thread::sleep(then - now);
    true
}

/// Whether there is a simulation, which is to know that somebody wants to look again by then.
#[inline]
pub fn waits_for_nothing(then: Instant) -> bool {
    #[cfg(test)]
    return crate::stage::looks_again(then);
    #[cfg(not(test))]
    {
        let _ = then;
        false
    }
}

/// The server's clock, as far as its answers tell.
#[derive(Debug, Clone, Copy)]
pub struct ServerClock {
    /// At `base` the server's clock showed `micros` or more.
    base: Instant,
    micros: i64,
}

impl ServerClock {
    /// Learns the offset from a first answer that came in at `received`.
    #[must_use]
    pub fn new(now: i64, received: Instant) -> Self {
        Self { base: received, micros: now }
    }

    /// The server's time at our `instant`, or a little before.
    #[must_use]
    pub fn at(&self, instant: Instant) -> i64 {
        let forth = micros(instant.saturating_duration_since(self.base));
        let back = micros(self.base.saturating_duration_since(instant));
        self.micros.saturating_add(forth).saturating_sub(back)
    }

    /// Takes another answer into account: a tighter bound is kept, and where the answer contradicts
    /// what was known (the server's clock was set back) it is believed.
    pub fn hear(&mut self, now: i64, sent: Instant, received: Instant) {
        let tighter = self.at(received) < now;
        let contradicted = self.at(sent) > now;
        if tighter || contradicted {
            *self = Self::new(now, received);
        }
    }
}

fn micros(duration: Duration) -> i64 {
    i64::try_from(duration.as_micros()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_clock_that_was_set_back_is_believed() {
        let start = now();
        let mut clock = ServerClock::new(5_000_000, start);
        clock.hear(1_000_000, start + 10 * MS, start + 11 * MS);
        assert_eq!(clock.at(start + 11 * MS), 1_000_000);
    }

    #[test]
    fn a_slow_answer_does_not_spoil_a_good_bound() {
        let start = now();
        let mut clock = ServerClock::new(0, start);
        clock.hear(10_000, start + 10 * MS, start + 900 * MS);
        assert_eq!(clock.at(start + 900 * MS), 900_000);
    }

    proptest! {
        /// Whatever the delays on the way, a deadline in the server's time is never later than ours.
        #[test]
        fn the_bound_is_a_lower_bound(offset in 0i64..1_000_000_000, trips in proptest::collection::vec((0u64..5_000, 0u64..5_000, 0u64..5_000), 1..20)) {
            let start = now();
            let mut at = start;
            let mut clock: Option<ServerClock> = None;
            for (pause, there, back) in trips {
                let sent = at + Duration::from_micros(pause);
                let served = sent + Duration::from_micros(there);
                let received = served + Duration::from_micros(back);
                let now = offset + micros(served - start);
                match &mut clock {
                    None => clock = Some(ServerClock::new(now, received)),
                    Some(clock) => clock.hear(now, sent, received),
                }
                let known = clock.expect("just set");
                prop_assert!(known.at(received) <= offset + micros(received - start));
                at = received;
            }
        }
    }
}
