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

    /// Another one, after an attempt that took so long: how long to stay away now. At least half as long
    /// as that, for a server that is too slow for a crowd must not be kept busy with attempts that are
    /// given up.
    pub fn fail(&mut self, took: Duration) -> Duration {
        let now = clock::now();
        let row = self.last.is_some_and(|last| now < last + ROW);
        (self.count, self.last) = (if row { self.count + 1 } else { 0 }, Some(now));
        let usual = match self.count {
            0 => Duration::ZERO,
            count => FIRST.saturating_mul(1 << (count - 1).min(16)),
        };
        let full = usual.max(took / 2).min(self.longest);
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
        assert_eq!(
            failures.fail(Duration::ZERO),
            Duration::ZERO,
            "a server that was restarted is there again"
        );
        for full in [16, 32, 64, 128, 256, 500, 500] {
            let full = Duration::from_millis(full);
            let pause = failures.fail(Duration::ZERO);
            assert!(full / 2 <= pause && pause <= full, "{pause:?} of {full:?}");
        }
        assert!(failures.forget() && !failures.forget());
        assert_eq!(failures.fail(Duration::ZERO), Duration::ZERO);
    }

    #[test]
    fn who_has_kept_a_server_busy_in_vain_stays_away_for_longer() {
        let mut failures = Failures::new(&Settings::default());
        let pause = failures.fail(Duration::from_millis(400));
        assert!((100..=200).contains(&pause.as_millis()), "{pause:?}");
        assert!(failures.fail(Duration::from_secs(9)) <= LONGEST);
    }

    #[test]
    fn what_failed_long_ago_does_not_count() {
        let mut failures = Failures::new(&Settings::default());
        for _ in 0..9 {
            failures.fail(Duration::ZERO);
        }
        failures.last = failures.last.and_then(|last| last.checked_sub(ROW));
        assert_eq!(failures.fail(Duration::ZERO), Duration::ZERO);
    }
}
