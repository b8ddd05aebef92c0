//! A schedule: what happens when, as a seed makes it up. Times are in microseconds.

use crate::stage::Dice;
use crate::step::Extension;

const MS: u64 = 1000;
const SECOND: u64 = 1000 * MS;

/// See the module's description.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub world: World,
    pub acts: Vec<Act>,
}

/// In which world it happens.
#[derive(Debug, Clone)]
pub struct World {
    pub clients: usize,
    /// Nodes of a cluster; none for a server.
    pub nodes: usize,
    pub stock: i64,
    /// No two calls ask for the same change: each can be told in the history.
    pub unique: bool,
    pub resp3: bool,
    /// The server ends leases as Redis 8 does.
    pub early: bool,
    pub socket_timeout: u64,
    pub timeout: u64,
    /// From then on nothing fails.
    pub calm: u64,
}

/// Something that happens.
#[derive(Debug, Clone)]
pub struct Act {
    pub at: u64,
    /// To whom, among those who are there.
    pub client: usize,
    /// What it draws from.
    pub salt: u64,
    pub what: What,
}

#[derive(Debug, Clone)]
pub enum What {
    /// A call begins.
    Call { wish: Want, time_out: u64, thread: bool },
    /// Somebody who waits goes away.
    Abandon,
    /// The connection breaks. What was on its way to the server arrives later, in part or not at all.
    Cut { up: Fate, after: u64 },
    /// Connections break again and again, as soon as something is asked on them.
    Shaky { one_in: u64, after: u64, until: u64 },
    /// What the server was last asked reaches it once more, if the connection has broken by then.
    Copy { after: u64 },
    /// Nothing gets through, until then.
    Swallow { up: bool, down: bool, until: u64 },
    /// The way takes longer.
    Slow { by: u64, until: u64 },
    /// The client's process stands still.
    Stall { until: u64 },
    /// A child begins anew.
    Fork,
    /// The client's process dies.
    Kill,
    /// The server stands still, and goes on where it was.
    Freeze { until: u64 },
    /// The server dies, comes back with its keys, and is loading for a while.
    Restart { until: u64, loading: u64 },
    /// A replica takes over, which has not seen the last moments and has a clock of its own.
    FailOver { lag: u64, skew: i64, old: Old, until: u64 },
    /// In a cluster: a slot moves to another node, the first of its keys half way through.
    Reshard { key: usize, half: u64, until: u64 },
    /// The scripts are forgotten.
    FlushScripts,
    /// The server answers with an error.
    Busy { word: &'static str, until: u64 },
    /// The server has no memory left.
    Full { until: u64 },
    /// The server does not accept the password.
    Locked { until: u64 },
}

/// What becomes of what is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    Arrives,
    Torn,
    Lost,
}

/// What becomes of a primary when another one takes over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Old {
    Dies,
    /// It tells whoever is connected that it is a replica now.
    Demoted,
    /// It serves whoever is connected for a while.
    Ghost,
}

/// What a caller wants.
#[derive(Debug, Clone)]
pub enum Want {
    /// `locked`: under the lock that others take, too.
    Update {
        key: usize,
        change: i64,
        locked: bool,
    },
    Incr {
        change: i64,
    },
    Acquire {
        lease: u64,
        handle: bool,
        fair: bool,
    },
    Release,
    Extend {
        ms: u64,
        how: Extension,
    },
    Holder,
}

impl Plan {
    /// What a seed makes up.
    pub fn of(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let calm = dice.between(1, 6) * 500 * MS;
        let world = World {
            clients: dice.index(3) + 1,
            nodes: dice.pick(&[0, 0, 2, 3]),
            stock: dice.pick(&[0, 3, 10, 1000]),
            unique: !dice.one_in(4),
            resp3: !dice.one_in(4),
            early: dice.one_in(2),
            socket_timeout: dice.pick(&[50, 100, 300, 1000]) * MS,
            timeout: dice.pick(&[300, 1000, 3000]) * MS,
            calm,
        };
        let (mut acts, mut begins): (Vec<Act>, Vec<u64>) = Default::default();
        let mut act = |at, what, dice: &mut Dice| {
            acts.push(Act { at, client: dice.index(8), salt: dice.roll(), what });
        };
        // Most calls come in crowds, for those travel together.
        let mut nth = 0;
        let locks = !dice.one_in(3);
        for _ in 0..dice.between(2, 6) {
            let at = dice.below(calm);
            let spread = dice.pick(&[1, 300, 20 * MS]);
            for _ in 0..dice.between(1, 4) {
                nth += 1;
                let what = call(nth, world.unique, locks, &mut dice);
                let at = at + dice.below(spread);
                begins.push(at);
                act(at, what, &mut dice);
            }
        }
        // Most of what fails does so while calls are under way.
        let mut moment = |dice: &mut Dice| {
            let spread = dice.pick(&[500, 3 * MS, 60 * MS, 0]);
            let moment = match spread {
                0 => dice.below(calm),
                spread => (dice.pick(&begins) + dice.below(spread)).min(calm - 1),
            };
            begins.push(moment);
            moment
        };
        // Slots move, or replicas take over: both at once lose keys, and who is to say which.
        let moves = dice.one_in(2);
        for _ in 0..dice.below(7) {
            let at = moment(&mut dice);
            let what = fault(at, calm, world.nodes > 0 && moves, &mut dice);
            act(at, what, &mut dice);
        }
        for _ in 0..dice.below(3) {
            let at = moment(&mut dice);
            act(at, What::Abandon, &mut dice);
        }
        acts.sort_by_key(|act| act.at);
        Self { seed, world, acts }
    }

