//! What the callers were told, and whether the server's history bears it out.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::acts::STOCKS;
use super::plan::{Plan, Want, What, World};
use super::server::{Deed, Kind, Server};
use super::world::Machine;
use crate::error::{Error, Result};
use crate::hold::{Hold, Phase};
use crate::wish::Outcome;

/// A call, from its begin to its end.
pub struct Entry {
    pub party: usize,
    pub owner: u64,
    /// It is a handle that wants the lock.
    pub handle: bool,
    pub words: String,
    pub began: u64,
    /// When it ends at the latest.
    pub bound: u64,
    /// Which stock it changes, and by how much.
    pub change: Option<(Vec<u8>, i64)>,
    /// What it gives back.
    pub gives_back: Option<Arc<Hold>>,
    pub end: Option<End>,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { party, words, began, bound, end, .. } = self;
        write!(f, "client {party}'s {words}, begun at {began}, to end by {bound}: {end:?}")
    }
}

/// How a call ended.
#[derive(Debug)]
pub struct End {
    pub tick: u64,
    pub at: u64,
    pub how: How,
}

#[derive(Debug)]
pub enum How {
    Told(Result<Outcome>),
    /// Its caller has gone away, when it was or was not sent.
    Abandoned {
        sent: bool,
    },
    /// Its process has died.
    Died,
}

/// An acquisition that its owner was told of and has not begun to give back.
pub struct Kept {
    pub party: usize,
    pub owner: u64,
    pub handle: bool,
    pub hold: Arc<Hold>,
}

/// All calls, and what is held.
#[derive(Default)]
pub struct Ledger {
    pub calls: Vec<Entry>,
    pub kept: Vec<Kept>,
    /// Tokens whose giving back ended with an error.
    pub excused: Vec<Vec<u8>>,
    /// The calls that were made when all was well.
    pub last: Vec<usize>,
    /// Who takes a lock gives it back.
    pub closing: bool,
    pub wrong: Vec<String>,
}

/// How an outcome bears on the history.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Clone, Copy)]
enum Claim {
    Done,
    NotDone,
    Unknown,
}

impl Entry {
    /// What kind of end it came to.
    pub fn kind(&self) -> &'static str {
        let Some(end) = &self.end else { return "none" };
        match &end.how {
            How::Abandoned { .. } => "abandoned",
            How::Died => "died",
            How::Told(Ok(Outcome::Acquired(_))) => "acquired",
            How::Told(Ok(Outcome::Holder(_))) => "holder",
            How::Told(Ok(Outcome::Done(true))) => "done",
            How::Told(Ok(Outcome::Done(false))) => "not done",
            How::Told(Err(error)) => match error {
                Error::OutcomeUnknown(_) => "unknown",
                Error::Unreachable(_) => "unreachable",
                Error::Authentication(_) => "not let in",
                Error::Refused { .. } => "refused",
                Error::LockTimeout { .. } => "locked",
                Error::InsufficientInventory { .. } => "insufficient",
                _ => "other",
            },
        }
    }

    fn claim(&self) -> Claim {
        match self.end.as_ref().map(|end| &end.how) {
            Some(How::Told(Ok(_))) => Claim::Done,
            Some(
                How::Told(Err(Error::OutcomeUnknown(_)))
                | How::Died
                | How::Abandoned { sent: true },
            )
            | None => Claim::Unknown,
            Some(How::Told(Err(_)) | How::Abandoned { sent: false }) => Claim::NotDone,
        }
    }

    /// Until when it may still be done.
    fn last(&self, world: &World) -> Option<(u64, u64)> {
        let end = self.end.as_ref()?;
        Some(match end.how {
            How::Told(_) => (end.tick, end.at),
            How::Abandoned { .. } | How::Died => (u64::MAX, end.at + world.socket_timeout),
        })
    }
}

impl Ledger {
    /// Who believes to hold a lock at this moment does.
    pub fn check_holds(&mut self, machines: &[Machine]) {
        let now = crate::clock::now();
        let mut wrong = Vec::new();
        for kept in &self.kept {
            let hold = &kept.hold;
            if hold.phase() != Phase::Held || hold.remaining(now) == Duration::ZERO {
                continue;
            }
            let holds =
                |machine: &Machine| machine.server.store.text(&hold.lock) == Some(&hold.token[..]);
            if !machines.iter().any(holds) {
                wrong.push(format!(
                    "client {} believes to hold a lock for {:?}, and does not",
                    kept.party,
                    hold.remaining(now)
                ));
            }
        }
        self.wrong.append(&mut wrong);
    }

