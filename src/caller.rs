//! Who waits for something: a thread that sleeps, a task of an event loop, or nobody.

use std::sync::Arc;
use std::thread::Thread;

use crate::mailbox::{Mailbox, Ticket};

/// See the module's description.
#[derive(Debug, Clone)]
pub enum Caller {
    /// A thread, parked or about to park. It can lead.
    Thread(Thread),
    /// A call that a task awaits. Its loop must not be blocked, so others lead for it.
    Task(Arc<Mailbox>, Ticket),
    /// Something is to be undone, and who wanted it has gone.
    Nobody,
}

impl Caller {
    /// The calling thread.
    #[must_use]
    pub fn this_thread() -> Self {
        Self::Thread(std::thread::current())
    }

    /// Whether it is the calling thread itself.
    #[must_use]
    pub fn is_this_thread(&self) -> bool {
        matches!(self, Self::Thread(thread) if thread.id() == std::thread::current().id())
    }

    /// Whether it is a thread, which leads for itself.
    #[must_use]
    pub fn can_lead(&self) -> bool {
        matches!(self, Self::Thread(_))
    }

    /// Whether anybody waits at all.
    #[must_use]
    pub fn is_somebody(&self) -> bool {
        !matches!(self, Self::Nobody)
    }

    /// Has it look for news.
    pub fn wake(&self) {
        self.tell();
        if let Self::Task(mailbox, _) = self {
            mailbox.ring();
        }
    }

    /// Has it look for news; a loop only after its mailbox is rung.
    pub fn tell(&self) {
        match self {
            Self::Thread(thread) => thread.unpark(),
            Self::Task(mailbox, ticket) => mailbox.leave(*ticket),
            Self::Nobody => {}
        }
    }
}
