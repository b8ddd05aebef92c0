//! A script call: what the steps of many callers become when they ask the same of the same keys.
//!
//! Their changes are *runs*: a change, and how many callers in a row ask for it. What the server's
//! answer means for each caller is said here, too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::ServerError;

use crate::clock::ServerClock;
use crate::error::{Error, is_passing};
use crate::names::{place_key, side_key};
use crate::script::Script;
use crate::step::{Ask, Attempt, Extension, Reply, Right, Step};

/// How long a record lives after its batch: more than anybody asks for it.
pub const RECORD_LIFE: Duration = Duration::from_mins(10);

/// How long a place in a queue for a lock lives, if its owner does not ask again.
pub const PLACE_LIFE: Duration = Duration::from_secs(3);

/// How many runs one call may have, so that a server is never busy with it for long.
pub const MOST_RUNS: usize = 1024;

/// A script call for one or many steps.
#[derive(Debug)]
pub struct ScriptCall {
    script: Script,
    /// The steps, in order of arrival.
    pub steps: Vec<Arc<Step>>,
    /// A change, and how many in a row ask for it.
    pub runs: Vec<(i64, usize)>,
    /// A step was turned away for want of room.
    full: bool,
    /// The server does not know the script: send its text.
    spell_out: bool,
    /// Each of its steps has its reply, or tries again.
    pub answered: bool,
}

/// What a server's reply to a call says about the connection and the batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The call is answered.
    Answer,
    /// The call was not run and may be sent again at once (NOSCRIPT).
    Again,
    /// The call was not run; the server will be ready later (LOADING, ...).
    NotNow(String),
    /// The call is answered, and the connection of no more use: to a server that does not take writes,
    /// or one that talks nonsense.
    WrongServer,
}

impl ScriptCall {
    /// A call for one step.
    pub fn new(step: Arc<Step>) -> Self {
        let script = match step.ask {
            Ask::Update { .. } | Ask::Incr { .. } => Script::Stock,
            Ask::Acquire { .. } => Script::Acquire,
            Ask::Release { .. } => Script::Release,
            Ask::Extend { .. } => Script::Extend,
            Ask::Holder { .. } => Script::Holder,
        };
        let runs = change_of(&step.ask).map(|change| (change, 1)).into_iter().collect();
        Self { script, steps: vec![step], runs, full: false, spell_out: false, answered: false }
    }

    /// Takes a step in, if it asks the same of the same keys; else it comes back.
    pub fn join(&mut self, step: Arc<Step>) -> Result<(), Arc<Step>> {
        match change_of(&step.ask) {
            Some(change) if !self.full && asks_the_same(&self.steps[0].ask, &step.ask) => {
                let room = self.runs.len() < MOST_RUNS;
                match self.runs.last_mut() {
                    Some((last, count)) if *last == change => *count += 1,
                    // Nobody who comes later goes before who did not find room.
                    _ if !room => {
                        self.full = true;
                        return Err(step);
                    }
                    _ => self.runs.push((change, 1)),
                }
                self.steps.push(step);
                Ok(())
            }
            _ => Err(step),
        }
    }

    /// The call is about to be sent. Steps whose callers have left before are not; so a call that the
    /// server may have run is asked for as it was, for all of its steps have been sent.
    pub fn mark_sent(&mut self) {
        let before = self.steps.len();
        self.steps.retain(|step| step.mark_sent());
        self.answered = self.steps.is_empty();
        if self.steps.len() == before || self.runs.is_empty() {
            return;
        }
        self.runs.clear();
        for change in self.steps.iter().filter_map(|step| change_of(&step.ask)) {
            match self.runs.last_mut() {
                Some((last, count)) if *last == change => *count += 1,
                _ => self.runs.push((change, 1)),
            }
        }
    }

