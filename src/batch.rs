//! A batch: the steps of callers that arrived together, as script calls, and what the server's
//! answers mean for each of them.
//!
//! Steps that ask the same of the same keys become one call (`script_call`). A batch holds at most one call for each record, for a
//! second one would overwrite an outcome that may still have to be told.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{ServerError, Value};

use crate::clock::ServerClock;
use crate::error::Error;
use crate::names::Name;
use crate::safety::{About, Proof, Safety};
use crate::script_call::{Follows, Heard, ScriptCall, parse};
use crate::step::{Reply, Step};

/// How long after its first sending a batch may be applied. Far enough below [`RECORD_LIFE`] that a
/// batch which finds no record has not been applied by an earlier copy.
pub const APPLY_WINDOW: Duration = Duration::from_mins(5);

/// What one batch may hold, so that a server is never busy with it for more than a few milliseconds.
const MOST_CALLS: usize = 128;
const MOST_STEPS: usize = 8192;

/// The part of the time that a caller has left in which the server may find out how safe it all is: the
/// answer has to be on its way before the caller goes.
const FOR_SAFETY: f64 = 0.9;

/// Calls that travel together.
#[derive(Debug)]
pub struct Batch {
    calls: Vec<ScriptCall>,
}

/// What a reply on the connection belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// The call with this index.
    Call(usize),
    /// None: it says that ASKING was heard.
    Asking,
    /// All of them: it says how safe they are.
    Safety(About),
}

/// Who has less than this left has none.
const LEAST_FOR_SAFETY: Duration = Duration::from_millis(5);

/// How long the server may take to say how safe a step is.
fn time_for_safety(step: &Step, now: Instant, patience: Duration) -> Duration {
    let left = step.limit(patience).saturating_duration_since(now);
    left.mul_f64(FOR_SAFETY).min(patience)
}

/// What was packed.
pub struct Packed {
    /// The replies that are to come.
    pub expected: VecDeque<Expected>,
    /// When.
    pub sent: Instant,
    /// How long an answer may take.
    patience: Duration,
    /// How long the server may take to say how safe it all is, by each of so many questions.
    given: Duration,
    questions: u32,
}

impl Packed {
    /// When the answers that are still to come have to be there: first to the calls, then of their proof.
    pub fn end(&self) -> Instant {
        let calls = self.expected.iter().any(|it| !matches!(it, Expected::Safety(_)));
        let proof = if calls { Duration::ZERO } else { self.given * self.questions };
        self.sent + self.patience + proof
    }

    /// How many calls it holds.
    pub fn calls(&self) -> usize {
        self.expected.iter().filter(|it| matches!(it, Expected::Call(_))).count()
    }
}

/// A reply, and when it came to what was asked when.
pub struct Heeded {
    /// What the server says.
    pub reply: Value,
    /// When it was asked.
    pub sent: Instant,
    /// When the reply was there.
    pub received: Instant,
}

