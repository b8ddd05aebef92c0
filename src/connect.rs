//! Opening a connection: the name, the socket, the handshake; one deadline over all of it.
//!
//! A state machine that is moved on in slices, so that whoever opens a connection can look after
//! signals meanwhile:
//!
//! | stage | what it waits for | then |
//! |---|---|---|
//! | `Searching` | sentinels to say where the primary is, if they are asked | `Resolving`, `Connecting` |
//! | `Resolving` | a helper thread's `getaddrinfo`, which nothing can interrupt | `Connecting` |
//! | `Connecting` | a socket to connect, to one address after the other | `Securing` |
//! | `Securing` | the server to agree on TLS, if it is wanted | `Asking`, or `Greeting` |
//! | `Asking` | who knows user and password, if somebody has to be asked | `Greeting` |
//! | `Greeting` | the replies to the handshake | a [`Wire`], ready, and the server's clock |
//!
//! The handshake is `HELLO 3` with the credentials; a server that does not know it is greeted again
//! with `AUTH`, in RESP2.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use redis::Value;
use socket2::SockAddr;

use crate::candidates::{Candidate, Candidates};
use crate::clock::{self, ServerClock};
use crate::dial::Dialing;
use crate::error::{Error, is_passing};
use crate::inherited::OpenFd;
use crate::login::{Login, Told};
use crate::resolve::{Found, resolve};
use crate::sentinel::Search;
use crate::settings::{Address, Place, Settings};
use crate::tls::{Failure, Secured, Tls};
use crate::transport::{Line, Wire};

/// Why a connection could not be opened.
#[derive(Debug)]
pub enum Trouble {
    /// Nobody there: refused, unknown, silent, broken. Worth another try if somebody was there before.
    Unreachable(String),
    /// A server that will be ready later.
    NotReady(String),
    /// The server answered, and will not have us.
    Refused(Error),
}

/// A connection that is ready for use.
pub struct Opened {
    /// The connection.
    pub wire: Wire,
    /// What is known of the server's clock.
    pub clock: ServerClock,
    /// Whether the server will tell of changes to what was read here (asked for with `listen`).
    pub listening: bool,
    /// As whom the sentinels named it, if they were asked.
    pub primary: Option<Candidate>,
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To ask for changes: the server's clock is learnt.
    Work,
    /// To be told of changes, too (CLIENT TRACKING).
    Listen,
    /// To ask a sentinel, which has no clock, no data and no use for our name.
    Inquire,
}

/// A connection that is being opened.
pub struct Opening {
    settings: Arc<Settings>,
    open: Arc<OpenFd>,
    purpose: Purpose,
    end: Instant,
    began: Instant,
    /// Where to; not known while it is searched for.
    address: Option<Address>,
    /// Whom the sentinels name, once they have been asked.
    candidates: Option<Box<Candidates>>,
    stage: Stage,
}

enum Stage {
    /// The settings cannot be connected to, and why.
    Impossible(String),
    Searching(Search),
    Resolving(Receiver<Found>),
    Connecting(Dialing),
    Securing(Wire),
    Asking(Wire, Receiver<Told>),
    Greeting(Greeting),
}

struct Greeting {
    wire: Wire,
    login: Option<Login>,
    expected: VecDeque<Expect>,
    clock: Option<ServerClock>,
    purpose: Purpose,
    said: Said,
    resp2: bool,
    tcp: bool,
}

/// What a server has said of itself.
#[derive(Default)]
struct Said {
    /// It will tell of changes.
    listening: bool,
    /// It is a primary.
    primary: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Hello,
    Auth,
    Ignored,
    Select,
    Tracking,
    Time,
    Role,
}

impl Opening {
    /// Begins to open a connection.
    pub fn begin(settings: &Arc<Settings>, open: &Arc<OpenFd>, purpose: Purpose) -> Self {
        let mut opening = Self {
            settings: Arc::clone(settings),
            open: Arc::clone(open),
            purpose,
            began: clock::now(),
            end: clock::now() + limit(settings),
            address: None,
            candidates: None,
            stage: Stage::Impossible("there is no address".to_owned()),
        };
        match &settings.place {
            Place::Server(address) => opening.go_to(address.clone()),
            Place::Sentinel(service) => {
                let tls = service.tls.clone();
                let search = Search::begin(settings, service, tls.as_ref());
                opening.stage = Stage::Searching(search);
            }
            // Who looks at a cluster, and does not sell on it, is content with any node.
            Place::Cluster(nodes) => {
                if let Some(first) = nodes.first() {
                    opening.go_to(first.clone());
                }
            }
        }
        opening
    }