    /// Packs the call as a command.
    pub fn pack(
        &self,
        batch: &[u8],
        deadline: &[u8],
        session: &str,
        clock: &ServerClock,
        out: &mut Vec<u8>,
    ) {
        let source = self.script.source();
        let life = RECORD_LIFE.as_millis().to_string();
        let mut command = redis::cmd(if self.spell_out { "EVAL" } else { "EVALSHA" });
        command.arg(if self.spell_out { source.text } else { &source.hash });
        let ask = &self.steps[0].ask;
        let record = side_key(session, ask.recorded_under());
        let mut keys = |names: &[&[u8]]| {
            command.arg(names.len() + 1).arg(&record);
            for name in names {
                command.arg(*name);
            }
            command.arg(batch).arg(deadline).arg(&life);
        };
        match ask {
            Ask::Update { lock, key, right, .. } => {
                keys(&[key, lock]);
                match right {
                    Right::Free => command.arg("").arg(""),
                    Right::Own(token) => command.arg(&token[..]).arg(""),
                    Right::Held(token) => command.arg(&token[..]).arg("1"),
                };
            }
            Ask::Incr { key, .. } => {
                keys(&[key]);
                command.arg("").arg("");
            }
            Ask::Acquire { lock, token, lease, again, fenced, attempt, place } => {
                let side = place.map(|_| place_keys(attempt, lock));
                let fence = fenced.then(|| side_key("fence", lock));
                keys(&all(lock, side.as_ref(), fence.as_ref()));
                let flag = |set: bool| if set { "1" } else { "" };
                command.arg(&token[..]).arg(lease.map_or_else(String::new, |ms| ms.to_string()));
                command.arg(flag(*again)).arg(flag(*fenced)).arg(&attempt[..]);
                if let Some(place) = place {
                    let life = PLACE_LIFE.as_millis().to_string();
                    command.arg(clock.at(place.arrived)).arg(life);
                    command.arg(flag(place.waits)).arg(flag(place.fair));
                }
            }
            Ask::Release { lock, token, by, place } => {
                let side = place.as_ref().map(|place| place_keys(place, lock));
                let fence = by.map(|_| side_key("fence", lock));
                keys(&all(lock, side.as_ref(), fence.as_ref()));
                command.arg(token.as_deref().unwrap_or_default());
                for attempt in [place, by] {
                    command.arg(attempt.as_ref().map_or(&b""[..], |attempt| &attempt[..]));
                }
            }
            Ask::Extend { lock, token, ms, how } => {
                keys(&[lock]);
                command.arg(&token[..]).arg(*ms).arg(match how {
                    Extension::Add => "add",
                    Extension::Replace => "replace",
                    Extension::Reset => "reset",
                });
            }
            Ask::Holder { lock } => keys(&[lock]),
        }
        for (change, count) in &self.runs {
            command.arg(*change).arg(*count);
        }
        command.write_packed_command(out);
    }

    /// Whether anybody still waits for its answer.
    pub fn wanted(&self) -> bool {
        !self.answered && self.steps.iter().any(|step| step.wanted())
    }

    /// All of its steps get the same reply.
    pub fn finish(&mut self, reply: &Reply) {
        self.answered = true;
        for step in &self.steps {
            step.finish(reply.clone());
        }
    }
}

/// Queue, lives and place.
fn place_keys(attempt: &Attempt, lock: &[u8]) -> [Vec<u8>; 3] {
    [side_key("queue", lock), side_key("lives", lock), place_key(attempt, lock)]
}

/// A lock's keys, in the order in which its scripts want them.
fn all<'a>(
    lock: &'a [u8],
    side: Option<&'a [Vec<u8>; 3]>,
    fence: Option<&'a Vec<u8>>,
) -> Vec<&'a [u8]> {
    let side = side.into_iter().flatten().chain(fence).map(Vec::as_slice);
    std::iter::once(lock).chain(side).collect()
}

/// Whether two steps differ in nothing but the change.
fn asks_the_same(one: &Ask, other: &Ask) -> bool {
    match (one, other) {
        (
            Ask::Update { lock, key, right, .. },
            Ask::Update { lock: other_lock, key: other_key, right: other_right, .. },
        ) => key == other_key && lock == other_lock && right == other_right,
        (Ask::Incr { key, .. }, Ask::Incr { key: other_key, .. }) => key == other_key,
        _ => false,
    }
}

fn change_of(ask: &Ask) -> Option<i64> {
    match ask {
        Ask::Update { change, .. } | Ask::Incr { change, .. } => Some(*change),
        _ => None,
    }
}

