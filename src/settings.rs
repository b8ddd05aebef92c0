//! Where the server is and how long to wait for it: what a URL and keywords come to.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;
use url::Url;

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
}

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

/// As a URL without the password: for reprs and messages.
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
                f.write_str(user.as_deref().unwrap_or(""))?;
                f.write_str(if password.is_some() { ":***@" } else { "@" })?;
            }
        }
        match &self.place {
            Place::Server(address @ Address::Tcp(..)) => write!(f, "{address}/{}", self.db),
            Place::Server(address @ Address::Unix(_)) => write!(f, "{address}?db={}", self.db),
            Place::Sentinel(service) => {
                write!(f, "{}/{}/{}", list(&service.sentinels), service.name, self.db)
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

impl Settings {
    /// Puts what a URL says over what is there, as redis-py's `from_url` does with its keywords:
    /// `?db=` wins over the path, the other parameters are keywords. An unknown scheme or parameter
    /// is an error, not ignored. Whether to use TLS is for the URL to say; what was set about it
    /// before counts if it does.
    ///
    /// The error says what is wrong and never holds the password.
    pub fn read_url(&mut self, text: &str) -> Result<(), String> {
        let text = with_host(text);
        let url = Url::parse(&text).map_err(|error| format!("url is not a URL: {error}"))?;
        match url.scheme() {
            "redis" | "valkey" => {
                self.place = Place::Server(tcp_address(&url)?);
                self.tls = None;
            }
            "rediss" | "valkeys" => {
                self.place = Place::Server(tcp_address(&url)?);
                self.tls.get_or_insert_default();
            }
            "unix" => {
                self.place = Place::Server(unix_address(&url)?);
                self.tls = None;
            }
            "redis+sentinel" | "redis+cluster" => {
                return Err(format!(
                    "url: Sentinel and Cluster ({}://) are not supported by this version",
                    url.scheme()
                ));
            }
            other => {
                return Err(format!(
                    "url has the scheme {other}://, not one of redis:// rediss:// valkey:// valkeys:// unix://"
                ));
            }
        }
        if !url.username().is_empty() {
            self.username = Some(decode(url.username(), "the user name")?);
        }
        if let Some(password) = url.password() {
            self.password = Some(decode(password, "the password")?);
        }
        if let Place::Server(Address::Tcp(..)) = self.place {
            let path = url.path().trim_start_matches('/');
            if !path.is_empty() {
                self.db = number(path, "the database in the path")?;
            }
        }
        url.query_pairs().try_for_each(|(name, value)| self.parameter(&name, &value))?;
        match &self.tls {
            Some(tls) => tls.check().map_err(|why| format!("url: {why}")),
            None => Ok(()),
        }
    }

    fn parameter(&mut self, name: &str, value: &str) -> Result<(), String> {
        match name {
            "db" => self.db = number(value, "db")?,
            "username" | "user" => self.username = Some(value.to_owned()),
            "password" | "pass" => self.password = Some(value.to_owned()),
            "client_name" => self.client_name = Some(value.to_owned()),
            "timeout" => self.timeout = seconds(value, name)?,
            "socket_timeout" => self.socket_timeout = seconds(value, name)?,
            "socket_connect_timeout" => self.connect_timeout = Some(seconds(value, name)?),
            // redis-py's own settings that mean nothing here.
            "decode_responses"
            | "encoding"
            | "encoding_errors"
            | "health_check_interval"
            | "max_connections"
            | "protocol"
            | "retry_on_timeout"
            | "socket_keepalive" => {}
            _ => {
                let known = match &mut self.tls {
                    Some(tls) => tls.parameter(name, value)?,
                    None if Tls::default().parameter(name, value).unwrap_or(true) => {
                        return Err(format!("url: {name} needs rediss://"));
                    }
                    None => false,
                };
                if !known {
                    return Err(format!("url has the unknown parameter {name:?}"));
                }
            }
        }
        Ok(())
    }
}

fn tcp_address(url: &Url) -> Result<Address, String> {
    let host = match url.host_str() {
        None | Some("") => "localhost".to_owned(),
        Some(host) => decode(host.trim_start_matches('[').trim_end_matches(']'), "the host")?,
    };
    match url.port() {
        Some(0) => Err("url: the port must be between 1 and 65535, not 0".to_owned()),
        port => Ok(Address::Tcp(host, port.unwrap_or(6379))),
    }
}

/// What stands for "no host" in the URL of a unix socket with credentials: `unix://user:pw@/path`
/// is not a URL by the book, but what redis-py takes.
const NO_HOST: &str = "no-host.invalid";

fn with_host(text: &str) -> Cow<'_, str> {
    let authority = text.strip_prefix("unix://").and_then(|rest| rest.split_once('/'));
    match authority {
        Some((user, path)) if user.ends_with('@') => {
            format!("unix://{user}{NO_HOST}/{path}").into()
        }
        _ => text.into(),
    }
}

fn unix_address(url: &Url) -> Result<Address, String> {
    match url.host_str() {
        None | Some("" | NO_HOST) => {}
        Some(host) => {
            return Err(format!(
                "url: a unix socket has no host ({host}): unix:///path/to/redis.sock"
            ));
        }
    }
    let path = decode(url.path(), "the path")?;
    if path.is_empty() {
        return Err("url names no socket: unix:///path/to/redis.sock".to_owned());
    }
    Ok(Address::Unix(PathBuf::from(path)))
}

fn decode(text: &str, what: &str) -> Result<String, String> {
    match percent_decode_str(text).decode_utf8() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(format!("url: {what} is not UTF-8 when its %-escapes are decoded")),
    }
}

