//! The scripts that the server runs: `scripts/*.lua`, each behind the session's beginning.

use std::sync::OnceLock;

/// One of the scripts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Script {
    /// `scripts/stock.lua`
    Stock,
    /// `scripts/acquire.lua`
    Acquire,
    /// `scripts/release.lua`
    Release,
    /// `scripts/extend.lua`
    Extend,
    /// `scripts/holder.lua`
    Holder,
}

/// A script's text and the name under which the server remembers it.
#[derive(Debug)]
pub struct Source {
    /// The text that EVAL gets.
    pub text: &'static str,
    /// The SHA-1 that EVALSHA gets.
    pub hash: String,
}

macro_rules! with_session {
    ($file:literal) => {
        concat!(include_str!("scripts/session.lua"), include_str!(concat!("scripts/", $file)))
    };
}

/// Hashes the scripts, before anything is sent: a fork by another thread in the middle of a first use
/// would leave the child waiting for a thread that it does not have.
pub fn prepare() {
    Script::Stock.source();
}

impl Script {
    /// Text and hash of the script.
    pub fn source(self) -> &'static Source {
        static SOURCES: OnceLock<[Source; 5]> = OnceLock::new();
        let sources = SOURCES.get_or_init(|| {
            [
                with_session!("stock.lua"),
                with_session!("acquire.lua"),
                with_session!("release.lua"),
                with_session!("extend.lua"),
                with_session!("holder.lua"),
            ]
            .map(|text| Source { text, hash: redis::Script::new(text).get_hash().to_owned() })
        });
        &sources[self as usize]
    }
}
