//! A cluster: which node has a key, and a lane to each node.
//!
//! A step goes into the lane of the node that has its slot. A node that does not (any more) says so, and
//! then the call moves on, with the identity under which its outcome would be recorded: so it is done
//! once, wherever its slot is and however often it is asked for.
//!
//! | what is known | a step, or a call on its way | next |
//! |---|---|---|
//! | no map of the slots | waits in limbo | the scout finds a map, and places it |
//! | no node has the slot | the same | the same |
//! | a node has the slot | goes into its lane | an answer; MOVED, ASK, TRYAGAIN: it moves on |
//! | the node is not there | stays in its lane, asked for again | the scout finds that another has the slot, and the lane puts it out |
//!
//! The scout (`scout`) is a thread of its own while there is something to find out: leaders shall not wait
//! for one node's sake for the word of another. It also takes care of calls that have to be left alone for a
//! moment.
//!
//! Turned down: one session for all nodes. A batch would be as slow as the slowest of them, and a node that
//! is gone would hold up the sale on all others.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::Thread;
use std::time::{Duration, Instant};

use crate::chain::Chain;
use crate::clock;
use crate::combine::Combiner;
use crate::error::{Error, Result};
use crate::lane::Lane;
use crate::names::{Name, SLOTS, slot};
use crate::random;
use crate::script_call::{Redirect, ScriptCall};
use crate::session::Counts;
use crate::settings::{Address, Place, Settings};
use crate::slots::{Map, at};
use crate::step::Step;
use crate::thread;
use crate::watch::Ear;

/// How many steps may wait for a map. Who comes when so many do is better told at once.
const MOST: usize = 1 << 20;

/// How often a call may be sent from node to node before it is left alone in between.
const MOST_HOPS: u32 = 3;

/// The longest that it is left alone.
const LONGEST_REST: Duration = Duration::from_millis(50);

/// How long a map is believed, after it was looked up, although somebody doubts it.
const FRESH: Duration = Duration::from_millis(100);

/// No node.
const NOBODY: u16 = u16::MAX;

/// See the module's description.
pub struct Cluster {
    me: Weak<Self>,
    pub(crate) settings: Arc<Settings>,
    counts: Arc<Counts>,
    trouble: Arc<Mutex<String>>,
    lanes: Chain<Arc<Lane>>,
    /// For who waits for something in a slot that no node has: it hears little, and that is enough.
    ear: Arc<Ear>,
    state: Mutex<State>,
    /// Counts the changes of the map.
    version: AtomicU64,
}

/// What is locked for moments only. The order of locks: a session, a queue, this, a step's home.
#[derive(Default)]
struct State {
    /// For each slot the number of its node; empty without a map.
    slots: Vec<u16>,
    /// Each node by its number.
    nodes: Vec<(Address, Arc<Lane>)>,
    numbers: HashMap<Address, u16>,
    /// Steps that nobody has a place for.
    steps: Vec<Arc<Step>>,
    /// Calls that are left alone until then.
    calls: Vec<(Instant, ScriptCall)>,
    /// When to look the map up.
    look: Option<Instant>,
    looked: Option<Instant>,
    /// When somebody doubted it last.
    doubted: Option<Instant>,
    /// The scout's thread; none without one.
    scout: Option<Thread>,
}

impl State {
    fn lane(&self, name: &Name) -> Option<&Arc<Lane>> {
        let number = *self.slots.get(usize::from(slot(name)))?;
        Some(&self.nodes.get(usize::from(number))?.1)
    }

    /// Which nodes have slots.
    fn used(&self) -> Vec<bool> {
        let mut used = vec![false; self.nodes.len()];
        for number in &self.slots {
            if let Some(used) = used.get_mut(usize::from(*number)) {
                *used = true;
            }
        }
        used
    }

    /// The map may be out of date: it is looked up again, if that was not done a moment ago.
    fn doubt(&mut self) {
        let now = clock::now();
        self.doubted = Some(now);
        let soon = self.looked.map_or(now, |looked| now.max(looked + FRESH));
        self.look = Some(self.look.map_or(soon, |look| look.min(soon)));
    }
}

/// What the scout is to do.
pub enum Task {
    /// To look the map up.
    LookUp,
    /// Nothing, until then.
    Rest(Instant),
    /// Nothing at all.
    Nothing,
}

