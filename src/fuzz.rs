//! What comes from outside, taken in: whatever it is, nothing panics, and nobody is left without a reply.
//!
//! For the targets of `fuzz/`, which make things up, and for the tests, which go through what is kept of
//! that in `fuzz/corpus/`.

// Time is what it is here, also where a simulation makes it for others.
#![allow(clippy::expect_used, clippy::missing_panics_doc, clippy::disallowed_methods)]

use std::collections::VecDeque;
use std::io::Write;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::Value;

use crate::batch::{Batch, Expected, Heeded, Packed};
use crate::caller::Caller;
use crate::clock::ServerClock;
use crate::connect;
use crate::error::Error;
use crate::names::{Name, SLOTS};
use crate::safety::{About, Proof, Safety};
use crate::script_call::{Follows, Heard};
use crate::sentinel;
use crate::settings::{Address, Place, Settings};
use crate::slots;
use crate::step::{Ask, Extension, QueuePlace, Reply, Right, Step};
use crate::transport::{Line, Wire};

/// What is looked for in what must not show a password.
const SECRET: &str = "sesame";

/// So much of a server's talk is taken in; what is longer says nothing new.
const MOST: usize = 64 << 10;
const MOST_VALUES: usize = 64;

/// A URL is read, or is an error; it shows no password, and what is read is a URL again.
pub fn url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut settings = Settings::default();
    if let Err(error) = settings.read_url(text) {
        let is_secret = secrets(text).any(|secret| secret.contains(SECRET));
        let once = text.matches(SECRET).count() == 1;
        assert!(!(is_secret && once && error.contains(SECRET)), "{text:?}: {error}");
        return;
    }
    let shown = settings.to_string();
    let mut again = Settings::default();
    again.read_url(&shown).expect("what is shown is a URL");
    assert_eq!(again.to_string().replace(":***@", "@"), shown.replace(":***@", "@"));
    assert_eq!((again.db, &again.username), (settings.db, &settings.username));
    assert_eq!(again.password.is_some(), settings.password.is_some());
    assert_eq!(again.tls.is_some(), settings.tls.is_some());
    let mut hidden = vec![settings.password];
    if let Place::Sentinel(service) = &mut settings.place {
        let service = Arc::make_mut(service);
        hidden.push(service.password.take());
        service.username = None;
        service.tls = None;
    }
    if let Place::Sentinel(service) = &mut again.place {
        Arc::make_mut(service).tls = None;
    }
    assert!(again.place == settings.place, "{text:?}: {shown}");
    let is_hidden = hidden.iter().flatten().any(|password| password.contains(SECRET));
    let once = text.matches(SECRET).count() == 1;
    assert!(!(is_hidden && once && shown.contains(SECRET)), "{text:?}: {shown}");
}

/// What may be a password, or the end of one that was not escaped.
fn secrets(text: &str) -> impl Iterator<Item = &str> {
    let login = text.split_once("://").and_then(|(_, rest)| rest.rsplit_once('@'));
    let login = login.and_then(|(login, _)| login.split_once(':')).map(|(_, password)| password);
    let pairs = text.split(['?', '&']).filter_map(|pair| pair.split_once('='));
    let given =
        pairs.filter(|(name, _)| matches!(*name, "password" | "pass" | "sentinel_password"));
    login.into_iter().chain(given.map(|(_, value)| value))
}

/// What a server sends is understood, or is an error, by each of those who may have asked for it.
pub fn reply(data: &[u8]) {
    if data.len() > MOST {
        return;
    }
    let (values, broken) = receive(data, data.len());
    let (mut parts, _) = receive(data, data.len() / 2);
    if broken {
        // The parser may drop a byte that means nothing, if nothing has come after it yet.
        parts.truncate(values.len());
    }
    assert_eq!(format!("{values:?}"), format!("{parts:?}"), "in pieces it is something else");
    let size: usize = values.iter().map(size).sum();
    assert!(size <= data.len(), "{size} values come of {} bytes", data.len());
    handshake(data);
    let values = &values[..values.len().min(MOST_VALUES)];
    for replies in values.windows(2) {
        sentinel(replies);
        cluster(replies);
    }
    for follows in [Follows::Nothing, Follows::Name, Follows::Connection, Follows::Calls] {
        for value in values {
            alone(value, follows);
        }
        together(values, follows);
    }
}

