//! Looks after what handles hold: renews leases, and says so when an acquisition is lost.
//!
//! There is one renewer in a process, for all locks of all clients. Its thread runs while there is
//! something to look after, asks nobody's permission (it knows no Python), and drives its calls as an
//! event loop drives those of its tasks: it never blocks in one, so a server that is gone does not keep
//! it from the locks of another.
//!
//! A lease is renewed when a third of it has passed, by *setting* it anew: asked twice is not renewed
//! twice. What fails is tried again until the lease is provably over by our own clock; then it is lost,
//! whoever the server may think holds it. An acquisition that nobody refers to any more is not renewed:
//! its handle, its thread or its task is gone.
//!
//! | an entry's call | acquisition | next |
//! |---|---|---|
//! | none | held, more than two thirds of the lease left | look again when it is two thirds |
//! | none | held, less than that | ask |
//! | under way | held | hear, or look again at the end of the lease |
//! | any | lease over, or the server says that it is another's | tell, forget |
//! | any | given back, or nobody refers to it | forget |

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use slab::Slab;

use crate::call::{Call, Progress};
use crate::caller::Caller;
use crate::client::Client;
use crate::clock;
use crate::hold::{Hold, Phase, Tally};
use crate::holdings::Owner;
use crate::mailbox::{Mailbox, Ticket};
use crate::safety::Safety;
use crate::step::Extension;
use crate::thread;
use crate::wish::{Acquisition, Outcome, Wish};

/// How long the thread stays when there is nothing to look after.
const LINGER: Duration = Duration::from_secs(2);

/// How long it sleeps at the most.
const LONGEST_NAP: Duration = Duration::from_mins(1);

/// How much sooner than wanted a lease may end: it is asked for in whole milliseconds, and a server
/// may end it in the last of them (see `hold`).
const MOMENT: Duration = Duration::from_millis(2);

/// Nobody holds its locks in the sense of the four functions.
const OWNER: Owner = 0;

/// See the module's description.
pub struct Renewer {
    me: Weak<Self>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Where the thread is told of news; none without a thread.
    mailbox: Option<Arc<Mailbox>>,
    /// What the thread has not seen yet.
    arrived: Vec<Entry>,
}

/// How an acquisition is looked after.
#[derive(Clone)]
pub struct Keep {
    /// By whom.
    pub renewer: Arc<Renewer>,
    /// It is renewed.
    pub renew: bool,
    /// How long it is renewed at the most.
    pub max_hold: Option<Duration>,
    /// Called when it is lost, on the renewer's thread: must not wait.
    pub on_lost: Option<Arc<dyn Fn() + Send + Sync>>,
}

/// An acquisition that is looked after.
pub struct Entry {
    hold: Weak<Hold>,
    client: Arc<Client>,
    tally: Arc<Tally>,
    renew: bool,
    on_lost: Option<Arc<dyn Fn() + Send + Sync>>,
    lease: Duration,
    /// How safe each renewal must be.
    safety: Safety,
    /// When it is not renewed any more.
    until: Option<Instant>,
    /// Not before this: an attempt has just failed.
    not_before: Instant,
    call: Option<Call>,
}

impl Renewer {
    /// A renewer with nothing to do: no thread.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new_cyclic(|me| Self { me: Weak::clone(me), state: Mutex::default() })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks after an acquisition from now on. An error when no thread can be had for it.
    pub fn watch(&self, entry: Entry) -> io::Result<()> {
        let mut state = self.state();
        if state.mailbox.is_none() {
            let mailbox = Arc::new(Mailbox::new()?);
            let (theirs, me) = (Arc::clone(&mailbox), Weak::clone(&self.me));
            thread::start("seckill-renew", move || {
                if let Some(renewer) = me.upgrade() {
                    renewer.work(&theirs);
                }
            })?;
            state.mailbox = Some(mailbox);
        }
        state.arrived.push(entry);
        if let Some(mailbox) = &state.mailbox {
            mailbox.ring_anyway();
        }
        Ok(())
    }

