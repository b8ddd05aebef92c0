//! Seeds are played; one that fails is told, and belongs into the list of those that did.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use super::plan::Plan;
use super::play;

/// So many seeds are played by default.
const SEEDS: u64 = 2000;

/// Seeds that found something once: a lock that was not given back, a copy that came after its caller was
/// told; and in cores that were made worse on purpose, a call that moved under another identity, and one
/// that was done long after its caller had left.
const FOUND: [u64; 4] = [4420, 7848, 13054, 51457];

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

type Outcomes = BTreeMap<&'static str, u64>;

/// Plays a seed; what it finds is told with the shortest schedule that finds something.
fn find(seed: u64, outcomes: &mut Outcomes) -> Option<String> {
    let mut plan = Plan::of(seed);
    let report = play(&plan, false);
    for outcome in report.outcomes {
        *outcomes.entry(outcome).or_default() += 1;
    }
    if report.wrong.is_empty() {
        return None;
    }
    let mut index = 0;
    while index < plan.acts.len() {
        let mut shorter = plan.clone();
        shorter.acts.remove(index);
        if play(&shorter, false).wrong.is_empty() {
            index += 1;
        } else {
            (plan, index) = (shorter, 0);
        }
    }
    let report = play(&plan, true);
    let told =
        [plan.lines(), report.trace, report.wrong].map(|lines| lines.join("\n")).join("\n\n");
    Some(format!("seed {seed}\n{told}\n"))
}

#[test]
fn promises_are_kept_whatever_happens() {
    let first = number("SECKILL_SEED");
    let seeds = number("SECKILL_SEEDS").unwrap_or(SEEDS);
    let range = first.map_or(0..seeds, |seed| seed..seed + 1);
    let first = range.start;
    let next = AtomicU64::new(first);
    let found = Mutex::new((Vec::new(), Outcomes::new()));
    let work = || {
        let mut outcomes = Outcomes::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if !range.contains(&seed) {
                break;
            }
            let news = catch_unwind(AssertUnwindSafe(|| find(seed, &mut outcomes)));
            let news = news.unwrap_or_else(|_| Some(format!("seed {seed} panics")));
            let (found, _) = &mut *found.lock().expect("no panics here");
            found.extend(news);
            if found.len() > 2 {
                break;
            }
        }
        let (_, all) = &mut *found.lock().expect("no panics here");
        for (outcome, count) in outcomes {
            *all.entry(outcome).or_default() += count;
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
    let (found, outcomes) = found.into_inner().expect("no panics here");
    println!("{} seeds: {outcomes:?}", range.end - first);
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn what_was_found_once_is_not_there_any_more() {
    for seed in FOUND {
        assert_eq!(find(seed, &mut Outcomes::new()), None);
    }
}

#[test]
fn a_seed_plays_the_same_again() {
    for seed in 0..20 {
        let plan = Plan::of(seed);
        assert_eq!(play(&plan, true).trace, play(&plan, true).trace);
    }
}
