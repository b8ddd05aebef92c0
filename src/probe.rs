//! A connection for questions: one command at a time, and its reply just as it came.
//!
//! For those who look at a server instead of selling on it (`seckill doctor`). It is opened as every
//! connection is, with the same settings, handshake and time-outs, and is no part of a session:
//! nothing is asked again. A command that gets no reply within `socket_timeout` ends it.

use std::net::IpAddr;
use std::sync::Arc;

use redis::Value;
use socket2::{SockAddr, SockRef};

use crate::clock;
use crate::connect::{Opening, Purpose, Trouble};
use crate::error::{Error, Result};
use crate::fork;
use crate::inherited::OpenFd;
use crate::patrol::Patrol;
use crate::settings::Settings;
use crate::transport::Wire;

/// See the module's description.
pub struct Probe {
    settings: Arc<Settings>,
    generation: u64,
    /// None from the first error on that is not the server's reply.
    wire: Option<Wire>,
    pushes: Vec<Value>,
}

impl Probe {
    /// Connects.
    pub fn open(settings: Settings, purpose: Purpose, patrol: &mut Patrol<'_>) -> Result<Self> {
        let (settings, open) = (Arc::new(settings), Arc::<OpenFd>::default());
        let mut opening = Opening::begin(&settings, &open, purpose);
        let opened = loop {
            match opening.advance(patrol.next()) {
                Ok(Some(opened)) => break opened,
                Ok(None) => patrol.pass(clock::now())?,
                Err(Trouble::Refused(error)) => return Err(error),
                Err(Trouble::Unreachable(why) | Trouble::NotReady(why)) => {
                    return Err(Error::Unreachable(why));
                }
            }
        };
        Ok(Self {
            settings,
            generation: fork::generation(),
            wire: Some(opened.wire),
            pushes: Vec::new(),
        })
    }

    /// Sends a command and waits for its reply; an error of the server's is a reply, too.
    pub fn ask(&mut self, command: &redis::Cmd, patrol: &mut Patrol<'_>) -> Result<Value> {
        if self.generation != fork::generation() {
            return Err(Error::Forked);
        }
        let Some(mut wire) = self.wire.take() else {
            return Err(Error::Unreachable("the connection is closed".to_owned()));
        };
        command.write_packed_command(wire.out());
        let end = clock::now() + self.settings.socket_timeout;
        let broken = |error: std::io::Error| Error::OutcomeUnknown(error.to_string());
        loop {
            let slice = patrol.next().min(end);
            let written = wire.flush(slice).map_err(broken)?;
            match if written { wire.receive(slice).map_err(broken)? } else { None } {
                Some(push @ Value::Push { .. }) => self.pushes.push(push),
                Some(reply) => {
                    self.wire = Some(wire);
                    return Ok(reply);
                }
                None => {}
            }
            let now = clock::now();
            if now >= end {
                let limit = self.settings.socket_timeout.as_millis();
                return Err(Error::OutcomeUnknown(format!("no answer within {limit} ms")));
            }
            patrol.pass(now)?;
        }
    }

    /// What the server has told without being asked, since this was last looked at.
    pub fn pushes(&mut self) -> Vec<Value> {
        std::mem::take(&mut self.pushes)
    }

    /// Whether the commands leave this machine: not to a unix socket, nor to an address of its own.
    #[must_use]
    pub fn is_remote(&self) -> bool {
        let address = |found: std::io::Result<SockAddr>| found.ok()?.as_socket().map(|it| it.ip());
        let ends = self.wire.as_ref().map(|wire| {
            let socket = wire.socket();
            let socket = SockRef::from(&socket);
            (address(socket.local_addr()), address(socket.peer_addr()))
        });
        matches!(ends, Some((ours, Some(theirs))) if elsewhere(ours, theirs))
    }
}

fn elsewhere(ours: Option<IpAddr>, theirs: IpAddr) -> bool {
    !theirs.to_canonical().is_loopback() && ours != Some(theirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_machine_is_one_with_an_address_that_is_not_ours() {
        let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
        for (ours, theirs, answer) in [
            ("10.0.0.1", "10.0.0.2", true),
            ("10.0.0.1", "10.0.0.1", false),
            ("127.0.0.1", "127.0.0.2", false),
            ("::1", "::1", false),
            ("::ffff:127.0.0.1", "::ffff:127.0.0.1", false),
            ("fd00::1", "fd00::2", true),
        ] {
            assert_eq!(elsewhere(Some(ip(ours)), ip(theirs)), answer, "{ours} -> {theirs}");
        }
    }
}
