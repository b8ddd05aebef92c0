//! A small model of a server's keys, with the commands that the scripts use.

use std::collections::BTreeMap;

/// What stands at a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Text(Vec<u8>),
    Hash(Fields),
    /// In order of score and member.
    Sorted(Vec<(f64, Vec<u8>)>),
}

/// A reply of the protocol.
#[derive(Debug, Clone, PartialEq)]
pub enum Reply {
    Nil,
    Int(i64),
    Text(Vec<u8>),
    Status(&'static str),
    List(Vec<Reply>),
    Error(String),
}

/// The keys of a server.
#[derive(Debug, Clone, Default)]
pub struct Store {
    keys: BTreeMap<Vec<u8>, (Value, Option<i64>)>,
    /// The server's clock, in microseconds.
    pub now: i64,
    /// A lease ends in the millisecond before its last one, as Redis 8's do.
    pub early: bool,
    /// There is no memory left: what needs some is refused, until something has been written.
    pub full: bool,
    /// It is a replica's, and takes no writes.
    pub read_only: bool,
    /// How much the script at hand has written.
    pub writes: u64,
}

type Fields = BTreeMap<Vec<u8>, Vec<u8>>;
type Answer = Result<Reply, String>;

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const NOT_AN_INTEGER: &str = "ERR value is not an integer or out of range";
const NEEDS_MEMORY: [&str; 4] = ["SET", "INCRBY", "HSET", "ZADD"];
const WRITES: [&str; 8] = ["SET", "INCRBY", "DEL", "PEXPIRE", "HSET", "HDEL", "ZADD", "ZREM"];
const READ_ONLY: &str = "READONLY You can't write against a read only replica.";
const OOM: &str = "OOM command not allowed when used memory > 'maxmemory'.";

impl Store {
    /// Runs a command.
    pub fn call(&mut self, words: &[Vec<u8>]) -> Reply {
        let name = String::from_utf8_lossy(&words[0]).to_ascii_uppercase();
        if self.full && self.writes == 0 && NEEDS_MEMORY.contains(&&*name) {
            return Reply::Error(OOM.to_owned());
        }
        if self.read_only && WRITES.contains(&&*name) {
            return Reply::Error(READ_ONLY.to_owned());
        }
        let args = &words[1..];
        let answer = match (&*name, args) {
            ("TIME", []) => Ok(self.time()),
            ("GET", [key]) => self.get(key),
            ("MGET", keys) => Ok(Reply::List(
                keys.iter().map(|key| self.get(key).unwrap_or(Reply::Nil)).collect(),
            )),
            ("EXISTS", [key]) => Ok(Reply::Int(i64::from(self.peek(key).is_some()))),
            ("TYPE", [key]) => Ok(Reply::Status(self.kind(key))),
            ("PTTL", [key]) => Ok(Reply::Int(self.pttl(key))),
            ("SET", [key, value, options @ ..]) => self.set(key, value, options),
            ("INCRBY", [key, by]) => self.incr_by(key, by),
            ("DEL", [key]) => {
                let found = self.peek(key).is_some();
                self.keys.remove(key);
                self.writes += u64::from(found);
                Ok(Reply::Int(i64::from(found)))
            }
            ("PEXPIRE", [key, ms]) => self.pexpire(key, ms),
            ("HSET", [key, field, value]) => self.hset(key, field, value),
            ("HGET", [key, field]) => self.hash(key).map(|hash| {
                hash.and_then(|hash| hash.get(field).cloned()).map_or(Reply::Nil, Reply::Text)
            }),
            ("HDEL", [key, field]) => self.hdel(key, field),
            ("ZADD", [key, nx, score, member]) if nx == b"NX" => self.zadd(key, score, member),
            ("ZREM", [key, member]) => self.zrem(key, member),
            ("ZCARD", [key]) => self.sorted(key).map(|sorted| length(sorted.len())),
            ("ZCOUNT", [key, from, to]) if from == b"-inf" => self.zcount(key, to),
            ("ZRANK", [key, member]) => self.sorted(key).map(|sorted| {
                let rank = sorted.iter().position(|(_, known)| known == member);
                rank.map_or(Reply::Nil, length)
            }),
            ("ZRANGE", [key, from, to]) => self.zrange(key, from, to),
            _ => panic!("the model does not know {name} with {} arguments", args.len()),
        };
        answer.unwrap_or_else(Reply::Error)
    }

