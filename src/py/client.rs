//! The client as Python sees it: stamped with the process's generation, and made anew in a child.

use std::mem::ManuallyDrop;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use pyo3::exceptions::PyValueError;
use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::args::{self, Given};
use super::place::{self, Pair, SentinelWords, TlsWords, Where};
use super::{ending, errors, gate, login, owners};
use crate::call::Call;
use crate::caller::Caller;
use crate::client::Client;
use crate::fork;
use crate::patrol::Patrol;
use crate::safety::Safety;
use crate::settings::{Address, Place, Settings, duration};
use crate::wish::{Outcome, Wish};

/// A client over one server; `seckill.Client` is its Python face.
#[pyclass(frozen, subclass, module = "seckill._core")]
pub struct CoreClient {
    pub(super) settings: Settings,
    credential_provider: Option<Py<PyAny>>,
    /// Shared with those that differ in what they want to be sure of. Only locked while attached to
    /// Python, where no other thread can be at a fork.
    living: Arc<RwLock<Living>>,
}

/// The core's client, and the generation of the process that it belongs to.
///
/// | generation | meaning | what may be done with the client |
/// |---|---|---|
/// | this process's | ours | everything |
/// | older | inherited through a fork | close its descriptors, once, and leak it |
struct Living {
    generation: u64,
    client: ManuallyDrop<Arc<Client>>,
}

impl Living {
    fn new(settings: &Settings) -> Self {
        let (client, generation) = (Arc::new(Client::new(settings.clone())), fork::generation());
        ending::remember(&client, generation);
        Self { generation, client: ManuallyDrop::new(client) }
    }

    fn is_ours(&self) -> bool {
        self.generation == fork::generation()
    }
}

impl Drop for Living {
    fn drop(&mut self) {
        if self.is_ours() {
            // SAFETY: dropped here only, and never used after.
            unsafe { ManuallyDrop::drop(&mut self.client) };
        } else {
            self.client.close_inherited();
        }
    }
}

impl CoreClient {
    /// The core's client, of this process.
    pub fn client(&self) -> Arc<Client> {
        let living = self.living.read();
        if living.is_ours() {
            return Arc::clone(&living.client);
        }
        drop(living);
        let mut living = self.living.write();
        if !living.is_ours() {
            *living = Living::new(&self.settings);
        }
        Arc::clone(&living.client)
    }

    /// What a call is made with.
    pub fn to_call(&self) -> (Arc<Client>, Safety) {
        (self.client(), self.settings.safety)
    }

    /// The same client, for those who want to be sure of something else.
    fn with_safety(&self, py: Python<'_>, replicas: Option<u32>, aof: Option<bool>) -> Self {
        let Safety { replicas: as_many, aof: as_safe } = self.settings.safety;
        let (replicas, aof) = (replicas.unwrap_or(as_many), aof.unwrap_or(as_safe));
        Self {
            settings: Settings { safety: Safety { replicas, aof }, ..self.settings.clone() },
            credential_provider: self.credential_provider.as_ref().map(|it| it.clone_ref(py)),
            living: Arc::clone(&self.living),
        }
    }

    /// Runs a call of the calling thread without the GIL; signal handlers run once a slice.
    pub fn run(&self, py: Python<'_>, wish: Wish, time_out: Option<Duration>) -> PyResult<Outcome> {
        let (client, safety) = self.to_call();
        let owner = owners::this_thread();
        let mut raised = None;
        let result = py.detach(|| {
            // While the interpreter finalizes there is nobody to run handlers for.
            let mut look = || match Python::try_attach(run_signal_handlers) {
                Some(Err(error)) => {
                    raised = Some(error);
                    false
                }
                Some(Ok(())) | None => true,
            };
            gate::leave();
            let call = Call::new(&client, wish, time_out, owner, Caller::this_thread());
            let call = call.with_safety(safety);
            let result = client.wait(call, &mut Patrol::new(&mut look));
            gate::enter();
            result
        });
        match (result, raised) {
            (Ok(value), None) => Ok(value),
            (_, Some(raised)) => Err(raised),
            (Err(error), None) => Err(errors::exception(py, error)),
        }
    }
}

pub fn run_signal_handlers(py: Python<'_>) -> PyResult<()> {
    py.check_signals()
}

