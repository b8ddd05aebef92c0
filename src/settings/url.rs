//! What a URL says: where to connect, as whom, and how.
//!
//! `scheme://[user[:password]@]host[:port][,host[:port]...][/path][?name=value&...]`
//!
//! | scheme | hosts | path |
//! |---|---|---|
//! | `redis` `valkey` | one | `/DB` |
//! | `redis+sentinel` `valkey+sentinel` | sentinels | `/SERVICE/DB` |
//! | `redis+cluster` `valkey+cluster` | some of the nodes | `/DB` |
//! | `unix` | none | of the socket |
//!
//! `rediss` and `valkeys` are the same over TLS, sentinels included.
//!
//! It is taken apart here and not by a library: those do not take several hosts, and they mend what may
//! be a mistake (drop a tab, cut off what stands behind a `#`, resolve the `..` of a socket's path).
//!
//! No error holds a password, also not that of a URL which is none because somebody wrote it with a
//! `/`, so that half of it looks like a host and the other half like a path, or with a `?` where a `&`
//! belongs. So no value is quoted, and no name that can be something else.

use std::net::Ipv6Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use percent_encoding::percent_decode_str;

use super::{Address, Place, Service, Settings, duration};
use crate::tls::{Tls, flag};

const SCHEMES: &str = "redis:// rediss:// valkey:// valkeys:// unix://, or redis+sentinel:// redis+cluster:// and so on";

/// Said in place of anything else: what looks like a parameter's name may be half a password.
const LOOSE: &str = "url cannot be read: there is an @ behind the first / or ?; \
    in user name and password they are written as %2F and %3F, and in what follows @ is written as %40";

/// A URL in parts; none is decoded yet.
struct Parts<'a> {
    scheme: String,
    user: &'a str,
    password: &'a str,
    hosts: &'a str,
    path: &'a str,
    query: &'a str,
}

impl<'a> Parts<'a> {
    fn of(text: &'a str) -> Result<Self, String> {
        let parts = text.trim().split_once("://").filter(|(scheme, _)| is_scheme(scheme));
        let Some((scheme, rest)) = parts else {
            return Err(format!("url is not a URL: it has no scheme, one of {SCHEMES}"));
        };
        if rest.contains('#') {
            return Err("url: # is written as %23".to_owned());
        }
        let authority = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, rest) = rest.split_at(authority);
        let (login, hosts) = authority.rsplit_once('@').unwrap_or(("", authority));
        let (user, password) = login.split_once(':').unwrap_or((login, ""));
        let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
        let scheme = scheme.to_ascii_lowercase();
        Ok(Self { scheme, user, password, hosts, path, query })
    }

    /// Whether what looks like path and parameters may be the end of a password.
    fn is_loose(&self) -> bool {
        self.path.contains('@') || self.query.contains('@')
    }

    /// The names and values of the parameters.
    fn parameters(&self) -> impl Iterator<Item = Result<(String, String), String>> {
        self.query.split('&').filter(|pair| !pair.is_empty()).map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let text = |text: &str| decode(&text.replace('+', " "), "a parameter");
            Ok((text(name)?, text(value)?))
        })
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
        let parts = Parts::of(text)?;
        let read = self.read(&parts);
        if parts.is_loose() { read.map_err(|_| LOOSE.to_owned()) } else { read }
    }

    fn read(&mut self, parts: &Parts<'_>) -> Result<(), String> {
        let (base, kind) = match parts.scheme.split_once('+') {
            Some((base, kind)) => (base, Some(kind)),
            None => (parts.scheme.as_str(), None),
        };
        let mut db = parts.path.trim_start_matches('/');
        self.place = match (base, kind) {
            ("unix", None) => {
                db = "";
                Place::Server(socket(parts)?)
            }
            ("redis" | "rediss" | "valkey" | "valkeys", None) => {
                Place::Server(address(parts.hosts, 6379)?)
            }
            ("redis" | "rediss" | "valkey" | "valkeys", Some("sentinel")) => {
                let (name, rest) = db.split_once('/').unwrap_or((db, ""));
                db = rest;
                Place::Sentinel(Arc::new(service(parts.hosts, name)?))
            }
            ("redis" | "rediss" | "valkey" | "valkeys", Some("cluster")) => {
                Place::Cluster(addresses(parts.hosts, 6379)?.into())
            }
            _ => {
                return Err(format!(
                    "url has the scheme {}://, not one of {SCHEMES}",
                    parts.scheme
                ));
            }
        };
        if matches!(base, "rediss" | "valkeys") {
            self.tls.get_or_insert_default();
        } else {
            self.tls = None;
        }
        if !db.is_empty() {
            self.db = number(db, "the database in the path")?;
        }
        self.username = some(decode(parts.user, "the user name")?).or(self.username.take());
        self.password = some(decode(parts.password, "the password")?).or(self.password.take());
        for parameter in parts.parameters() {
            let (name, value) = parameter?;
            self.parameter(&name, &value)?;
        }
        if let Some(tls) = &self.tls {
            tls.check().map_err(|why| format!("url: {why}"))?;
        }
        if let Place::Sentinel(service) = &mut self.place {
            Arc::make_mut(service).tls.clone_from(&self.tls);
        }
        Ok(())
    }

    fn parameter(&mut self, name: &str, value: &str) -> Result<(), String> {
        let text = || some(value.to_owned());
        match name {
            "db" => self.db = number(value, "db")?,
            "username" | "user" => self.username = text().or(self.username.take()),
            "password" | "pass" => self.password = text().or(self.password.take()),
            "client_name" => self.client_name = Some(value.to_owned()),
            "timeout" => self.timeout = seconds(value, name)?,
            "socket_timeout" => self.socket_timeout = seconds(value, name)?,
            "socket_connect_timeout" => self.connect_timeout = Some(seconds(value, name)?),
            "wait_replicas" => self.safety.replicas = number(value, name)?,
            "wait_aof" => self.safety.aof = flag(name, value)?,
            "sentinel_username" | "sentinel_password" => {
                let Place::Sentinel(service) = &mut self.place else {
                    return Err(format!("url: {name} needs redis+sentinel://"));
                };
                let service = Arc::make_mut(service);
                match name {
                    "sentinel_username" => service.username = text(),
                    _ => service.password = text(),
                }
            }
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
                    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
                    return Err(if name.bytes().all(plain) {
                        format!("url has the unknown parameter {name:?}")
                    } else {
                        "url has a parameter with an odd name; they look like ?db=1&timeout=5"
                            .to_owned()
                    });
                }
            }
        }
        Ok(())
    }
}

