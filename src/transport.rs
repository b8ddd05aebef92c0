//! A socket of ours: non-blocking, with a deadline for every wait; packing and parsing are the redis
//! crate's.
//!
//! The crate's own connection is not used: it stays "open" after a reset, a time-out or a parse
//! error, and then answers one command with another's reply. Here **any error that is not a
//! server's reply destroys the connection**, and the caller of [`Wire::receive`] sees to that.
//!
//! # Waiting for a reply
//!
//! A reply from a near server is there before a sleeping thread would be woken. So the wait spins
//! first (read, `sched_yield`, read, ...), for about as long as replies usually take here, and not at
//! all where that is long: [`Pace`]. The yield matters: without it ten processes on two cores lose a
//! quarter of their throughput.
//!
//! TLS, where it is wanted, lies between the socket and the parser; all waits are the same.

use std::io::{self, Read};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{Parser, Value};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::Socket;

use crate::clock;
use crate::inherited::OpenFd;
use crate::tls::Secured;

/// The longest that a wait for a reply spins before it sleeps. Replies from a near server take 20 us
/// to one connection, and 120 us to each of ten on two cores.
const LONGEST_SPIN: Duration = Duration::from_micros(150);

/// What is kept of a buffer that a huge name has made huge.
const USUAL_REQUEST: usize = 64 << 10;

/// No answer to any of our questions is longer; what is, is not a Redis server's.
const LONGEST_REPLY: usize = 16 << 20;

/// A socket whose descriptor is on record for a fork.
#[derive(Debug)]
pub struct Line {
    socket: Socket,
    open: Arc<OpenFd>,
}

impl Line {
    /// Takes charge of a socket, and makes it non-blocking.
    pub fn new(socket: Socket, open: &Arc<OpenFd>) -> io::Result<Self> {
        open.opened(&socket);
        let line = Self { socket, open: Arc::clone(open) };
        line.socket.set_nonblocking(true)?;
        Ok(line)
    }

    /// The socket.
    pub fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Waits until the socket can be read (or written, or has failed). False when `until` is over.
    pub fn wait(&self, flags: PollFlags, until: Instant) -> io::Result<bool> {
        wait_any(&mut [PollFd::new(&self.socket, flags)], until)
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.open.closing();
    }
}

