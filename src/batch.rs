//! A batch: the steps of callers that arrived together, as script calls, and what the server's
//! answers mean for each of them.
//!
//! Steps that ask the same of the same keys become one call, with their changes as *runs*: a change
//! and how many callers in a row ask for it. A batch holds at most one call for each record, for a
//! second one would overwrite an outcome that may still have to be told.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{ServerError, Value};

use crate::clock::ServerClock;
use crate::error::{Error, is_passing};
use crate::names::{Name, record_key};
use crate::script::Script;
use crate::step::{Ask, Reply, Step};

/// How long a record lives after its batch: more than anybody asks for it.
pub const RECORD_LIFE: Duration = Duration::from_mins(10);

/// How long after its first sending a batch may be applied. Far enough below [`RECORD_LIFE`] that a
/// batch which finds no record has not been applied by an earlier copy.
pub const APPLY_WINDOW: Duration = Duration::from_mins(5);

/// What one batch may hold, so that a server is never busy with it for more than a few milliseconds.
const MOST_CALLS: usize = 128;
const MOST_RUNS: usize = 1024;
const MOST_STEPS: usize = 8192;

/// A script call for one or many steps.
#[derive(Debug)]
pub struct Call {
    script: Script,
    /// The steps, in order of arrival.
    steps: Vec<Arc<Step>>,
    runs: Vec<(i64, usize)>,
    /// A step was turned away for want of room.
    full: bool,
    /// The server does not know the script: send its text.
    spell_out: bool,
    answered: bool,
}

/// Calls that travel together under one number of the session.
#[derive(Debug)]
pub struct Batch {
    /// The number that makes it exactly once.
    pub number: u64,
    /// When it was first sent.
    pub first_sent: Option<Instant>,
    /// A connection broke while it was in flight: a copy may have been, or may yet be, applied.
    pub in_doubt: bool,
    calls: Vec<Call>,
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

impl Call {
    fn new(step: Arc<Step>) -> Self {
        let script = match step.ask {
            Ask::Update { .. } | Ask::Incr { .. } => Script::Stock,
            Ask::Acquire { .. } => Script::Acquire,
            Ask::Release { .. } => Script::Release,
        };
        let runs = change_of(&step.ask).map(|change| (change, 1)).into_iter().collect();
        Self { script, steps: vec![step], runs, full: false, spell_out: false, answered: false }
    }