fn number(text: &str, what: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("url: {what} must be a number, not {text:?}"))
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

fn seconds(text: &str, what: &str) -> Result<Duration, String> {
    let number = text.parse().map_err(|_| format!("{what} must be a number, not {text:?}"))?;
    duration(number, what).map_err(|error| format!("url: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn try_to_read(url: &str) -> Result<Settings, String> {
        let mut settings = Settings::default();
        settings.read_url(url).map(|()| settings)
    }

    fn read(url: &str) -> Settings {
        try_to_read(url).expect("a good URL")
    }

    #[test]
    fn a_url_means_what_it_means_in_redis_py() {
        let all = read("redis://al%40ice:p%2Fw@example.org:7000/3?socket_timeout=0.5");
        assert_eq!(all.place, Place::Server(Address::Tcp("example.org".into(), 7000)));
        assert_eq!((all.db, all.username.as_deref()), (3, Some("al@ice")));
        assert_eq!(all.password.as_deref(), Some("p/w"));
        assert_eq!(all.socket_timeout, Duration::from_millis(500));
        assert_eq!(read("redis://").place, Place::Server(Address::Tcp("localhost".into(), 6379)));
        assert_eq!(read("valkey://[::1]:1").place, Place::Server(Address::Tcp("::1".into(), 1)));
        assert_eq!(read("redis://h/1?db=2").db, 2);
        assert_eq!(read("redis://:pw@h").username, None);
        let unix = read("unix://u:pw@/run/my%20redis.sock?db=4");
        assert_eq!(unix.place, Place::Server(Address::Unix("/run/my redis.sock".into())));
        assert_eq!((unix.db, unix.username.as_deref()), (4, Some("u")));
    }

    #[test]
    fn the_scheme_says_whether_to_use_tls_and_parameters_say_how() {
        let tls = |url: &str| read(url).tls;
        assert!(tls("redis://h").is_none() && tls("unix:///s").is_none());
        let plain = tls("rediss://h").expect("TLS");
        assert!(plain.verify && plain.check_hostname && !plain.only_tls13);
        assert!(plain == Tls::default() && tls("valkeys://h") == Some(plain));
        let all = tls(
            "rediss://h?ssl_ca_certs=/c%20a&ssl_certfile=/cert&ssl_keyfile=/key&ssl_cert_reqs=none\
             &ssl_check_hostname=False&ssl_min_version=772",
        );
        let all = all.expect("TLS");
        assert_eq!(all.ca_certs, Some("/c a".into()));
        assert_eq!((all.certfile, all.keyfile), (Some("/cert".into()), Some("/key".into())));
        assert!(!all.verify && !all.check_hostname && all.only_tls13);
        let settings = read("rediss://u:pw@h:7000/3");
        assert_eq!(settings.to_string(), "rediss://u:***@h:7000/3");
    }

    #[test]
    fn what_cannot_be_meant_is_an_error_that_says_so() {
        for (url, words) in [
            ("localhost:6379", "scheme"),
            ("http://localhost", "scheme"),
            ("redis://h/one", "database in the path"),
            ("redis://h?db=-1", "db must be a number"),
            ("redis://h?socket_timeout=0", "socket_timeout must be more than 0"),
            ("redis://h?sockettimeout=1", "unknown parameter \"sockettimeout\""),
            ("redis://h?timeout=1e-9", "timeout must be between 0.001 s and a year"),
            ("redis://h?timeout=nan", "timeout must be more than 0 s"),
            ("redis://h:0", "port"),
            ("redis://h?ssl_ca_certs=/ca", "ssl_ca_certs needs rediss://"),
            ("rediss://h?ssl_ca_cert=/ca", "unknown parameter \"ssl_ca_cert\""),
            ("rediss://h?ssl_ciphers=x", "ssl_ciphers is not supported"),
            ("rediss://h?ssl_cert_reqs=no", "ssl_cert_reqs must be required, optional or none"),
            ("rediss://h?ssl_check_hostname=", "ssl_check_hostname must be true or false"),
            ("rediss://h?ssl_min_version=1.3", "ssl_min_version must be a number"),
            ("rediss://h?ssl_keyfile=/key", "ssl_keyfile needs ssl_certfile"),
            ("redis+cluster://h", "Cluster"),
            ("unix://", "names no socket"),
            ("unix://redis.sock", "no host"),
            ("", "not a URL"),
        ] {
            let error = try_to_read(url).expect_err(url);
            assert!(error.contains(words), "{url}: {error}");
        }
    }

    #[test]
    fn a_password_is_never_shown() {
        for url in [
            "redis://u:sesame@h/0",
            "redis://:sesame@h",
            "unix://u:sesame@/x",
            "redis://h?password=sesame",
        ] {
            let settings = read(url);
            assert!(!format!("{settings} {settings:?}").contains("sesame"), "{url}");
        }
        let error = try_to_read("redis://u:sesame@h:port/").expect_err("a bad port");
        assert!(!error.contains("sesame"), "{error}");
    }
}
