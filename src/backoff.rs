//! How long to stay away from a server that fails.
//!
//! Not at all the first time, then longer and longer, each time by chance up to half of it less, so that a
//! crowd of processes does not come back in step.

use std::time::{Duration, Instant};

use crate::clock;
use crate::random;
use crate::settings::Settings;

/// The pause after the second failure in a row.
const FIRST: Duration = Duration::from_millis(16);

/// The longest pause.
const LONGEST: Duration = Duration::from_millis(500);

/// Failures that are so far apart are not in a row: nobody has tried in between.
const ROW: Duration = Duration::from_secs(2);

/// Failures in a row.
#[derive(Debug)]
pub struct Failures {
    count: u32,
    last: Option<Instant>,
    longest: Duration,
}

impl Failures {
    /// None so far. With these settings no pause is so long that a call gets no attempt: it lasts
    /// `socket_timeout` at least.
    pub fn new(settings: &Settings) -> Self {
        Self { count: 0, last: None, longest: LONGEST.min(settings.socket_timeout / 2) }
    }

    /// Another one: how long to stay away now.
    pub fn fail(&mut self) -> Duration {
        let now = clock::now();
        let row = self.last.is_some_and(|last| now < last + ROW);
        (self.count, self.last) = (if row { self.count + 1 } else { 0 }, Some(now));
        if self.count == 0 {
            return Duration::ZERO;
        }
        let full = FIRST.saturating_mul(1 << (self.count - 1).min(16)).min(self.longest);
        full.mul_f64(1.0 - f64::from(random::below(1000)) / 2000.0)
    }

    /// It works again. True if it had failed.
    pub fn forget(&mut self) -> bool {
        self.last.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pause_is_longer_than_the_one_before_up_to_a_limit() {
        let mut failures = Failures::new(&Settings::default());
        assert_eq!(failures.fail(), Duration::ZERO, "a server that was restarted is there again");
        for full in [16, 32, 64, 128, 256, 500, 500] {
            let full = Duration::from_millis(full);
            let pause = failures.fail();
            assert!(full / 2 <= pause && pause <= full, "{pause:?} of {full:?}");
        }
        assert!(failures.forget() && !failures.forget());
        assert_eq!(failures.fail(), Duration::ZERO);
    }

    #[test]
    fn what_failed_long_ago_does_not_count() {
        let mut failures = Failures::new(&Settings::default());
        for _ in 0..9 {
            failures.fail();
        }
        failures.last = failures.last.and_then(|last| last.checked_sub(ROW));
        assert_eq!(failures.fail(), Duration::ZERO);
    }
}