impl ScriptCall {
    /// Gives each step its part of a script's answer. False when the answer makes no sense.
    pub fn answer(&mut self, answer: &[u8], received: Instant) -> bool {
        let Some((kind, rest)) = answer.split_first() else { return false };
        let rest = rest.strip_prefix(b" ").unwrap_or(rest);
        let reply = match (kind, self.script) {
            (b'C', Script::Stock) => return self.changed(rest),
            (b'N', Script::Stock) => Reply::NoStock,
            (b'W', Script::Stock) => {
                let reason = format!("is a {}, not a number", String::from_utf8_lossy(rest));
                Reply::Invalid { value: Vec::new(), reason }
            }
            (b'I', Script::Stock) => {
                let reason = "is not an integer of 64 bits".to_owned();
                Reply::Invalid { value: rest.to_vec(), reason }
            }
            (b'H', Script::Stock | Script::Acquire) => {
                let Some(left) = parse::<i64>(rest) else { return false };
                let left = u64::try_from(left).ok().map(Duration::from_millis);
                // A lease has ended only after its last millisecond.
                let until =
                    left.and_then(|left| received.checked_add(left + Duration::from_millis(1)));
                Reply::Held { until }
            }
            (b'X', Script::Stock) => Reply::Lost,
            (b'Q', Script::Acquire) => {
                let mut parts = rest.splitn(2, |&byte| byte == b' ');
                let life = parts.next().and_then(parse).map(Duration::from_millis);
                let behind = parts.next().and_then(|id| id.try_into().ok());
                let (Some(life), Some(behind)) = (life, behind) else { return false };
                let Some(until) = received.checked_add(life + Duration::from_millis(1)) else {
                    return false;
                };
                Reply::Queued { behind, until }
            }
            (b'A', Script::Acquire) if rest.is_empty() => Reply::Acquired { fence: 0 },
            (b'A', Script::Acquire) => {
                let Some(fence) = parse(rest) else { return false };
                Reply::Acquired { fence }
            }
            (b'E', Script::Extend) => {
                let Some(ms) = parse(rest) else { return false };
                Reply::Extended(Duration::from_millis(ms))
            }
            (b'T', Script::Holder) => Reply::Holder(Some(rest.into())),
            (b'W', Script::Holder) => Reply::Holder(Some([].into())),
            (b'N', Script::Holder) => Reply::Holder(None),
            (b'R', Script::Release) => Reply::Released,
            (b'F', Script::Release | Script::Extend) => Reply::Foreign,
            _ => return false,
        };
        self.finish(&reply);
        true
    }

    /// `g n [g n ..]`: of each run the first g were granted, the others found n.
    fn changed(&mut self, text: &[u8]) -> bool {
        let mut numbers = text.split(|&byte| byte == b' ').map(parse::<i64>);
        let mut outcomes = Vec::with_capacity(self.runs.len());
        for &(change, count) in &self.runs {
            let (Some(Some(granted)), Some(Some(stock))) = (numbers.next(), numbers.next()) else {
                return false;
            };
            match usize::try_from(granted) {
                Ok(granted) if granted <= count => outcomes.push((change, count, granted, stock)),
                _ => return false,
            }
        }
        if numbers.next().is_some() {
            return false;
        }
        let mut steps = self.steps.iter();
        for (change, count, granted, stock) in outcomes {
            for (index, step) in steps.by_ref().take(count).enumerate() {
                step.finish(if index < granted { Reply::Changed } else { refusal(change, stock) });
            }
        }
        true
    }

    /// The server says an error instead of running the call.
    pub fn refused(&mut self, error: &ServerError, in_doubt: bool) -> Heard {
        let (code, detail) = cause(error.code(), error.details().unwrap_or_default());
        if code == "NOSCRIPT" {
            self.spell_out = true;
            return Heard::Again;
        }
        if is_passing(code) {
            return Heard::NotNow(format!("{code} {detail}"));
        }
        let wrong = code == "READONLY";
        // The server that refuses now may have applied an earlier copy.
        self.finish(&Reply::Failed(if in_doubt {
            Error::OutcomeUnknown(format!(
                "no answer came, and asked again the server refused: {code} {detail}"
            ))
        } else {
            Error::Refused { code: code.to_owned(), detail: detail.to_owned() }
        }));
        if wrong { Heard::WrongServer } else { Heard::Answer }
    }

    /// The server says something that no server says.
    pub fn senseless(&mut self) -> Heard {
        let words = "the server's answer makes no sense; is it a Redis or Valkey server?";
        self.finish(&Reply::Failed(Error::OutcomeUnknown(words.to_owned())));
        Heard::WrongServer
    }
}

/// The error that a script met. Redis before 7 wraps it:
/// `ERR Error running script (call to f_..): @user_script:9: -OOM command not allowed ...`.
pub fn cause<'a>(code: &'a str, detail: &'a str) -> (&'a str, &'a str) {
    let wrapped = detail.starts_with("Error running script").then(|| detail.rsplit_once(": -"));
    match wrapped.flatten().and_then(|(_, inner)| inner.split_once(' ')) {
        Some((inner, rest)) if inner.bytes().all(|byte| byte.is_ascii_uppercase()) => (inner, rest),
        _ => (code, detail),
    }
}

/// What a caller gets who was not granted a change of a stock that was then so much.
pub fn refusal(change: i64, stock: i64) -> Reply {
    if stock.checked_add(change).is_some() {
        return Reply::Insufficient { available: stock };
    }
    let reason = format!("would not fit 64 bits after a change of {change}");
    Reply::Invalid { value: stock.to_string().into_bytes(), reason }
}

/// A number in a script's answer.
pub fn parse<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}