    /// What stands at a key, if it has not expired.
    pub fn peek(&self, key: &[u8]) -> Option<&Value> {
        let (value, ends) = self.keys.get(key)?;
        let now = self.now.div_euclid(1000);
        let over = ends.is_some_and(|ends| if self.early { now >= ends } else { now > ends });
        (!over).then_some(value)
    }

    /// The text that stands at a key.
    pub fn text(&self, key: &[u8]) -> Option<&[u8]> {
        match self.peek(key)? {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Takes out the keys of which this is so, with how many milliseconds each has left.
    pub fn take(&mut self, which: impl Fn(&[u8]) -> bool) -> Vec<(Vec<u8>, Value, Option<i64>)> {
        let now = self.now.div_euclid(1000);
        let gone: Vec<_> =
            self.names().into_iter().filter(|key| which(key)).map(Vec::from).collect();
        gone.into_iter()
            .filter_map(|key| {
                let (value, ends) = self.keys.remove(&key)?;
                Some((key, value, ends.map(|ends| ends - now)))
            })
            .collect()
    }

    /// Puts in a key, with how many milliseconds it has left.
    pub fn give(&mut self, (key, value, left): (Vec<u8>, Value, Option<i64>)) {
        let now = self.now.div_euclid(1000);
        self.keys.insert(key, (value, left.map(|left| now + left.max(1))));
    }

    /// All keys that have not expired.
    pub fn names(&self) -> Vec<&[u8]> {
        self.keys.keys().map(Vec::as_slice).filter(|key| self.peek(key).is_some()).collect()
    }

    fn time(&self) -> Reply {
        let part = |number: i64| Reply::Text(number.to_string().into_bytes());
        Reply::List(vec![part(self.now / 1_000_000), part(self.now % 1_000_000)])
    }

    fn get(&self, key: &[u8]) -> Answer {
        match self.peek(key) {
            None => Ok(Reply::Nil),
            Some(Value::Text(text)) => Ok(Reply::Text(text.clone())),
            Some(_) => Err(WRONG_TYPE.to_owned()),
        }
    }

    fn kind(&self, key: &[u8]) -> &'static str {
        match self.peek(key) {
            None => "none",
            Some(Value::Text(_)) => "string",
            Some(Value::Hash(_)) => "hash",
            Some(Value::Sorted(_)) => "zset",
        }
    }

    fn pttl(&self, key: &[u8]) -> i64 {
        match (self.peek(key), self.keys.get(key)) {
            (Some(_), Some((_, Some(ends)))) => (ends - self.now.div_euclid(1000)).max(0),
            (Some(_), _) => -1,
            _ => -2,
        }
    }

    fn ends(&self, key: &[u8]) -> Option<i64> {
        self.peek(key).and_then(|_| self.keys.get(key)?.1)
    }

    fn put(&mut self, key: &[u8], value: Value, ends: Option<i64>) {
        self.writes += 1;
        let empty = match &value {
            Value::Text(_) => false,
            Value::Hash(hash) => hash.is_empty(),
            Value::Sorted(sorted) => sorted.is_empty(),
        };
        if empty {
            self.keys.remove(key);
        } else {
            self.keys.insert(key.to_vec(), (value, ends));
        }
    }

    fn set(&mut self, key: &[u8], value: &[u8], options: &[Vec<u8>]) -> Answer {
        let ends = match options {
            [] => None,
            [keep] if keep == b"KEEPTTL" => self.ends(key),
            [px, ms] if px == b"PX" => {
                let ms = integer(ms)?;
                if ms <= 0 {
                    return Err("ERR invalid expire time in 'set' command".to_owned());
                }
                Some(self.now.div_euclid(1000) + ms)
            }
            _ => panic!("the model does not know these options of SET"),
        };
        self.put(key, Value::Text(value.to_vec()), ends);
        Ok(Reply::Status("OK"))
    }

    fn incr_by(&mut self, key: &[u8], by: &[u8]) -> Answer {
        let before = match self.get(key)? {
            Reply::Text(text) => integer(&text)?,
            _ => 0,
        };
        let after = before.checked_add(integer(by)?);
        let after = after.ok_or("ERR increment or decrement would overflow")?;
        let ends = self.ends(key);
        self.put(key, Value::Text(after.to_string().into_bytes()), ends);
        Ok(Reply::Int(after))
    }

    fn pexpire(&mut self, key: &[u8], ms: &[u8]) -> Answer {
        let ends = self.now.div_euclid(1000) + integer(ms)?;
        let Some(value) = self.peek(key).cloned() else { return Ok(Reply::Int(0)) };
        self.put(key, value, Some(ends));
        Ok(Reply::Int(1))
    }

    fn hash(&self, key: &[u8]) -> Result<Option<&Fields>, String> {
        match self.peek(key) {
            None => Ok(None),
            Some(Value::Hash(hash)) => Ok(Some(hash)),
            Some(_) => Err(WRONG_TYPE.to_owned()),
        }
    }

    fn hset(&mut self, key: &[u8], field: &[u8], value: &[u8]) -> Answer {
        let mut hash = self.hash(key)?.cloned().unwrap_or_default();
        let known = hash.insert(field.to_vec(), value.to_vec()).is_some();
        let ends = self.ends(key);
        self.put(key, Value::Hash(hash), ends);
        Ok(Reply::Int(i64::from(!known)))
    }

    fn hdel(&mut self, key: &[u8], field: &[u8]) -> Answer {
        let mut hash = self.hash(key)?.cloned().unwrap_or_default();
        if hash.remove(field).is_none() {
            return Ok(Reply::Int(0));
        }
        let ends = self.ends(key);
        self.put(key, Value::Hash(hash), ends);
        Ok(Reply::Int(1))
    }

    fn sorted(&self, key: &[u8]) -> Result<&[(f64, Vec<u8>)], String> {
        match self.peek(key) {
            None => Ok(&[]),
            Some(Value::Sorted(sorted)) => Ok(sorted),
            Some(_) => Err(WRONG_TYPE.to_owned()),
        }
    }

    fn zadd(&mut self, key: &[u8], score: &[u8], member: &[u8]) -> Answer {
        let score: f64 = String::from_utf8_lossy(score).parse().expect("a score");
        let mut sorted = self.sorted(key)?.to_vec();
        if sorted.iter().any(|(_, known)| known == member) {
            return Ok(Reply::Int(0));
        }
        let mine = (score, member.to_vec());
        let place = sorted.partition_point(|known| {
            known.0.total_cmp(&mine.0).then_with(|| known.1.cmp(&mine.1)).is_lt()
        });
        sorted.insert(place, mine);
        let ends = self.ends(key);
        self.put(key, Value::Sorted(sorted), ends);
        Ok(Reply::Int(1))
    }

    fn zrem(&mut self, key: &[u8], member: &[u8]) -> Answer {
        let mut sorted = self.sorted(key)?.to_vec();
        let before = sorted.len();
        sorted.retain(|(_, known)| known != member);
        let gone = before - sorted.len();
        if gone > 0 {
            let ends = self.ends(key);
            self.put(key, Value::Sorted(sorted), ends);
        }
        Ok(length(gone))
    }

    fn zcount(&self, key: &[u8], to: &[u8]) -> Answer {
        let to: f64 = String::from_utf8_lossy(to).parse().expect("a score");
        Ok(length(self.sorted(key)?.iter().filter(|(score, _)| *score <= to).count()))
    }

    fn zrange(&self, key: &[u8], from: &[u8], to: &[u8]) -> Answer {
        let (from, to) = (integer(from)?, integer(to)?);
        let sorted = self.sorted(key)?.iter().zip(0i64..);
        let inside = sorted.filter(|(_, rank)| (from..=to).contains(rank));
        Ok(Reply::List(inside.map(|((_, member), _)| Reply::Text(member.clone())).collect()))
    }
}

fn length(length: usize) -> Reply {
    Reply::Int(i64::try_from(length).expect("short"))
}

/// As the server reads integers: no sign but a minus, no leading zeros.
fn integer(text: &[u8]) -> Result<i64, String> {
    let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<i64>().ok());
    let plain = number.filter(|number| number.to_string().as_bytes() == text);
    plain.ok_or_else(|| NOT_AN_INTEGER.to_owned())
}
