//! Where the primary of a service is: sentinels are asked, all at once.
//!
//! One sentinel may be dead, silent, or cut off from the others and believe in a primary that has been
//! replaced; and that one, started again, believes in itself, until the others find it. So it is not
//! the first answer that counts: each fail-over has a number, the *epoch* of the configuration, and the
//! largest wins. As soon as most sentinels name it, nobody else is waited for; and for the slow ones
//! no longer than [`PATIENCE`], once one has answered.
//!
//! Whether it is a primary is for itself to say, in the handshake. If it says that it is not, or is not
//! there, or does not let us in, whom *most* sentinels name is tried, for one of them may be wrong (see
//! [`candidates`](crate::candidates)); and if that is the same, all are asked again.
//!
//! Nobody goes back: once a primary has said that it is one, its epoch is *confirmed*, and none of an older
//! epoch is believed, however many name it: they have not heard yet. What was only named, by one who was
//! wrong perhaps, confirms nothing. But sentinels that are set up from scratch begin to count anew, and
//! a client shall not need to be started again for that: what *all* say, with one voice, is so.
//!
//! | a sentinel's answer | meaning |
//! |---|---|
//! | none, or nonsense | it does not count |
//! | it knows no service of that name | an error, if none knows |
//! | address and epoch, not below the confirmed one | a candidate |
//! | address and epoch, below the confirmed one | a candidate, if all sentinels of the client say just that; or else it does not count |
//!
//! | candidates | tried |
//! |---|---|
//! | none | nobody: asked again, until the caller's time is over |
//! | some | that of the largest epoch; of the same epoch, that which more name |
//! | and another that most name | that one after it, whatever the trouble with the first |
//!
//! A client that is to be kept from going back has to be allowed ROLE. One that is not takes whom the
//! sentinels name.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;

use crate::candidates::Candidate;
use crate::clock;
use crate::connect::{Purpose, Trouble};
use crate::error::Error;
use crate::inquiry::Inquiry;
use crate::settings::{Address, Place, Service, Settings};
use crate::tls::Tls;

/// How long the others are waited for, once one has answered and it is not enough.
const PATIENCE: Duration = Duration::from_millis(100);

/// How often those who are being asked are looked at.
const LOOK: Duration = Duration::from_millis(1);

/// See the module's description.
pub struct Search {
    service: Arc<Service>,
    asked: Vec<Asked>,
    /// When the first said where the primary is.
    heard: Option<Instant>,
}

struct Asked {
    sentinel: Address,
    said: Said,
}

enum Said {
    Nothing(Box<Inquiry>),
    Primary(Address, u64),
    Unknown,
    Failed(String),
    Refused(Error),
}

impl Search {
    /// Begins to ask the sentinels of a service, over `tls` if at all; time-outs are those of `settings`.
    pub fn begin(settings: &Settings, service: &Arc<Service>, tls: Option<&Tls>) -> Self {
        let ask = |sentinel: &Address| {
            let settings = Settings {
                place: Place::Server(sentinel.clone()),
                tls: tls.map(Tls::same),
                username: service.username.clone(),
                password: service.password.clone(),
                provider: None,
                db: 0,
                ..settings.clone()
            };
            let question = ["GET-MASTER-ADDR-BY-NAME", "MASTER"].map(|what| {
                let mut command = redis::cmd("SENTINEL");
                command.arg(what).arg(&service.name);
                command
            });
            let inquiry = Inquiry::begin(&Arc::new(settings), Purpose::Inquire, question.into());
            Asked { sentinel: sentinel.clone(), said: Said::Nothing(Box::new(inquiry)) }
        };
        let asked = service.sentinels.iter().map(ask).collect();
        Self { service: Arc::clone(service), asked, heard: None }
    }

    /// Whose primary is searched for.
    pub fn service(&self) -> &Arc<Service> {
        &self.service
    }

    /// Moves on. Candidates, the best first, and at least one; `None` when `until` is over first.
    pub fn advance(&mut self, until: Instant) -> Result<Option<VecDeque<Candidate>>, Trouble> {
        loop {
            let now = clock::now();
            for asked in &mut self.asked {
                asked.advance(now);
            }
            if let Some(verdict) = self.verdict(now) {
                return verdict.map(Some);
            }
            let left = until.saturating_duration_since(clock::now());
            if left.is_zero() || !clock::sleep_until(clock::now() + left.min(LOOK)) {
                return Ok(None);
            }
        }
    }

