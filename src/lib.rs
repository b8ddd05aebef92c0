//! Limited stock meets a crowd: never oversold, exactly once, one round trip for all.
//!
//! The core knows no Python; the edge, `py`, is the only place that does.
//! `docs/design.md` tells the architecture as a whole.

// What the edge, or any other host, uses.
pub mod client;
pub mod error;
pub mod fork;
pub mod names;
pub mod patrol;
pub mod settings;

// The way of a step to the server, from outside in.
mod batch;
mod combine;
mod connect;
mod script;
mod session;
mod step;
mod transport;

// Waiting for locks.
mod ear;
mod lock;
mod watch;

// Small things that all of it needs.
mod clock;
mod random;

#[cfg(feature = "python")]
mod py;