impl Cluster {
    /// A cluster of which nothing is known but some nodes: no connection, no thread.
    pub fn new(
        settings: &Arc<Settings>,
        counts: &Arc<Counts>,
        trouble: &Arc<Mutex<String>>,
    ) -> Arc<Self> {
        Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            settings: Arc::clone(settings),
            counts: Arc::clone(counts),
            trouble: Arc::clone(trouble),
            lanes: Chain::default(),
            ear: Ear::new(settings, None),
            state: Mutex::default(),
            version: AtomicU64::new(1),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lanes to all nodes that have ever been known.
    pub fn lanes(&self) -> impl Iterator<Item = &Arc<Lane>> {
        self.lanes.iter()
    }

    /// The lane to the node that has the slot of a name.
    pub fn lane(&self, name: &Name) -> Option<Arc<Lane>> {
        self.state().lane(name).cloned()
    }

    /// Who tells when something of this name is freed.
    pub fn ear(&self, name: &Name) -> Arc<Ear> {
        let state = self.state();
        Arc::clone(state.lane(name).map_or(&self.ear, |lane| &lane.ear))
    }

    /// Closes the connections, as soon as they are not in use.
    pub fn close(&self) {
        self.lanes.iter().for_each(|lane| lane.close());
        self.ear.close();
    }

    /// In a forked child: closes what the parent has open.
    pub fn close_inherited(&self) {
        self.lanes.iter().for_each(|lane| lane.close_inherited());
        self.ear.close_inherited();
    }

    /// Whether a name's slot is at the node of this lane.
    pub fn is_at(&self, name: &Name, combiner: &Combiner) -> bool {
        self.state()
            .lane(name)
            .is_some_and(|lane| std::ptr::eq(Arc::as_ptr(&lane.combiner), combiner))
    }

    /// Counts the changes of the map.
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// Puts a step into the lane that it is for.
    pub fn put(&self, step: Arc<Step>) -> Result<()> {
        let state = self.state();
        if let Some(lane) = state.lane(step.ask.recorded_under()).cloned() {
            drop(state);
            step.moves_to(Some(&lane.combiner));
            return lane.combiner.put(step);
        }
        if state.steps.len() >= MOST {
            let words = format!("{MOST} calls of this process are waiting for the cluster already");
            return Err(Error::Unreachable(words));
        }
        self.keep(state, step);
        Ok(())
    }

    /// Has a step done that nobody waits for.
    pub fn put_orphan(&self, step: &Arc<Step>) {
        if let Some(lane) = self.lane(step.ask.recorded_under()) {
            step.moves_to(Some(&lane.combiner));
            lane.combiner.put_orphan(step);
        } else {
            self.keep(self.state(), Arc::clone(step));
        }
    }

    fn keep(&self, mut state: MutexGuard<'_, State>, step: Arc<Step>) {
        step.moves_to(None);
        state.steps.push(step);
        state.doubt();
        self.call_scout(state);
    }

    /// Finds a new place for a step that was not sent.
    pub fn move_step(&self, step: Arc<Step>) {
        if !step.caller.is_somebody() {
            return self.put_orphan(&step);
        }
        if let Some(lane) = self.lane(step.ask.recorded_under()) {
            step.moves_to(Some(&lane.combiner));
            lane.combiner.take_over(step);
        } else {
            self.keep(self.state(), step);
        }
    }

    /// Finds a new place for a call that a node has sent away, or that its node is not there for.
    pub fn place(&self, mut call: ScriptCall) {
        if !call.wanted() {
            return;
        }
        let redirect = call.journey.astray.clone();
        let mut state = self.state();
        let lane = match redirect {
            Some(Redirect::Moved(ref address)) => {
                let number = self.number(&mut state, address, &call);
                let slot = usize::from(slot(call.name()));
                if let Some(known) = state.slots.get_mut(slot)
                    && std::mem::replace(known, number) != number
                {
                    self.version.fetch_add(1, Ordering::Release);
                }
                // Where one slot has gone, others may have.
                state.doubt();
                Some(number)
            }
            Some(Redirect::Ask(ref address)) => Some(self.number(&mut state, address, &call)),
            Some(Redirect::Later) => {
                self.note("TRYAGAIN: the slot is on its way to another node".to_owned());
                None
            }
            None => None,
        };
        let lane = lane.and_then(|number| state.nodes.get(usize::from(number)));
        let lane = lane.map(|(_, lane)| Arc::clone(lane));
        let lane = match redirect {
            Some(Redirect::Later) => None,
            None => state.lane(call.name()).cloned(),
            _ if call.journey.hops >= MOST_HOPS => None,
            _ => lane,
        };
        if lane.is_none() && redirect != Some(Redirect::Later) {
            state.doubt();
        }
        call.go_on();
        if let Some(lane) = lane {
            if state.look.is_some() {
                self.call_scout(state);
            } else {
                drop(state);
            }
            welcome(&lane, call);
        } else {
            let rest = Duration::from_millis(1 << call.journey.hops.min(10)).min(LONGEST_REST);
            let rest = rest.mul_f64(1.0 - f64::from(random::below(1000)) / 2000.0);
            call.steps.iter().for_each(|step| step.moves_to(None));
            state.calls.push((clock::now() + rest, call));
            self.call_scout(state);
        }
    }

    /// The number of a node, which may be new. Without a host, the address is on that of the node that the
    /// call comes from.
    fn number(&self, state: &mut State, address: &Address, call: &ScriptCall) -> u16 {
        let Address::Tcp(host, port) = address else { return NOBODY };
        let home = call.steps.first().and_then(|step| step.home());
        let from = home.and_then(|home| {
            let mut nodes = state.nodes.iter();
            nodes.find(|(_, lane)| Arc::ptr_eq(&lane.combiner, &home)).map(|(from, _)| from.clone())
        });
        let address = from.map_or_else(|| address.clone(), |from| at(host, *port, &from));
        self.node(state, address)
    }

    fn node(&self, state: &mut State, address: Address) -> u16 {
        if let Some(&number) = state.numbers.get(&address) {
            return number;
        }
        let Some(number) = u16::try_from(state.nodes.len()).ok().filter(|it| *it != NOBODY) else {
            return NOBODY;
        };
        let place = Place::Server(address.clone());
        let settings = Arc::new(Settings { place, ..(*self.settings).clone() });
        let me = Some(Weak::clone(&self.me));
        let lane = Arc::new(Lane::new(&settings, &self.counts, &self.trouble, me));
        self.lanes.push(Arc::clone(&lane));
        state.nodes.push((address.clone(), lane));
        state.numbers.insert(address, number);
        number
    }

    /// A node is not there, or does not do what is asked of it.
    pub fn look_again(&self) {
        let mut state = self.state();
        state.doubt();
        self.call_scout(state);
    }

    fn call_scout(&self, mut state: MutexGuard<'_, State>) {
        if let Some(scout) = state.scout.clone() {
            drop(state);
            scout.unpark();
        } else if let Some(me) = self.me.upgrade() {
            let scout = thread::start("seckill-scout", move || crate::scout::run(&me));
            match scout {
                Ok(thread) => state.scout = Some(thread),
                Err(error) => self.note(format!("no thread can be started: {error}")),
            }
        }
    }

    fn note(&self, why: String) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// What is known of why there is no answer.
    pub fn because(&self) -> String {
        crate::combine::because(&self.trouble)
    }

    /// Whether there is nothing under way that nobody waits for.
    pub fn settled(&self) -> bool {
        let open = |step: &Arc<Step>| step.wanted() && !step.caller.is_somebody();
        let state = self.state();
        let calls = state.calls.iter().flat_map(|(_, call)| &call.steps);
        !state.steps.iter().chain(calls).any(open)
            && self.lanes().all(|lane| lane.combiner.settled())
    }
}

fn welcome(lane: &Lane, call: ScriptCall) {
    call.steps.iter().for_each(|step| step.moves_to(Some(&lane.combiner)));
    lane.combiner.welcome(call);
}

/// The scout's side.
impl Cluster {
    /// Places what has been left alone for long enough, and says what else there is to do.
    pub fn task(&self, now: Instant) -> Task {
        let mut state = self.state();
        state.steps.retain(|step| step.wanted() && now < step.deadline);
        state.calls.retain(|(_, call)| call.wanted());
        let (due, rest) = std::mem::take(&mut state.calls).into_iter().partition(|it| it.0 <= now);
        state.calls = rest;
        let due: Vec<(Instant, ScriptCall)> = due;
        let map = !state.slots.is_empty();
        let next = state.calls.iter().map(|(rest, _)| *rest).chain(state.look).min();
        let look = state.look.is_some_and(|look| look <= now);
        drop(state);
        for (_, call) in due {
            if map { self.place(call) } else { self.rest(call, now) }
        }
        match next {
            _ if look => Task::LookUp,
            Some(next) => Task::Rest(next),
            None => Task::Nothing,
        }
    }