/// Polls until one descriptor is ready (true) or `until` is over (false).
pub fn wait_any(fds: &mut [PollFd<'_>], until: Instant) -> io::Result<bool> {
    loop {
        let left = until.saturating_duration_since(clock::now());
        // Rounded up to a microsecond, so that a wait never ends a moment too early and spins.
        let left = left.saturating_add(Duration::from_micros(1));
        let left = if clock::waits_for_nothing(until) { Duration::ZERO } else { left };
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(fds, Some(&timeout)) {
            Ok(0) => return Ok(false),
            Ok(_) => return Ok(true),
            // A signal: the caller's slice is short, and its own check runs after it.
            Err(rustix::io::Errno::INTR) if clock::now() < until => {}
            Err(rustix::io::Errno::INTR) => return Ok(false),
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// A connection: what is still to be written, and a parser that remembers half a reply.
pub struct Wire {
    line: Line,
    secured: Option<Box<Secured>>,
    parser: Parser,
    out: Vec<u8>,
    written: usize,
    pace: Pace,
}

impl Wire {
    /// A connection over a connected socket; with TLS, whose handshake is still to come, or without.
    pub fn new(line: Line, secured: Option<Box<Secured>>) -> Self {
        let (parser, out, pace) = (Parser::new(), Vec::new(), Pace::default());
        Self { line, secured, parser, out, written: 0, pace }
    }

    /// Agrees with the server on TLS, if it is wanted. False when `until` is over first.
    pub fn shake_hands(&mut self, until: Instant) -> io::Result<bool> {
        let Some(secured) = &mut self.secured else { return Ok(true) };
        let socket = self.line.socket();
        loop {
            let write = secured.write(socket);
            let flags = match write {
                Ok(()) if !secured.is_handshaking() => return Ok(true),
                Ok(()) => match secured.fetch(socket) {
                    Ok(true) => continue,
                    Ok(false) => return Err(io::ErrorKind::UnexpectedEof.into()),
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => PollFlags::IN,
                    Err(error) => return Err(error),
                },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => PollFlags::OUT,
                Err(error) => return Err(error),
            };
            if !self.line.wait(flags, until)? {
                return Ok(false);
            }
        }
    }

    /// The socket, for those who wait for several.
    pub fn socket(&self) -> std::os::fd::BorrowedFd<'_> {
        self.line.socket.as_fd()
    }

    /// Where to append what [`flush`](Self::flush) shall write.
    pub fn out(&mut self) -> &mut Vec<u8> {
        &mut self.out
    }

    /// Writes what is to be written. False when `until` is over first.
    pub fn flush(&mut self, until: Instant) -> io::Result<bool> {
        if self.secured.is_some() {
            return self.flush_secured(until);
        }
        while self.written < self.out.len() {
            // Without MSG_NOSIGNAL a broken connection ends a script that has SIGPIPE at its default.
            let rest = &self.out[self.written..];
            match self.line.socket.send_with_flags(rest, libc::MSG_NOSIGNAL) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => self.written += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.line.wait(PollFlags::OUT, until)? {
                        return Ok(false);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        self.flushed();
        Ok(true)
    }

    fn flush_secured(&mut self, until: Instant) -> io::Result<bool> {
        let Some(secured) = &mut self.secured else { return Ok(true) };
        loop {
            if self.written < self.out.len() {
                self.written += secured.take(&self.out[self.written..])?;
            }
            match secured.write(self.line.socket()) {
                Ok(()) if self.written < self.out.len() => {}
                Ok(()) => break,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.line.wait(PollFlags::OUT, until)? {
                        return Ok(false);
                    }
                }
                Err(error) => return Err(error),
            }
        }
        self.flushed();
        Ok(true)
    }

    fn flushed(&mut self) {
        self.out.clear();
        self.out.shrink_to(USUAL_REQUEST);
        self.written = 0;
    }

    /// The next reply. `None` when `until` is over first; what came of the reply is kept.
    pub fn receive(&mut self, until: Instant) -> io::Result<Option<Value>> {
        let secured = self.secured.as_deref_mut();
        let (line, pace) = (&self.line, &mut self.pace);
        let mut reader = Patient { line, secured, pace, until, taken: 0 };
        match self.parser.parse_value(&mut reader) {
            Ok(value) => Ok(Some(value)),
            Err(error) if error.is_timeout() => Ok(None),
            Err(error) => match self.secured.as_ref().and_then(|secured| secured.failure()) {
                Some(failure) => Err(io::Error::other(failure.clone())),
                None => Err(io::Error::other(explain(&error))),
            },
        }
    }
}

fn explain(error: &redis::RedisError) -> String {
    if error.is_connection_dropped() || error.is_io_error() {
        "the connection broke while waiting for the reply".to_owned()
    } else {
        format!("what came is not a Redis reply: {error}")
    }
}

/// Reads with patience: spins, then sleeps, and says `WouldBlock` only when `until` is over.
struct Patient<'a> {
    line: &'a Line,
    secured: Option<&'a mut Secured>,
    pace: &'a mut Pace,
    until: Instant,
    taken: usize,
}

impl Read for Patient<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let mut started: Option<Instant> = None;
        let spin = self.pace.spin();
        loop {
            let read = match &mut self.secured {
                None => (&self.line.socket).read(buf),
                Some(secured) => secured.read(&self.line.socket, buf),
            };
            match read {
                Ok(count) => {
                    if let Some(started) = started {
                        self.pace.note(clock::since(started));
                    }
                    self.taken += count;
                    if self.taken > LONGEST_REPLY {
                        return Err(io::Error::other("a reply of more than 16 MiB"));
                    }
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let now = clock::now();
                    let began = *started.get_or_insert(now);
                    if now >= self.until {
                        return Err(error);
                    }
                    if now - began < spin && !clock::waits_for_nothing(self.until) {
                        std::thread::yield_now();
                    } else if !self.line.wait(PollFlags::IN, self.until)? {
                        return Err(io::ErrorKind::WouldBlock.into());
                    }
                }
                Err(error) => return Err(error),
            }
        }
    }
}

/// How long replies take here, and so whether and how long to spin for one.
///
/// A wait spins for twice the usual time, if the usual time is no longer than [`LONGEST_SPIN`]. Else
/// only one wait in [`PROBE`](Pace::PROBE) does, to see whether spinning has become worth it: one that
/// sleeps cannot tell, for being woken takes long.
#[derive(Debug)]
struct Pace {
    /// A moving average.
    usual: Duration,
    waits: u8,
}

impl Default for Pace {
    fn default() -> Self {
        Self { usual: LONGEST_SPIN / 2, waits: 0 }
    }
}

impl Pace {
    const PROBE: u8 = 32;

    /// How long the wait at hand shall spin.
    fn spin(&self) -> Duration {
        if self.usual <= LONGEST_SPIN {
            (self.usual * 2).min(LONGEST_SPIN)
        } else if self.waits == 0 {
            LONGEST_SPIN
        } else {
            Duration::ZERO
        }
    }

    fn note(&mut self, waited: Duration) {
        self.waits = (self.waits + 1) % Self::PROBE;
        // One quick reply is enough to spin again.
        self.usual = if self.usual > LONGEST_SPIN && waited <= LONGEST_SPIN {
            waited
        } else {
            (self.usual * 7 + waited) / 8
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_pace_stops_to_spin_for_a_far_server_and_finds_a_near_one_again() {
        const FAR: Duration = Duration::from_millis(1);
        const NEAR: Duration = Duration::from_micros(20);
        let mut pace = Pace::default();
        assert_eq!(pace.spin(), LONGEST_SPIN);
        for _ in 0..2 * Pace::PROBE {
            pace.note(FAR);
        }
        let mut spins = 0;
        for _ in 0..2 * Pace::PROBE {
            spins += u32::from(!pace.spin().is_zero());
            pace.note(FAR);
        }
        assert_eq!(spins, 2, "one probe in 32");
        pace.note(NEAR);
        assert_eq!(pace.spin(), 2 * NEAR);
        pace.note(FAR);
        assert!(!pace.spin().is_zero(), "one slow reply among quick ones");
    }

    #[test]
    fn a_reply_in_pieces_is_put_together_and_two_in_one_piece_are_told_apart() {
        let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().expect("a pair");
        let line = Line::new(ours.into(), &Arc::default()).expect("non-blocking");
        let mut wire = Wire::new(line, None);
        let soon = || clock::now() + Duration::from_millis(20);
        theirs.write_all(b"$5\r\nhe").expect("room");
        assert_eq!(wire.receive(soon()).expect("alive"), None);
        theirs.write_all(b"llo\r\n:7\r\n").expect("room");
        let hello = Value::BulkString(b"hello".to_vec());
        assert_eq!(wire.receive(soon()).expect("alive"), Some(hello));
        assert_eq!(wire.receive(soon()).expect("alive"), Some(Value::Int(7)));
        drop(theirs);
        assert!(wire.receive(soon()).is_err());
    }
}
