//! Plays a schedule: lets the time pass from event to event, and everybody act who has something to do.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use super::actor::{Actor, Ended};
use super::ledger::Ledger;
use super::net::{Conn, Way};
use super::nodes::Nodes;
use super::plan::{Fate, Plan};
use super::server::{Server, command};
use super::store::Reply;
use crate::stage::{self, Dice, Stage, beginning};

/// See the module's description.
pub struct Play<'a> {
    pub plan: &'a Plan,
    pub now: u64,
    pub tick: u64,
    agenda: BinaryHeap<Reverse<(u64, u64)>>,
    events: BTreeMap<u64, Event>,
    pub parties: Vec<Party>,
    pub conns: Vec<Conn>,
    pub machines: Vec<Machine>,
    pub nodes: Nodes,
    /// What replicas have seen of which server, by the act that is to come.
    pub replicas: BTreeMap<usize, (usize, Server)>,
    pub ledger: Ledger,
    pub dice: Dice,
    /// What happened, if somebody wants to know.
    trace: Option<Vec<String>>,
    ended: Vec<Ended>,
}

/// A client, and its way to the servers.
pub struct Party {
    /// None when it has died.
    pub actor: Option<Actor>,
    pub way: Way,
    /// When it looks again, as far as it is on the agenda.
    looks: u64,
}

/// A server, and whether it runs.
pub struct Machine {
    pub server: Server,
    pub frozen: u64,
    pub dead: bool,
    /// Nobody is let in.
    pub gone: bool,
}

/// What happens next.
#[derive(Debug)]
pub enum Event {
    /// An act of the plan.
    Act(usize),
    /// Bytes arrive at the server; `late` if they were held back before.
    Up { conn: usize, bytes: Vec<u8>, late: bool },
    /// A connection breaks.
    Break { conn: usize, after: u64 },
    /// Bytes arrive at the client.
    Down { conn: usize, bytes: Vec<u8> },
    /// A copy of what was asked arrives at a server.
    Copy { conn: usize },
    /// Somebody looks again.
    Look { party: usize },
    /// A server goes on.
    Thaw { machine: usize },
    /// A replica sees what the server has done so far that an act is about.
    Snapshot(usize),
    /// A replica takes the place of a server.
    TakeOver { old: usize, new: Box<Server> },
    /// Some keys of a slot are moved, or all that are left.
    Move { slot: u16, all: bool },
    /// What an act began is over, at a server.
    Over(usize, Trouble),
    /// Nothing has failed for a while: one more call of everybody.
    Calm,
    /// What is held is given back.
    Last,
}

/// What may befall the servers for a while.
#[derive(Debug, Clone, Copy)]
pub enum Trouble {
    Gone { loading: u64 },
    Busy,
    Full,
    Locked,
    Ghost,
}

impl<'a> Play<'a> {
    /// Takes the stage of this thread.
    pub fn new(plan: &'a Plan, traced: bool) -> Self {
        let mut dice = Dice::new(plan.seed ^ 0x0005_EED5);
        let (refusing, dialed) = Default::default();
        let (time, chance) = (Duration::ZERO, Dice::new(dice.roll()));
        stage::set(Some(Stage { time, dice: chance, look_again: None, refusing, dialed }));
        let world = &plan.world;
        let machines = (0..world.nodes.max(1)).map(|_| {
            // All of them count their milliseconds at the same moments, or a lease could lose one on the way.
            let offset = i64::try_from(dice.between(1, 1 << 40)).expect("small") * 1000;
            let server = Server::new(offset, world.resp3, world.early);
            Machine { server, frozen: 0, dead: false, gone: false }
        });
        let machines = machines.collect();
        let mut play = Self {
            plan,
            now: 0,
            tick: 0,
            agenda: BinaryHeap::new(),
            events: BTreeMap::new(),
            parties: Vec::new(),
            conns: Vec::new(),
            machines,
            nodes: Nodes::new(world.nodes),
            replicas: BTreeMap::new(),
            ledger: Ledger::default(),
            dice,
            trace: traced.then(Vec::new),
            ended: Vec::new(),
        };
        (0..world.clients).for_each(|_| play.enter());
        play
    }

    /// Somebody enters.
    pub fn enter(&mut self) {
        let actor = Some(Actor::new(&self.plan.world));
        self.parties.push(Party { actor, way: Way::default(), looks: u64::MAX });
    }

    /// Puts something on the agenda.
    pub fn plan(&mut self, at: u64, event: Event) {
        self.tick += 1;
        self.agenda.push(Reverse((at.max(self.now), self.tick)));
        self.events.insert(self.tick, event);
    }

