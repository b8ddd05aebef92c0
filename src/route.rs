//! Which way a step goes: along the only lane, or along that of the node which has its key.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use crate::caller::Caller;
use crate::cluster::Cluster;
use crate::error::{Error, Result};
use crate::lane::Lane;
use crate::names::{Name, slot};
use crate::session::Counts;
use crate::settings::{Place, Settings};
use crate::step::{Ask, Step};
use crate::watch::Ear;

/// See the module's description.
pub struct Route {
    way: Way,
    arrivals: AtomicU64,
}

enum Way {
    /// To one server; to whichever the sentinels name.
    One(Arc<Lane>),
    /// To the nodes of a cluster.
    Cluster(Arc<Cluster>),
}

impl Route {
    /// The ways that there are, none of which anybody has gone.
    pub fn new(settings: &Arc<Settings>, counts: &Arc<Counts>) -> Self {
        let trouble: Arc<Mutex<String>> = Arc::default();
        let way = match &settings.place {
            Place::Server(_) | Place::Sentinel(_) => {
                Way::One(Arc::new(Lane::new(settings, counts, &trouble, None)))
            }
            Place::Cluster(_) => Way::Cluster(Cluster::new(settings, counts, &trouble)),
        };
        Self { way, arrivals: AtomicU64::new(0) }
    }

    /// A place in the order of arrival, for a caller's step and its repetitions.
    pub fn arrive(&self) -> u64 {
        self.arrivals.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether one step can look at both.
    pub fn are_together(&self, one: &Name, other: &Name) -> bool {
        matches!(self.way, Way::One(_)) || slot(one) == slot(other)
    }

    /// Puts a step into its lane. A caller that can lead then does; for others the pilot is called.
    pub fn put(&self, step: Arc<Step>) -> Result<()> {
        match &self.way {
            Way::One(lane) => lane.combiner.put(step),
            Way::Cluster(cluster) => cluster.put(step),
        }
    }

    /// Has a step done for nobody.
    pub fn run_orphan(&self, ask: Ask, deadline: Instant) -> Arc<Step> {
        let step = Arc::new(Step::new(ask, deadline, self.arrive(), Caller::Nobody));
        match &self.way {
            Way::One(lane) => lane.combiner.put_orphan(&step),
            Way::Cluster(cluster) => cluster.put_orphan(&step),
        }
        step
    }

    /// Leads in the lane of a step, until it is answered or `until` is over. False when somebody else
    /// does, or it waits in no lane.
    pub fn lead(&self, step: &Arc<Step>, until: Instant) -> bool {
        match &self.way {
            Way::One(lane) => lane.combiner.lead(Some(step), until),
            Way::Cluster(_) => step.home().is_some_and(|home| home.lead(Some(step), until)),
        }
    }

    /// The caller goes without a reply, and somebody else leads. False when the step was not sent, and
    /// never will be.
    pub fn leave(&self, step: &Step) -> bool {
        match &self.way {
            Way::One(lane) => lane.combiner.leave(step),
            Way::Cluster(_) => {
                // In this order: who moves the step looks whether it is wanted after it has a new home.
                let under_way = step.leave();
                if let Some(home) = step.home() {
                    home.left(step);
                }
                under_way
            }
        }
    }

    /// What a call ends with that goes because its time is over.
    #[cold]
    pub fn too_late(&self, step: &Step) -> Error {
        if self.leave(step) {
            Error::OutcomeUnknown(format!("no answer came in time{}", self.because()))
        } else {
            self.unreached()
        }
    }

    /// What a call ends with that has not even asked.
    pub fn unreached(&self) -> Error {
        Error::Unreachable(format!("the server could not be reached in time{}", self.because()))
    }

    fn because(&self) -> String {
        match &self.way {
            Way::One(lane) => lane.combiner.because(),
            Way::Cluster(cluster) => cluster.because(),
        }
    }

    /// Who tells when something of this name is freed.
    pub fn ear(&self, name: &Name) -> Arc<Ear> {
        match &self.way {
            Way::One(lane) => Arc::clone(&lane.ear),
            Way::Cluster(cluster) => cluster.ear(name),
        }
    }

    /// Whether there is nothing under way that nobody waits for.
    pub fn settled(&self) -> bool {
        match &self.way {
            Way::One(lane) => lane.combiner.settled(),
            Way::Cluster(cluster) => cluster.settled(),
        }
    }

    /// The lanes that there are, and the cluster, for a simulation that plays the pilots and the scout.
    #[cfg(test)]
    pub(crate) fn by_hand(&self) -> (Vec<Arc<Lane>>, Option<Arc<Cluster>>) {
        match &self.way {
            Way::One(lane) => (vec![Arc::clone(lane)], None),
            Way::Cluster(cluster) => {
                (cluster.lanes().cloned().collect(), Some(Arc::clone(cluster)))
            }
        }
    }

    /// Closes the connections, as soon as they are not in use.
    pub fn close(&self) {
        match &self.way {
            Way::One(lane) => lane.close(),
            Way::Cluster(cluster) => cluster.close(),
        }
    }

    /// In a forked child: closes what the parent has open.
    pub fn close_inherited(&self) {
        match &self.way {
            Way::One(lane) => lane.close_inherited(),
            Way::Cluster(cluster) => cluster.close_inherited(),
        }
    }
}
