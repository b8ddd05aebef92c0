//! Where a simulation stands in for the world: each thread has a stage of its own, empty unless a
//! simulation is running there. See `sim`.
//!
//! Time stands still while the core works. A wait comes back at once, with nothing, and leaves word of
//! when it wants to look again; whoever drives the simulation lets the time pass.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::sync::OnceLock;
use std::thread::Thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};

/// What a simulation tells the core, and hears from it.
pub struct Stage {
    /// Since the beginning of the simulation.
    pub time: Duration,
    /// What `random` draws from.
    pub dice: Dice,
    /// When somebody who had to wait wants to look again.
    pub look_again: Option<Instant>,
    /// Ports that refuse connections.
    pub refusing: Vec<u16>,
    /// The other ends of the connections that were made, and to which port.
    pub dialed: VecDeque<(u16, Socket)>,
}

thread_local! {
    static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) };
}

/// Puts up a stage on this thread, or takes it down.
pub fn set(stage: Option<Stage>) {
    STAGE.set(stage);
}

/// Does something with the stage of this thread, if there is one.
pub fn with<T>(act: impl FnOnce(&mut Stage) -> T) -> Option<T> {
    STAGE.with_borrow_mut(|stage| stage.as_mut().map(act))
}

/// When all simulations began.
#[allow(clippy::disallowed_methods)]
pub fn beginning() -> Instant {
    static BEGINNING: OnceLock<Instant> = OnceLock::new();
    // Some way off, so that nothing that is subtracted from it fails.
    *BEGINNING.get_or_init(|| Instant::now() + Duration::from_hours(1))
}

pub(crate) fn now() -> Option<Instant> {
    with(|stage| beginning() + stage.time)
}

pub(crate) fn looks_again(then: Instant) -> bool {
    let note = |stage: &mut Stage| {
        stage.look_again = Some(stage.look_again.map_or(then, |first| first.min(then)));
    };
    with(note).is_some()
}

pub(crate) fn fill(bytes: &mut [u8]) -> bool {
    with(|stage| bytes.fill_with(|| stage.dice.roll().to_le_bytes()[0])).is_some()
}

/// The pilot's part, and the scout's, are played by whoever drives the simulation; others are not to be
/// had.
pub(crate) fn start(name: &str) -> Option<io::Result<Thread>> {
    with(|_| match name {
        "seckill-pilot" | "seckill-scout" => Ok(std::thread::current()),
        _ => Err(io::ErrorKind::Unsupported.into()),
    })
}

pub(crate) fn dial(address: &SockAddr) -> Option<io::Result<Socket>> {
    let port = address.as_socket()?.port();
    with(|stage| {
        if stage.refusing.contains(&port) {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        let (ours, theirs) = Socket::pair(Domain::UNIX, Type::STREAM, None)?;
        theirs.set_nonblocking(true)?;
        stage.dialed.push_back((port, theirs));
        Ok(ours)
    })
}

/// A generator that makes the same of the same seed: `SplitMix64`.
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    /// The numbers of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{clock, random};

    #[test]
    fn on_a_stage_time_stands_still_and_chance_repeats_itself() {
        let play = || {
            let (time, dice) = (Duration::from_secs(5), Dice::new(7));
            let (refusing, dialed) = Default::default();
            set(Some(Stage { time, dice, look_again: None, refusing, dialed }));
            let then = clock::now() + Duration::from_secs(1);
            assert!(!clock::sleep_until(then), "it does not wait");
            assert_eq!(clock::since(beginning()), time);
            assert_eq!(with(|stage| stage.look_again), Some(Some(then)));
            let drawn = random::hex();
            set(None);
            drawn
        };
        assert_eq!(play(), play());
        assert_ne!(random::hex(), random::hex());
        assert!(clock::sleep_until(clock::now()));
    }
}
