//! The scout: a thread that finds out which node of a cluster has which slots, while somebody wants to
//! know.
//!
//! It asks one node, and another as soon as that one fails, or has not answered for [`STAGGER`]. A node
//! that says of itself that it is cut off from the cluster is believed only if no other answers.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::backoff::Failures;
use crate::clock;
use crate::cluster::{Cluster, Task};
use crate::connect::{Purpose, Trouble};
use crate::error::Error;
use crate::inquiry::Inquiry;
use crate::settings::{Address, Place, Settings};
use crate::slots::{Map, question, understand};

/// How long a node may take before another is asked, too.
const STAGGER: Duration = Duration::from_millis(50);

/// How often those who are asked are looked at.
const LOOK: Duration = Duration::from_millis(1);

/// How long the thread does nothing else while nodes are asked.
const SLICE: Duration = Duration::from_millis(10);

/// How long the thread stays when there is nothing to do.
const LINGER: Duration = Duration::from_secs(2);

/// The thread's work.
pub fn run(cluster: &Arc<Cluster>) {
    let mut scout = Scout::new(cluster);
    loop {
        let now = clock::now();
        let (rest, idle) = match scout.look(cluster, now) {
            None => continue,
            Some(Task::Rest(until)) => (until.saturating_duration_since(now), false),
            Some(Task::LookUp | Task::Nothing) => (LINGER, true),
        };
        std::thread::park_timeout(rest);
        if idle && clock::since(now) >= LINGER && cluster.scout_goes() {
            return;
        }
    }
}

/// What the thread remembers.
pub struct Scout {
    search: Option<Search>,
    failures: Failures,
}

impl Scout {
    /// Whether it is waiting for an answer.
    #[cfg(test)]
    pub(crate) fn is_searching(&self) -> bool {
        self.search.is_some()
    }

    /// A scout that has not looked yet.
    pub fn new(cluster: &Cluster) -> Self {
        Self { search: None, failures: Failures::new(&cluster.settings) }
    }

    /// Does what there is to do. What is to be done after that, but not at once; none while it searches.
    pub fn look(&mut self, cluster: &Cluster, now: Instant) -> Option<Task> {
        let task = cluster.task(now);
        if self.search.is_none() && matches!(task, Task::LookUp) {
            self.search = Some(Search::begin(cluster));
        }
        let Some(asking) = &mut self.search else { return Some(task) };
        if let Some(found) = asking.advance(now + SLICE) {
            let began = asking.began;
            self.search = None;
            self.conclude(cluster, found, began);
        }
        None
    }

    fn conclude(&mut self, cluster: &Cluster, found: Result<Map, Trouble>, began: Instant) {
        match found {
            Ok(map) => {
                cluster.found(&map, began);
                self.failures.forget();
            }
            Err(Trouble::Refused(error)) => cluster.hopeless(&error),
            Err(Trouble::Unreachable(why)) if !cluster.is_known() => {
                cluster.hopeless(&Error::Unreachable(why));
            }
            Err(Trouble::Unreachable(why) | Trouble::NotReady(why)) => {
                cluster.not_found(why, clock::now() + self.failures.fail(Duration::ZERO));
            }
        }
    }
}

struct Search {
    began: Instant,
    settings: Arc<Settings>,
    candidates: VecDeque<Address>,
    asked: Vec<(Address, Inquiry)>,
    /// When the last of them was asked.
    last: Instant,
    /// What one says that is cut off.
    doubtful: Option<Map>,
    /// Why the others told nothing.
    failures: Silence,
    /// Whether there was a map before.
    known: bool,
}

impl Search {
    fn begin(cluster: &Cluster) -> Self {
        Self {
            began: clock::now(),
            settings: Arc::clone(&cluster.settings),
            candidates: cluster.candidates().into(),
            asked: Vec::new(),
            last: clock::now(),
            doubtful: None,
            failures: Silence::default(),
            known: cluster.is_known(),
        }
    }

