//! Limited stock meets a crowd: never oversold, exactly once, one round trip for all.
//!
//! The core knows no Python; the edge, `py`, is the only place that does.
//! `docs/design.md` tells the architecture as a whole.

// What the edge, or any other host, uses.
pub mod call;
pub mod caller;
pub mod client;
pub mod error;
pub mod fork;
pub mod hold;
pub mod login;
pub mod mailbox;
pub mod names;
pub mod patrol;
pub mod probe;
pub mod renewer;
pub mod safety;
pub mod settings;
pub mod tls;
pub mod wish;

// The way of a step to the server, from outside in.
mod batch;
mod combine;
mod connect;
mod dial;
mod queue;
mod resolve;
mod script;
mod script_call;
mod session;
mod step;
mod transport;

// Where the way leads: one server, the primary of a service, the nodes of a cluster.
mod candidates;
mod cluster;
mod inquiry;
mod lane;
mod lookout;
mod route;
mod scout;
mod sentinel;
mod slots;

// Locks: whose they are, who is next, and waiting for them.
mod ear;
mod holdings;
mod turnstile;
mod watch;

// Small things that all of it needs.
mod backoff;
mod chain;
mod clock;
mod inherited;
mod random;
mod thread;

// Where a simulation takes the place of time, randomness, threads and network.
#[cfg(test)]
mod sim;
#[cfg(test)]
mod stage;

// What may come from outside.
#[cfg(any(test, fuzzing))]
pub mod fuzz;

#[cfg(feature = "python")]
#[allow(clippy::disallowed_methods)] // It measures its own work.
mod py;
