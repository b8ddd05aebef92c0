//! How safe a change must be before its caller is told of it.
//!
//! WAIT and WAITAOF travel behind the batch, on the same socket in the same round trip, once for all of
//! it. What they say is compared with what each caller wants: so many replicas, not "one at least" nor
//! "those that are there". <https://valkey.io/commands/wait/>, <https://valkey.io/commands/waitaof/>
//!
//! | the server says | a caller who wants it safe |
//! |---|---|
//! | enough | is told of the change |
//! | too few, in the time that there was | gets `NotReplicated`: it was done, and a fail-over may undo it |
//! | that it cannot know | the same |
//! | nothing; that it is a primary no more | is asked for again, wherever the primary is |
//!
//! Who is refused is told at once: nothing was changed.

use std::time::Duration;

use redis::Value;

use crate::error::Error;

/// What a caller wants to be sure of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Safety {
    /// So many replicas have the change.
    pub replicas: u32,
    /// It is in the primary's append-only file, on its disk.
    pub aof: bool,
}

/// What the server is asked about a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    /// How many replicas have it (WAIT).
    Replicas,
    /// Whether it is on the disk (WAITAOF).
    Aof,
}

/// What the server has said of a batch.
#[derive(Debug, Default)]
pub struct Proof {
    replicas: Option<Result<u32, String>>,
    aof: Option<Result<bool, String>>,
}

impl Safety {
    /// Whether there is anything to be sure of.
    #[must_use]
    pub fn is_wanted(self) -> bool {
        self.replicas > 0 || self.aof
    }

    /// What is safe enough for both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        Self { replicas: self.replicas.max(other.replicas), aof: self.aof || other.aof }
    }

    /// Packs the questions, to be answered within `patience` each.
    pub fn pack(self, patience: Duration, out: &mut Vec<u8>) -> Vec<About> {
        let mut asked = Vec::new();
        // 0 would be for ever.
        let ms = patience.as_millis().max(1).to_string();
        if self.replicas > 0 {
            redis::cmd("WAIT").arg(self.replicas).arg(&ms).write_packed_command(out);
            asked.push(About::Replicas);
        }
        if self.aof {
            redis::cmd("WAITAOF").arg(1).arg(0).arg(&ms).write_packed_command(out);
            asked.push(About::Aof);
        }
        asked
    }
}

impl Proof {
    /// None, and why there is none.
    #[must_use]
    pub fn of_nothing(why: &str) -> Self {
        Self { replicas: Some(Err(why.to_owned())), aof: Some(Err(why.to_owned())) }
    }

    /// Whether nothing has been said.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.replicas.is_none() && self.aof.is_none()
    }

    /// Takes in an answer. An error when the connection is of no more use.
    pub fn hear(&mut self, about: About, reply: &Value) -> Result<(), String> {
        let said = match (about, reply) {
            (About::Replicas, Value::Int(count)) => {
                self.replicas = Some(Ok(u32::try_from(*count).unwrap_or(0)));
                return Ok(());
            }
            (About::Aof, Value::Array(counts)) => {
                let on_disk = matches!(counts.first(), Some(Value::Int(1..)));
                self.aof = Some(Ok(on_disk));
                return Ok(());
            }
            (_, Value::ServerError(error)) => {
                format!("{} {}", error.code(), error.details().unwrap_or_default())
            }
            _ => "the server's answer makes no sense".to_owned(),
        };
        // A replica says so: it was demoted between the batch and this.
        let is_replica = said.starts_with("ERR WAIT") && said.contains("replica instances");
        if is_replica || said.starts_with("UNBLOCKED") || said.starts_with("READONLY") {
            return Err(said);
        }
        match about {
            About::Replicas => self.replicas = Some(Err(said)),
            About::Aof => self.aof = Some(Err(said)),
        }
        Ok(())
    }

    /// Whether a change is as safe as its caller wants it to be.
    pub fn judge(&self, wanted: Safety) -> Result<(), Error> {
        let acknowledged = match &self.replicas {
            Some(Ok(count)) => *count,
            _ => 0,
        };
        let short = |why| Err(Error::NotReplicated { acknowledged, wanted: wanted.replicas, why });
        if wanted.replicas > 0 {
            match &self.replicas {
                Some(Ok(count)) if *count >= wanted.replicas => {}
                Some(Err(said)) => return short(said.clone()),
                _ => {
                    let wanted = wanted.replicas;
                    return short(format!("{acknowledged} of {wanted} replicas have it"));
                }
            }
        }
        match &self.aof {
            _ if !wanted.aof => Ok(()),
            Some(Ok(true)) => Ok(()),
            Some(Err(said)) => short(said.clone()),
            _ => short("it is not known to be in the append-only file".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> Value {
        redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).expect("an error")
    }

    fn short(acknowledged: u32, wanted: u32, proof: &Proof) -> bool {
        let safety = Safety { replicas: wanted, aof: false };
        let expected = proof.judge(safety);
        matches!(expected, Err(Error::NotReplicated { acknowledged: a, wanted: w, .. }) if (a, w) == (acknowledged, wanted))
    }

    #[test]
    fn as_many_replicas_are_needed_as_each_caller_wants() {
        let mut proof = Proof::default();
        assert!(short(0, 1, &proof), "nothing was said");
        proof.hear(About::Replicas, &Value::Int(1)).expect("an answer");
        assert_eq!(proof.judge(Safety { replicas: 1, aof: false }), Ok(()));
        assert_eq!(proof.judge(Safety::default()), Ok(()));
        assert!(short(1, 2, &proof));
    }

    #[test]
    fn a_server_that_cannot_know_proves_nothing() {
        let mut proof = Proof::default();
        proof.hear(About::Replicas, &error("ERR unknown command 'WAIT'")).expect("an answer");
        let words = "ERR WAITAOF cannot be used when numlocal is set but appendonly is disabled.";
        proof.hear(About::Aof, &error(words)).expect("an answer");
        assert!(short(0, 1, &proof));
        assert!(proof.judge(Safety { replicas: 0, aof: true }).is_err());
    }

    #[test]
    fn only_the_disk_of_the_primary_is_asked_for() {
        let mut proof = Proof::default();
        let counts = |on_disk| Value::Array(vec![Value::Int(on_disk), Value::Int(3)]);
        proof.hear(About::Aof, &counts(0)).expect("an answer");
        assert!(proof.judge(Safety { replicas: 0, aof: true }).is_err());
        proof.hear(About::Aof, &counts(1)).expect("an answer");
        assert_eq!(proof.judge(Safety { replicas: 0, aof: true }), Ok(()));
    }

    #[test]
    fn a_primary_that_was_demoted_meanwhile_is_not_believed() {
        let words = "UNBLOCKED force unblock from blocking operation, instance state changed";
        assert!(Proof::default().hear(About::Replicas, &error(words)).is_err());
    }
}