/// All that comes of a connection that receives this and ends, first only so much of it; and whether
/// there was something that is no reply.
fn receive(data: &[u8], first: usize) -> (Vec<Value>, bool) {
    let (mut wire, mut theirs) = connection();
    let mut values = Vec::new();
    let (first, rest) = data.split_at(first);
    for (part, last) in [(first, false), (rest, true)] {
        theirs.write_all(part).expect("room");
        if last {
            theirs.shutdown(Shutdown::Write).expect("open");
        }
        loop {
            match wire.receive(Instant::now()) {
                Ok(Some(value)) => values.push(value),
                Ok(None) => break,
                Err(error) => return (values, error.to_string().contains("not a Redis reply")),
            }
        }
    }
    (values, false)
}

fn connection() -> (Wire, UnixStream) {
    let (ours, theirs) = UnixStream::pair().expect("a pair");
    (Wire::new(Line::new(ours.into(), &Arc::default()).expect("non-blocking"), None), theirs)
}

/// It is the first thing that a server says.
fn handshake(data: &[u8]) {
    let mut settings = Settings::default();
    let url = "redis+sentinel://:sesame@h/m/1?client_name=shop";
    settings.read_url(url).expect("a good URL");
    let (wire, mut theirs) = connection();
    theirs.write_all(data).expect("room");
    theirs.shutdown(Shutdown::Write).expect("open");
    if let Err(trouble) = connect::greet(wire, &settings, Instant::now()) {
        let echoed = data.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
        assert!(echoed || !format!("{trouble:?}").contains(SECRET), "{trouble:?}");
    }
}

/// How many values there are, with those that they consist of.
fn size(value: &Value) -> usize {
    let both = |(one, other): &(Value, Value)| size(one) + size(other);
    1 + match value {
        Value::Array(parts) | Value::Set(parts) | Value::Push { data: parts, .. } => {
            parts.iter().map(size).sum()
        }
        Value::Map(pairs) => pairs.iter().map(both).sum(),
        Value::Attribute { data, attributes } => {
            size(data) + attributes.iter().map(both).sum::<usize>()
        }
        _ => 0,
    }
}

fn sentinel(replies: &[Value]) {
    if let Some((address, _)) = sentinel::primary(replies) {
        let Address::Tcp(host, port) = address else { panic!("no sentinel names a unix socket") };
        assert!(!host.is_empty() && port != 0);
    }
}

fn cluster(replies: &[Value]) {
    let asked = Address::Tcp("10.0.0.1".to_owned(), 7000);
    if let Ok(map) = slots::understand(replies, &asked) {
        for slots::Range { from, to, primary } in map.ranges {
            assert!(from <= to && to < SLOTS);
            assert!(matches!(primary, Address::Tcp(host, port) if !host.is_empty() && port != 0));
        }
    }
}

/// The reply to one call, of each kind.
fn alone(value: &Value, follows: Follows) {
    for step in steps(Safety::default()) {
        let mut batch = gather(&[Arc::clone(&step)]);
        let packed = pack(&mut batch);
        assert_eq!(packed.expected, [Expected::Call(0)]);
        let mut late = Vec::new();
        match hear(&mut batch, 0, value, follows, &mut late) {
            Heard::Written | Heard::Answer | Heard::WrongServer => {
                assert!(batch.answered() && step.reply().is_some() != (late.len() == 1));
            }
            Heard::Astray => {
                assert!(batch.answered() && step.reply().is_none() && follows == Follows::Calls);
                assert_eq!(batch.evict(|_| true).len(), 1);
            }
            Heard::Again | Heard::NotNow(_) | Heard::Demoted(_) => {
                assert!(!batch.answered() && step.reply().is_none());
            }
        }
    }
}

