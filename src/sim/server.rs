//! A model of a server: the protocol around the keys, the scripts that it knows, what ails it, and a
//! log of what its scripts did for the first time.

use std::collections::BTreeSet;

use super::lua;
use super::store::{Reply, Store};
use crate::script::Script;

/// See the module's description.
#[derive(Debug, Clone)]
pub struct Server {
    pub store: Store,
    /// What its clock shows at the beginning of the simulation, in microseconds.
    pub offset: i64,
    /// It speaks RESP3.
    pub resp3: bool,
    pub ails: Ails,
    pub log: Vec<Deed>,
    scripts: BTreeSet<String>,
}

/// What ails a server.
#[derive(Debug, Clone, Default)]
pub struct Ails {
    /// It answers everything with this error.
    pub busy: Option<&'static str>,
    /// It lets nobody in.
    pub locked: bool,
}

/// What a script did, when it was run and not only told what it had done before.
#[derive(Debug, Clone)]
pub struct Deed {
    /// Its place among all that happens in a simulation.
    pub tick: u64,
    pub at: u64,
    pub kind: Kind,
}

#[derive(Debug, Clone)]
pub enum Kind {
    /// Of a stock: so many callers were granted this change.
    Changed { key: Vec<u8>, granted: Vec<(i64, i64)> },
    /// A lock was taken, with this fence, if one was wanted.
    Acquired { lock: Vec<u8>, fence: Option<u64> },
    /// Anything else, refusals too.
    Other,
}

impl Deed {
    /// Of which key it is, as far as anybody wants to know.
    pub fn name(&self) -> Option<&[u8]> {
        match &self.kind {
            Kind::Changed { key: name, .. } | Kind::Acquired { lock: name, .. } => Some(name),
            Kind::Other => None,
        }
    }
}

impl Server {
    pub fn new(offset: i64, resp3: bool, early: bool) -> Self {
        let mut store = Store::default();
        store.early = early;
        let (ails, log, scripts) = Default::default();
        Self { store, offset, resp3, ails, log, scripts }
    }

    /// Another one that has seen all that this one has, but for the scripts.
    pub fn replica(&self) -> Self {
        let mut replica = Self { scripts: BTreeSet::new(), ails: Ails::default(), ..self.clone() };
        (replica.store.full, replica.store.read_only) = (false, false);
        replica
    }

    /// It forgets the scripts.
    pub fn forget_scripts(&mut self) {
        self.scripts.clear();
    }

    /// Sets its clock.
    pub fn set_time(&mut self, at: u64) {
        self.store.now = self.offset + i64::try_from(at).expect("an hour at most");
    }

    /// Runs a command, and returns the bytes of its reply.
    pub fn execute(&mut self, words: &[Vec<u8>], at: u64, tick: u64) -> Vec<u8> {
        let reply = self.reply(words, at, tick);
        Self::tell(words, &reply)
    }

    /// The bytes of a reply.
    pub fn tell(words: &[Vec<u8>], reply: &Reply) -> Vec<u8> {
        let mut out = Vec::new();
        // A map's beginning stands in for HELLO's.
        if words[0] == b"HELLO" && *reply == Reply::List(Vec::new()) {
            out.extend_from_slice(b"%1\r\n$6\r\nserver\r\n$5\r\nmodel\r\n");
        } else {
            write(reply, &mut out);
        }
        out
    }

    fn reply(&mut self, words: &[Vec<u8>], at: u64, tick: u64) -> Reply {
        self.set_time(at);
        let error = |text: &str| Reply::Error(text.to_owned());
        if let Some(busy) = self.ails.busy {
            return error(busy);
        }
        match &*words[0] {
            b"HELLO" if !self.resp3 => error("ERR unknown command 'HELLO'"),
            b"HELLO" | b"AUTH" if self.ails.locked => {
                error("WRONGPASS invalid username-password pair")
            }
            b"HELLO" => Reply::List(Vec::new()),
            b"CLIENT" | b"AUTH" | b"ASKING" => Reply::Status("OK"),
            b"EVAL" | b"EVALSHA" => {
                let hash = if words[0] == b"EVAL" {
                    let hash = lua::hash(&words[1]);
                    self.scripts.insert(hash.clone());
                    hash
                } else {
                    String::from_utf8_lossy(&words[1]).into_owned()
                };
                if !self.scripts.contains(&hash) {
                    return error("NOSCRIPT No matching script.");
                }
                let count: usize =
                    String::from_utf8_lossy(&words[2]).parse().expect("a number of keys");
                let (keys, args) = words[3..].split_at(count);
                self.run(&hash, keys, args, at, tick)
            }
            _ => {
                self.store.writes = 0;
                self.store.call(words)
            }
        }
    }