    /// Takes a step in, if it asks the same of the same keys; else it comes back.
    fn join(&mut self, step: Arc<Step>) -> Result<(), Arc<Step>> {
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

    /// The call is about to be sent. Steps whose callers have left are not sent, unless the server may
    /// have run the call before: then it is to be asked for as it was.
    fn mark_sent(&mut self, in_doubt: bool) {
        let before = self.steps.len();
        self.steps.retain(|step| step.mark_sent() || in_doubt);
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

    fn pack(&self, batch: &[u8], deadline: &[u8], session: &str, out: &mut Vec<u8>) {
        let source = self.script.source();
        let life = RECORD_LIFE.as_millis().to_string();
        let mut command = redis::cmd(if self.spell_out { "EVAL" } else { "EVALSHA" });
        command.arg(if self.spell_out { source.text } else { &source.hash });
        let ask = &self.steps[0].ask;
        let record = record_key(session, recorded_under(ask));
        let mut keys = |names: &[&[u8]]| {
            command.arg(names.len() + 1).arg(&record);
            for name in names {
                command.arg(*name);
            }
            command.arg(batch).arg(deadline).arg(&life);
        };
        match ask {
            Ask::Update { lock, key, token, .. } => {
                keys(&[key, lock]);
                command.arg(token.as_ref().map_or(&b""[..], |token| &token[..]));
            }
            Ask::Incr { key, .. } => {
                keys(&[key]);
                command.arg("");
            }
            Ask::Acquire { lock, token, lease } => {
                keys(&[lock]);
                command.arg(&token[..]).arg(*lease);
            }
            Ask::Release { lock, token } => {
                keys(&[lock]);
                command.arg(&token[..]);
            }
        }
        for (change, count) in &self.runs {
            command.arg(*change).arg(*count);
        }
        command.write_packed_command(out);
    }

    fn wanted(&self) -> bool {
        !self.answered && self.steps.iter().any(|step| step.wanted())
    }

    fn finish(&mut self, reply: &Reply) {
        self.answered = true;
        for step in &self.steps {
            step.finish(reply.clone());
        }
    }
}

/// Whether two steps differ in nothing but the change.
fn asks_the_same(one: &Ask, other: &Ask) -> bool {
    match (one, other) {
        (
            Ask::Update { lock, key, token, .. },
            Ask::Update { lock: other_lock, key: other_key, token: other_token, .. },
        ) => key == other_key && lock == other_lock && token == other_token,
        (Ask::Incr { key, .. }, Ask::Incr { key: other_key, .. }) => key == other_key,
        _ => false,
    }
}

fn change_of(ask: &Ask) -> Option<i64> {
    match ask {
        Ask::Update { change, .. } | Ask::Incr { change, .. } => Some(*change),
        Ask::Acquire { .. } | Ask::Release { .. } => None,
    }
}

/// The name in whose slot, and under which, the outcome is recorded.
fn recorded_under(ask: &Ask) -> &Name {
    match ask {
        Ask::Update { key, .. } | Ask::Incr { key, .. } => key,
        Ask::Acquire { lock, .. } | Ask::Release { lock, .. } => lock,
    }
}

impl Batch {
    /// Takes from `backlog`, which is in order of arrival, what can travel together.
    ///
    /// Who has left, or is about to because its time is over, is not taken along. Who finds no room
    /// keeps its place; and no more than a batch's worth of those are looked at, so that a backlog of
    /// any length costs no more than that.
    pub fn gather(number: u64, backlog: &mut VecDeque<Arc<Step>>, now: Instant) -> Self {
        let in_time = |step: &Arc<Step>| step.wanted() && step.deadline > now;
        let mut calls: Vec<Call> = Vec::new();
        if backlog.len() == 1 {
            calls.extend(backlog.pop_front().filter(in_time).map(Call::new));
            return Self { number, first_sent: None, in_doubt: false, calls };
        }
        let mut by_record: HashMap<Name, usize> = HashMap::new();
        let mut passed_over = Vec::new();
        let (mut last, mut taken) = (usize::MAX, 0);
        while taken < MOST_STEPS
            && passed_over.len() < MOST_STEPS
            && let Some(step) = backlog.pop_front()
        {
            if !in_time(&step) {
                continue;
            }
            // A crowd asks the same: most steps go where the last one went.
            let tried = match calls.get_mut(last) {
                Some(call) => call.join(step),
                None => Err(step),
            };
            let joined = tried.or_else(|step| {
                let record = recorded_under(&step.ask);
                if let Some(&index) = by_record.get(record) {
                    if index == last {
                        return Err(step);
                    }
                    last = index;
                    return calls[index].join(step);
                }
                if calls.len() == MOST_CALLS {
                    return Err(step);
                }
                last = calls.len();
                by_record.insert(Arc::clone(record), last);
                calls.push(Call::new(step));
                Ok(())
            });
            match joined {
                Ok(()) => taken += 1,
                Err(step) => passed_over.push(step),
            }
        }
        for step in passed_over.into_iter().rev() {
            backlog.push_front(step);
        }
        Self { number, first_sent: None, in_doubt: false, calls }
    }

    /// Whether anybody still waits for an answer of this batch.
    pub fn wanted(&self) -> bool {
        self.calls.iter().any(Call::wanted)
    }

    /// Whether all calls are answered.
    pub fn answered(&self) -> bool {
        self.calls.iter().all(|call| call.answered)
    }

    /// How many calls it holds.
    pub fn calls(&self) -> usize {
        self.calls.len()
    }

    /// How many steps it holds.
    pub fn steps(&self) -> usize {
        self.calls.iter().map(|call| call.steps.len()).sum()
    }

    /// Somebody who waits for an answer of this batch.
    pub fn somebody(&self) -> Option<&Arc<Step>> {
        let open = self.calls.iter().filter(|call| !call.answered);
        open.flat_map(|call| &call.steps).find(|step| step.wanted())
    }

    /// Packs the calls that have no answer yet, and says which they are.
    ///
    /// The deadline is that of the earliest caller, but no later than the answer is waited for: what
    /// is asked again carries a new one, and a caller who is interrupted leaves little behind.
    pub fn pack(
        &mut self,
        now: Instant,
        patience: Duration,
        session: &str,
        clock: &ServerClock,
        out: &mut Vec<u8>,
    ) -> Vec<usize> {
        let first = *self.first_sent.get_or_insert(now);
        for call in self.calls.iter_mut().filter(|call| !call.answered) {
            call.mark_sent(self.in_doubt);
        }
        // Also of the callers that have left: what they raised on must not happen later.
        let open = self.calls.iter().filter(|call| !call.answered);
        let steps = open.flat_map(|call| &call.steps);
        let earliest = steps.map(|step| step.limit(patience)).min().unwrap_or(now);
        let deadline = clock.at(earliest.min(now + patience).min(first + APPLY_WINDOW)).to_string();
        let number = self.number.to_string();
        let mut sent = Vec::with_capacity(self.calls.len());
        for (index, call) in self.calls.iter().enumerate().filter(|(_, call)| !call.answered) {
            call.pack(number.as_bytes(), deadline.as_bytes(), session, out);
            sent.push(index);
        }
        sent
    }

    /// Takes in the reply to the call `index`, which came at `received`; `late` collects the steps
    /// that were refused only because the batch came too late.
    pub fn hear(
        &mut self,
        index: usize,
        reply: Value,
        sent: Instant,
        received: Instant,
        clock: &mut ServerClock,
        late: &mut Vec<Arc<Step>>,
    ) -> Heard {
        let overdue = self.first_sent.is_some_and(|first| first + RECORD_LIFE <= received);
        let call = &mut self.calls[index];
        let text = match reply {
            Value::BulkString(text) => text,
            Value::ServerError(error) => {
                let heard = call.refused(&error, self.in_doubt);
                if !call.answered && !self.in_doubt {
                    call.steps.iter().for_each(|step| step.mark_not_run());
                }
                return heard;
            }
            _ => return call.senseless(),
        };
        let Some((now, answer)) = stamped(&text) else { return call.senseless() };
        clock.hear(now, sent, received);
        match answer.split_first() {
            Some((b'L' | b'S', _)) if overdue => {
                let words = "no answer came for so long that the server has forgotten the outcome";
                call.finish(&Reply::Failed(Error::OutcomeUnknown(words.to_owned())));
            }
            Some((b'L', _)) => {
                call.answered = true;
                call.steps.iter().for_each(|step| step.mark_not_run());
                late.append(&mut call.steps);
            }
            // A later batch of this session was there before: nobody but us gives out its numbers.
            Some((b'S', _)) => {
                let words = "another process seems to use this session";
                call.finish(&Reply::Failed(Error::OutcomeUnknown(words.to_owned())));
            }
            _ if call.answer(answer, received) => call.answered = true,
            _ => return call.senseless(),
        }
        Heard::Answer
    }

    /// Every caller of the batch learns that there will be no answer, and why.
    pub fn fail(&mut self, error: &Error) {
        for call in self.calls.iter_mut().filter(|call| !call.answered) {
            call.answered = true;
            for step in &call.steps {
                step.fail(error);
            }
        }
    }
}

/// Splits `<seconds> <microseconds> <answer>` into the time in microseconds and the answer.
fn stamped(text: &[u8]) -> Option<(i64, &[u8])> {
    let mut parts = text.splitn(3, |&byte| byte == b' ');
    let (seconds, micros): (i64, i64) = (parse(parts.next()?)?, parse(parts.next()?)?);
    Some((seconds.checked_mul(1_000_000)?.checked_add(micros)?, parts.next()?))
}

fn parse<T: std::str::FromStr>(text: &[u8]) -> Option<T> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

impl Call {
    /// Gives each step its part of a script's answer. False when the answer makes no sense.
    fn answer(&mut self, answer: &[u8], received: Instant) -> bool {
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
            (b'A', Script::Acquire) => Reply::Acquired,
            (b'R', Script::Release) => Reply::Released,
            (b'F', Script::Release) => Reply::Foreign,
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

    fn refused(&mut self, error: &ServerError, in_doubt: bool) -> Heard {
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

    fn senseless(&mut self) -> Heard {
        let words = "the server's answer makes no sense; is it a Redis or Valkey server?";
        self.finish(&Reply::Failed(Error::OutcomeUnknown(words.to_owned())));
        Heard::WrongServer
    }
}

/// The error that a script met. Redis before 7 wraps it:
/// `ERR Error running script (call to f_..): @user_script:9: -OOM command not allowed ...`.
fn cause<'a>(code: &'a str, detail: &'a str) -> (&'a str, &'a str) {
    let wrapped = detail.starts_with("Error running script").then(|| detail.rsplit_once(": -"));
    match wrapped.flatten().and_then(|(_, inner)| inner.split_once(' ')) {
        Some((inner, rest)) if inner.bytes().all(|byte| byte.is_ascii_uppercase()) => (inner, rest),
        _ => (code, detail),
    }
}

fn refusal(change: i64, stock: i64) -> Reply {
    if stock.checked_add(change).is_some() {
        return Reply::Insufficient { available: stock };
    }
    let reason = format!("would not fit 64 bits after a change of {change}");
    Reply::Invalid { value: stock.to_string().into_bytes(), reason }
}

#[cfg(test)]
mod tests;
