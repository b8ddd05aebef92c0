//! A client in a simulation: a process with an event loop, whose tasks make calls, some threads, and
//! the pilot's part. All of it is played by hand, in one thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use super::nodes::{FIRST_NODE, SERVICE};
use super::plan::World;
use crate::call::{Call, Progress};
use crate::caller::Caller;
use crate::client::Client;
use crate::cluster::Task;
use crate::error::Result;
use crate::holdings::Owner;
use crate::mailbox::{Mailbox, Ticket};
use crate::patrol::SLICE;
use crate::scout::Scout;
use crate::settings::{Address, Place, Settings};
use crate::stage::{self, Dice};
use crate::wish::{Outcome, Wish};

/// See the module's description.
pub struct Actor {
    pub client: Arc<Client>,
    mailbox: Arc<Mailbox>,
    calls: Slab<Live>,
    scout: Option<Scout>,
    /// It stands still until then.
    pub stalled: u64,
    /// When it wants to look again.
    pub wakes: Option<Instant>,
}

struct Live {
    call: Call,
    /// Which of all calls it is.
    id: usize,
    due: Instant,
    thread: bool,
}

/// A call that has ended.
pub struct Ended {
    pub id: usize,
    pub outcome: Result<Outcome>,
}

impl Actor {
    pub fn new(world: &World) -> Self {
        let at = |port| Address::Tcp("127.0.0.1".to_owned(), port);
        let nodes = u16::try_from(world.nodes).expect("a few");
        let place = match nodes {
            0 => Place::Server(at(SERVICE)),
            nodes => Place::Cluster((0..nodes).map(|node| at(FIRST_NODE + node)).collect()),
        };
        let settings = Settings {
            place,
            password: Some("secret".to_owned()),
            timeout: Duration::from_micros(world.timeout),
            socket_timeout: Duration::from_micros(world.socket_timeout),
            ..Settings::default()
        };
        Self {
            client: Arc::new(Client::new(settings)),
            mailbox: Arc::new(Mailbox::new().expect("a pair of sockets")),
            calls: Slab::new(),
            scout: None,
            stalled: 0,
            wakes: None,
        }
    }

    /// Begins a call.
    pub fn begin(&mut self, id: usize, wish: Wish, time_out: Duration, owner: Owner, thread: bool) {
        let entry = self.calls.vacant_entry();
        let caller = if thread {
            Caller::this_thread()
        } else {
            Caller::Task(Arc::clone(&self.mailbox), entry.key())
        };
        let call = Call::new(&self.client, wish, Some(time_out), owner, caller);
        entry.insert(Live { call, id, due: crate::clock::now(), thread });
    }

    /// One of those who wait goes away: which one, and whether it was sent.
    pub fn abandon(&mut self, dice: &mut Dice) -> Option<(usize, bool)> {
        if self.calls.is_empty() {
            return None;
        }
        let nth = dice.index(self.calls.len());
        let ticket = self.calls.iter().nth(nth)?.0;
        let mut live = self.calls.remove(ticket);
        let sent = live.call.step().is_some_and(|step| step.was_sent());
        live.call.abandon();
        Some((live.id, sent))
    }

    /// How many calls are under way.
    pub fn calls(&self) -> usize {
        self.calls.len()
    }

    /// Which they are.
    pub fn ids(&self) -> impl Iterator<Item = usize> {
        self.calls.iter().map(|(_, live)| live.id)
    }

    /// Runs what can run at this moment; `poll` if there may be something to read.
    pub fn run(&mut self, mut poll: bool, dice: &mut Dice, ended: &mut Vec<Ended>) {
        stage::with(|stage| stage.look_again = None);
        let now = crate::clock::now();
        let mut tickets: Vec<Ticket> = Vec::new();
        loop {
            self.mailbox.take(&mut tickets);
            let due = |(ticket, live): (Ticket, &Live)| {
                (live.due <= now || live.thread).then_some(ticket)
            };
            tickets.extend(self.calls.iter().filter_map(due));
            tickets.sort_unstable();
            tickets.dedup();
            let mut moved = false;
            for ticket in tickets.drain(..) {
                let Some(live) = self.calls.get_mut(ticket) else { continue };
                match live.call.advance() {
                    Progress::Wait(until) => {
                        moved |= !live.thread || live.due <= now;
                        live.due = until.max(now + Duration::from_micros(1));
                    }
                    Progress::Done(outcome) => {
                        moved = true;
                        let mut live = self.calls.remove(ticket);
                        live.call.told();
                        ended.push(Ended { id: live.id, outcome });
                    }
                }
            }
            self.scout();
            let led = self.lead(poll, dice);
            poll = false;
            if !moved && !led {
                break;
            }
        }
        let due = self.calls.iter().map(|(_, live)| live.due).min();
        let look = stage::with(|stage| stage.look_again.take()).flatten();
        self.wakes = due.into_iter().chain(look).min();
    }

    /// The scout looks what there is to do.
    fn scout(&mut self) {
        let (_, Some(cluster)) = self.client.route.by_hand() else { return };
        let now = crate::clock::now();
        let scout = self.scout.get_or_insert_with(|| Scout::new(&cluster));
        loop {
            match scout.look(&cluster, now) {
                Some(Task::Rest(until)) => {
                    crate::clock::waits_for_nothing(until);
                    return;
                }
                None if !scout.is_searching() => {}
                None | Some(Task::LookUp | Task::Nothing) => return,
            }
        }
    }

    /// Somebody leads, if somebody has been called to. True when it came further.
    fn lead(&mut self, poll: bool, dice: &mut Dice) -> bool {
        let until = crate::clock::now() + SLICE;
        let waits = |live: &Live| live.thread && live.call.step().is_some_and(|step| step.wanted());
        let threads: Vec<_> =
            self.calls.iter().filter(|(_, live)| waits(live)).map(|(ticket, _)| ticket).collect();
        let (lanes, _) = self.client.route.by_hand();
        let answered = |live: &Slab<Live>| {
            let steps = live.iter().filter_map(|(_, live)| live.call.step());
            steps.filter(|step| step.reply().is_some()).count()
        };
        let before = answered(&self.calls);
        if !threads.is_empty() && (!poll || dice.one_in(2)) {
            let live = &self.calls[threads[dice.index(threads.len())]];
            live.call.step().map(|step| self.client.route.lead(step, until));
        }
        for lane in lanes.iter().filter(|lane| poll || lane.combiner.calls_pilot()) {
            lane.combiner.fly(until);
        }
        answered(&self.calls) != before
    }

    /// Whether nothing is under way for nobody.
    pub fn is_settled(&self) -> bool {
        self.client.route.settled()
    }
}
