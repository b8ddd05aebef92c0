//! Where the server is and how long to wait for it: what a URL and keywords come to.

mod url;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::login::Provider;
use crate::safety::Safety;
use crate::tls::Tls;

/// Everything that a client needs to know to connect.
#[derive(Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the server is, or who knows.
    pub place: Place,
    /// How to talk to it over TLS; without it in the clear.
    pub tls: Option<Tls>,
    /// The database's number.
    pub db: u32,
    /// The ACL user; without one the default user.
    pub username: Option<String>,
    /// The password; never shown.
    pub password: Option<String>,
    /// Who is asked for both at each connect, in their place.
    pub provider: Option<Provider>,
    /// What `CLIENT SETNAME` gets.
    pub client_name: Option<String>,
    /// Bound of a call that has no `time_out` of its own.
    pub timeout: Duration,
    /// How long one attempt waits for its reply.
    pub socket_timeout: Duration,
    /// How long one attempt to connect may take, names, handshake and all; `socket_timeout` unless
    /// it is given.
    pub connect_timeout: Option<Duration>,
    /// How safe what is done must be before a caller is told.
    pub safety: Safety,
}

/// Where the server is, or who knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// There.
    Server(Address),
    /// Where the primary of a service is, that sentinels watch.
    Sentinel(Arc<Service>),
    /// At that node of a cluster which has the key's slot; these are asked first which it is.
    Cluster(Arc<[Address]>),
}

/// A service that sentinels watch, and how to talk to them.
#[derive(Clone, PartialEq, Eq)]
pub struct Service {
    /// The name that the sentinels know it by.
    pub name: String,
    /// Where they listen.
    pub sentinels: Vec<Address>,
    /// How to talk to them over TLS; without it in the clear.
    pub tls: Option<Tls>,
    /// Their ACL user.
    pub username: Option<String>,
    /// Their password; never shown.
    pub password: Option<String>,
    /// What has been learnt from them.
    pub newest: Newest,
}

/// What a client knows of the primaries of a service that it was connected to.
#[derive(Debug, Default)]
pub struct Newest {
    epoch: AtomicU64,
    met: AtomicBool,
}

impl Newest {
    /// The largest number of a fail-over whose primary has itself said to this client that it is one.
    pub fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Relaxed)
    }

    /// A primary says that it is the one of that fail-over; if all sentinels count anew, in the place of
    /// the one that this client was at. False if it has been replaced: a newer one is known.
    pub fn confirm(&self, epoch: u64, instead_of: Option<u64>) -> bool {
        let relaxed = Ordering::Relaxed;
        match instead_of {
            Some(before) => {
                self.epoch.compare_exchange(before, epoch, relaxed, relaxed).is_ok()
                    || self.epoch() <= epoch
            }
            None => self.epoch.fetch_max(epoch, relaxed) <= epoch,
        }
    }

    /// Whether this client was ever let in by a server that the sentinels named.
    pub fn is_met(&self) -> bool {
        self.met.load(Ordering::Relaxed)
    }

    /// It was.
    pub fn meet(&self) {
        self.met.store(true, Ordering::Relaxed);
    }
}

impl Clone for Newest {
    fn clone(&self) -> Self {
        let met = AtomicBool::new(self.is_met());
        Self { epoch: AtomicU64::new(self.epoch()), met }
    }
}

/// What was learnt makes no other place of it.
impl PartialEq for Newest {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Newest {}

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Address {
    /// A host name or address, and a port.
    Tcp(String, u16),
    /// The path of a unix socket.
    Unix(PathBuf),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "{host}:{port}"),
            Self::Unix(path) => write!(f, "{}", path.display()),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            place: Place::Server(Address::Tcp("localhost".to_owned(), 6379)),
            tls: None,
            db: 0,
            username: None,
            password: None,
            provider: None,
            client_name: None,
            timeout: Duration::from_secs(10),
            socket_timeout: Duration::from_secs(1),
            connect_timeout: None,
            safety: Safety::default(),
        }
    }
}

/// What needs no escape in a user name or a service's name; in a path neither does `/`.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');
const ESCAPED_IN_PATH: &AsciiSet = &ESCAPED.remove(b'/');

/// As a URL without the passwords: for reprs and messages. One that was read from a URL leads to the
/// same place when it is read again.
impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.tls.is_some() { "rediss" } else { "redis" };
        match &self.place {
            Place::Server(Address::Unix(_)) => f.write_str("unix://")?,
            Place::Server(Address::Tcp(..)) => write!(f, "{scheme}://")?,
            Place::Sentinel(_) => write!(f, "{scheme}+sentinel://")?,
            Place::Cluster(_) => write!(f, "{scheme}+cluster://")?,
        }
        match (&self.username, &self.password) {
            (None, None) => {}
            (user, password) => {
                let user = user.as_deref().unwrap_or("");
                write!(f, "{}", utf8_percent_encode(user, ESCAPED))?;
                f.write_str(if password.is_some() { ":***@" } else { "@" })?;
            }
        }
        match &self.place {
            Place::Server(address @ Address::Tcp(..)) => write!(f, "{address}/{}", self.db),
            Place::Server(Address::Unix(path)) => {
                let path = path.to_string_lossy();
                write!(f, "{}?db={}", utf8_percent_encode(&path, ESCAPED_IN_PATH), self.db)
            }
            Place::Sentinel(service) => {
                let name = utf8_percent_encode(&service.name, ESCAPED);
                write!(f, "{}/{name}/{}", list(&service.sentinels), self.db)
            }
            Place::Cluster(nodes) => write!(f, "{}/{}", list(nodes), self.db),
        }
    }
}

fn list(addresses: &[Address]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Service({}/{})", list(&self.sentinels), self.name)
    }
}

impl fmt::Debug for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Settings({self})")
    }
}

/// Seconds that a time-out can be: enough for anything to happen in, and an end in sight.
pub fn duration(seconds: f64, what: &str) -> Result<Duration, String> {
    if seconds.is_nan() || seconds <= 0.0 {
        return Err(format!("{what} must be more than 0 s, not {seconds}"));
    }
    if !(0.001..=86_400.0 * 366.0).contains(&seconds) {
        return Err(format!("{what} must be between 0.001 s and a year, not {seconds}"));
    }
    Ok(Duration::from_secs_f64(seconds))
}