    /// Compares what callers were told with what was done. `history` is what survives, `lost` what
    /// a primary did that was not seen by the one after it.
    pub fn check_changes(&mut self, plan: &Plan, history: &[Deed], lost: &[Deed]) {
        let mut done: BTreeMap<(&[u8], i64), (i64, u64, u64)> = BTreeMap::new();
        let mut undone: BTreeMap<(&[u8], i64), i64> = BTreeMap::new();
        for (deeds, survives) in [(history, true), (lost, false)] {
            for deed in deeds {
                let Kind::Changed { key, granted } = &deed.kind else { continue };
                for &(change, times) in granted.iter().filter(|(_, times)| *times > 0) {
                    if survives {
                        let entry = done.entry((key, change)).or_default();
                        *entry = (entry.0 + times, deed.tick, deed.at);
                    } else {
                        *undone.entry((key, change)).or_default() += times;
                    }
                }
            }
        }
        let mut claims: BTreeMap<(&[u8], i64), BTreeMap<Claim, i64>> = BTreeMap::new();
        for entry in &self.calls {
            let Some((key, change)) = &entry.change else { continue };
            *claims.entry((key, *change)).or_default().entry(entry.claim()).or_default() += 1;
        }
        let mut wrong = Vec::new();
        for (what, claims) in &claims {
            let count = |claim| claims.get(&claim).copied().unwrap_or(0);
            let times = done.get(what).map_or(0, |done| done.0);
            let lost = undone.get(what).copied().unwrap_or(0);
            let (told, most) = (count(Claim::Done), count(Claim::Done) + count(Claim::Unknown));
            if times > most || times + lost < told {
                let (key, change) = (String::from_utf8_lossy(what.0), what.1);
                wrong.push(format!(
                    "{change} of '{key}' was done {times} times (and {lost} that were lost), callers \
                     know of {told} to {most}"
                ));
            }
        }
        for what in done.keys().filter(|what| !claims.contains_key(*what)) {
            wrong.push(format!("{what:?} was done, and nobody had asked for it"));
        }
        if plan.world.unique {
            for entry in &self.calls {
                let Some((key, change)) = &entry.change else { continue };
                let Some(&(_, tick, at)) = done.get(&(&key[..], *change)) else { continue };
                let Some((last_tick, last)) = entry.last(&plan.world) else { continue };
                if tick > last_tick || at > last {
                    wrong.push(format!(
                        "{change} was done at {at} us, after its caller had gone: {entry}"
                    ));
                }
            }
        }
        self.wrong.append(&mut wrong);
    }

    /// Calls end in time.
    pub fn check_ends(&mut self) {
        let mut wrong = Vec::new();
        for entry in &self.calls {
            match &entry.end {
                None => wrong.push(format!("it never ended: {entry}")),
                Some(end) if end.at > entry.bound => {
                    wrong.push(format!("it ended late: {entry}"));
                }
                Some(_) => {}
            }
        }
        self.wrong.append(&mut wrong);
    }

    /// Fences grow.
    pub fn check_fences(&mut self, history: &[Deed]) {
        let mut last: BTreeMap<&[u8], u64> = BTreeMap::new();
        let mut wrong = Vec::new();
        for deed in history {
            let Kind::Acquired { lock, fence: Some(fence) } = &deed.kind else { continue };
            if last.insert(lock, *fence).is_some_and(|last| last >= *fence) {
                wrong.push(format!("fence {fence} is not beyond the last"));
            }
        }
        self.wrong.append(&mut wrong);
    }

    /// A stock is what it was, and what was done; and what was only sold is never sold too often.
    pub fn check_stocks<'a>(
        &mut self,
        plan: &Plan,
        history: &[Deed],
        owner: impl Fn(&[u8]) -> &'a Server,
    ) {
        for key in &STOCKS[..2] {
            let deeds = history.iter().filter_map(|deed| match &deed.kind {
                Kind::Changed { key: of, granted } if of == key => Some(granted),
                _ => None,
            });
            let sum: i64 = deeds.flatten().map(|(change, times)| change * times).sum();
            let left = owner(key).stock(key).unwrap_or(i64::MIN);
            if left != plan.world.stock + sum || left < 0 {
                let key = String::from_utf8_lossy(key);
                self.wrong.push(format!("'{key}' is {left}, not {} and {sum}", plan.world.stock));
            }
        }
    }

    /// Nothing is held by nobody, nor does nobody wait for it.
    pub fn check_left_behind(&mut self, plan: &Plan, server: &Server) {
        // Who dies leaves what he has; and what cannot be undone in time is left to the lease.
        let excused = |what: &What| matches!(what, What::Kill | What::Locked { .. });
        if plan.world.timeout < plan.world.calm || plan.acts.iter().any(|act| excused(&act.what)) {
            return;
        }
        // A place is undone for as long as the lease would last, which may be shorter than its life.
        let short = |what: &What| matches!(what, What::Call { wish: Want::Acquire { lease, .. }, .. } if *lease < plan.world.calm);
        let places = !plan.acts.iter().any(|act| short(&act.what));
        for key in server.store.names() {
            let text = server.store.text(key);
            let is_lock = key == b"lock";
            let is_place = places && key.starts_with(b"seckill:{lock}:place-");
            let known = text.is_some_and(|text| self.excused.iter().any(|token| token == text));
            if (is_lock && !known) || is_place {
                let key = String::from_utf8_lossy(key);
                self.wrong.push(format!("'{key}' is left behind, and nobody's"));
            }
        }
    }
}
