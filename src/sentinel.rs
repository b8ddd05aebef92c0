//! Where the primary of a service is: sentinels are asked, all at once.
//!
//! One sentinel may be dead, silent, or cut off from the others and believe in a primary that has been
//! replaced; and that one, started again, believes in itself, until the others find it. So it is not
//! the first answer that counts: each fail-over has a number, the *epoch* of the configuration, and the
//! largest wins. As soon as most sentinels name it, nobody else is waited for; and for the slow ones
//! no longer than [`PATIENCE`], once one has answered.
//!
//! Whether it is a primary is for itself to say, in the handshake. If it says that it is not, or is not there, whom
//! *most* sentinels name is tried, for one of them may be wrong; and if that is the same, all are asked again. What was known before is not forgotten: a sentinel
//! that is left alone with an older epoch is not believed.
//!
//! | a sentinel's answer | meaning |
//! |---|---|
//! | none, or nonsense | it does not count |
//! | it knows no service of that name | an error, if none knows |
//! | address and epoch | a candidate |

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use redis::Value;

use crate::clock;
use crate::connect::{Purpose, Trouble};
use crate::error::Error;
use crate::inquiry::Inquiry;
use crate::settings::{Address, Place, Service, Settings};

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
    /// Begins to ask the sentinels of a service; time-outs are those of `settings`.
    pub fn begin(settings: &Settings, service: &Arc<Service>) -> Self {
        let ask = |sentinel: &Address| {
            let settings = Settings {
                place: Place::Server(sentinel.clone()),
                tls: service.tls.clone(),
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

    /// Moves on. Candidates, the best first; `None` when `until` is over first.
    pub fn advance(&mut self, until: Instant) -> Result<Option<VecDeque<Address>>, Trouble> {
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
    fn verdict(&mut self, now: Instant) -> Option<Result<VecDeque<Address>, Trouble>> {
        let mut candidates: Vec<(u64, &Address)> = Vec::new();
        let mut open = false;
        for asked in &self.asked {
            match &asked.said {
                Said::Primary(address, epoch) => candidates.push((*epoch, address)),
                said => open |= matches!(said, Said::Nothing(_)),
            }
        }
        candidates.sort_by_key(|(epoch, _)| Reverse(*epoch));
        let all = self.asked.len();
        let agree = |one: &(u64, &Address)| candidates.iter().filter(|other| *other == one).count();
        let most = |one: &(u64, &Address)| agree(one) * 2 > all;
        // Who knows less than was known before is behind the times, unless most are.
        let newest = self.service.newest.0.load(Ordering::Relaxed);
        let Some(best) = candidates.iter().find(|one| one.0 >= newest || most(one)) else {
            return if open { None } else { Some(Err(self.failure())) };
        };
        let patient = *self.heard.get_or_insert(now) + PATIENCE > now;
        if !most(best) && open && patient {
            return None;
        }
        self.service.newest.0.fetch_max(best.0, Ordering::Relaxed);
        let others = candidates.iter().filter(|one| one.1 != best.1 && most(one));
        let other = others.map(|(_, address)| *address).next();
        Some(Ok([best.1].into_iter().chain(other).cloned().collect()))
    }

    /// Why nobody has said where the primary is.
    fn failure(&self) -> Trouble {
        let name = &self.service.name;
        let mut failures = Vec::new();
        let (mut unknown, mut refused) = (false, None);
        for Asked { sentinel, said } in &self.asked {
            match said {
                Said::Refused(error) => refused = Some(error.clone()),
                Said::Failed(why) if why.contains(&sentinel.to_string()) => {
                    failures.push(why.clone());
                }
                Said::Failed(why) => failures.push(format!("{sentinel}: {why}")),
                Said::Unknown => unknown = true,
                Said::Nothing(_) => {}
                Said::Primary(address, _) => {
                    failures.push(format!("{sentinel}: {address}, which was replaced before"));
                }
            }
        }
        match refused {
            // One of those who could not be asked just now may let us in.
            Some(refused) if !failures.is_empty() => {
                failures.push(format!("another lets nobody in who comes like us: {refused:?}"));
            }
            Some(refused) => return Trouble::Refused(refused),
            None if unknown => {
                let words = format!("the sentinels watch no service with the name {name:?}");
                return Trouble::Unreachable(words);
            }
            None => {}
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