    /// Moves on, until there is a map, or nobody is left to ask. `None` when `until` is over first.
    fn advance(&mut self, until: Instant) -> Option<Result<Map, Trouble>> {
        loop {
            let now = clock::now();
            if (self.asked.is_empty() || now >= self.last + STAGGER)
                && let Some(address) = self.candidates.pop_front()
            {
                self.ask(address, now);
            }
            for (address, mut inquiry) in std::mem::take(&mut self.asked) {
                match inquiry.advance(now) {
                    Ok(None) => self.asked.push((address, inquiry)),
                    Ok(Some(replies)) => match understand(&replies, &address) {
                        Ok(map) if map.healthy => return Some(Ok(map)),
                        Ok(map) => self.doubtful = Some(map),
                        Err(trouble) => self.failures.add(trouble),
                    },
                    Err(trouble) => self.failures.add(trouble),
                }
            }
            if self.asked.is_empty() && self.candidates.is_empty() {
                let known = self.known;
                return Some(self.doubtful.take().ok_or_else(|| self.failures.conclude(known)));
            }
            let left = until.saturating_duration_since(clock::now());
            let nap = if self.asked.is_empty() { Duration::ZERO } else { left.min(LOOK) };
            if left.is_zero() || !clock::sleep_until(clock::now() + nap) {
                return None;
            }
        }
    }

    fn ask(&mut self, address: Address, now: Instant) {
        let place = Place::Server(address.clone());
        let settings = Arc::new(Settings { place, ..(*self.settings).clone() });
        self.asked.push((address, Inquiry::begin(&settings, Purpose::Work, question())));
        self.last = now;
    }
}

/// Why nobody told the map.
#[derive(Default)]
struct Silence {
    /// What nobody can put right by waiting.
    refused: Option<Error>,
    /// Whether one said that it will be ready later.
    waits: bool,
    /// What all of the others said, or did not say.
    passing: Vec<String>,
}

impl Silence {
    fn add(&mut self, trouble: Trouble) {
        self.waits |= matches!(trouble, Trouble::NotReady(_));
        match trouble {
            Trouble::Refused(error) => self.refused = Some(error),
            Trouble::Unreachable(why) | Trouble::NotReady(why) => self.passing.push(why),
        }
    }

    /// What it comes to. In a cluster that is `known` one node that will not have us, as one that was
    /// restarted without its users, is nothing to give up for while others may still answer; in one
    /// that never told anything, it is the better explanation.
    fn conclude(&mut self, known: bool) -> Trouble {
        let passing = self.passing.join("; ");
        match self.refused.take() {
            Some(error) if !known || self.passing.is_empty() => Trouble::Refused(error),
            None if self.passing.is_empty() => {
                Trouble::Unreachable("no node of the cluster is known".to_owned())
            }
            _ if self.waits => Trouble::NotReady(passing),
            _ => Trouble::Unreachable(passing),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn silence(troubles: &[&str]) -> Silence {
        let mut silence = Silence::default();
        for trouble in troubles {
            silence.add(match *trouble {
                "refused" => Trouble::Refused(Error::Authentication("refused".to_owned())),
                "loading" => Trouble::NotReady("loading".to_owned()),
                away => Trouble::Unreachable(away.to_owned()),
            });
        }
        silence
    }

    #[test]
    fn one_that_refuses_ends_a_first_search_and_not_a_later_one() {
        for others in [&["refused", "away"], &["away", "refused"], &["loading", "refused"]] {
            assert!(matches!(silence(others).conclude(false), Trouble::Refused(_)));
            assert!(!matches!(silence(others).conclude(true), Trouble::Refused(_)));
        }
        assert!(matches!(silence(&["refused"]).conclude(true), Trouble::Refused(_)));
    }

    #[test]
    fn who_will_be_ready_is_waited_for() {
        for known in [false, true] {
            let trouble = silence(&["away", "loading"]).conclude(known);
            assert!(matches!(trouble, Trouble::NotReady(why) if why == "away; loading"));
            assert!(matches!(silence(&["away"]).conclude(known), Trouble::Unreachable(_)));
        }
    }
}