    fn run(&mut self, hash: &str, keys: &[Vec<u8>], args: &[Vec<u8>], at: u64, tick: u64) -> Reply {
        let stock = Script::Stock.source().hash == hash;
        let before = stock.then(|| self.stock(&keys[1])).flatten();
        let known = self.store.text(&keys[0]).unwrap_or_default();
        let told_again = known.strip_prefix(&*args[0]).is_some_and(|rest| rest[0] == b' ');
        let reply = lua::run(&mut self.store, hash, keys, args);
        let Reply::Text(text) = &reply else { return reply };
        let mut parts = text.splitn(3, |&byte| byte == b' ').skip(2);
        let answer = String::from_utf8_lossy(parts.next().expect("a stamp first")).into_owned();
        if told_again {
            let after = stock.then(|| self.stock(&keys[1])).flatten();
            assert_eq!(before, after, "it was only told again");
        } else {
            let kind = match (answer.split(' ').next(), stock) {
                (Some("C"), true) => {
                    let granted = granted(&answer, &args[5..]);
                    let sum = granted.iter().map(|(change, times)| change * times).sum::<i64>();
                    let after = self.stock(&keys[1]).unwrap_or(0);
                    assert_eq!(
                        before.unwrap_or(0) + sum,
                        after,
                        "the script did not do as it said"
                    );
                    Kind::Changed { key: keys[1].clone(), granted }
                }
                (Some("A"), _) if Script::Acquire.source().hash == hash => {
                    let fence = answer[1..].trim().parse().ok();
                    Kind::Acquired { lock: keys[1].clone(), fence }
                }
                _ => Kind::Other,
            };
            self.log.push(Deed { tick, at, kind });
        }
        reply
    }

    /// How much of it there is.
    pub fn stock(&self, key: &[u8]) -> Option<i64> {
        std::str::from_utf8(self.store.text(key)?).ok()?.parse().ok()
    }
}

/// How many were granted each change, by a script's answer and what it was asked for.
fn granted(answer: &str, runs: &[Vec<u8>]) -> Vec<(i64, i64)> {
    let granted = answer.split(' ').skip(1).step_by(2);
    let changes = runs.iter().step_by(2);
    let number = |text: &str| text.parse::<i64>().expect("a number");
    granted
        .zip(changes)
        .map(|(granted, change)| (number(&String::from_utf8_lossy(change)), number(granted)))
        .collect()
}

fn write(reply: &Reply, out: &mut Vec<u8>) {
    match reply {
        Reply::Nil => out.extend_from_slice(b"$-1\r\n"),
        Reply::Int(number) => out.extend_from_slice(format!(":{number}\r\n").as_bytes()),
        Reply::Text(text) => {
            out.extend_from_slice(format!("${}\r\n", text.len()).as_bytes());
            out.extend_from_slice(text);
            out.extend_from_slice(b"\r\n");
        }
        Reply::Status(status) => out.extend_from_slice(format!("+{status}\r\n").as_bytes()),
        Reply::Error(error) => out.extend_from_slice(format!("-{error}\r\n").as_bytes()),
        Reply::List(items) => {
            out.extend_from_slice(format!("*{}\r\n", items.len()).as_bytes());
            for item in items {
                write(item, out);
            }
        }
    }
}

/// Takes the first whole command off `bytes`.
pub fn command(bytes: &mut Vec<u8>) -> Option<Vec<Vec<u8>>> {
    fn line(bytes: &[u8], at: &mut usize) -> Option<usize> {
        let length = bytes.get(*at..)?.windows(2).position(|pair| pair == b"\r\n")?;
        let number = std::str::from_utf8(&bytes[*at + 1..*at + length]).expect("ASCII");
        *at += length + 2;
        Some(number.parse().expect("a length"))
    }
    let mut at = 0;
    let words = line(bytes, &mut at)?;
    let mut command = Vec::with_capacity(words);
    for _ in 0..words {
        let length = line(bytes, &mut at)?;
        command.push(bytes.get(at..at + length)?.to_vec());
        at += length + 2;
    }
    if bytes.len() < at {
        return None;
    }
    bytes.drain(..at);
    Some(command)
}