    /// A replica takes over at some time, so acknowledged work may be lost.
    pub fn fails_over(&self) -> bool {
        self.acts.iter().any(|act| matches!(act.what, What::FailOver { .. }))
    }

    /// As it reads in a report.
    pub fn lines(&self) -> Vec<String> {
        let acts = self.acts.iter().map(|act| {
            let ms = act.at / MS;
            format!("{ms:>6}.{:03} ms  client {}: {:?}", act.at % MS, act.client, act.what)
        });
        std::iter::once(format!("{:?}", self.world)).chain(acts).collect()
    }
}

fn call(nth: i64, unique: bool, locks: bool, dice: &mut Dice) -> What {
    let time_out = dice.pick(&[0, 20 * MS, 200 * MS, SECOND, 3 * SECOND]);
    let key = dice.index(2);
    let change = match (unique, dice.below(4)) {
        (false, _) => dice.pick(&[-1, -1, -1, -2, 1]),
        (true, 0) => nth,
        (true, _) => -nth,
    };
    let locked = locks && dice.one_in(3);
    let wish = match dice.below(if locks { 20 } else { 10 }) {
        0 => Want::Incr { change: if unique { nth } else { 1 } },
        1..=9 => Want::Update { key, change, locked },
        10..=14 => Want::Acquire {
            lease: dice.pick(&[5 * MS, 50 * MS, 400 * MS, 60 * SECOND]),
            handle: dice.one_in(2),
            fair: dice.one_in(4),
        },
        15..=17 => Want::Release,
        18 => Want::Extend {
            ms: dice.pick(&[1, 30, 300, 20_000]),
            how: dice.pick(&[Extension::Add, Extension::Replace, Extension::Reset]),
        },
        _ => Want::Holder,
    };
    // Acquires of one thread would take themselves for nested ones.
    let thread = dice.one_in(4) && !matches!(wish, Want::Acquire { .. });
    What::Call { wish, time_out, thread }
}

fn fault(at: u64, calm: u64, moves: bool, dice: &mut Dice) -> What {
    let fate = |dice: &mut Dice| dice.pick(&[Fate::Arrives, Fate::Arrives, Fate::Torn, Fate::Lost]);
    let span = |dice: &mut Dice| dice.pick(&[MS, 20 * MS, 150 * MS, 700 * MS, 3 * SECOND]);
    let some = |dice: &mut Dice| {
        let span = span(dice);
        dice.below(span)
    };
    let until = (at + some(dice)).min(calm);
    match dice.below(22) {
        20 | 21 => {
            let (one_in, after) = (dice.between(1, 3), some(dice));
            What::Shaky { one_in, after, until }
        }
        0..=3 => What::Cut { up: fate(dice), after: some(dice).min(calm - at) },
        4 => What::Copy { after: some(dice).min(calm - at) },
        5 | 6 => {
            let (up, down) = dice.pick(&[(true, true), (true, false), (false, true)]);
            What::Swallow { up, down, until }
        }
        7 => What::Slow { by: some(dice) / 4, until },
        8 => What::Stall { until },
        9 => What::Fork,
        10 => What::Kill,
        11 => What::Freeze { until },
        12 => What::Restart { until, loading: some(dice).min(calm - until) },
        13..=16 if moves => {
            What::Reshard { key: dice.index(5), half: at + (until - at) / 2, until }
        }
        14 | 15 => What::FailOver {
            lag: some(dice).min(at),
            skew: i64::try_from(dice.below(4 * SECOND)).expect("small") - 2_000_000,
            old: dice.pick(&[Old::Dies, Old::Demoted, Old::Ghost]),
            until,
        },
        16 => What::FlushScripts,
        17 => What::Busy {
            word: dice.pick(&["LOADING the dataset", "BUSY a script is running", "MASTERDOWN"]),
            until,
        },
        18 => What::Full { until },
        _ => What::Locked { until },
    }
}
