//! The acts of a schedule: calls that begin, and what befalls clients, network and servers.

use std::sync::Arc;
use std::time::Duration;

use super::ledger::{End, Entry, How, Kept};
use super::plan::{Act, Fate, Want, What};
use super::world::{Event, Play};
use crate::error::Result;
use crate::hold::Tally;
use crate::holdings::Owner;
use crate::names::Name;
use crate::stage::Dice;
use crate::wish::{Acquisition, Handle, Outcome, Terms, Wish};

/// The lock that calls take.
const LOCK: &[u8] = b"lock";

/// The stocks; the last one is for the end.
pub const STOCKS: [&[u8]; 3] = [b"one", b"two", b"end"];

/// Keys whose slots may move.
pub const NAMES: [&[u8]; 5] = [STOCKS[0], STOCKS[1], STOCKS[0], STOCKS[1], LOCK];

/// The lock of a stock that nobody but its own updates ever takes, in its slot.
fn free(stock: usize) -> Name {
    [b"free:{", STOCKS[stock], b"}"].concat().into()
}

/// How long after the end of a call's time its answer is waited for.
const GRACE: u64 = 51_000;

impl Play<'_> {
    pub(super) fn act(&mut self, index: usize) {
        let plan = self.plan;
        let Act { client, salt, ref what, .. } = plan.acts[index];
        let there: Vec<_> =
            (0..self.parties.len()).filter(|&party| self.parties[party].actor.is_some()).collect();
        let Some(&party) = there.get(client % there.len().max(1)) else { return };
        let stalled = self.parties[party].actor.as_ref().map_or(0, |actor| actor.stalled);
        if stalled > self.now && matches!(what, What::Call { .. } | What::Abandon) {
            // Who stands still begins nothing.
            return self.plan(stalled, Event::Act(index));
        }
        self.note(|| format!("client {party}: {what:?}"));
        let mut dice = Dice::new(salt);
        match *what {
            What::Call { ref wish, time_out, thread } => {
                self.call(party, wish, time_out, thread, &mut dice);
            }
            What::Abandon => {
                let gone = self.parties[party].actor.as_mut().and_then(|it| it.abandon(&mut dice));
                if let Some((id, sent)) = gone {
                    // In a cluster what is not sent may be the last of several parts.
                    let sent = sent || self.plan.world.nodes > 0;
                    self.ends(id, How::Abandoned { sent });
                }
                self.attend(party, false);
            }
            What::Cut { up, after } => self.cut(|conn| conn.party == party, up, after),
            What::Copy { after } => {
                if let Some(conn) = self.conns.iter().rposition(|conn| conn.party == party) {
                    self.plan(self.now + after, Event::Copy { conn });
                }
            }
            What::Swallow { up, down, until } => {
                let way = &mut self.parties[party].way;
                way.no_up = way.no_up.max(if up { until } else { 0 });
                way.no_down = way.no_down.max(if down { until } else { 0 });
            }
            What::Shaky { one_in, after, until } => {
                self.parties[party].way.shaky = Some((one_in, after, until));
            }
            What::Slow { by, until } => self.parties[party].way.slow = Some((by, until)),
            What::Stall { until } => {
                if let Some(actor) = &mut self.parties[party].actor {
                    actor.stalled = actor.stalled.max(until);
                    let calls = self.ledger.calls.iter_mut().filter(|call| call.party == party);
                    calls.for_each(|call| call.bound = call.bound.max(until + GRACE));
                }
            }
            What::Fork => self.enter(),
            What::Kill => self.kill(party),
            _ => self.befall(index),
        }
    }

    fn kill(&mut self, party: usize) {
        let alive = self.parties.iter().filter(|party| party.actor.is_some()).count();
        if alive < 2 {
            return;
        }
        let Some(actor) = self.parties[party].actor.take() else { return };
        for id in actor.ids() {
            self.ends(id, How::Died);
        }
        self.ledger.kept.retain(|kept| kept.party != party);
        drop(actor);
        self.cut(|conn| conn.party == party, Fate::Arrives, 0);
    }

    fn call(&mut self, party: usize, want: &Want, time_out: u64, thread: bool, dice: &mut Dice) {
        let owner = dice.between(1, 2);
        let lock = || Name::from(LOCK);
        let key = |key: usize| Name::from(STOCKS[key]);
        let kept: Vec<_> = (0..self.ledger.kept.len())
            .filter(|&index| self.ledger.kept[index].party == party)
            .collect();
        let wish = match *want {
            Want::Update { key: nth, change, locked } => {
                let lock = if locked { Name::from(LOCK) } else { free(nth) };
                Wish::Update {
                    lock,
                    key: key(nth),
                    change,
                    proof: None,
                    // Some are over before the change is made.
                    lease: Duration::from_millis(if change % 2 == 0 { 5000 } else { 300 }),
                }
            }
            Want::Incr { change } => Wish::Incr { key: key(0), change },
            Want::Acquire { lease, handle, fair } => {
                let tally = Arc::new(Tally::default());
                let handle = handle.then_some(Handle { tally, keep: None });
                let lease = Some(Duration::from_micros(lease));
                Wish::Acquire { lock: lock(), terms: Terms { lease, token: None, fair, handle } }
            }
            Want::Release if kept.is_empty() => Wish::Release { lock: lock() },
            Want::Release => {
                let kept = kept[dice.index(kept.len())];
                return self.give_back(kept, time_out);
            }
            Want::Extend { ms, how } if !kept.is_empty() => {
                let kept = &self.ledger.kept[kept[dice.index(kept.len())]];
                Wish::Extend { of: acquisition(kept), ms, how }
            }
            Want::Extend { .. } | Want::Holder => Wish::Holder { lock: lock() },
        };
        self.begin(party, wish, time_out, owner, thread);
    }

    /// Begins to give back what somebody holds.
    pub(super) fn give_back(&mut self, index: usize, time_out: u64) {
        let kept = self.ledger.kept.swap_remove(index);
        let wish = if kept.handle {
            Wish::GiveBack(acquisition(&kept))
        } else {
            // It is about the owner's last one.
            let others = |other: &Kept| {
                other.handle || (other.party, other.owner) != (kept.party, kept.owner)
            };
            self.ledger.kept.retain(others);
            Wish::Release { lock: Name::from(LOCK) }
        };
        let id = self.begin(kept.party, wish, time_out, kept.owner, false);
        self.ledger.calls[id].gives_back = Some(kept.hold);
        self.attend(kept.party, false);
    }

    /// Begins a call.
    pub(super) fn begin(
        &mut self,
        party: usize,
        wish: Wish,
        time_out: u64,
        owner: Owner,
        thread: bool,
    ) -> usize {
        let id = self.ledger.calls.len();
        let change = match &wish {
            Wish::Update { key, change, .. } | Wish::Incr { key, change } => {
                Some((key.to_vec(), *change))
            }
            _ => None,
        };
        let handle = matches!(&wish, Wish::Acquire { terms: Terms { handle: Some(_), .. }, .. });
        let lasts = time_out.max(self.plan.world.socket_timeout) + GRACE;
        let stalled = self.parties[party].actor.as_ref().map_or(0, |actor| actor.stalled);
        self.ledger.calls.push(Entry {
            party,
            owner,
            handle,
            words: format!("{wish}"),
            began: self.now,
            bound: (self.now + lasts).max(stalled + GRACE),
            change,
            gives_back: None,
            end: None,
        });
        let time_out = Duration::from_micros(time_out);
        if let Some(actor) = &mut self.parties[party].actor {
            actor.begin(id, wish, time_out, owner, thread);
        }
        self.attend(party, false);
        id
    }

    /// A caller is told.
    pub(super) fn told(&mut self, id: usize, outcome: Result<Outcome>) {
        self.note(|| format!("call {id} is told {outcome:?}"));
        let entry = &self.ledger.calls[id];
        if let Ok(Outcome::Acquired(hold)) = &outcome {
            let (party, owner, handle) = (entry.party, entry.owner, entry.handle);
            let hold = Arc::clone(hold);
            self.ledger.kept.push(Kept { party, owner, handle, hold });
        }
        if let (Some(hold), Err(_)) = (&entry.gives_back, &outcome) {
            // It stays until its lease ends, and its owner knows.
            self.ledger.excused.push(hold.token.to_vec());
        }
        self.ends(id, How::Told(outcome));
        if self.ledger.closing {
            self.give_all_back();
        }
    }

    fn ends(&mut self, id: usize, how: How) {
        self.tick += 1;
        self.ledger.calls[id].end = Some(End { tick: self.tick, at: self.now, how });
    }

    /// Nothing has failed for a while: whoever asks is answered, and at once.
    pub(super) fn calm(&mut self) {
        for party in 0..self.parties.len() {
            if self.parties[party].actor.is_none() {
                continue;
            }
            let (lock, key) = (free(2), Name::from(STOCKS[2]));
            let change = -1 - i64::try_from(party).expect("a few");
            let wish =
                Wish::Update { lock, key, change, proof: None, lease: Duration::from_secs(5) };
            let id = self.begin(party, wish, 3_000_000, 0, false);
            // A connection that has died meanwhile is found out, and may be paused for.
            let world = &self.plan.world;
            // So is a change of the map.
            let more = if world.nodes > 0 { 2 * world.socket_timeout + 200_000 } else { 20_000 };
            self.ledger.calls[id].bound = self.now + world.socket_timeout / 2 + more;
            self.ledger.last.push(id);
        }
    }

    /// Everybody gives back what he holds.
    pub(super) fn last(&mut self) {
        for &id in &self.ledger.last {
            let end = self.ledger.calls[id].end.as_ref().map(|end| &end.how);
            if !matches!(end, Some(How::Told(Ok(_)))) {
                let wrong = format!("all is well, and a call ends with {end:?}");
                self.ledger.wrong.push(wrong);
            }
        }
        self.ledger.closing = true;
        self.give_all_back();
    }

    fn give_all_back(&mut self) {
        while !self.ledger.kept.is_empty() {
            self.give_back(0, 1_000_000);
        }
    }
}

fn acquisition(kept: &Kept) -> Acquisition {
    let (lock, token) = (Arc::clone(&kept.hold.lock), Arc::clone(&kept.hold.token));
    Acquisition { lock, token, hold: Some(Arc::clone(&kept.hold)) }
}
