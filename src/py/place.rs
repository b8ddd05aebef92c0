//! Where to connect, and how to talk TLS there: Python's words for it, both ways.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::settings::{Address, Newest, Place, Service};
use crate::tls::{Tls, excludes_tls12, verifies};

/// Host and port, as redis-py has them.
pub type Pair = (String, u16);

/// What is said of where to connect; of the four, one.
pub struct Where {
    pub server: Option<Address>,
    pub sentinels: Option<Vec<Pair>>,
    pub service_name: Option<String>,
    pub sentinel_kwargs: Option<SentinelWords>,
    pub cluster: Option<Vec<Pair>>,
}

/// What is said of how to talk TLS: the keywords, without `ssl_`.
pub struct TlsWords {
    pub ca_certs: Option<PathBuf>,
    pub ca_path: Option<PathBuf>,
    pub ca_data: Option<Vec<u8>>,
    pub certfile: Option<PathBuf>,
    pub keyfile: Option<PathBuf>,
    pub cert_reqs: Option<String>,
    pub check_hostname: Option<bool>,
    pub min_version: Option<i64>,
}

/// What is said of how to talk to sentinels: `sentinel_kwargs`.
#[derive(Default)]
pub struct SentinelWords {
    username: Option<String>,
    password: Option<String>,
    tls: Option<TlsWords>,
}

impl<'py> FromPyObject<'_, 'py> for SentinelWords {
    type Error = PyErr;

    fn extract(words: Borrowed<'_, 'py, PyAny>) -> PyResult<Self> {
        let words = words.cast::<PyDict>()?;
        let words: &Bound<'py, PyDict> = &words;
        Ok(Self {
            username: item(words, "username")?,
            password: item(words, "password")?,
            tls: (item(words, "ssl")? == Some(true)).then(|| TlsWords::of(words)).transpose()?,
        })
    }
}

fn item<T: for<'a, 'py> FromPyObject<'a, 'py, Error = PyErr>>(
    words: &Bound<'_, PyDict>,
    name: &str,
) -> PyResult<Option<T>> {
    Ok(words.get_item(name)?.map(|value| value.extract::<Option<T>>()).transpose()?.flatten())
}

impl Where {
    /// None when nothing is said of it.
    pub fn place(self) -> PyResult<Option<Place>> {
        let addresses = |pairs: Vec<Pair>, name| {
            if pairs.is_empty() {
                return Err(PyValueError::new_err(format!("{name} is empty")));
            }
            Ok(pairs.into_iter().map(|(host, port)| Address::Tcp(host, port)).collect::<Vec<_>>())
        };
        match (self.server, self.sentinels, self.service_name, self.cluster) {
            (server, None, None, None) => Ok(server.map(Place::Server)),
            (None, Some(sentinels), Some(name), None) if !name.is_empty() => {
                let words = self.sentinel_kwargs.unwrap_or_default();
                Ok(Some(Place::Sentinel(Arc::new(Service {
                    name,
                    sentinels: addresses(sentinels, "sentinels")?,
                    tls: words.tls.map(TlsWords::tls).transpose()?,
                    username: words.username,
                    password: words.password,
                    newest: Newest::default(),
                }))))
            }
            (None, None, None, Some(nodes)) => {
                Ok(Some(Place::Cluster(addresses(nodes, "cluster")?.into())))
            }
            _ => Err(PyValueError::new_err(
                "one of these says where: host and port, unix_socket_path, sentinels and service_name, cluster",
            )),
        }
    }
}

impl TlsWords {
    fn of(words: &Bound<'_, PyDict>) -> PyResult<Self> {
        Ok(Self {
            ca_certs: item(words, "ssl_ca_certs")?,
            ca_path: item(words, "ssl_ca_path")?,
            ca_data: item(words, "ssl_ca_data")?,
            certfile: item(words, "ssl_certfile")?,
            keyfile: item(words, "ssl_keyfile")?,
            cert_reqs: item(words, "ssl_cert_reqs")?,
            check_hostname: item(words, "ssl_check_hostname")?,
            min_version: item(words, "ssl_min_version")?,
        })
    }

    pub fn tls(self) -> PyResult<Tls> {
        let tls = self.unchecked()?;
        tls.check().map_err(PyValueError::new_err)?;
        Ok(tls)
    }

    /// For a URL that may say more.
    pub fn unchecked(self) -> PyResult<Tls> {
        let verify = self.cert_reqs.as_deref().map_or(Ok(true), verifies);
        Ok(Tls {
            ca_certs: self.ca_certs,
            ca_path: self.ca_path,
            ca_data: self.ca_data,
            certfile: self.certfile,
            keyfile: self.keyfile,
            verify: verify.map_err(PyValueError::new_err)?,
            check_hostname: self.check_hostname.unwrap_or(true),
            only_tls13: self.min_version.is_some_and(excludes_tls12),
            ..Tls::default()
        })
    }
}

/// The keywords that say where.
pub fn tell(place: &Place, words: &Bound<'_, PyDict>) -> PyResult<()> {
    match place {
        Place::Server(Address::Tcp(host, port)) => {
            words.set_item("host", host)?;
            words.set_item("port", port)
        }
        Place::Server(Address::Unix(path)) => words.set_item("unix_socket_path", path.as_os_str()),
        Place::Cluster(nodes) => words.set_item("cluster", pairs(nodes)),
        Place::Sentinel(service) => {
            words.set_item("sentinels", pairs(&service.sentinels))?;
            words.set_item("service_name", &service.name)?;
            let theirs = PyDict::new(words.py());
            theirs.set_item("username", service.username.as_deref())?;
            theirs.set_item("password", service.password.as_deref())?;
            tell_tls(service.tls.as_ref(), &theirs)?;
            words.set_item("sentinel_kwargs", theirs)
        }
    }
}

/// The keywords that say how to talk TLS; none without it.
pub fn tell_tls(tls: Option<&Tls>, words: &Bound<'_, PyDict>) -> PyResult<()> {
    let Some(tls) = tls else { return Ok(()) };
    words.set_item("ssl", true)?;
    for (name, path) in [
        ("ssl_ca_certs", &tls.ca_certs),
        ("ssl_ca_path", &tls.ca_path),
        ("ssl_certfile", &tls.certfile),
        ("ssl_keyfile", &tls.keyfile),
    ] {
        words.set_item(name, path.as_ref().map(|path| path.as_os_str()))?;
    }
    let data = tls.ca_data.as_ref().map(|data| PyBytes::new(words.py(), data));
    words.set_item("ssl_ca_data", data)?;
    words.set_item("ssl_cert_reqs", if tls.verify { "required" } else { "none" })?;
    words.set_item("ssl_check_hostname", tls.check_hostname)?;
    words.set_item("ssl_min_version", if tls.only_tls13 { 0x0304 } else { 0x0303 })
}

fn pairs(addresses: &[Address]) -> Vec<(&str, u16)> {
    let pair = |address| match address {
        &Address::Tcp(ref host, port) => Some((host.as_str(), port)),
        Address::Unix(_) => None,
    };
    addresses.iter().filter_map(pair).collect()
}