    fn rest(&self, call: ScriptCall, now: Instant) {
        self.state().calls.push((now + LONGEST_REST, call));
    }

    /// Whom to ask for a map: those who have slots, by chance, so that a crowd of clients does not ask the
    /// same one; then those that we were told of at first, and then all that have ever been there.
    pub fn candidates(&self) -> Vec<Address> {
        let state = self.state();
        let (mut candidates, mut others) = (Vec::new(), Vec::new());
        for ((address, _), used) in state.nodes.iter().zip(state.used()) {
            if used { &mut candidates } else { &mut others }.push(address.clone());
        }
        drop(state);
        for last in (1..candidates.len()).rev() {
            let below = u32::try_from(last + 1).unwrap_or(u32::MAX);
            candidates.swap(last, random::below(below) as usize);
        }
        if let Place::Cluster(seeds) = &self.settings.place {
            others.splice(0..0, seeds.iter().cloned());
        }
        for address in others {
            if !candidates.contains(&address) {
                candidates.push(address);
            }
        }
        candidates
    }

    /// A map was found, by a search that began then: whatever waits for it is placed.
    pub fn found(&self, map: &Map, began: Instant) {
        let mut state = self.state();
        let mut slots = vec![NOBODY; usize::from(SLOTS)];
        for range in &map.ranges {
            let number = self.node(&mut state, range.primary.clone());
            slots[usize::from(range.from)..=usize::from(range.to)].fill(number);
        }
        let now = clock::now();
        let doubted = state.doubted.is_some_and(|doubted| doubted > began);
        (state.look, state.looked) = (doubted.then(|| now + FRESH), Some(now));
        let former = state.used();
        if state.slots != slots {
            state.slots = slots;
            self.version.fetch_add(1, Ordering::Release);
        }
        let gone = |(was, is): (bool, bool)| was && !is;
        let gone = former.into_iter().zip(state.used()).map(gone);
        let gone = state.nodes.iter().zip(gone).filter(|(_, gone)| *gone);
        let gone: Vec<_> = gone.map(|((_, lane), _)| Arc::clone(lane)).collect();
        let (placed, homeless) = std::mem::take(&mut state.steps)
            .into_iter()
            .partition(|step| state.lane(step.ask.recorded_under()).is_some());
        let placed: Vec<Arc<Step>> = placed;
        state.steps = homeless;
        let is_homeless = |call: &ScriptCall| state.lane(call.name()).is_none();
        if !state.steps.is_empty() || state.calls.iter().any(|(_, call)| is_homeless(call)) {
            // Nobody has their slots, for now.
            self.note("no node of the cluster has the slot".to_owned());
            state.look = Some(now + 2 * FRESH);
        }
        drop(state);
        for lane in gone {
            lane.combiner.disconnect();
        }
        for step in placed {
            self.move_step(step);
        }
    }

    /// Nobody could tell the map: it is looked up again then.
    pub fn not_found(&self, why: String, again: Instant) {
        self.note(why);
        self.state().look = Some(again);
    }

    /// Nobody can tell the map, and nobody ever could: everybody who waits shall know.
    pub fn hopeless(&self, error: &Error) {
        let (steps, calls) = {
            let mut state = self.state();
            state.look = None;
            (std::mem::take(&mut state.steps), std::mem::take(&mut state.calls))
        };
        let calls = calls.iter().flat_map(|(_, call)| &call.steps);
        for step in steps.iter().chain(calls) {
            step.fail(error);
            step.caller.wake();
        }
    }

    /// Whether a map was ever found.
    pub fn is_known(&self) -> bool {
        !self.state().slots.is_empty()
    }

    /// The scout goes, unless there is something for it to do.
    pub fn scout_goes(&self) -> bool {
        let mut state = self.state();
        let goes = state.steps.is_empty() && state.calls.is_empty() && state.look.is_none();
        if goes {
            state.scout = None;
        }
        goes
    }
}