#[pymethods]
impl CoreClient {
    #[new]
    #[pyo3(signature = (*, url=None, host=None, port=None, unix_socket_path=None, db=None, username=None,
        password=None, client_name=None, timeout=None, socket_timeout=None, socket_connect_timeout=None,
        ssl=None, ssl_ca_certs=None, ssl_ca_path=None, ssl_ca_data=None, ssl_certfile=None, ssl_keyfile=None,
        ssl_cert_reqs=None, ssl_check_hostname=None, ssl_min_version=None, credential_provider=None,
        sentinels=None, service_name=None, sentinel_kwargs=None, cluster=None, wait_replicas=None,
        wait_aof=None, like=None))]
    // One for each keyword of Python's constructor.
    #[allow(clippy::too_many_arguments)]
    fn new(
        py: Python<'_>,
        url: Option<&str>,
        host: Option<String>,
        port: Option<u16>,
        unix_socket_path: Option<PathBuf>,
        db: Option<u32>,
        username: Option<String>,
        password: Option<String>,
        client_name: Option<String>,
        timeout: Option<f64>,
        socket_timeout: Option<f64>,
        socket_connect_timeout: Option<f64>,
        ssl: Option<bool>,
        ssl_ca_certs: Option<PathBuf>,
        ssl_ca_path: Option<PathBuf>,
        ssl_ca_data: Option<Vec<u8>>,
        ssl_certfile: Option<PathBuf>,
        ssl_keyfile: Option<PathBuf>,
        ssl_cert_reqs: Option<String>,
        ssl_check_hostname: Option<bool>,
        ssl_min_version: Option<i64>,
        credential_provider: Option<Py<PyAny>>,
        sentinels: Option<Vec<Pair>>,
        service_name: Option<String>,
        sentinel_kwargs: Option<SentinelWords>,
        cluster: Option<Vec<Pair>>,
        wait_replicas: Option<u32>,
        wait_aof: Option<bool>,
        like: Option<&Bound<'_, Self>>,
    ) -> PyResult<Self> {
        if let Some(like) = like {
            return Ok(like.get().with_safety(py, wait_replicas, wait_aof));
        }
        let mut settings = Settings::default();
        let server = match (unix_socket_path, host, port) {
            (Some(path), ..) => Some(Address::Unix(path)),
            (None, None, None) => None,
            (None, host, port) => {
                let host = host.unwrap_or_else(|| "localhost".to_owned());
                Some(Address::Tcp(host, port.unwrap_or(6379)))
            }
        };
        let place = Where { server, sentinels, service_name, sentinel_kwargs, cluster }.place()?;
        settings.place = place.unwrap_or(settings.place);
        settings.safety = Safety {
            replicas: wait_replicas.unwrap_or_default(),
            aof: wait_aof.unwrap_or_default(),
        };
        settings.db = db.unwrap_or(settings.db);
        settings.username = username;
        settings.password = password;
        settings.client_name = client_name;
        let seconds = |given: Option<f64>, name| {
            given.map(|seconds| duration(seconds, name)).transpose().map_err(PyValueError::new_err)
        };
        settings.timeout = seconds(timeout, "timeout")?.unwrap_or(settings.timeout);
        settings.socket_timeout =
            seconds(socket_timeout, "socket_timeout")?.unwrap_or(settings.socket_timeout);
        settings.connect_timeout = seconds(socket_connect_timeout, "socket_connect_timeout")?;
        let tls = TlsWords {
            ca_certs: ssl_ca_certs,
            ca_path: ssl_ca_path,
            ca_data: ssl_ca_data,
            certfile: ssl_certfile,
            keyfile: ssl_keyfile,
            cert_reqs: ssl_cert_reqs,
            check_hostname: ssl_check_hostname,
            min_version: ssl_min_version,
        };
        if let Some(url) = url {
            settings.tls = Some(tls.unchecked()?);
            settings.read_url(url).map_err(PyValueError::new_err)?;
            if ssl == Some(true) && settings.tls.is_none() {
                let why = "ssl: the URL says that there is no TLS; rediss:// asks for it";
                return Err(PyValueError::new_err(why));
            }
        } else if ssl == Some(true) && !matches!(settings.place, Place::Server(Address::Unix(_))) {
            settings.tls = Some(tls.tls()?);
        }
        if let Some(provider) = &credential_provider {
            if settings.username.is_some() || settings.password.is_some() {
                let why = "credential_provider: user and password are given already";
                return Err(PyValueError::new_err(why));
            }
            settings.provider = Some(login::provider(py, provider)?);
        }
        let living = Arc::new(RwLock::new(Living::new(&settings)));
        Ok(Self { settings, credential_provider, living })
    }

    #[doc = include_str!("docs/acquire_lock.txt")]
    #[pyo3(signature = (lockname, acquire_time=Given::Default(5000), time_out=Given::Default(10000)),
           text_signature = "($self, lockname, acquire_time=5000, time_out=10000)")]
    pub fn acquire_lock(
        &self,
        py: Python<'_>,
        lockname: &Bound<'_, PyAny>,
        acquire_time: Given<'_, u64>,
        time_out: Given<'_, u64>,
    ) -> PyResult<bool> {
        let (wish, time_out) = args::acquire(lockname, &acquire_time, &time_out)?;
        let outcome = self.run(py, wish, Some(time_out))?;
        Ok(matches!(outcome, Outcome::Acquired(_)))
    }

    #[doc = include_str!("docs/release_lock.txt")]
    #[pyo3(signature = (lockname))]
    pub fn release_lock(&self, py: Python<'_>, lockname: &Bound<'_, PyAny>) -> PyResult<()> {
        let lock = args::name("lockname", lockname)?;
        let wish = Wish::Release { lock: Arc::clone(&lock) };
        match self.run(py, wish, None)? {
            Outcome::Done(false) => log_not_held(py, &lock),
            _ => Ok(()),
        }
    }

    #[doc = include_str!("docs/incr_inventory.txt")]
    #[pyo3(signature = (key, change_num=Given::Default(1)), text_signature = "($self, key, change_num=1)")]
    pub fn incr_inventory(
        &self,
        py: Python<'_>,
        key: &Bound<'_, PyAny>,
        change_num: Given<'_, i64>,
    ) -> PyResult<()> {
        self.run(py, args::incr(key, &change_num)?, None).map(drop)
    }

    #[doc = include_str!("docs/update_inventory.txt")]
    #[pyo3(signature = (lockname, key, change_num=Given::Default(1), acquire_time=Given::Default(5000), time_out=Given::Default(10000)),
           text_signature = "($self, lockname, key, change_num=1, acquire_time=5000, time_out=10000)")]
    pub fn update_inventory(
        &self,
        py: Python<'_>,
        lockname: &Bound<'_, PyAny>,
        key: &Bound<'_, PyAny>,
        change_num: Given<'_, i64>,
        acquire_time: Given<'_, u64>,
        time_out: Given<'_, u64>,
    ) -> PyResult<()> {
        let (wish, time_out) = args::update(lockname, key, &change_num, &acquire_time, &time_out)?;
        self.run(py, wish, Some(time_out)).map(drop)
    }

    /// Close the connections; the next call opens them again.
    ///
    /// Locks that are held stay held until they are released or their leases end.
    ///
    /// Examples:
    ///     >>> import seckill
    ///     >>> seckill.Client().close()
    fn close(&self) {
        self.client().close();
    }

    /// Tell what this client has done so far in this process.
    ///
    /// Returns:
    ///     `steps` that the server answered, script `calls` sent, `batches` sent (round trips),
    ///     those of them that `asked_again` after a lost reply, and `connects` made.
    ///
    /// Examples:
    ///     >>> import seckill
    ///     >>> seckill.Client().statistics()["batches"]
    ///     0
    fn statistics<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let counts = PyDict::new(py);
        for (name, count) in self.client().statistics() {
            counts.set_item(name, count)?;
        }
        Ok(counts)
    }

    /// Tell the keyword arguments that make this client again, password included.
    ///
    /// Returns:
    ///     What `CoreClient` takes; pickling uses it.
    ///
    /// Examples:
    ///     >>> import seckill
    ///     >>> seckill.Client("redis://example.org/3").settings()["db"]
    ///     3
    fn settings<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let settings = PyDict::new(py);
        let ours = &self.settings;
        place::tell(&ours.place, &settings)?;
        settings.set_item("db", ours.db)?;
        settings.set_item("username", ours.username.as_deref())?;
        settings.set_item("password", ours.password.as_deref())?;
        settings.set_item("client_name", ours.client_name.as_deref())?;
        settings.set_item("timeout", ours.timeout.as_secs_f64())?;
        settings.set_item("socket_timeout", ours.socket_timeout.as_secs_f64())?;
        let connect_timeout = ours.connect_timeout.map(|limit| limit.as_secs_f64());
        settings.set_item("socket_connect_timeout", connect_timeout)?;
        settings.set_item("wait_replicas", ours.safety.replicas)?;
        settings.set_item("wait_aof", ours.safety.aof)?;
        if let Some(provider) = &self.credential_provider {
            settings.set_item("credential_provider", provider)?;
        }
        place::tell_tls(ours.tls.as_ref(), &settings)?;
        Ok(settings)
    }

    fn __repr__(this: &Bound<'_, Self>) -> PyResult<String> {
        Ok(format!("{}('{}')", this.get_type().qualname()?, this.get().settings))
    }
}

/// "A debug log line": only where logging is in use, for importing it costs more than a sale.
pub fn log_not_held(py: Python<'_>, lock: &[u8]) -> PyResult<()> {
    let modules = py.import("sys")?.getattr("modules")?;
    if let Ok(logging) = modules.get_item("logging") {
        let logger = logging.call_method1("getLogger", ("seckill",))?;
        let words = "release_lock(%r): not held by this process, or its lease has ended; nothing was changed";
        logger.call_method1("debug", (words, errors::text(py, lock)))?;
    }
    Ok(())
}
