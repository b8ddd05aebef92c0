//! From addresses to a connected socket: each in turn.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use socket2::{Protocol, SockAddr, Socket, TcpKeepalive, Type};

use crate::clock;
use crate::inherited::OpenFd;
use crate::transport::Line;

/// How often a unix socket with a full backlog is tried again.
const BACKLOG_PAUSE: Duration = Duration::from_millis(5);

/// Addresses that are tried one after the other, each for its share of the time that is left.
pub struct Dialing {
    addresses: VecDeque<SockAddr>,
    /// The socket that is being connected, and how long it may take.
    current: Option<(Line, Instant)>,
    /// Why the last address that was tried did not do.
    failed: Option<io::Error>,
    end: Instant,
}

impl Dialing {
    /// Prepares to connect to the first of `addresses` that lets us, by `end`.
    pub fn new(addresses: impl IntoIterator<Item = SockAddr>, end: Instant) -> Self {
        Self { addresses: addresses.into_iter().collect(), current: None, failed: None, end }
    }

    /// Moves on. `None` when `until` is over first; an error when no address is left.
    pub fn advance(&mut self, open: &Arc<OpenFd>, until: Instant) -> io::Result<Option<Line>> {
        loop {
            if let Some((line, end)) = self.current.take() {
                match line.wait(PollFlags::OUT, until.min(end)) {
                    Ok(false) if clock::now() < end => {
                        self.current = Some((line, end));
                        return Ok(None);
                    }
                    Ok(false) => self.failed = Some(io::ErrorKind::TimedOut.into()),
                    Ok(true) => match line.socket().take_error() {
                        Ok(None) => return Ok(Some(line)),
                        Ok(Some(error)) | Err(error) => self.failed = Some(error),
                    },
                    Err(error) => self.failed = Some(error),
                }
            }
            let Some(address) = self.addresses.pop_front() else {
                let nowhere = || io::Error::other("the name has no address");
                return Err(self.failed.take().unwrap_or_else(nowhere));
            };
            match dial(&address, open) {
                Ok(line) => self.current = Some((line, self.share())),
                // A unix socket whose backlog is full: there is nothing to wait for but time.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.addresses.push_front(address);
                    let now = clock::now();
                    if until <= now || !clock::sleep_until(until.min(now + BACKLOG_PAUSE)) {
                        return Ok(None);
                    }
                }
                Err(error) => self.failed = Some(error),
            }
        }
    }

    /// The time of an address: an equal part for it and for each that comes after.
    fn share(&self) -> Instant {
        let now = clock::now();
        let rest = u32::try_from(self.addresses.len()).unwrap_or(u32::MAX).saturating_add(1);
        now + self.end.saturating_duration_since(now) / rest
    }
}

fn dial(address: &SockAddr, open: &Arc<OpenFd>) -> io::Result<Line> {
    #[cfg(test)]
    if let Some(dialed) = crate::stage::dial(address) {
        return Line::new(dialed?, open);
    }
    let tcp = !address.is_unix();
    let socket = Socket::new(address.domain(), Type::STREAM, tcp.then_some(Protocol::TCP))?;
    if tcp {
        socket.set_tcp_nodelay(true)?;
        socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(Duration::from_mins(1)))?;
    }
    let line = Line::new(socket, open)?;
    match line.socket().connect(address) {
        Err(error) if in_progress(&error) => Ok(line),
        Ok(()) => Ok(line),
        Err(error) => Err(error),
    }
}

fn in_progress(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EINPROGRESS) || error.kind() == io::ErrorKind::Interrupted
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpListener};

    /// A listener whose backlog is full drops what would connect to it, as a firewall does.
    fn silent() -> (TcpListener, Vec<Socket>, SocketAddr) {
        let socket = Socket::new(socket2::Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).expect("a port");
        socket.listen(0).expect("a listener");
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().expect("bound");
        let guests = (0..4).map(|_| {
            let guest = Socket::new(socket2::Domain::IPV4, Type::STREAM, None).expect("a socket");
            guest.set_nonblocking(true).expect("non-blocking");
            let _ = guest.connect(&address.into());
            guest
        });
        let guests = guests.collect();
        (listener, guests, address)
    }

    #[test]
    fn an_address_that_is_silent_leaves_time_for_the_next() {
        let (_silent, _guests, first) = silent();
        let answers = TcpListener::bind("127.0.0.1:0").expect("a port");
        let second = answers.local_addr().expect("bound");
        let end = clock::now() + Duration::from_millis(400);
        let addresses = [first, second].map(SockAddr::from);
        let mut dialing = Dialing::new(addresses, end);
        let line = dialing.advance(&Arc::default(), end).expect("the second lets us");
        let peer = line.expect("in time").socket().peer_addr().expect("connected");
        assert_eq!(peer.as_socket(), Some(second));
    }

    #[test]
    fn when_no_address_is_left_the_last_failure_is_told() {
        let end = clock::now() + Duration::from_secs(1);
        let error = |addresses: Vec<SockAddr>| {
            let dialed = Dialing::new(addresses, end).advance(&Arc::default(), end);
            dialed.map(|_| ()).expect_err("nobody there")
        };
        let port = TcpListener::bind("127.0.0.1:0").and_then(|closed| closed.local_addr());
        let refused = error(vec![port.expect("a port").into()]);
        assert_eq!(refused.kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(error(vec![]).to_string(), "the name has no address");
    }
}
