//! A script call: what the steps of many callers become when they ask the same of the same keys.
//!
//! It has an *identity*, the session and number that its outcome is recorded under, and keeps it wherever
//! it is asked again: on the next connection, or at another node of a cluster.
//!
//! Their changes are *runs*: a change, and how many callers in a row ask for it. What the server's
//! answer means for each caller is said here, too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::ServerError;

use crate::clock::{self, ServerClock};
use crate::error::{Error, is_passing};
use crate::names::{Name, place_key, side_key};
use crate::safety::Proof;
use crate::script::Script;
use crate::settings::Address;
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
    identity: Identity,
    /// Where in a cluster it has been.
    pub journey: Journey,
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
    /// What is done, but not as safe as its caller wants it.
    unsafe_yet: Vec<(Arc<Step>, Reply)>,
    /// Nothing that the server says of that is about this call, and why.
    beyond_proof: Option<&'static str>,
}

/// What the record of a call goes by, and whether there may be one.
#[derive(Debug)]
struct Identity {
    session: Arc<str>,
    /// The number that makes it exactly once.
    number: u64,
    first_sent: Option<Instant>,
    /// A connection broke while it was in flight: a copy may have been, or may yet be, applied.
    in_doubt: bool,
    /// Until when any copy of it may be applied.
    last: Option<Instant>,
}

/// Where in a cluster a call has been.
#[derive(Debug, Default)]
pub struct Journey {
    /// Another node has to be asked.
    pub astray: Option<Redirect>,
    /// How often that was so.
    pub hops: u32,
    /// The slot is on its way to the node that is asked, which has to be told that we know.
    asking: bool,
}

/// Where a node of a cluster sends us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Redirect {
    /// The slot is another node's.
    Moved(Address),
    /// The slot is on its way to another node, and the keys are there already.
    Ask(Address),
    /// The slot is on its way, and the keys are neither all here nor all there.
    Later,
}

/// What follows a primary that moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Follows {
    /// Nothing: there is one server.
    Nothing,
    /// Its name: the server has taken our writes, so another will, whom the name leads to soon.
    Name,
    /// The connection: it is made anew to whatever server the sentinels name.
    Connection,
    /// The calls: they go to the node that has their slot.
    Calls,
}

/// What a server's reply to a call says about the connection and the batch.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// The call is answered.
    Answer,
    /// The call is answered by its script, which has written something: this server takes writes.
    Written,
    /// The call was not run and may be sent again at once (NOSCRIPT).
    Again,
    /// The call was not run; the server will be ready later (LOADING, ...).
    NotNow(String),
    /// The call is answered, and the connection of no more use: to a server that does not take writes,
    /// or one that talks nonsense.
    WrongServer,
    /// The call was not run; it is for another node.
    Astray,
    /// The call was not run, and will not be on this connection: the server is the primary no more, or
    /// does not know us any more.
    Demoted(String),
}

impl ScriptCall {
    /// A call for one step.
    pub fn new(session: &Arc<str>, number: u64, step: Arc<Step>) -> Self {
        let script = match step.ask {
            Ask::Update { .. } | Ask::Incr { .. } => Script::Stock,
            Ask::Acquire { .. } => Script::Acquire,
            Ask::Release { .. } => Script::Release,
            Ask::Extend { .. } => Script::Extend,
            Ask::Holder { .. } => Script::Holder,
        };
        let runs = change_of(&step.ask).map(|change| (change, 1)).into_iter().collect();
        Self {
            identity: Identity {
                session: Arc::clone(session),
                number,
                first_sent: None,
                in_doubt: false,
                last: None,
            },
            journey: Journey::default(),
            script,
            steps: vec![step],
            runs,
            full: false,
            spell_out: false,
            answered: false,
            unsafe_yet: Vec::new(),
            beyond_proof: None,
        }
    }

    /// The key that says where in a cluster it has to be asked.
    pub fn name(&self) -> &Name {
        self.steps[0].ask.recorded_under()
    }

    /// Whether this node is still to answer it.
    pub fn is_open(&self) -> bool {
        !self.answered && self.journey.astray.is_none()
    }

    /// Whether it may have been done, for all we know.
    pub fn is_in_doubt(&self) -> bool {
        self.identity.in_doubt
    }

    /// A connection broke while it was in flight. What was done is safe only if it is there when it is
    /// asked for again.
    pub fn doubt(&mut self) {
        self.identity.in_doubt = true;
        self.unsafe_yet.clear();
        self.beyond_proof = None;
    }

    /// It is sent, and must not be applied after this.
    pub fn ends_by(&mut self, limit: Instant) {
        self.identity.last = self.identity.last.max(Some(limit));
    }

    /// Until when a copy that nobody will hear of may be applied.
    pub fn doubtful_until(&self) -> Option<Instant> {
        self.identity.last.filter(|_| self.identity.in_doubt)
    }

    /// The server has told it again and could write nothing for WAIT to be about.
    pub fn beyond_proof(&mut self) {
        self.beyond_proof = Some("the server takes no writes just now");
    }

    /// When it was first sent, which may be now.
    pub fn first_sent(&mut self, now: Instant) -> Instant {
        *self.identity.first_sent.get_or_insert(now)
    }

    /// Whether it was first sent so long ago that the server may have forgotten the outcome.
    pub fn is_overdue(&self, now: Instant) -> bool {
        self.identity.first_sent.is_some_and(|first| first + RECORD_LIFE <= now)
    }

