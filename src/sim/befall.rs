//! What befalls the servers.

use super::acts::NAMES;
use super::net::Conn;
use super::plan::{Act, Fate, Old, What};
use super::server::Server;
use super::world::{Event, Machine, Play, Trouble};
use crate::names::slot;
use crate::stage;

impl Play<'_> {
    /// An act that is about a server.
    pub(super) fn befall(&mut self, index: usize) {
        let Act { salt, ref what, .. } = self.plan.acts[index];
        let at = self.nodes.some(salt);
        let machine = &mut self.machines[at];
        match *what {
            What::Freeze { until } => {
                machine.frozen = machine.frozen.max(until);
                self.plan(until, Event::Thaw { machine: at });
            }
            What::Restart { until, loading } => {
                machine.frozen = 0;
                machine.server.forget_scripts();
                self.plan(until, Event::Over(at, Trouble::Gone { loading }));
                self.goes(at);
            }
            What::FailOver { skew, old, until, .. } => self.fail_over(index, skew, old, until),
            What::Reshard { key, half, until } => {
                let slot = slot(NAMES[key]);
                if self.nodes.sets_out(slot, at) {
                    self.plan(half, Event::Move { slot, all: false });
                    self.plan(until, Event::Move { slot, all: true });
                }
            }
            What::FlushScripts => machine.server.forget_scripts(),
            What::Busy { word, until } => {
                machine.server.ails.busy = Some(word);
                self.plan(until, Event::Over(at, Trouble::Busy));
            }
            What::Full { until } => {
                machine.server.store.full = true;
                self.plan(until, Event::Over(at, Trouble::Full));
            }
            What::Locked { until } => {
                machine.server.ails.locked = true;
                self.plan(until, Event::Over(at, Trouble::Locked));
            }
            _ => {}
        }
    }

    fn fail_over(&mut self, act: usize, skew: i64, old: Old, until: u64) {
        let Some((at, mut new)) = self.replicas.remove(&act) else { return };
        if self.nodes.some(self.plan.acts[act].salt) != at {
            return;
        }
        new.offset += skew / 1000 * 1000;
        let new = Box::new(new);
        match old {
            Old::Dies => {
                self.machines[at].dead = true;
                self.goes(at);
                self.plan(until, Event::TakeOver { old: at, new });
            }
            Old::Demoted => {
                self.machines[at].server.store.read_only = true;
                self.plan(until, Event::Over(at, Trouble::Ghost));
                self.take_over(at, *new);
            }
            Old::Ghost => {
                self.nodes.ghosts.insert(at);
                self.plan(until, Event::Over(at, Trouble::Ghost));
                self.take_over(at, *new);
            }
        }
    }

    pub(super) fn take_over(&mut self, old: usize, server: Server) {
        self.machines.push(Machine { server, frozen: 0, dead: false, gone: false });
        self.nodes.succeeds(self.machines.len() - 1, old);
        if self.machines[old].dead {
            self.comes_back(old);
        }
        self.close_doors();
    }

    /// In a cluster whoever was replaced is a replica afterwards, which can tell where to go.
    fn comes_back(&mut self, old: usize) {
        let (machine, is_cluster) = (&mut self.machines[old], self.nodes.is_cluster);
        machine.server.store.read_only = true;
        (machine.dead, machine.gone) = (!is_cluster, !is_cluster);
    }

    /// Some keys of a slot go to where it is on its way to, or all that are left.
    pub(super) fn move_slot(&mut self, slot: u16, all: bool) {
        let Some((from, to)) = self.nodes.moving(slot) else { return };
        let busy = self.machines[from].frozen.max(self.machines[to].frozen);
        if busy > self.now {
            return self.plan(busy, Event::Move { slot, all });
        }
        let now = self.now;
        for node in [from, to] {
            self.machines[node].server.set_time(now);
        }
        let first = self.dice.one_in(2);
        let which = |key: &[u8]| {
            crate::names::slot(key) == slot && (all || key.starts_with(b"seckill:") == first)
        };
        let keys = self.machines[from].server.store.take(which);
        for key in keys {
            self.machines[to].server.store.give(key);
        }
        if all {
            let gone = |name: &[u8]| crate::names::slot(name) == slot;
            let log = &mut self.machines[from].server.log;
            let gone = log.extract_if(.., |deed| deed.name().is_some_and(gone));
            let mut gone: Vec<_> = gone.collect();
            let log = &mut self.machines[to].server.log;
            log.append(&mut gone);
            log.sort_by_key(|deed| deed.tick);
            self.nodes.arrived(slot);
        }
    }

    /// A server is there no more, nor is what was on its way to it.
    fn goes(&mut self, machine: usize) {
        self.machines[machine].gone = true;
        self.close_doors();
        let there = |conn: &Conn| conn.machine == machine;
        for conn in self.conns.iter_mut().filter(|conn| there(conn)) {
            conn.inbox.clear();
            conn.void = true;
        }
        self.cut(there, Fate::Lost, 0);
    }

    /// Whoever is gone lets nobody in.
    fn close_doors(&self) {
        let ports = (0..self.machines.len()).filter(|&machine| {
            let there = self.nodes.is_cluster || self.nodes.some(0) == machine;
            self.machines[machine].gone && there
        });
        let ports = ports.map(|machine| self.nodes.port(machine)).collect();
        stage::with(|stage| stage.refusing = ports);
    }

    pub(super) fn over(&mut self, at: usize, trouble: Trouble) {
        let machine = &mut self.machines[at];
        match trouble {
            Trouble::Gone { .. } if machine.dead => {}
            Trouble::Gone { loading } => {
                machine.gone = false;
                if loading > 0 {
                    machine.server.ails.busy = Some("LOADING the dataset");
                    self.plan(self.now + loading, Event::Over(at, Trouble::Busy));
                }
                self.close_doors();
            }
            Trouble::Busy => machine.server.ails.busy = None,
            Trouble::Locked => machine.server.ails.locked = false,
            Trouble::Full => machine.server.store.full = false,
            Trouble::Ghost => {
                self.nodes.ghosts.remove(&at);
                self.goes(at);
                self.comes_back(at);
                self.close_doors();
            }
        }
    }
}
