//! A lane: the way to one server. A queue with its session, and an ear to wait with.

use std::sync::{Arc, Mutex, Weak};

use crate::cluster::Cluster;
use crate::combine::Combiner;
use crate::inherited::OpenFd;
use crate::session::Counts;
use crate::settings::Settings;
use crate::watch::Ear;

/// See the module's description.
pub struct Lane {
    /// Where steps wait for their turn.
    pub combiner: Arc<Combiner>,
    /// Who tells of locks that are freed there.
    pub ear: Arc<Ear>,
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
        let combiner = Combiner::new(settings, &open, counts, trouble, cluster);
        Self { combiner, ear: Ear::new(settings), open }
    }

    /// Closes the connections, as soon as they are not in use.
    pub fn close(&self) {
        self.combiner.disconnect();
        self.ear.close();
    }

    /// In a forked child: closes what the parent has open.
    pub fn close_inherited(&self) {
        self.open.close_inherited();
        self.ear.close_inherited();
    }
}
