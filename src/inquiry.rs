//! A question to a server that is no part of a session: a connection, some commands, their replies.
//!
//! For finding out where to go: it changes nothing, and is asked anew as often as one likes. A child
//! of a fork inherits its socket and does nothing with it.

use std::sync::Arc;
use std::time::Instant;

use redis::Value;

use crate::clock;
use crate::connect::{Opening, Purpose, Trouble};
use crate::settings::Settings;
use crate::transport::Wire;

/// See the module's description.
pub struct Inquiry {
    settings: Arc<Settings>,
    question: Vec<redis::Cmd>,
    stage: Stage,
}

enum Stage {
    Opening(Opening),
    Asked { wire: Wire, replies: Vec<Value>, end: Instant },
}

impl Inquiry {
    /// Begins to connect to where `settings` say, to ask all of `question` there.
    pub fn begin(settings: &Arc<Settings>, purpose: Purpose, question: Vec<redis::Cmd>) -> Self {
        let opening = Opening::begin(settings, &Arc::default(), purpose);
        Self { settings: Arc::clone(settings), question, stage: Stage::Opening(opening) }
    }

    /// Moves on. The replies, errors of the server's among them, when all are there; `None` when
    /// `until` is over first.
    pub fn advance(&mut self, until: Instant) -> Result<Option<Vec<Value>>, Trouble> {
        loop {
            match &mut self.stage {
                Stage::Opening(opening) => {
                    let Some(mut opened) = opening.advance(until)? else { return Ok(None) };
                    for command in &self.question {
                        command.write_packed_command(opened.wire.out());
                    }
                    let end = clock::now() + self.settings.socket_timeout;
                    self.stage = Stage::Asked { wire: opened.wire, replies: Vec::new(), end };
                }
                Stage::Asked { wire, replies, end } => {
                    let broken = |error: std::io::Error| Trouble::Unreachable(error.to_string());
                    let slice = until.min(*end);
                    let written = wire.flush(slice).map_err(broken)?;
                    while written && replies.len() < self.question.len() {
                        match wire.receive(slice).map_err(broken)? {
                            Some(Value::Push { .. }) => {}
                            Some(reply) => replies.push(reply),
                            None => break,
                        }
                    }
                    if replies.len() == self.question.len() {
                        return Ok(Some(std::mem::take(replies)));
                    }
                    if clock::now() >= *end {
                        let limit = self.settings.socket_timeout.as_millis();
                        let words = format!("no answer within {limit} ms");
                        return Err(Trouble::Unreachable(words));
                    }
                    return Ok(None);
                }
            }
        }
    }
}
