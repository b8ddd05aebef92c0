//! The network between the clients' sockets and the servers: what is on its way, and what befalls it.
//!
//! The client's end of a connection is a real socket; here is the other end, and the time that bytes
//! take. Bytes of one connection stay in order, as TCP has it; those of a connection that is broken may
//! still arrive at the server, later.

use std::io::{ErrorKind, Read, Write};

use socket2::Socket;

use super::plan::Fate;
use crate::stage::Dice;

/// A connection.
pub struct Conn {
    /// Whose it is.
    pub party: usize,
    /// Which server is at the other end.
    pub machine: usize,
    /// The end that the client's bytes come out of; none when the connection is broken.
    theirs: Option<Socket>,
    /// When the last bytes arrive, each way.
    up_at: u64,
    down_at: u64,
    /// The next command is for a slot that is on its way here.
    pub asking: bool,
    /// What the server has not taken in yet.
    pub inbox: Vec<u8>,
    /// What becomes of what is on its way to the server, and how much later, now that it is broken.
    pub broken: Option<(Fate, u64)>,
    /// The server that it led to has ended, and whatever was on its way with it.
    pub void: bool,
    /// The bytes of the last question, until it is answered.
    pub last: Vec<u8>,
}

/// How the way of a client to the server is.
#[derive(Default)]
pub struct Way {
    pub slow: Option<(u64, u64)>,
    pub no_up: u64,
    pub no_down: u64,
    /// How often a question breaks the connection, how much later it arrives, and until when.
    pub shaky: Option<(u64, u64, u64)>,
}

impl Conn {
    pub fn new(party: usize, machine: usize, theirs: Socket, now: u64) -> Self {
        let (inbox, last) = Default::default();
        let (theirs, broken, void, asking) = (Some(theirs), None, false, false);
        Self { party, machine, theirs, up_at: now, down_at: now, asking, inbox, broken, void, last }
    }

    pub fn is_open(&self) -> bool {
        self.theirs.is_some()
    }

    /// What the client has written. None when it has closed the connection, or it is broken.
    pub fn read(&mut self) -> Option<Vec<u8>> {
        let (mut bytes, mut part) = (Vec::new(), [0; 4096]);
        loop {
            match self.theirs.as_ref()?.read(&mut part) {
                Ok(0) => break,
                Ok(count) => bytes.extend_from_slice(&part[..count]),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(bytes),
                Err(_reset) => break,
            }
        }
        // What was written before is read first.
        (!bytes.is_empty()).then_some(bytes)
    }

    /// Puts bytes before the client.
    pub fn write(&mut self, bytes: &[u8]) {
        if let Some(theirs) = &mut self.theirs {
            let _closed = theirs.write_all(bytes);
        }
    }

    /// The client sees that it is over.
    pub fn close(&mut self) {
        self.theirs = None;
    }

    /// When bytes that leave now arrive at the server.
    pub fn up(&mut self, now: u64, way: &Way, dice: &mut Dice) -> u64 {
        self.up_at = arrival(now, self.up_at, way.no_up, way, dice);
        self.up_at
    }

    /// When bytes that leave now arrive at the client.
    pub fn down(&mut self, now: u64, way: &Way, dice: &mut Dice) -> u64 {
        self.down_at = arrival(now, self.down_at, way.no_down, way, dice);
        self.down_at
    }
}

fn arrival(now: u64, last: u64, silent_until: u64, way: &Way, dice: &mut Dice) -> u64 {
    let slow = way.slow.filter(|(_, until)| now < *until);
    let extra = slow.map_or(0, |(by, _)| dice.below(by + 1));
    (now.max(silent_until) + dice.between(20, 200) + extra).max(last)
}
