//! A lane: the way to one server. A queue with its session, and an ear to wait with.

use std::sync::{Arc, Mutex, Weak};

use crate::cluster::Cluster;
use crate::combine::Combiner;
use crate::inherited::OpenFd;
use crate::lookout::Lookout;
use crate::session::Counts;
use crate::settings::Settings;
use crate::watch::Ear;

/// See the module's description.
pub struct Lane {
    /// Where steps wait for their turn.
    pub combiner: Arc<Combiner>,
    /// Who tells of locks that are freed there.
    pub ear: Arc<Ear>,
    /// Who sees to it that they lead to the primary, under Sentinel.
    lookout: Option<Arc<Lookout>>,
    open: Arc<OpenFd>,
}

impl Lane {
    /// A lane that nobody has gone along: no connection, no thread.
    pub fn new(
        settings: &Arc<Settings>,
        counts: &Arc<Counts>,
        trouble: &Arc<Mutex<String>>,
        cluster: Option<Weak<Cluster>>,
    ) -> Self {
        let open = Arc::default();
        let lookout = Lookout::new(settings);
        let combiner = Combiner::new(settings, &open, counts, trouble, cluster, lookout.as_ref());
        Self { combiner, ear: Ear::new(settings, lookout.as_ref()), lookout, open }
    }

    /// Closes the connections, as soon as they are not in use.
    pub fn close(&self) {
        self.combiner.disconnect();
        self.ear.close();
        self.lookout.iter().for_each(|lookout| lookout.close());
    }

    /// In a forked child: closes what the parent has open.
    pub fn close_inherited(&self) {
        self.open.close_inherited();
        self.ear.close_inherited();
    }
}