    fn go_to(&mut self, address: Address) {
        self.leave();
        let end = self.end;
        let dialing = |address: SockAddr| Stage::Connecting(Dialing::new([address], end));
        self.stage = match &address {
            Address::Unix(path) => match SockAddr::unix(path) {
                Ok(address) => dialing(address),
                Err(error) => Stage::Impossible(error.to_string()),
            },
            Address::Tcp(host, port) => match host.parse::<IpAddr>() {
                Ok(ip) => dialing(SocketAddr::new(ip, *port).into()),
                Err(_) => Stage::Resolving(resolve(host.clone(), *port)),
            },
        };
        self.address = Some(address);
    }

    /// Moves on. `None` when `until` is over first.
    pub fn advance(&mut self, until: Instant) -> Result<Option<Opened>, Trouble> {
        loop {
            let slice = until.min(self.end);
            let moved = match &mut self.stage {
                Stage::Impossible(why) => Err(Trouble::Unreachable(std::mem::take(why))),
                Stage::Searching(search) => match search.advance(slice) {
                    Ok(Some(named)) => {
                        let candidates = Box::new(Candidates::new(search.service(), named));
                        if let Some(first) = self.candidates.insert(candidates).next() {
                            self.go_to_candidate(first);
                        }
                        continue;
                    }
                    Ok(None) => Ok(None),
                    Err(trouble) => Err(trouble),
                },
                Stage::Resolving(answer) => resolved(answer, slice, self.end),
                Stage::Connecting(dialing) => match dialing.advance(&self.open, slice) {
                    Ok(line) => {
                        let address = self.address.as_ref();
                        line.map(|line| secure(line, address, &self.settings)).transpose()
                    }
                    Err(error) => Err(Trouble::Unreachable(error.to_string())),
                },
                Stage::Securing(wire) => match wire.shake_hands(slice) {
                    Ok(true) => self.secured().map(Some),
                    Ok(false) => Ok(None),
                    Err(error) => Err(broken(&error, &self.settings)),
                },
                Stage::Asking(_, answer) => match told(answer, slice) {
                    Ok(Some(login)) => self.greet(Some(login)).map(Some),
                    Ok(None) => Ok(None),
                    Err(trouble) => {
                        // Nothing is to come any more.
                        drop(self.wire());
                        Err(trouble)
                    }
                },
                Stage::Greeting(greeting) => match greeting.advance(&self.settings, slice) {
                    Ok(true) => match self.opened() {
                        Ok(opened) => return Ok(Some(opened)),
                        Err(trouble) => Err(trouble),
                    },
                    Ok(false) => Ok(None),
                    Err(trouble) => Err(trouble),
                },
            };
            let trouble = match moved {
                Ok(Some(stage)) => {
                    self.stage = stage;
                    continue;
                }
                Ok(None) if clock::now() < self.end => return Ok(None),
                Ok(None) => self.too_slow(),
                Err(trouble) => self.at_the_address(trouble),
            };
            let Some(candidates) = &mut self.candidates else { return Err(trouble) };
            candidates.fails(trouble);
            match candidates.next() {
                Some(another) => self.go_to_candidate(another),
                None => return Err(candidates.failure()),
            }
        }
    }

    /// Each candidate gets the time of a server.
    fn go_to_candidate(&mut self, address: Address) {
        self.end = clock::now() + limit(&self.settings);
        self.go_to(address);
    }

    /// How long it has taken so far.
    pub fn took(&self) -> Duration {
        clock::since(self.began)
    }

    fn secured(&mut self) -> Result<Stage, Trouble> {
        let settings = Arc::clone(&self.settings);
        if let Some(provider) = &settings.provider {
            return Ok(Stage::Asking(self.wire()?, provider.ask()));
        }
        let (username, password) = (&settings.username, &settings.password);
        // A user may do without a password.
        let login = (username.is_some() || password.is_some()).then(|| Login {
            username: username.clone(),
            password: password.clone().unwrap_or_default(),
        });
        self.greet(login)
    }