    /// What the answers so far come to; none while it is too early.
    fn verdict(&mut self, now: Instant) -> Option<Result<VecDeque<Candidate>, Trouble>> {
        let mut named: Vec<(u64, &Address)> = Vec::new();
        let mut open = false;
        for asked in &self.asked {
            match &asked.said {
                Said::Primary(address, epoch) => named.push((*epoch, address)),
                said => open |= matches!(said, Said::Nothing(_)),
            }
        }
        let all = self.asked.len();
        let votes = |one: (u64, &Address)| named.iter().filter(|other| **other == one).count();
        let candidate = |one: (u64, &Address), instead_of| Candidate {
            address: one.1.clone(),
            epoch: one.0,
            by_most: votes(one) * 2 > all,
            instead_of,
        };
        let newest = self.service.newest.epoch();
        let believed = || named.iter().copied().filter(|one| one.0 >= newest);
        // Of those that are equal the first; so the last is asked for in reverse.
        let Some(best) = believed().rev().max_by_key(|one| (one.0, votes(*one))) else {
            return match named.first() {
                _ if open => None,
                Some(one) if votes(*one) == all => Some(Ok([candidate(*one, Some(newest))].into())),
                _ => Some(Err(self.failure())),
            };
        };
        let best = candidate(best, None);
        let patient = *self.heard.get_or_insert(now) + PATIENCE > now;
        if !best.by_most && open && patient {
            return None;
        }
        let mut others = believed().map(|one| candidate(one, None));
        let other = others.find(|one| one.by_most && one.address != best.address);
        Some(Ok([best].into_iter().chain(other).collect()))
    }

    /// Why nobody has said where the primary is.
    fn failure(&self) -> Trouble {
        let Service { name, newest, .. } = &*self.service;
        let mut failures = Vec::new();
        let (mut unknown, mut refused) = (false, None);
        for Asked { sentinel, said } in &self.asked {
            match said {
                Said::Refused(error) => refused = refused.or(Some(error)),
                Said::Failed(why) if why.contains(&sentinel.to_string()) => {
                    failures.push(why.clone());
                }
                Said::Failed(why) => failures.push(format!("{sentinel}: {why}")),
                Said::Unknown => unknown = true,
                Said::Nothing(_) => {}
                Said::Primary(address, epoch) => failures.push(format!(
                    "{sentinel}: {address} (config-epoch {epoch}), but this client was at a primary of \
                     config-epoch {}",
                    newest.epoch()
                )),
            }
        }
        if let Some(refused) = refused {
            // Whoever was let in before may be let in again by one of the others, when they are there and know.
            if !newest.is_met() || (failures.is_empty() && !unknown) {
                return Trouble::Refused(refused.clone());
            }
            failures.push(refused.words());
        } else if unknown {
            let words = format!("the sentinels watch no service with the name {name:?}");
            return Trouble::Unreachable(words);
        }
        let failures = failures.join("; ");
        Trouble::Unreachable(format!("no sentinel says where {name:?} is: {failures}"))
    }
}

impl Asked {
    fn advance(&mut self, now: Instant) {
        let Said::Nothing(inquiry) = &mut self.said else { return };
        self.said = match inquiry.advance(now) {
            Ok(None) => return,
            Ok(Some(replies)) => understand(&replies),
            Err(Trouble::Unreachable(why) | Trouble::NotReady(why)) => Said::Failed(why),
            Err(Trouble::Refused(error)) => Said::Refused(error),
        };
    }
}

/// What a sentinel's replies say.
fn understand(replies: &[Value]) -> Said {
    let [address, details] = replies else {
        return Said::Failed("no answer".to_owned());
    };
    match address {
        Value::Nil => return Said::Unknown,
        Value::ServerError(error) => {
            let why = format!("{} {}", error.code(), error.details().unwrap_or_default());
            return Said::Failed(why);
        }
        _ => {}
    }
    match address {
        Value::Array(parts) => match &parts[..] {
            [host, port] => match (text(host), text(port).and_then(|port| port.parse().ok())) {
                (Some(host), Some(port)) if is_host(host) && port != 0 => {
                    let epoch = epoch(details).unwrap_or(0);
                    Said::Primary(Address::Tcp(host.to_owned(), port), epoch)
                }
                _ => nonsense(),
            },
            _ => nonsense(),
        },
        _ => nonsense(),
    }
}

/// The primary that a sentinel's replies name, and the number of the fail-over that made it.
#[cfg(any(test, fuzzing))]
pub fn primary(replies: &[Value]) -> Option<(Address, u64)> {
    match understand(replies) {
        Said::Primary(address, epoch) => Some((address, epoch)),
        _ => None,
    }
}

fn is_host(text: &str) -> bool {
    !text.is_empty() && !text.contains(|it: char| it.is_control() || it.is_whitespace())
}