    /// Prepares to be asked at another node.
    pub fn go_on(&mut self) {
        self.journey.hops += 1;
        self.journey.asking = matches!(self.journey.astray.take(), Some(Redirect::Ask(_)));
        // Another node may not know the script.
        self.spell_out = false;
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

    /// Packs the call as a command. True when there is a reply to come before its own.
    pub fn pack(&self, deadline: &[u8], clock: &ServerClock, out: &mut Vec<u8>) -> bool {
        if self.journey.asking {
            redis::cmd("ASKING").write_packed_command(out);
        }
        let source = self.script.source();
        let life = RECORD_LIFE.as_millis().to_string();
        let mut command = redis::cmd(if self.spell_out { "EVAL" } else { "EVALSHA" });
        command.arg(if self.spell_out { source.text } else { &source.hash });
        let ask = &self.steps[0].ask;
        let record = side_key(&self.identity.session, ask.recorded_under());
        let mut keys = |names: &[&[u8]]| {
            command.arg(names.len() + 1).arg(&record);
            for name in names {
                command.arg(*name);
            }
            command.arg(self.identity.number).arg(deadline).arg(&life);
        };
        match ask {
            Ask::Update { lock, key, right, .. } => {
                if *right == Right::Elsewhere {
                    keys(&[key]);
                } else {
                    keys(&[key, lock]);
                }
                match right {
                    Right::Elsewhere => command.arg("").arg("1"),
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
        self.journey.asking
    }

    /// Whether a caller has his answer.
    pub fn has_told_somebody(&self) -> bool {
        self.answered || !self.unsafe_yet.is_empty() && self.unsafe_yet.len() < self.steps.len()
    }

    /// Whether anybody still waits for its answer.
    pub fn wanted(&self) -> bool {
        !self.answered && self.steps.iter().any(|step| step.wanted())
    }

    /// All of its steps get the same reply.
    pub fn finish(&mut self, reply: &Reply) {
        for step in &self.steps {
            tell(&mut self.unsafe_yet, step, reply.clone());
        }
        self.answered = self.unsafe_yet.is_empty();
    }

    /// The server has said how safe everything is that was in flight. What is not safe, and was `cut_short`,
    /// is asked about again.
    pub fn proved(&mut self, proof: &Proof, cut_short: impl Fn(&Step) -> bool) {
        if self.unsafe_yet.is_empty() {
            return;
        }
        self.answered = true;
        let nothing = self.beyond_proof.take().map(Proof::of_nothing);
        let proof = nothing.as_ref().unwrap_or(proof);
        for (step, reply) in self.unsafe_yet.drain(..) {
            match proof.judge(step.safety) {
                Ok(()) => step.finish(reply),
                Err(_) if cut_short(&step) => self.answered = false,
                Err(short) => step.finish(Reply::Failed(short)),
            }
        }
    }
}

/// Hands out a reply; later, if it tells of a change that has to be safe first.
fn tell(unsafe_yet: &mut Vec<(Arc<Step>, Reply)>, step: &Arc<Step>, reply: Reply) {
    let change = matches!(reply, Reply::Changed | Reply::Acquired { .. } | Reply::Extended(_));
    if change && step.safety.is_wanted() {
        unsafe_yet.push((Arc::clone(step), reply));
    } else {
        step.finish(reply);
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
                let reply = if index < granted { Reply::Changed } else { refusal(change, stock) };
                tell(&mut self.unsafe_yet, step, reply);
            }
        }
        self.answered = self.unsafe_yet.is_empty();
        true
    }

    /// The server says an error instead of running the call.
    pub fn refused(&mut self, error: &ServerError, follows: Follows) -> Heard {
        let (code, detail) = cause(error.code(), error.details().unwrap_or_default());
        if code == "NOSCRIPT" {
            self.spell_out = true;
            return Heard::Again;
        }
        if follows == Follows::Calls
            && let Some(redirect) = redirect(code, detail)
        {
            self.journey.astray = Some(redirect);
            return Heard::Astray;
        }
        if is_passing(code) {
            return Heard::NotNow(format!("{code} {detail}"));
        }
        let detail = match code {
            "MOVED" | "ASK" | "CROSSSLOT" => {
                &*format!("{detail} (a node of a cluster: redis+cluster:// finds the others)")
            }
            _ => detail,
        };
        let wrong = code == "READONLY";
        // What the former primary says when its replicas have left it for another.
        let left = code == "NOREPLICAS" && matches!(follows, Follows::Connection | Follows::Calls);
        let elsewhere = left || wrong && follows != Follows::Nothing;
        // An earlier copy may still be under way, and nobody is told as long as it may be applied.
        let doubtful = self.doubtful_until().is_some_and(|last| clock::now() <= last);
        if is_outside(code, detail) || elsewhere || wrong && doubtful {
            return Heard::Demoted(format!("{code} {detail}"));
        }
        if doubtful {
            return Heard::NotNow(format!("{code} {detail}"));
        }
        // The server that refuses now may have applied it.
        self.finish(&Reply::Failed(if self.identity.in_doubt {
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

/// Whether the server says that this connection was not let in, or is not any more; on the next one user
/// and password are told anew. It does not even read all that such a one has to say:
/// `ERR Protocol error: unauthenticated multibulk length`.
fn is_outside(code: &str, detail: &str) -> bool {
    code == "NOAUTH" || detail.starts_with("Protocol error: unauthenticated")
}

/// Where an error of a cluster's node sends us: `MOVED 3999 127.0.0.1:6381`, `ASK ...`, `TRYAGAIN`.
pub fn redirect(code: &str, detail: &str) -> Option<Redirect> {
    let address = || {
        let (host, port) = detail.split_once(' ')?.1.rsplit_once(':')?;
        // Without a name, as after `:`, it is the host that says so.
        Some(Address::Tcp(host.to_owned(), port.parse().ok()?))
    };
    match code {
        "MOVED" => address().map(Redirect::Moved),
        "ASK" => address().map(Redirect::Ask),
        "TRYAGAIN" => Some(Redirect::Later),
        _ => None,
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