    fn greet(&mut self, login: Option<Login>) -> Result<Stage, Trouble> {
        let tcp = matches!(self.address, Some(Address::Tcp(..)));
        let wire = self.wire()?;
        Ok(Stage::Greeting(Greeting::new(wire, login, &self.settings, self.purpose, tcp)))
    }

    /// The connection, on its way from stage to stage.
    fn wire(&mut self) -> Result<Wire, Trouble> {
        match std::mem::replace(&mut self.stage, Stage::Impossible("taken before".to_owned())) {
            Stage::Securing(wire) | Stage::Asking(wire, _) => Ok(wire),
            _ => Err(Trouble::Unreachable("there is no connection".to_owned())),
        }
    }

    fn opened(&mut self) -> Result<Opened, Trouble> {
        match std::mem::replace(&mut self.stage, Stage::Impossible("opened before".to_owned())) {
            Stage::Greeting(Greeting { wire, clock: Some(clock), said, .. }) => {
                self.candidates.as_ref().map_or(Ok(()), |them| them.found(said.primary))?;
                let primary = self.candidates.as_ref().and_then(|them| them.at()).cloned();
                Ok(Opened { wire, clock, listening: said.listening, primary })
            }
            _ => Err(Trouble::Unreachable("the server did not tell its time".to_owned())),
        }
    }

    fn too_slow(&self) -> Trouble {
        let doing = match self.stage {
            Stage::Searching(_) => "asking the sentinels",
            Stage::Resolving(_) => "looking the name up",
            Stage::Connecting(_) | Stage::Impossible(_) => "connecting",
            Stage::Securing(_) => "agreeing on TLS (does this port speak it?)",
            Stage::Asking(..) => "asking for user and password",
            Stage::Greeting(_) => "waiting for an answer to the handshake",
        };
        let limit = limit(&self.settings);
        self.at_the_address(Trouble::Unreachable(format!("{doing} took longer than {limit:?}")))
    }

    fn at_the_address(&self, trouble: Trouble) -> Trouble {
        // What the sentinels say names them already.
        let Some(address) = &self.address else { return trouble };
        match trouble {
            // There are sentinels, and they know the service: it is no slip of the pen, and may be in the
            // middle of a fail-over.
            Trouble::Unreachable(why) if matches!(self.settings.place, Place::Sentinel(_)) => {
                Trouble::NotReady(format!("cannot connect to {address}, the primary: {why}"))
            }
            Trouble::Unreachable(why) => {
                Trouble::Unreachable(format!("cannot connect to {address}: {why}"))
            }
            Trouble::NotReady(why) => Trouble::NotReady(format!("{address} is not ready: {why}")),
            Trouble::Refused(Error::Unreachable(why)) => {
                Trouble::Refused(Error::Unreachable(format!("cannot connect to {address}: {why}")))
            }
            Trouble::Refused(Error::Authentication(why)) => {
                let what = if self.purpose == Purpose::Inquire { "sentinel" } else { "server" };
                let words =
                    format!("the {what} at {address} does not accept the credentials: {why}");
                Trouble::Refused(Error::Authentication(words))
            }
            refused @ Trouble::Refused(_) => refused,
        }
    }

    /// Whoever is asked for user and password may still answer, and is not asked again before that.
    fn leave(&mut self) {
        let stage = std::mem::replace(&mut self.stage, Stage::Impossible(String::new()));
        if let (Stage::Asking(_, answer), Some(provider)) = (stage, &self.settings.provider) {
            provider.give_up(answer);
        }
    }
}

impl Drop for Opening {
    fn drop(&mut self) {
        self.leave();
    }
}

fn told(answer: &Receiver<Told>, until: Instant) -> Result<Option<Login>, Trouble> {
    match answer.recv_timeout(until.saturating_duration_since(clock::now())) {
        Ok(Ok(login)) => Ok(Some(login)),
        Ok(Err(unknown)) => Err(Trouble::Refused(Error::NoLogin(unknown))),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => {
            Err(Trouble::Unreachable("no thread to ask for user and password".to_owned()))
        }
    }
}