impl Batch {
    /// Takes from `backlog`, which is in order of arrival, what can travel together as calls of a
    /// session under its next number; `guests` come along as they are.
    ///
    /// Who has left, or is about to because its time is over, is not taken along. Who finds no room
    /// keeps its place; and no more than a batch's worth of those are looked at, so that a backlog of
    /// any length costs no more than that.
    pub fn gather(
        session: &Arc<str>,
        number: u64,
        mut guests: Vec<ScriptCall>,
        backlog: &mut VecDeque<Arc<Step>>,
        now: Instant,
    ) -> Self {
        let in_time = |step: &Arc<Step>| step.wanted() && step.deadline > now;
        let new = |step| ScriptCall::new(session, number, step);
        guests.retain(ScriptCall::wanted);
        let first = guests.len();
        let mut calls = guests;
        if backlog.len() == 1 {
            calls.extend(backlog.pop_front().filter(in_time).map(new));
            return Self { calls };
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
            // It would make all others late.
            if step.is_past_right(now) {
                step.finish(Reply::Late);
                continue;
            }
            // A crowd asks the same: most steps go where the last one went.
            let tried = match calls.get_mut(last) {
                Some(call) => call.join(step),
                None => Err(step),
            };
            let joined = tried.or_else(|step| {
                let record = step.ask.recorded_under();
                if let Some(&index) = by_record.get(record) {
                    if index == last {
                        return Err(step);
                    }
                    last = index;
                    return calls[index].join(step);
                }
                if calls.len() - first >= MOST_CALLS {
                    return Err(step);
                }
                last = calls.len();
                by_record.insert(Arc::clone(record), last);
                calls.push(new(step));
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
        Self { calls }
    }

    /// Whether anybody still waits for an answer of this batch.
    pub fn wanted(&self) -> bool {
        self.calls.iter().any(ScriptCall::wanted)
    }

    /// Whether this node has nothing more to say to any of its calls.
    pub fn answered(&self) -> bool {
        !self.calls.iter().any(ScriptCall::is_open)
    }

    /// How many calls it holds.
    pub fn calls(&self) -> usize {
        self.calls.len()
    }

    /// How many steps it holds that are not for another node.
    pub fn steps(&self) -> usize {
        let here = self.calls.iter().filter(|call| call.journey.astray.is_none());
        here.map(|call| call.steps.len()).sum()
    }

    /// Somebody who waits for an answer of this batch.
    pub fn somebody(&self) -> Option<&Arc<Step>> {
        let open = self.calls.iter().filter(|call| !call.answered);
        open.flat_map(|call| &call.steps).find(|step| step.wanted())
    }

    /// A connection broke while the calls without an answer were in flight.
    pub fn doubt(&mut self) {
        self.calls.iter_mut().filter(|call| call.is_open()).for_each(ScriptCall::doubt);
    }

    /// Until when a copy of any of them may be applied that nobody will hear of.
    pub fn doubtful_until(&self) -> Option<Instant> {
        let open = self.calls.iter().filter(|call| call.is_open());
        open.filter_map(ScriptCall::doubtful_until).max()
    }

    /// Takes out the calls without an answer that are not for this node, as `here` says of a name.
    pub fn evict(&mut self, here: impl Fn(&Name) -> bool) -> Vec<ScriptCall> {
        let gone = |call: &mut ScriptCall| {
            !call.answered && (call.journey.astray.is_some() || !here(call.name()))
        };
        self.calls.extract_if(.., gone).collect()
    }

    /// Packs the calls that have no answer yet, and says which replies are to come.
    ///
    /// The deadline is that of the earliest caller, but no later than the answer is waited for: what
    /// is asked again carries a new one, and a caller who is interrupted leaves little behind.
    pub fn pack(
        &mut self,
        now: Instant,
        patience: Duration,
        clock: &ServerClock,
        out: &mut Vec<u8>,
    ) -> Packed {
        let mut first = now;
        for call in self.calls.iter_mut().filter(|call| call.is_open()) {
            first = first.min(call.first_sent(now));
            call.mark_sent();
        }
        // Also of the callers that have left: what they raised on must not happen later.
        let open = self.calls.iter().filter(|call| call.is_open());
        let steps = open.flat_map(|call| &call.steps);
        let earliest = steps.map(|step| step.applied_by(patience)).min().unwrap_or(now);
        let limit = earliest.min(now + patience).min(first + APPLY_WINDOW);
        let deadline = clock.at(limit).to_string();
        self.calls.iter_mut().filter(|call| call.is_open()).for_each(|call| call.ends_by(limit));
        let mut expected = VecDeque::with_capacity(self.calls.len());
        for (index, call) in self.calls.iter().enumerate().filter(|(_, call)| call.is_open()) {
            if call.pack(deadline.as_bytes(), clock, out) {
                expected.push_back(Expected::Asking);
            }
            expected.push_back(Expected::Call(index));
        }
        let open = self.calls.iter().filter(|call| call.is_open());
        let careful = open.flat_map(|call| &call.steps);
        let careful = careful.filter(|step| step.wanted() && step.safety.is_wanted());
        let (mut safety, mut given) = (Safety::default(), patience);
        for step in careful {
            safety = safety.and(step.safety);
            let time = time_for_safety(step, now, patience);
            // Whose time is over does not cut the others short.
            if time >= LEAST_FOR_SAFETY {
                given = given.min(time);
            }
        }
        let calls = expected.len();
        expected.extend(safety.pack(given, out).into_iter().map(Expected::Safety));
        let questions = u32::try_from(expected.len() - calls).unwrap_or(0);
        Packed { expected, sent: now, patience, given, questions }
    }

    /// Whether a caller has an answer, while others wait for a proof.
    pub fn has_told_somebody(&self) -> bool {
        self.calls.iter().any(ScriptCall::has_told_somebody)
    }

    /// The server has said how safe all is that was in flight. Who has had less time for that than his own
    /// gives, for another's sake, is asked about again.
    pub fn proved(&mut self, proof: &Proof, flight: &Packed) {
        let Packed { sent, patience, given, .. } = flight;
        let cut_short = |step: &Step| *given < time_for_safety(step, *sent, *patience);
        self.calls.iter_mut().for_each(|call| call.proved(proof, cut_short));
    }

    /// ASKING was refused, so the call `index` will be: it is not sent to and fro.
    pub fn not_let_in(&mut self, index: usize, error: &ServerError) {
        self.calls[index].refused(error, Follows::Nothing);
    }

    /// Takes in the reply to the call `index`; `late` collects the steps
    /// that were refused only because the batch came too late.
    pub fn hear(
        &mut self,
        index: usize,
        heeded: Heeded,
        clock: &mut ServerClock,
        follows: Follows,
        late: &mut Vec<Arc<Step>>,
    ) -> Heard {
        let Heeded { reply, sent, received } = heeded;
        let call = &mut self.calls[index];
        if call.answered {
            return Heard::Answer;
        }
        let overdue = call.is_overdue(received);
        let text = match reply {
            Value::BulkString(text) => text,
            Value::ServerError(error) => {
                let heard = call.refused(&error, follows);
                if !call.answered && !call.is_in_doubt() {
                    call.steps.iter().for_each(|step| step.mark_not_run());
                }
                return heard;
            }
            _ => return call.senseless(),
        };
        let Some((now, answer)) = stamped(&text) else { return call.senseless() };
        clock.hear(now, sent, received);
        let untouched = answer.strip_prefix(b"? ");
        if untouched.is_some() {
            call.beyond_proof();
        }
        let answer = untouched.unwrap_or(answer);
        // Not so the one who holds a lock, or that it was not there to be released.
        let written =
            untouched.is_none() && matches!(answer.first(), Some(b'A' | b'C' | b'E' | b'R'));
        match answer.split_first() {
            Some((b'L' | b'S', _)) if overdue => {
                let words = "no answer came for so long that the server has forgotten the outcome";
                call.finish(&Reply::Failed(Error::OutcomeUnknown(words.to_owned())));
            }
            Some((b'L', _)) => {
                call.answered = true;
                for step in call.steps.drain(..) {
                    step.mark_not_run();
                    // However long its caller stays, it would be too late again.
                    if step.is_past_right(received) {
                        step.finish(Reply::Late);
                    } else {
                        late.push(step);
                    }
                }
            }
            // A later batch of this session was there before: nobody but us gives out its numbers.
            Some((b'S', _)) => {
                let words = "another process seems to use this session";
                call.finish(&Reply::Failed(Error::OutcomeUnknown(words.to_owned())));
            }
            _ if call.answer(answer, received) => {}
            _ => return call.senseless(),
        }
        if written { Heard::Written } else { Heard::Answer }
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

#[cfg(test)]
mod tests;
