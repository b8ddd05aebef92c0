//! Which server has which keys: one has all of them, behind an address that follows it, or the nodes of a
//! cluster share them, each at an address of its own, and send away who asks the wrong one.

use std::collections::{BTreeMap, BTreeSet};

use super::store::{Reply, Store};
use crate::names::{SLOTS, slot};

/// Where the only server is, whichever it is at the time.
pub const SERVICE: u16 = 1000;

/// Where the first node of a cluster is; the next has the next.
pub const FIRST_NODE: u16 = 2000;

/// See the module's description.
pub struct Nodes {
    pub is_cluster: bool,
    /// Who has the slots, an equal part each.
    parts: Vec<usize>,
    /// Slots that have moved since.
    moved: BTreeMap<u16, usize>,
    /// Slots that are on their way, from whom to whom.
    moving: BTreeMap<u16, (usize, usize)>,
    /// Those who do not know that another has taken their place.
    pub ghosts: BTreeSet<usize>,
}

impl Nodes {
    /// A cluster of so many nodes, or without them a server.
    pub fn new(nodes: usize) -> Self {
        let (moved, moving, ghosts) = Default::default();
        Self { is_cluster: nodes > 0, parts: (0..nodes.max(1)).collect(), moved, moving, ghosts }
    }

    /// Who is connected to at a port.
    pub fn at(&self, port: u16) -> usize {
        if self.is_cluster { usize::from(port - FIRST_NODE) } else { self.parts[0] }
    }

    /// The ports under which a server is, with so many clients.
    pub fn port(&self, machine: usize) -> u16 {
        if self.is_cluster { FIRST_NODE + u16::try_from(machine).expect("a few") } else { SERVICE }
    }

    fn owner_of_slot(&self, slot: u16) -> usize {
        let part = usize::from(slot) * self.parts.len() / usize::from(SLOTS);
        self.moved.get(&slot).copied().unwrap_or(self.parts[part])
    }

    /// Who has a key.
    pub fn owner(&self, name: &[u8]) -> usize {
        self.owner_of_slot(slot(name))
    }

    /// One of those who have keys.
    pub fn some(&self, salt: u64) -> usize {
        self.parts[usize::try_from(salt % self.parts.len() as u64).expect("a few")]
    }

    /// Another one has taken somebody's place.
    pub fn succeeds(&mut self, new: usize, old: usize) {
        let moved = self.moved.values_mut();
        let moving = self.moving.values_mut().flat_map(|(from, to)| [from, to]);
        for place in self.parts.iter_mut().chain(moved).chain(moving).filter(|it| **it == old) {
            *place = new;
        }
    }

    /// A slot sets out. False if it cannot.
    pub fn sets_out(&mut self, slot: u16, to: usize) -> bool {
        let from = self.owner_of_slot(slot);
        let can = from != to && !self.moving.contains_key(&slot);
        if can {
            self.moving.insert(slot, (from, to));
        }
        can
    }

    /// Between whom a slot is on its way.
    pub fn moving(&self, slot: u16) -> Option<(usize, usize)> {
        self.moving.get(&slot).copied()
    }

    /// A slot has arrived.
    pub fn arrived(&mut self, slot: u16) {
        if let Some((_, to)) = self.moving.remove(&slot) {
            self.moved.insert(slot, to);
        }
    }

    /// What a node says instead of running a script on these keys, if it is not for it to run.
    pub fn redirect(
        &self,
        machine: usize,
        keys: &[Vec<u8>],
        asking: bool,
        store: &Store,
    ) -> Option<String> {
        if !self.is_cluster || self.ghosts.contains(&machine) {
            return None;
        }
        let slot = slot(&keys[0]);
        assert!(keys.iter().all(|key| crate::names::slot(key) == slot), "keys of several slots");
        let to = |word: &str, node| format!("{word} {slot} 127.0.0.1:{}", self.port(node));
        let missing = keys.iter().filter(|key| store.peek(key).is_none()).count();
        let later = || "TRYAGAIN Multiple keys request during rehashing of slot".to_owned();
        match self.moving.get(&slot) {
            Some(&(from, there)) if machine == from => match missing {
                0 => None,
                all if all == keys.len() => Some(to("ASK", there)),
                _ => Some(later()),
            },
            Some(&(_, there)) if machine == there && asking => (missing > 0).then(later),
            _ => {
                let owner = self.owner_of_slot(slot);
                (owner != machine).then(|| to("MOVED", owner))
            }
        }
    }

    /// What a node says of the cluster.
    pub fn describe(&self, what: &[u8]) -> Reply {
        if what != b"SLOTS" {
            return Reply::Text(b"cluster_state:ok\r\n".to_vec());
        }
        let parts = self.parts.len();
        let begin = |part: usize| u16::try_from((part * usize::from(SLOTS)).div_ceil(parts));
        let begin = |part| begin(part).expect("a slot");
        let whole = self.parts.iter().enumerate();
        let whole = whole.map(|(part, &node)| (begin(part), begin(part + 1) - 1, node));
        // Those that have moved come last, and so count.
        let moved = self.moved.iter().map(|(&slot, &node)| (slot, slot, node));
        let ranges = whole.chain(moved).map(|(from, to, node)| {
            let address = [Reply::Text(b"127.0.0.1".to_vec()), Reply::Int(self.port(node).into())];
            Reply::List(vec![
                Reply::Int(from.into()),
                Reply::Int(to.into()),
                Reply::List(address.to_vec()),
            ])
        });
        Reply::List(ranges.collect())
    }
}