fn resolved(
    answer: &Receiver<Found>,
    until: Instant,
    end: Instant,
) -> Result<Option<Stage>, Trouble> {
    match answer.recv_timeout(until.saturating_duration_since(clock::now())) {
        Ok(Ok(addresses)) => {
            let addresses = addresses.into_iter().map(SockAddr::from);
            Ok(Some(Stage::Connecting(Dialing::new(addresses, end))))
        }
        Ok(Err(error)) => Err(Trouble::Unreachable(error.to_string())),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => {
            Err(Trouble::Unreachable("no thread to look the name up".to_owned()))
        }
    }
}

/// What comes after the socket: agreeing on TLS, or nothing.
fn secure(line: Line, address: Option<&Address>, settings: &Settings) -> Result<Stage, Trouble> {
    let secured = match (&settings.tls, address) {
        (Some(tls), Some(Address::Tcp(host, _))) => {
            // Never tried again by itself: files have to change first.
            let secured = Secured::new(tls, host).map_err(lasting)?;
            Some(Box::new(secured))
        }
        _ => None,
    };
    Ok(Stage::Securing(Wire::new(line, secured)))
}

fn lasting(why: String) -> Trouble {
    Trouble::Refused(Error::Unreachable(why))
}

/// The connection broke before it was ready.
fn broken(error: &io::Error, settings: &Settings) -> Trouble {
    let failure = error.get_ref().and_then(|inner| inner.downcast_ref::<Failure>());
    if failure.is_some_and(|failure| failure.lasting) {
        settings.tls.iter().for_each(Tls::forget);
        return lasting(error.to_string());
    }
    Trouble::Unreachable(error.to_string())
}

fn limit(settings: &Settings) -> Duration {
    settings.connect_timeout.unwrap_or(settings.socket_timeout)
}

impl Greeting {
    fn new(
        wire: Wire,
        login: Option<Login>,
        settings: &Settings,
        purpose: Purpose,
        tcp: bool,
    ) -> Self {
        let expected = VecDeque::new();
        // Nobody asks for a sentinel's time.
        let clock = (purpose == Purpose::Inquire).then(|| ServerClock::new(0, clock::now()));
        let (said, resp2) = (Said::default(), false);
        let mut greeting = Self { wire, login, expected, clock, purpose, said, resp2, tcp };
        let mut hello = redis::cmd("HELLO");
        hello.arg(3);
        if let Some(Login { username, password }) = &greeting.login {
            hello.arg("AUTH").arg(username.as_deref().unwrap_or("default")).arg(password);
        }
        greeting.say(&hello, Expect::Hello);
        greeting.say_the_rest(settings);
        greeting
    }

    /// Greets again a server that does not speak RESP3.
    fn again_in_resp2(&mut self, settings: &Settings) {
        self.resp2 = true;
        self.expected.clear();
        if let Some(Login { username, password }) = self.login.take() {
            let mut auth = redis::cmd("AUTH");
            if let Some(username) = username {
                auth.arg(username);
            }
            self.say(auth.arg(password), Expect::Auth);
        }
        self.say_the_rest(settings);
    }

    fn say_the_rest(&mut self, settings: &Settings) {
        if self.purpose == Purpose::Inquire {
            return;
        }
        if let Some(name) = &settings.client_name {
            self.say(redis::cmd("CLIENT").arg("SETNAME").arg(name), Expect::Ignored);
        }
        for (what, value) in [("LIB-NAME", "seckill"), ("LIB-VER", env!("CARGO_PKG_VERSION"))] {
            self.say(redis::cmd("CLIENT").arg("SETINFO").arg(what).arg(value), Expect::Ignored);
        }
        if settings.db != 0 {
            self.say(redis::cmd("SELECT").arg(settings.db), Expect::Select);
        }
        // Without pushes there is nothing to listen to.
        if self.purpose == Purpose::Listen && !self.resp2 {
            self.say(redis::cmd("CLIENT").arg("TRACKING").arg("ON"), Expect::Tracking);
        }
        if matches!(settings.place, Place::Sentinel(_)) {
            self.say(&redis::cmd("ROLE"), Expect::Role);
        }
        self.say(&redis::cmd("TIME"), Expect::Time);
    }

    fn say(&mut self, command: &redis::Cmd, expect: Expect) {
        command.write_packed_command(self.wire.out());
        self.expected.push_back(expect);
    }

