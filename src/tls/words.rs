//! What goes wrong with TLS, in plain words, and whether it would go wrong again.

use std::error::Error;
use std::fmt;

use rustls::{AlertDescription as Alert, CertificateError};

/// Why there is no TLS; what an [`io::Error`](std::io::Error) of a secured connection holds.
#[derive(Debug, Clone)]
pub struct Failure {
    words: String,
    /// Certificates or settings have to change first.
    pub lasting: bool,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

impl Error for Failure {}

impl From<&rustls::Error> for Failure {
    fn from(error: &rustls::Error) -> Self {
        use rustls::Error as E;
        let (words, lasting) = match error {
            E::InvalidCertificate(why) => (refused(why), true),
            E::NoCertificatesPresented => ("the server has no certificate".to_owned(), true),
            E::AlertReceived(alert) => told(*alert),
            E::PeerIncompatible(why) => {
                (format!("the server and we have no TLS in common: {why:?}"), true)
            }
            E::InvalidMessage(_) | E::InappropriateMessage { .. } => {
                let words = "what answers does not speak TLS: for a port without it use redis:// or ssl=False";
                (words.to_owned(), false)
            }
            other => (format!("TLS: {other}"), false),
        };
        Self { words, lasting }
    }
}

/// Why we refuse the server's certificate.
fn refused(why: &CertificateError) -> String {
    use CertificateError as C;
    let what = match why {
        C::UnknownIssuer | C::BadSignature => {
            "is not signed by a CA that is trusted here (ssl_ca_certs, else the system's)"
                .to_owned()
        }
        C::Expired | C::ExpiredContext { .. } => "has expired".to_owned(),
        C::NotValidYet | C::NotValidYetContext { .. } => {
            "is not valid yet, or the clock of this machine is slow".to_owned()
        }
        C::NotValidForName => "is for another host name".to_owned(),
        C::NotValidForNameContext { expected, presented } => {
            let presented = if presented.is_empty() {
                "no host name".to_owned()
            } else {
                // They come as `DnsName("example.org")`.
                let names = presented.iter().map(|name| name.split('"').nth(1).unwrap_or(name));
                names.collect::<Vec<_>>().join(", ")
            };
            format!("is for another host name: for {presented}, not for {}", expected.to_str())
        }
        C::Revoked => "was revoked".to_owned(),
        C::InvalidPurpose | C::InvalidPurposeContext { .. } => "is not a server's".to_owned(),
        C::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "is a CA's own: a server wants one that its CA has signed".to_owned()
        }
        other => format!("cannot be accepted: {other}"),
    };
    format!("the server's certificate {what}")
}

/// What the server said last.
fn told(alert: Alert) -> (String, bool) {
    match alert {
        Alert::CertificateRequired | Alert::NoCertificate => {
            ("the server wants a certificate of ours (ssl_certfile)".to_owned(), true)
        }
        Alert::HandshakeFailure => {
            let words = "the server does not accept our handshake: it may want a certificate of ours (ssl_certfile)";
            (words.to_owned(), true)
        }
        Alert::BadCertificate
        | Alert::UnsupportedCertificate
        | Alert::CertificateRevoked
        | Alert::CertificateExpired
        | Alert::CertificateUnknown
        | Alert::UnknownCA
        | Alert::AccessDenied => {
            (format!("the server does not accept our certificate: {alert:?}"), true)
        }
        Alert::ProtocolVersion | Alert::InsufficientSecurity => {
            (format!("the server and we have no TLS in common: {alert:?}"), true)
        }
        Alert::UnrecognisedName => {
            ("the server does not know the host name that was asked for".to_owned(), true)
        }
        other => (format!("the server ended TLS: {other:?}"), false),
    }
}
