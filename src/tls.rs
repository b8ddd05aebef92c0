//! TLS: what the settings say of it, and the client configuration that comes of them.
//!
//! One configuration serves all connections of a client, so that each resumes the session of the one
//! before. It is made when the first of them connects; files are read then, and again after a
//! certificate was refused, for certificates are renewed under running processes.
//!
//! A forked child inherits no configuration: its clients are made from the settings, whose clone has
//! none, so that nothing of the parent's that a fork may have caught locked is ever waited for.

mod secured;
mod words;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{
    WebPkiSupportedAlgorithms, ring, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::version::TLS13;
use rustls::{ALL_VERSIONS, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_native_certs::{load_certs_from_paths, load_native_certs};

pub(crate) use secured::Secured;
pub(crate) use words::Failure;

/// What is known of a server that is talked to over TLS; the names are redis-py's.
#[derive(Clone, PartialEq, Eq)]
pub struct Tls {
    /// A file of CA certificates, PEM.
    pub ca_certs: Option<PathBuf>,
    /// A directory of such files.
    pub ca_path: Option<PathBuf>,
    /// CA certificates themselves, PEM or DER. With none of the three: the system's.
    pub ca_data: Option<Vec<u8>>,
    /// A file with our own certificate and those between it and its CA, PEM.
    pub certfile: Option<PathBuf>,
    /// A file with its key, PEM; without one it stands in `certfile`, too.
    pub keyfile: Option<PathBuf>,
    /// Whether the server has to prove who it is.
    pub verify: bool,
    /// Whether that has to be the host that was asked for.
    pub check_hostname: bool,
    /// Whether TLS 1.2 will not do.
    pub only_tls13: bool,
    pub(crate) made: Made,
}

/// The configuration, once it is made; a clone has none.
#[derive(Default)]
pub(crate) struct Made(Arc<Mutex<Option<Arc<ClientConfig>>>>);

impl Clone for Made {
    fn clone(&self) -> Self {
        Self::default()
    }
}

impl PartialEq for Made {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Made {}

impl Default for Tls {
    fn default() -> Self {
        Self {
            ca_certs: None,
            ca_path: None,
            ca_data: None,
            certfile: None,
            keyfile: None,
            verify: true,
            check_hostname: true,
            only_tls13: false,
            made: Made::default(),
        }
    }
}

/// What redis-py knows, and cannot be had here.
pub const NOT_TO_BE_HAD: [&str; 8] = [
    "ssl_ciphers",
    "ssl_exclude_verify_flags",
    "ssl_include_verify_flags",
    "ssl_ocsp_context",
    "ssl_ocsp_expected_cert",
    "ssl_password",
    "ssl_validate_ocsp",
    "ssl_validate_ocsp_stapled",
];

impl Tls {
    /// Takes in a parameter of a URL. False when there is none of that name.
    pub fn parameter(&mut self, name: &str, value: &str) -> Result<bool, String> {
        match name {
            "ssl_ca_certs" => self.ca_certs = Some(value.into()),
            "ssl_ca_path" => self.ca_path = Some(value.into()),
            "ssl_ca_data" => self.ca_data = Some(value.into()),
            "ssl_certfile" => self.certfile = Some(value.into()),
            "ssl_keyfile" => self.keyfile = Some(value.into()),
            "ssl_cert_reqs" => {
                self.verify = verifies(value).map_err(|why| format!("url: {why}"))?;
            }
            "ssl_check_hostname" => self.check_hostname = flag(name, value)?,
            "ssl_min_version" => {
                let version = value.parse().map_err(|_| {
                    "url: ssl_min_version must be a number (772 is TLS 1.3)".to_owned()
                })?;
                self.only_tls13 = excludes_tls12(version);
            }
            name if NOT_TO_BE_HAD.contains(&name) => {
                return Err(format!("url: {name} is not supported by seckill"));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// One that shares the configuration, as a clone does not: only within a process.
    #[must_use]
    pub fn same(&self) -> Self {
        Self { made: Made(Arc::clone(&self.made.0)), ..self.clone() }
    }

    /// What can be said of the settings before anything is read.
    pub fn check(&self) -> Result<(), String> {
        if self.keyfile.is_some() && self.certfile.is_none() {
            return Err("ssl_keyfile needs ssl_certfile".to_owned());
        }
        Ok(())
    }

    /// The configuration of all connections.
    pub fn configuration(&self) -> Result<Arc<ClientConfig>, String> {
        let mut made = self.made();
        if let Some(made) = &*made {
            return Ok(Arc::clone(made));
        }
        let configuration = Arc::new(self.make()?);
        *made = Some(Arc::clone(&configuration));
        Ok(configuration)
    }

    /// Somebody's certificate was refused: all files are read again at the next connect.
    pub fn forget(&self) {
        *self.made() = None;
    }

    fn made(&self) -> MutexGuard<'_, Option<Arc<ClientConfig>>> {
        self.made.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn make(&self) -> Result<ClientConfig, String> {
        let provider = Arc::new(ring::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let versions = if self.only_tls13 { &[&TLS13] } else { ALL_VERSIONS };
        let builder = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .map_err(|error| error.to_string())?;
        let builder = if self.verify && self.check_hostname {
            builder.with_root_certificates(self.roots()?)
        } else {
            let roots = self.verify.then(|| self.roots()).transpose()?;
            let verifier = Arc::new(Lenient { roots, algorithms });
            builder.dangerous().with_custom_certificate_verifier(verifier)
        };
        let Some(path) = &self.certfile else { return Ok(builder.with_no_client_auth()) };
        let chain: Vec<_> = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(|error| unreadable("ssl_certfile", path, &error))?;
        if chain.is_empty() {
            return Err(format!("ssl_certfile: no certificate in {}", path.display()));
        }
        let (name, path) = match &self.keyfile {
            Some(path) => ("ssl_keyfile", path),
            None => ("ssl_certfile", path),
        };
        let key = PrivateKeyDer::from_pem_file(path)
            .map_err(|error| unreadable(name, path, &error) + " (an encrypted key will not do)")?;
        builder
            .with_client_auth_cert(chain, key)
            .map_err(|error| format!("{name}: certificate and key will not do: {error}"))
    }

    fn roots(&self) -> Result<Arc<RootCertStore>, String> {
        if self.ca_certs.is_none() && self.ca_path.is_none() && self.ca_data.is_none() {
            return roots_of_the_system();
        }
        let mut roots = RootCertStore::empty();
        let (file, dir) = (self.ca_certs.as_deref(), self.ca_path.as_deref());
        for (name, file, dir) in [("ssl_ca_certs", file, None), ("ssl_ca_path", None, dir)] {
            let Some(path) = file.or(dir) else { continue };
            let found = load_certs_from_paths(file, dir);
            if let Some(error) = found.errors.first() {
                return Err(unreadable(name, path, error));
            }
            if roots.add_parsable_certificates(found.certs).0 == 0 {
                return Err(format!("{name}: no certificate in {}", path.display()));
            }
        }
        if let Some(data) = &self.ca_data
            && roots.add_parsable_certificates(certificates(data)?).0 == 0
        {
            return Err("ssl_ca_data holds no certificate".to_owned());
        }
        Ok(Arc::new(roots))
    }
}

fn unreadable(name: &str, path: &Path, error: &dyn std::fmt::Display) -> String {
    format!("{name}: cannot read {}: {error}", path.display())
}

/// PEM, or the DER of one certificate after the other.
fn certificates(data: &[u8]) -> Result<Vec<CertificateDer<'static>>, String> {
    let bad = |why: &dyn std::fmt::Display| format!("ssl_ca_data is neither PEM nor DER: {why}");
    if data.first() != Some(&0x30) {
        return CertificateDer::pem_slice_iter(data).collect::<Result<_, _>>().map_err(|e| bad(&e));
    }
    let mut rest = data;
    let mut found = Vec::new();
    while !rest.is_empty() {
        // A sequence of 256 to 65,535 bytes: no certificate is of another length.
        let &[0x30, 0x82, high, low, ..] = rest else { return Err(bad(&"no certificate")) };
        let length = 4 + usize::from(u16::from_be_bytes([high, low]));
        let Some((one, after)) = rest.split_at_checked(length) else {
            return Err(bad(&"it ends in the middle of a certificate"));
        };
        found.push(CertificateDer::from(one.to_vec()));
        rest = after;
    }
    Ok(found)
}

/// The system's, read once for all clients. The lock is held for moments; a child that finds it locked
/// by a thread that it does not have reads for itself.
fn roots_of_the_system() -> Result<Arc<RootCertStore>, String> {
    static ROOTS: Mutex<Option<Arc<RootCertStore>>> = Mutex::new(None);
    let known = || match ROOTS.try_lock() {
        Ok(known) => Some(known),
        Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => None,
    };
    if let Some(roots) = known().and_then(|known| known.clone()) {
        return Ok(roots);
    }
    let found = load_native_certs();
    let mut roots = RootCertStore::empty();
    if roots.add_parsable_certificates(found.certs).0 == 0 {
        let why = found.errors.first().map_or_else(String::new, |error| format!(" ({error})"));
        return Err(format!("this system has no CA certificates{why}: give ssl_ca_certs"));
    }
    let roots = Arc::new(roots);
    if let Some(mut known) = known() {
        *known = Some(Arc::clone(&roots));
    }
    Ok(roots)
}

/// Whether `ssl_cert_reqs` asks the server to prove who it is.
pub fn verifies(text: &str) -> Result<bool, String> {
    match text {
        "required" | "optional" => Ok(true),
        "none" => Ok(false),
        _ => Err("ssl_cert_reqs must be required, optional or none".to_owned()),
    }
}

/// Whether `ssl_min_version` (a protocol's number, as in `ssl.TLSVersion`) excludes TLS 1.2; what is
/// older is not spoken anyway.
#[must_use]
pub fn excludes_tls12(version: i64) -> bool {
    const TLS_1_2: i64 = 0x0303;
    const NEWEST: i64 = -1;
    version > TLS_1_2 || version == NEWEST
}

/// The words that redis-py takes for no, and what can be meant by yes.
pub fn flag(name: &str, text: &str) -> Result<bool, String> {
    match text.to_ascii_uppercase().as_str() {
        "0" | "F" | "FALSE" | "N" | "NO" => Ok(false),
        "1" | "T" | "TRUE" | "Y" | "YES" => Ok(true),
        _ => Err(format!("url: {name} must be true or false")),
    }
}

/// Lets the server have another name, or without roots be anybody.
#[derive(Debug)]
struct Lenient {
    roots: Option<Arc<RootCertStore>>,
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for Lenient {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if let Some(roots) = &self.roots {
            let parsed = ParsedCertificate::try_from(end_entity)?;
            let algorithms = self.algorithms.all;
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                roots,
                intermediates,
                now,
                algorithms,
            )?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match &self.roots {
            Some(_) => verify_tls12_signature(message, cert, signed, &self.algorithms),
            None => Ok(HandshakeSignatureValid::assertion()),
        }
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        match &self.roots {
            Some(_) => verify_tls13_signature(message, cert, signed, &self.algorithms),
            None => Ok(HandshakeSignatureValid::assertion()),
        }
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