/// The replies to a batch of calls that shall be safe, as far as they go; then the connection breaks.
fn together(values: &[Value], follows: Follows) {
    let steps = steps(Safety { replicas: 2, aof: true });
    let mut batch = gather(&steps);
    let (mut late, mut safe) = (Vec::new(), false);
    let mut values = values.iter().filter(|value| !matches!(value, Value::Push { .. }));
    'talk: while !batch.answered() {
        let mut packed = pack(&mut batch);
        let mut expected = std::mem::take(&mut packed.expected);
        let mut proof = Proof::default();
        while let Some(next) = expected.pop_front() {
            let Some(value) = values.next() else {
                batch.doubt();
                break 'talk;
            };
            match next {
                Expected::Call(index) => drop(hear(&mut batch, index, value, follows, &mut late)),
                Expected::Asking => {}
                Expected::Safety(about) => {
                    safe |= about == About::Replicas && matches!(value, Value::Int(2..));
                    if proof.hear(about, value).is_err() {
                        batch.doubt();
                        break 'talk;
                    }
                }
            }
        }
        batch.proved(&proof, &packed);
    }
    let astray = batch.evict(|_| true);
    batch.fail(&Error::Unreachable("the connection broke".to_owned()));
    for step in &steps {
        let gone = astray.iter().flat_map(|call| &call.steps).chain(&late);
        let elsewhere = gone.filter(|gone| Arc::ptr_eq(gone, step)).count();
        assert_eq!(usize::from(step.reply().is_some()) + elsewhere, 1, "{step:?}");
        let done = matches!(step.reply(), Some(Reply::Changed | Reply::Acquired { .. }));
        assert!(safe || !done, "nobody has said that {step:?} is safe");
    }
}

/// A step of each kind, and a small crowd.
fn steps(safety: Safety) -> Vec<Arc<Step>> {
    let name = |text: &str| Name::from(text.as_bytes());
    let update =
        |change, right| Ask::Update { lock: name("lock"), key: name("stock"), change, right };
    let place = QueuePlace { arrived: Instant::now(), waits: true, fair: true };
    let (token, attempt) = (name("token"), [b'0'; 32]);
    let asks = [
        update(-1, Right::Free),
        update(-1, Right::Free),
        update(3, Right::Free),
        Ask::Incr { key: name("other"), change: i64::MIN },
        Ask::Acquire {
            lock: name("taken"),
            token: Arc::clone(&token),
            lease: Some(5000),
            again: false,
            fenced: true,
            attempt,
            place: Some(place),
        },
        Ask::Release {
            lock: name("given"),
            token: Some(Arc::clone(&token)),
            by: Some(attempt),
            place: Some(attempt),
        },
        Ask::Extend { lock: name("kept"), token, ms: 5000, how: Extension::Add },
        Ask::Holder { lock: name("seen") },
    ];
    let deadline = Instant::now() + Duration::from_mins(1);
    let step = |ask| Step::new(ask, deadline, 0, Caller::Nobody).with_safety(safety);
    asks.into_iter().map(|ask| Arc::new(step(ask))).collect()
}

fn gather(steps: &[Arc<Step>]) -> Batch {
    let mut backlog: VecDeque<_> = steps.iter().cloned().collect();
    let batch = Batch::gather(&"session".into(), 1, Vec::new(), &mut backlog, Instant::now());
    assert!(backlog.is_empty());
    batch
}

fn pack(batch: &mut Batch) -> Packed {
    let now = Instant::now();
    batch.pack(now, Duration::from_secs(1), &ServerClock::new(0, now), &mut Vec::new())
}

fn hear(
    batch: &mut Batch,
    index: usize,
    value: &Value,
    follows: Follows,
    late: &mut Vec<Arc<Step>>,
) -> Heard {
    let now = Instant::now();
    let mut clock = ServerClock::new(0, now);
    let heeded = Heeded { reply: value.clone(), sent: now, received: now };
    let heard = batch.hear(index, heeded, &mut clock, follows, late);
    // What it says of the time is reckoned with when the next deadline is made.
    let _ = clock.at(now + Duration::from_mins(1));
    heard
}

#[cfg(test)]
mod tests;