fn is_scheme(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
}

/// As in redis-py, an empty user name or password is none.
fn some(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn service(hosts: &str, name: &str) -> Result<Service, String> {
    let name = decode(name, "the service's name")?;
    if name.is_empty() {
        return Err("url names no service: redis+sentinel://host,host/SERVICE".to_owned());
    }
    let sentinels = addresses(hosts, 26379)?;
    let (tls, username, password, newest) = Default::default();
    Ok(Service { name, sentinels, tls, username, password, newest })
}

fn addresses(hosts: &str, port: u16) -> Result<Vec<Address>, String> {
    if hosts.contains(',') && hosts.split(',').any(str::is_empty) {
        return Err("url: between two commas there is a host".to_owned());
    }
    hosts.split(',').map(|host| address(host, port)).collect()
}

/// What stands for one host and its port. Nothing of it is quoted: it may be `user:password`.
fn address(text: &str, port: u16) -> Result<Address, String> {
    let (host, rest) = if let Some(inner) = text.strip_prefix('[') {
        let (inner, rest) = inner.split_once(']').ok_or("url: a [ has no ]")?;
        let host: Ipv6Addr = inner.parse().map_err(|_| "url: in [ ] there is an IPv6 address")?;
        (host.to_string(), rest)
    } else {
        let (host, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
        (host_name(host)?, rest)
    };
    let port = match rest.strip_prefix(':') {
        Some("") => port,
        None if rest.is_empty() => port,
        Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().ok().filter(|&port| port != 0).ok_or(PORT)?
        }
        Some(more) if more.contains(':') => {
            return Err("url: an IPv6 address stands in [ ]".to_owned());
        }
        _ => return Err(PORT.to_owned()),
    };
    Ok(Address::Tcp(host, port))
}

const PORT: &str = "url: the port must be a number between 1 and 65535";

fn host_name(text: &str) -> Result<String, String> {
    let host = decode(text, "the host")?;
    let odd = |char: char| {
        char.is_whitespace() || char.is_control() || r#"%/\?#@[]<>^|,:"'"#.contains(char)
    };
    if host.contains(',') {
        return Err("url: several hosts need redis+sentinel:// or redis+cluster://".to_owned());
    }
    if host.contains(odd) {
        return Err("url: the host has a character that no host has".to_owned());
    }
    Ok(if host.is_empty() { "localhost".to_owned() } else { host })
}

fn socket(parts: &Parts<'_>) -> Result<Address, String> {
    if !parts.hosts.is_empty() {
        return Err("url: a unix socket has no host: unix:///path/to/redis.sock".to_owned());
    }
    let path = decode(parts.path, "the path")?;
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
    text.parse().map_err(|_| format!("url: {what} must be a number"))
}

fn seconds(text: &str, what: &str) -> Result<Duration, String> {
    let number = text.parse().map_err(|_| format!("url: {what} must be a number"))?;
    duration(number, what).map_err(|error| format!("url: {error}"))
}

#[cfg(test)]
mod tests;