    /// True when the handshake is done, false when `until` is over first.
    fn advance(&mut self, settings: &Settings, until: Instant) -> Result<bool, Trouble> {
        let mut no_resp3 = false;
        loop {
            if !self.wire.flush(until).map_err(|error| self.broken(&error, settings))? {
                return Ok(false);
            }
            while let Some(&expect) = self.expected.front() {
                let received = self.wire.receive(until);
                let Some(reply) = received.map_err(|error| self.broken(&error, settings))? else {
                    return Ok(false);
                };
                if matches!(reply, Value::Push { .. }) {
                    continue;
                }
                self.expected.pop_front();
                no_resp3 |= self.hear(expect, reply, no_resp3)?;
            }
            if !no_resp3 || self.resp2 {
                return Ok(true);
            }
            self.again_in_resp2(settings);
            no_resp3 = false;
        }
    }

    /// A server of TLS resets whoever does not speak it, without a word.
    fn broken(&self, error: &io::Error, settings: &Settings) -> Trouble {
        let unheard = self.expected.front() == Some(&Expect::Hello) && !self.resp2;
        match (broken(error, settings), &settings.tls) {
            (Trouble::Unreachable(why), None) if unheard && self.tcp => {
                Trouble::Unreachable(why + " (does this port want TLS? rediss://, ssl=True)")
            }
            (trouble, ..) => trouble,
        }
    }

    /// Takes in one reply of the handshake; true when the server does not know HELLO.
    fn hear(&mut self, expect: Expect, reply: Value, no_resp3: bool) -> Result<bool, Trouble> {
        match (expect, reply) {
            // Replies to what was said before it was known that everything is said again.
            (_, Value::ServerError(_)) if no_resp3 => {}
            // Who may not ask for the role is refused as soon as something is to be written.
            (Expect::Ignored | Expect::Tracking | Expect::Role, Value::ServerError(_)) => {}
            (Expect::Hello, Value::ServerError(error))
                if error.code() == "NOPROTO"
                    || error.details().is_some_and(|d| d.starts_with("unknown command")) =>
            {
                return Ok(true);
            }
            (expect, Value::ServerError(error)) => {
                return Err(refusal(expect, error.code(), error.details().unwrap_or_default()));
            }
            (Expect::Tracking, _) => self.said.listening = true,
            // A sentinel has not heard yet, or the fail-over is not over yet.
            (Expect::Role, Value::Array(role)) if !is_primary(&role) => {
                return Err(Trouble::NotReady("it is no primary".to_owned()));
            }
            (Expect::Role, Value::Array(_)) => self.said.primary = true,
            (Expect::Time, Value::Array(time)) => {
                self.clock = micros(&time).map(|now| ServerClock::new(now, clock::now()));
            }
            _ => {}
        }
        Ok(false)
    }
}

fn refusal(expect: Expect, code: &str, detail: &str) -> Trouble {
    if is_passing(code) || detail.starts_with("max number of clients") {
        return Trouble::NotReady(format!("{code} {detail}"));
    }
    let credentials = matches!(code, "WRONGPASS" | "NOAUTH") || matches!(expect, Expect::Auth);
    if credentials {
        return Trouble::Refused(Error::Authentication(format!("{code} {detail}")));
    }
    Trouble::Refused(Error::Refused { code: code.to_owned(), detail: detail.to_owned() })
}

/// Greets whoever is at the other end of `wire`, and asks for all that can be asked for in a handshake.
#[cfg(any(test, fuzzing))]
pub fn greet(wire: Wire, settings: &Settings, until: Instant) -> Result<bool, Trouble> {
    let login = settings.password.clone().map(|password| Login { username: None, password });
    Greeting::new(wire, login, settings, Purpose::Listen, true).advance(settings, until)
}

/// Whether the answer to ROLE is a primary's.
fn is_primary(role: &[Value]) -> bool {
    matches!(role.first(), Some(Value::BulkString(role)) if role == b"master" || role == b"primary")
}

/// The answer to TIME, in microseconds.
fn micros(time: &[Value]) -> Option<i64> {
    let number = |value: &Value| match value {
        Value::BulkString(text) => std::str::from_utf8(text).ok()?.parse::<i64>().ok(),
        Value::Int(number) => Some(*number),
        _ => None,
    };
    let (seconds, micros) = (number(time.first()?)?, number(time.get(1)?)?);
    seconds.checked_mul(1_000_000)?.checked_add(micros)
}
