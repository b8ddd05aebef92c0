//! A TLS session over a non-blocking socket: bytes in, bytes out, and never a wait of its own.
//!
//! Nothing is written but what was asked for, alerts about the peer's mistakes, and answers to its
//! key updates. In particular no `close_notify`: a connection ends with `close(2)`, in a forked child
//! as everywhere, and dropping a session writes nothing.

use std::io::{self, IoSlice, Read, Write};
use std::sync::Arc;

use rustls::ClientConnection;
use rustls::pki_types::ServerName;
use socket2::Socket;

use super::{Failure, Tls};

/// See the module's description.
pub struct Secured {
    connection: ClientConnection,
    failure: Option<Failure>,
}

impl Secured {
    /// A session that is still to be agreed on with the server at `host`.
    pub fn new(tls: &Tls, host: &str) -> Result<Self, String> {
        let configuration = tls.configuration()?;
        let name = ServerName::try_from(host.to_owned()).or_else(|_| {
            if tls.verify && tls.check_hostname {
                return Err(format!("no certificate can be for the host name {host:?}"));
            }
            // An address is not told to the server.
            Ok(ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into()))
        })?;
        let connection =
            ClientConnection::new(Arc::clone(&configuration), name).map_err(|e| e.to_string())?;
        Ok(Self { connection, failure: None })
    }

    /// Whether it is not agreed on yet.
    pub fn is_handshaking(&self) -> bool {
        self.connection.is_handshaking()
    }

    /// Takes in some of what shall be written.
    pub fn take(&mut self, plain: &[u8]) -> io::Result<usize> {
        self.connection.writer().write(plain)
    }

    /// Writes what was taken in, and what the session itself has to say.
    pub fn write(&mut self, socket: &Socket) -> io::Result<()> {
        while self.connection.wants_write() {
            match self.connection.write_tls(&mut Quiet(socket)) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                // Why the server hung up may have arrived before.
                Err(error) => return Err(self.last_words(socket).unwrap_or(error)),
            }
        }
        Ok(())
    }

    /// Reads, as from a plain non-blocking socket.
    pub fn read(&mut self, socket: &Socket, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.connection.reader().read(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            if !self.fetch(socket)? {
                return Ok(0);
            }
        }
    }

    /// Takes in what has come. False at the end of the connection.
    pub fn fetch(&mut self, socket: &Socket) -> io::Result<bool> {
        let come = self.connection.read_tls(&mut &*socket)?;
        let processed = self.connection.process_new_packets();
        if let Err(error) = processed {
            // The alert, if there is room for it; the connection is of no use any more.
            let _ = self.connection.write_tls(&mut Quiet(socket));
            let failure = Failure::from(&error);
            self.failure = Some(failure.clone());
            return Err(io::Error::new(io::ErrorKind::InvalidData, failure));
        }
        if self.connection.wants_write() && !self.connection.is_handshaking() {
            // Answers to key updates; what has no room now goes with the next request.
            let _ = self.connection.write_tls(&mut Quiet(socket));
        }
        Ok(come > 0)
    }

    /// What ended the session, if TLS did.
    pub fn failure(&self) -> Option<&Failure> {
        self.failure.as_ref()
    }

    fn last_words(&mut self, socket: &Socket) -> Option<io::Error> {
        loop {
            match self.fetch(socket) {
                Ok(true) => {}
                Ok(false) => return None,
                Err(error) => return self.failure.is_some().then_some(error),
            }
        }
    }
}

/// A socket whose broken connection is an error, and no SIGPIPE.
struct Quiet<'a>(&'a Socket);

impl Write for Quiet<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.send_with_flags(bytes, libc::MSG_NOSIGNAL)
    }

    fn write_vectored(&mut self, bytes: &[IoSlice<'_>]) -> io::Result<usize> {
        self.0.send_vectored_with_flags(bytes, libc::MSG_NOSIGNAL)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
