//! As whom to connect, where somebody has to be asked for it each time.
//!
//! The one who knows may take its time, may fail, or never answer: it is asked in a thread of the
//! edge's, and the connection that is being opened waits for the answer under its own deadline. One
//! that is too late is thrown away; but as long as it is still to come, nobody is asked again, so that
//! one who never answers costs one thread.

use std::any::Any;
use std::fmt;
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};

/// User and password; without a user the default one.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// The ACL user.
    pub username: Option<String>,
    /// The password; never shown.
    pub password: String,
}

/// Why there is no login, and what the edge knows of it.
#[derive(Clone)]
pub struct Unknown {
    /// In words.
    pub why: String,
    /// The edge's own error.
    pub cause: Arc<dyn Any + Send + Sync>,
}

impl fmt::Debug for Unknown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Unknown").field(&self.why).finish()
    }
}

impl PartialEq for Unknown {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.cause, &other.cause)
    }
}

impl Eq for Unknown {}

/// What comes of asking.
pub type Told = Result<Login, Unknown>;

/// Begins to ask, and returns at once; the answer goes into the channel.
pub type Ask = dyn Fn(Sender<Told>) + Send + Sync;

/// Whom to ask. A clone, as a forked child makes one, has no question under way.
pub struct Provider {
    ask: Arc<Ask>,
    /// The answer that somebody has given up to wait for.
    unheard: Mutex<Option<Receiver<Told>>>,
}

impl Clone for Provider {
    fn clone(&self) -> Self {
        Self { ask: Arc::clone(&self.ask), unheard: Mutex::default() }
    }
}

impl PartialEq for Provider {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.ask, &other.ask)
    }
}

impl Eq for Provider {}

impl Provider {
    /// Who is asked by `ask`.
    #[must_use]
    pub fn new(ask: Arc<Ask>) -> Self {
        Self { ask, unheard: Mutex::default() }
    }

    /// Asks, unless a former question is still to be answered.
    pub fn ask(&self) -> Receiver<Told> {
        let former = self.unheard.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(former) = former
            && matches!(former.try_recv(), Err(TryRecvError::Empty))
        {
            return former;
        }
        let (told, answer) = channel();
        (self.ask)(told);
        answer
    }

    /// Nobody waits for this answer any more.
    pub fn give_up(&self, answer: Receiver<Told>) {
        *self.unheard.lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn login(password: &str) -> Login {
        Login { username: None, password: password.to_owned() }
    }

    #[test]
    fn who_has_not_answered_yet_is_not_asked_again_and_a_late_answer_is_not_used() {
        let questions = Arc::new(Mutex::new(Vec::new()));
        let asked = Arc::clone(&questions);
        let provider = Provider::new(Arc::new(move |told| {
            asked.lock().expect("sound").push(told);
        }));
        let count = || questions.lock().expect("sound").len();
        let first = provider.ask();
        provider.give_up(first);
        let again = provider.ask();
        assert_eq!(count(), 1);
        provider.give_up(again);
        questions.lock().expect("sound")[0].send(Ok(login("late"))).expect("heard");
        let second = provider.ask();
        assert_eq!(count(), 2);
        questions.lock().expect("sound")[1].send(Ok(login("fresh"))).expect("heard");
        assert!(second.recv().expect("an answer") == Ok(login("fresh")));
    }
}