    fn work(&self, mailbox: &Arc<Mailbox>) {
        let mut entries: Slab<Entry> = Slab::new();
        let mut timers: BTreeSet<(Instant, Ticket)> = BTreeSet::new();
        let mut when: Vec<Instant> = Vec::new();
        let mut tickets = Vec::new();
        let mut idle_since = None;
        loop {
            let now = clock::now();
            for entry in std::mem::take(&mut self.state().arrived) {
                tickets.push(entries.insert(entry));
            }
            while let Some(&(at, ticket)) = timers.first()
                && at <= now
            {
                timers.pop_first();
                tickets.push(ticket);
            }
            for ticket in tickets.drain(..) {
                let Some(entry) = entries.get_mut(ticket) else { continue };
                when.resize(when.len().max(ticket + 1), now);
                timers.remove(&(when[ticket], ticket));
                if let Some(next) = entry.look(now, &Caller::Task(Arc::clone(mailbox), ticket)) {
                    when[ticket] = next;
                    timers.insert((next, ticket));
                } else {
                    entries.remove(ticket);
                }
            }
            idle_since = entries.is_empty().then(|| idle_since.unwrap_or(now));
            if idle_since.is_some_and(|since| now >= since + LINGER) && self.goes() {
                return;
            }
            let next = timers.first().map_or(now + LONGEST_NAP, |(at, _)| *at);
            let end = idle_since.map_or(next, |since| since + LINGER).min(now + LONGEST_NAP);
            mailbox.wait(end);
            mailbox.take(&mut tickets);
        }
    }

    /// Ends the thread, unless something has just come.
    fn goes(&self) -> bool {
        let mut state = self.state();
        let goes = state.arrived.is_empty();
        if goes {
            state.mailbox = None;
        }
        goes
    }
}

impl Entry {
    /// For an acquisition that has just been granted.
    pub fn new(
        keep: &Keep,
        client: &Arc<Client>,
        tally: &Arc<Tally>,
        hold: &Arc<Hold>,
        lease: Option<Duration>,
        safety: Safety,
    ) -> Self {
        let now = clock::now();
        Self {
            safety,
            hold: Arc::downgrade(hold),
            client: Arc::clone(client),
            tally: Arc::clone(tally),
            renew: keep.renew && lease.is_some(),
            on_lost: keep.on_lost.clone(),
            lease: lease.unwrap_or_default(),
            until: keep.max_hold.and_then(|longest| now.checked_add(longest)),
            not_before: now,
            call: None,
        }
    }

    /// Does what there is to do, and says when to look again; none when it is over.
    fn look(&mut self, now: Instant, caller: &Caller) -> Option<Instant> {
        let hold = self.hold.upgrade()?;
        hold.watch(caller);
        self.hear(&hold, now);
        match (hold.phase(), hold.ends()) {
            (Phase::Leaving | Phase::Released, _) => None,
            (Phase::Held, None) => Some(now + LONGEST_NAP),
            (Phase::Held, Some(ends)) if now < ends => {
                // Somebody may have extended it far beyond its lease, or cut it short.
                let due = ends.checked_sub(self.lease * 2 / 3).unwrap_or(now).max(self.not_before);
                if self.call.is_some() || !self.may_renew(now, ends) {
                    return Some(ends);
                }
                if now < due {
                    return Some(due.min(ends));
                }
                self.ask(&hold, now, ends, caller);
                self.hear(&hold, clock::now());
                let again = if self.call.is_some() { ends } else { self.not_before };
                Some(again.min(ends).max(now + Duration::from_millis(1)))
            }
            (Phase::Held | Phase::Lost, _) => {
                hold.lose();
                if let Some(on_lost) = &self.on_lost {
                    on_lost();
                }
                None
            }
        }
    }

    /// Whether there is any time to be won: what was renewed up to `until` ends a moment before it.
    fn may_renew(&self, now: Instant, ends: Instant) -> bool {
        self.renew && self.until.is_none_or(|until| until > ends.max(now) + MOMENT)
    }

    fn ask(&mut self, hold: &Arc<Hold>, now: Instant, ends: Instant, caller: &Caller) {
        let until = self.until.map(|until| until.saturating_duration_since(now));
        let lease = until.map_or(self.lease, |until| until.min(self.lease));
        let of = Acquisition {
            lock: Arc::clone(&hold.lock),
            token: Arc::clone(&hold.token),
            hold: Some(Arc::clone(hold)),
        };
        let ms = u64::try_from(lease.as_millis()).unwrap_or(u64::MAX).max(1);
        let wish = Wish::Extend { of, ms, how: Extension::Reset };
        let time_out = ends.saturating_duration_since(now);
        let call = Call::new(&self.client, wish, Some(time_out), OWNER, caller.clone());
        self.call = Some(call.with_safety(self.safety));
    }

    /// Drives the call on, if there is one.
    fn hear(&mut self, hold: &Hold, now: Instant) {
        let Some(call) = &mut self.call else { return };
        let Progress::Done(outcome) = call.advance() else { return };
        self.call = None;
        match outcome {
            Ok(Outcome::Done(true)) => Tally::add(&self.tally.renewed),
            Ok(_) => hold.lose(),
            // Until the lease is over, there is time to try again.
            Err(_) => self.not_before = now + (self.lease / 20).min(Duration::from_secs(1)),
        }
    }
}