fn nonsense() -> Said {
    Said::Failed("what it answers makes no sense; is it a sentinel?".to_owned())
}

/// The number of the fail-over that made the primary.
fn epoch(details: &Value) -> Option<u64> {
    let found = match details {
        Value::Map(fields) => {
            let found = fields.iter().find(|(name, _)| text(name) == Some("config-epoch"));
            found.map(|(_, value)| value)
        }
        Value::Array(fields) => {
            let found = fields.chunks_exact(2).find(|pair| text(&pair[0]) == Some("config-epoch"));
            found.map(|pair| &pair[1])
        }
        _ => None,
    };
    text(found?)?.parse().ok()
}

fn text(value: &Value) -> Option<&str> {
    match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok(),
        Value::SimpleString(text) => Some(text),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Newest;

    fn address(port: u16) -> Address {
        Address::Tcp("10.0.0.1".to_owned(), port)
    }

    /// A search of a client that was at a primary of that epoch; each sentinel says a port and an epoch.
    fn search(confirmed: u64, answers: Vec<Said>) -> Search {
        let (sentinels, tls, username, password) = Default::default();
        let (name, newest) = ("mymaster".to_owned(), Newest::default());
        newest.confirm(confirmed, None);
        let service = Arc::new(Service { name, sentinels, tls, username, password, newest });
        let asked = (1..).zip(answers).map(|(n, said)| Asked { sentinel: address(n), said });
        Search { service, asked: asked.collect(), heard: None }
    }

    fn says(port: u16, epoch: u64) -> Said {
        Said::Primary(address(port), epoch)
    }

    fn dead() -> Said {
        Said::Failed("connection refused".to_owned())
    }

    type Tried = Vec<(Address, u64, Option<u64>)>;
    type Case = (u64, Vec<Said>, Tried);

    /// Addresses, epochs, and what they come instead of; none if nobody is believed.
    fn tried(search: &mut Search) -> Tried {
        let verdict = search.verdict(clock::now()).expect("everybody has answered");
        let candidates = verdict.unwrap_or_default().into_iter();
        candidates.map(|it| (it.address, it.epoch, it.instead_of)).collect()
    }

    #[test]
    fn who_is_tried_and_who_is_not() {
        let new = |port, epoch| (address(port), epoch, None);
        let cases: Vec<Case> = vec![
            (0, vec![says(1, 1), says(1, 1), says(2, 2)], vec![new(2, 2), new(1, 1)]),
            (0, vec![says(1, 1), says(2, 2), says(2, 2)], vec![new(2, 2)]),
            (0, vec![says(1, 0), says(2, 0), says(2, 0)], vec![new(2, 0)]),
            (0, vec![says(1, 0), says(2, 0), dead()], vec![new(1, 0)]),
            // A majority that has not heard yet.
            (2, vec![says(1, 1), says(1, 1), says(2, 2)], vec![new(2, 2)]),
            (2, vec![says(1, 1), says(1, 1), dead()], vec![]),
            (2, vec![says(1, 1), says(1, 1), Said::Unknown], vec![]),
            (2, vec![says(1, 1), says(1, 0), says(1, 1)], vec![]),
            // Set up from scratch.
            (2, vec![says(1, 0), says(1, 0), says(1, 0)], vec![(address(1), 0, Some(2))]),
            (1, vec![says(1, 1), dead(), dead()], vec![new(1, 1)]),
            (1, vec![says(1, 1), says(1, 1), says(2, 9)], vec![new(2, 9), new(1, 1)]),
        ];
        for (number, (confirmed, answers, expected)) in cases.into_iter().enumerate() {
            let mut search = search(confirmed, answers);
            assert_eq!(tried(&mut search), expected, "case {number}");
            let newest = &search.service.newest;
            assert_eq!(newest.epoch(), confirmed, "case {number}: nothing is confirmed by hearsay");
        }
    }

    #[test]
    fn one_sentinel_that_refuses_does_not_speak_for_those_who_were_not_there() {
        let refused = || Said::Refused(Error::Authentication("WRONGPASS".to_owned()));
        for (met, other, lasting) in [
            (false, dead(), true),
            (false, Said::Unknown, true),
            (true, dead(), false),
            (true, Said::Unknown, false),
            (true, refused(), true),
        ] {
            let search = search(0, vec![refused(), other]);
            if met {
                search.service.newest.meet();
            }
            let told = search.failure();
            assert_eq!(matches!(told, Trouble::Refused(_)), lasting, "{told:?}");
            assert!(format!("{told:?}").contains("WRONGPASS"), "{told:?}");
        }
    }
}
