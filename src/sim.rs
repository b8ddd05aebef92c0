//! A simulator of the core: schedules of drops, delays, copies, fail-overs, forks and deaths, made up by
//! a seed, through the real calls, queue, session, connection, packing and parsing, and the real scripts.
//!
//! Time, chance, threads and the network are a stage's (`stage`); the server is a model that runs the
//! scripts in Lua. All happens in one thread, and the same seed plays the same.
//!
//! | file | what it is |
//! |---|---|
//! | `plan` | what happens when, as a seed makes it up |
//! | `world` | plays it, from event to event |
//! | `acts`, `befall` | what clients and network do, and what befalls servers |
//! | `actor` | a client: an event loop, threads and the pilot, by hand |
//! | `net` | what is on its way between a socket and a server |
//! | `server`, `store`, `lua` | the model: protocol, keys, scripts |
//! | `nodes` | which server has which keys |
//! | `ledger` | what the callers were told, and whether it is so |
//!
//! `SECKILL_SEEDS=n` plays so many seeds, `SECKILL_SEED=n` that one, and tells what happened in it.

#![allow(clippy::similar_names)] // A plan is played, a play has a plan.

mod actor;
mod acts;
mod befall;
mod dice;
mod ledger;
mod lua;
mod net;
mod nodes;
mod plan;
mod server;
mod store;
mod tests;
mod transcript;
mod world;

use self::plan::{Plan, What};
use self::world::{Event, Play};

/// What came of a schedule.
#[derive(Debug, Default)]
pub struct Report {
    /// What was not as it must be.
    pub wrong: Vec<String>,
    pub trace: Vec<String>,
    /// What kind of end each call came to.
    pub outcomes: Vec<&'static str>,
}

/// Plays a schedule.
pub fn play(plan: &Plan, traced: bool) -> Report {
    let mut play = Play::new(plan, traced);
    for (key, stock) in [(0, plan.world.stock), (1, plan.world.stock), (2, 1_000_000)] {
        let words = [b"SET", acts::STOCKS[key], stock.to_string().as_bytes()].map(<[u8]>::to_vec);
        let owner = play.nodes.owner(acts::STOCKS[key]);
        play.machines[owner].server.store.call(&words);
    }
    for (index, act) in plan.acts.iter().enumerate() {
        if let What::FailOver { lag, .. } = act.what {
            play.plan(act.at - lag.min(act.at), Event::Snapshot(index));
        }
        play.plan(act.at, Event::Act(index));
    }
    let world = &plan.world;
    let calm = world.calm + 2 * world.socket_timeout + 500_000;
    play.plan(calm, Event::Calm);
    let last = calm + 700_000 + 3 * world.socket_timeout;
    play.plan(last, Event::Last);
    // The longest of all calls, and what is undone after it.
    let mut end = last;
    let longest = end + 3_000_000 + world.timeout + 2 * world.socket_timeout;
    while end < longest && (end == last || play.is_busy()) {
        end = (end + 500_000).min(longest);
        play.go_on(end);
    }
    check(&mut play)
}

fn check(play: &mut Play<'_>) -> Report {
    let plan = play.plan;
    let (mut history, mut lost) = (Vec::new(), Vec::new());
    for (index, machine) in play.machines.iter_mut().enumerate() {
        machine.server.set_time(play.now);
        for deed in &machine.server.log {
            let survives = deed.name().is_some_and(|name| play.nodes.owner(name) == index);
            if survives { &mut history } else { &mut lost }.push(deed.clone());
        }
    }
    // What several have seen is lost with none of them.
    history.sort_by_key(|deed: &server::Deed| deed.tick);
    lost.retain(|deed| history.binary_search_by_key(&deed.tick, |known| known.tick).is_err());
    lost.sort_by_key(|deed| deed.tick);
    lost.dedup_by_key(|deed| deed.tick);
    play.ledger.check_ends();
    play.ledger.check_changes(plan, &history, &lost);
    let owner = |name: &[u8]| &play.machines[play.nodes.owner(name)].server;
    play.ledger.check_stocks(plan, &history, owner);
    if !plan.fails_over() {
        play.ledger.check_fences(&history);
        play.ledger.check_left_behind(plan, owner(b"lock"));
    }
    Report {
        wrong: std::mem::take(&mut play.ledger.wrong),
        outcomes: play.ledger.calls.iter().map(ledger::Entry::kind).collect(),
        trace: play.trace(),
    }
}