    /// Plays until nothing is left to happen, or until then.
    pub fn go_on(&mut self, until: u64) {
        while let Some(&Reverse((at, number))) = self.agenda.peek()
            && at <= until
        {
            self.agenda.pop();
            let event = self.events.remove(&number).expect("on the agenda");
            self.now = at;
            stage::with(|stage| stage.time = Duration::from_micros(at));
            self.happens(event);
        }
        self.now = until;
        stage::with(|stage| stage.time = Duration::from_micros(until));
    }

    pub fn note(&mut self, what: impl FnOnce() -> String) {
        if let Some(trace) = &mut self.trace {
            trace.push(format!("{:>9} {}", self.now, what()));
        }
    }

    pub fn trace(&mut self) -> Vec<String> {
        self.trace.take().unwrap_or_default()
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Act(index) => self.act(index),
            Event::Up { conn, bytes, late } => self.up(conn, bytes, late),
            Event::Down { conn, bytes } => {
                if self.conns[conn].is_open() {
                    self.note(|| format!("conn {conn} tells {}", bytes.escape_ascii()));
                    self.conns[conn].write(&bytes);
                    self.conns[conn].last.clear();
                    self.attend(self.conns[conn].party, true);
                }
            }
            Event::Break { conn, after } => {
                if self.conns[conn].is_open() {
                    self.conns[conn].broken = Some((Fate::Arrives, after));
                    self.conns[conn].close();
                    self.attend(self.conns[conn].party, true);
                }
            }
            Event::Copy { conn } => {
                let machine = self.conns[conn].machine;
                // Nothing comes twice on a connection; but who knows of one that ended without an answer.
                let mut bytes = self.conns[conn].last.clone();
                if !self.conns[conn].is_open() && !self.conns[conn].void {
                    self.note(|| format!("server {machine} gets a copy"));
                    while let Some(words) = command(&mut bytes) {
                        self.execute(machine, &words, false);
                    }
                }
            }
            Event::Look { party } => {
                if self.parties[party].looks <= self.now {
                    self.parties[party].looks = u64::MAX;
                    self.attend(party, true);
                }
            }
            Event::Thaw { machine } => {
                for conn in 0..self.conns.len() {
                    if self.conns[conn].machine == machine {
                        self.serve(conn);
                    }
                }
            }
            Event::Snapshot(act) => {
                let machine = self.nodes.some(self.plan.acts[act].salt);
                self.replicas.insert(act, (machine, self.machines[machine].server.replica()));
            }
            Event::TakeOver { old, new } => self.take_over(old, *new),
            Event::Move { slot, all } => self.move_slot(slot, all),
            Event::Over(machine, trouble) => self.over(machine, trouble),
            Event::Calm => self.calm(),
            Event::Last => self.last(),
        }
    }

    fn up(&mut self, conn: usize, mut bytes: Vec<u8>, late: bool) {
        match self.conns[conn].broken {
            Some((Fate::Lost, _)) if !late => return,
            Some((fate, after)) if !late => {
                if fate == Fate::Torn {
                    bytes.truncate(self.dice.index(bytes.len()));
                    self.conns[conn].broken = Some((Fate::Lost, 0));
                }
                return self.plan(self.now + after, Event::Up { conn, bytes, late: true });
            }
            _ => {}
        }
        if self.conns[conn].void {
            return;
        }
        self.note(|| format!("conn {conn} asks {}", told_short(&bytes)));
        self.conns[conn].inbox.extend_from_slice(&bytes);
        self.serve(conn);
    }

    /// A server takes in what there is on a connection.
    fn serve(&mut self, conn: usize) {
        let machine = self.conns[conn].machine;
        if self.machines[machine].frozen > self.now || self.machines[machine].dead {
            return;
        }
        let mut bytes = Vec::new();
        while let Some(words) = command(&mut self.conns[conn].inbox) {
            let asking = std::mem::replace(&mut self.conns[conn].asking, words[0] == b"ASKING");
            bytes.extend_from_slice(&self.execute(machine, &words, asking));
        }
        if !bytes.is_empty() && self.conns[conn].is_open() {
            let way = &self.parties[self.conns[conn].party].way;
            let at = self.conns[conn].down(self.now, way, &mut self.dice);
            self.plan(at, Event::Down { conn, bytes });
        }
    }

    fn execute(&mut self, machine: usize, words: &[Vec<u8>], asking: bool) -> Vec<u8> {
        self.tick += 1;
        let server = &mut self.machines[machine].server;
        server.set_time(self.now);
        let reply = match &*words[0] {
            _ if server.ails.busy.is_some() => None,
            b"CLUSTER" => Some(self.nodes.describe(&words[1])),
            b"EVAL" | b"EVALSHA" => {
                let count: usize = String::from_utf8_lossy(&words[2]).parse().expect("a number");
                let keys = &words[3..3 + count];
                self.nodes.redirect(machine, keys, asking, &server.store).map(Reply::Error)
            }
            _ => None,
        };
        if let Some(reply) = reply {
            return Server::tell(words, &reply);
        }
        self.machines[machine].server.execute(words, self.now, self.tick)
    }

    /// A client does what it can; `poll` if there may be something to read for it.
    pub fn attend(&mut self, party: usize, poll: bool) {
        let Some(actor) = &mut self.parties[party].actor else { return };
        if actor.stalled > self.now {
            let at = actor.stalled;
            return self.look(party, at);
        }
        let mut ended = std::mem::take(&mut self.ended);
        actor.run(poll, &mut self.dice, &mut ended);
        let wakes = actor.wakes;
        self.pump(party);
        for Ended { id, outcome } in ended.drain(..) {
            self.told(id, outcome);
        }
        self.ended = ended;
        if let Some(wakes) = wakes {
            let micros = wakes.saturating_duration_since(beginning()).as_nanos().div_ceil(1000);
            let at = u64::try_from(micros).unwrap_or(u64::MAX).max(self.now + 1);
            self.look(party, at);
        }
        if !self.plan.fails_over() {
            self.machines.iter_mut().for_each(|machine| machine.server.set_time(self.now));
            self.ledger.check_holds(&self.machines);
        }
    }

    fn look(&mut self, party: usize, at: u64) {
        if at < self.parties[party].looks {
            self.parties[party].looks = at;
            self.plan(at, Event::Look { party });
        }
    }

    /// Takes what clients have written, and the connections that they have opened.
    fn pump(&mut self, party: usize) {
        while let Some((port, theirs)) = stage::with(|stage| stage.dialed.pop_front()).flatten() {
            let machine = self.nodes.at(port);
            self.note(|| format!("client {party} opens a connection to server {machine}"));
            self.conns.push(Conn::new(party, machine, theirs, self.now));
        }
        for conn in 0..self.conns.len() {
            if self.conns[conn].party != party || !self.conns[conn].is_open() {
                continue;
            }
            match self.conns[conn].read() {
                Some(bytes) if bytes.is_empty() => {}
                Some(bytes) => {
                    self.conns[conn].last.clone_from(&bytes);
                    let way = &self.parties[party].way;
                    let at = self.conns[conn].up(self.now, way, &mut self.dice);
                    self.plan(at, Event::Up { conn, bytes, late: false });
                    self.shake(conn);
                }
                None => {
                    self.note(|| format!("client {party} closes conn {conn}"));
                    self.conns[conn].close();
                }
            }
        }
    }

    /// The connection may break when the question has left.
    fn shake(&mut self, conn: usize) {
        let (now, calm) = (self.now, self.plan.world.calm);
        let shaky = self.parties[self.conns[conn].party].way.shaky;
        if let Some((one_in, after, _)) = shaky.filter(|shaky| now < shaky.2)
            && self.dice.one_in(one_in)
        {
            let after = self.dice.below(after + 1).min(calm - now);
            let soon = now + self.dice.below(300);
            self.plan(soon, Event::Break { conn, after });
        }
    }

    /// Breaks the connections of a server, or of a client.
    pub fn cut(&mut self, which: impl Fn(&Conn) -> bool, up: Fate, after: u64) {
        let mut touched = Vec::new();
        for conn in self.conns.iter_mut().filter(|conn| conn.is_open() && which(conn)) {
            conn.broken = Some((up, after));
            conn.close();
            touched.push(conn.party);
        }
        for party in touched {
            self.attend(party, true);
        }
    }

    /// Whether a client is in the middle of something.
    pub fn is_busy(&self) -> bool {
        let mut actors = self.parties.iter().filter_map(|party| party.actor.as_ref());
        actors.any(|actor| actor.calls() > 0 || !actor.is_settled())
    }
}

/// The beginning of what was asked, without the scripts.
fn told_short(bytes: &[u8]) -> String {
    let text = bytes.escape_ascii().to_string();
    let words = text.split("\\r\\n").filter(|word| !word.starts_with('$') && word.len() < 200);
    words.collect::<Vec<_>>().join(" ")
}

impl Drop for Play<'_> {
    fn drop(&mut self) {
        // Clients end on the stage; elsewhere they would start threads.
        self.parties.clear();
        stage::set(None);
    }
}
