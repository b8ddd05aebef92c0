//! The ear's thread: one connection with `CLIENT TRACKING` that asks about the watches of a board
//! and hears what the server tells. See `watch` for what it is for.
//!
//! It is started when somebody first waits, and ends when nobody has waited for a while.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, Instant};

use redis::{PushKind, Value};
use rustix::event::{PollFd, PollFlags};
use socket2::{Domain, Socket, Type};

use crate::caller::Caller;
use crate::clock;
use crate::connect::{Opening, Purpose};
use crate::names::Name;
use crate::script_call::redirect;
use crate::thread;
use crate::transport::{Line, Wire, wait_any};
use crate::watch::{Board, Ear, State, Watch};

/// How long the thread stays when nobody waits.
const LINGER: Duration = Duration::from_secs(2);

/// How often everything is asked again while somebody waits: a connection that died in silence is
/// found out, and so is a server that forgot to tell.
const HEARTBEAT: Duration = Duration::from_secs(1);

/// How long to leave a server alone that has no tracking, or is not there.
const DEAF_FOR: Duration = Duration::from_secs(2);

/// Makes sure that the thread runs and looks at the board. Without a thread, sleepers poll.
pub(crate) fn wake(ear: &Arc<Ear>, board: &mut Board) {
    if board.bell.is_some() {
        board.ring();
    } else if let Err(_no_thread) = start(ear, board) {
        deafen(board);
    }
}

fn start(ear: &Arc<Ear>, board: &mut Board) -> io::Result<()> {
    let (ours, theirs) = Socket::pair(Domain::UNIX, Type::STREAM, None)?;
    let (ours, theirs) =
        (Line::new(ours, &ear.open_bell[0])?, Line::new(theirs, &ear.open_bell[1])?);
    let ear = Arc::clone(ear);
    thread::start("seckill-ear", move || listen(&ear, &ours))?;
    board.bell = Some(theirs);
    Ok(())
}

fn deafen(board: &mut Board) {
    for watch in board.watches.values_mut() {
        watch.state = State::Deaf;
    }
}

/// What a reply that is still to come will answer.
enum Question {
    Exists(Name),
    Pttl(Name),
}

struct Link {
    wire: Wire,
    asked: VecDeque<Question>,
    /// When the oldest unanswered question was asked.
    since: Option<Instant>,
    heartbeat: Instant,
}

fn listen(ear: &Arc<Ear>, bell: &Line) {
    let mut idle_since = None;
    loop {
        let began = clock::now();
        match attend(ear, bell, &mut idle_since) {
            Ok(()) => return,
            Err(_broken) => {
                // What was told meanwhile is lost: everybody looks for himself, and at once.
                let mut board = ear.board();
                let told = board.tell_all();
                deafen(&mut board);
                drop(board);
                told.iter().for_each(Caller::wake);
            }
        }
        // One that has worked for a while is replaced at once.
        if clock::since(began) < HEARTBEAT && pause(ear, bell, &mut idle_since) {
            return;
        }
    }
}

/// Lets the time pass in which there is nobody to listen to. True when the thread shall end.
fn pause(ear: &Ear, bell: &Line, idle_since: &mut Option<Instant>) -> bool {
    let end = clock::now() + DEAF_FOR;
    while clock::now() < end {
        if leave(ear, idle_since) {
            return true;
        }
        // Rung or not: the sleepers poll meanwhile.
        let _ = wait_any(&mut [PollFd::new(bell.socket(), PollFlags::IN)], end);
        let _ = bell.socket().read(&mut [0; 64]);
        deafen(&mut ear.board());
    }
    false
}

/// Whether nobody has waited for a while (or the client is closed); if so, the thread is gone for
/// all others from here on.
fn leave(ear: &Ear, idle_since: &mut Option<Instant>) -> bool {
    let mut board = ear.board();
    let idle = board.watches.is_empty().then(|| *idle_since.get_or_insert_with(clock::now));
    if idle.is_none() {
        *idle_since = None;
    }
    let over = board.closing || idle.is_some_and(|since| clock::since(since) >= LINGER);
    if over {
        board.bell = None;
        board.closing = false;
        // Who waits all the same starts another thread.
        board.watches.values_mut().for_each(|watch| watch.state = State::Idle);
    }
    over
}

/// Connects, asks, and hears. `Ok` when the thread shall end, an error when the connection broke or
/// does not tell.
fn attend(ear: &Ear, bell: &Line, idle_since: &mut Option<Instant>) -> io::Result<()> {
    let moves = ear.moves();
    let mut opening = Opening::begin(&ear.settings, &ear.open, Purpose::Listen);
    let opened = loop {
        if leave(ear, idle_since) {
            return Ok(());
        }
        match opening.advance(clock::now() + HEARTBEAT) {
            Ok(Some(opened)) => break opened,
            Ok(None) => {}
            Err(trouble) => return Err(io::Error::other(format!("{trouble:?}"))),
        }
    };
    if !opened.listening || ear.is_elsewhere(opened.primary.as_ref()) {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let heartbeat = clock::now() + HEARTBEAT;
    let mut link = Link { wire: opened.wire, asked: VecDeque::new(), since: None, heartbeat };
    for watch in ear.board().watches.values_mut().filter(|watch| watch.state == State::Deaf) {
        watch.state = State::Wanted;
    }
    loop {
        if leave(ear, idle_since) {
            return Ok(());
        }
        ear.used();
        if ear.moves() != moves {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        link.ask(ear)?;
        let silence = link.since.map(|since| since + ear.settings.socket_timeout);
        let until = silence.map_or(link.heartbeat, |silence| silence.min(link.heartbeat));
        let mut fds = [
            PollFd::from_borrowed_fd(link.wire.socket(), PollFlags::IN),
            PollFd::new(bell.socket(), PollFlags::IN),
        ];
        let _ready_or_over = wait_any(&mut fds, until)?;
        // Empties it; that it was empty is no error.
        let _ = bell.socket().read(&mut [0; 64]);
        while let Some(value) = link.wire.receive(clock::now())? {
            link.hear(ear, value)?;
        }
        if silence.is_some_and(|silence| link.since.is_some() && clock::now() >= silence) {
            return Err(io::ErrorKind::TimedOut.into());
        }
    }
}

impl Link {
    /// Asks about every watch that wants it; once a heartbeat about all.
    fn ask(&mut self, ear: &Ear) -> io::Result<()> {
        let now = clock::now();
        let all = now >= self.heartbeat && self.asked.is_empty();
        if now >= self.heartbeat {
            self.heartbeat = now + HEARTBEAT;
        }
        for (name, watch) in &mut ear.board().watches {
            match watch.state {
                State::Wanted | State::Deaf => watch.state = State::Asked,
                State::Listening if all => {}
                _ => continue,
            }
            for (command, question) in [
                ("EXISTS", Question::Exists(Arc::clone(name))),
                ("PTTL", Question::Pttl(Arc::clone(name))),
            ] {
                redis::cmd(command).arg(&name[..]).write_packed_command(self.wire.out());
                self.asked.push_back(question);
            }
            self.since.get_or_insert(now);
        }
        if self.wire.flush(now + ear.settings.socket_timeout)? {
            return Ok(());
        }
        Err(io::ErrorKind::TimedOut.into())
    }

    fn hear(&mut self, ear: &Ear, value: Value) -> io::Result<()> {
        if let Value::Push { kind, data } = value {
            if kind == PushKind::Invalidate {
                told(ear, data.first());
            }
            return Ok(());
        }
        let question = self.asked.pop_front();
        self.since = (!self.asked.is_empty()).then(clock::now);
        let mut board = ear.board();
        let watches = &mut board.watches;
        let told = match (&question, value) {
            (Some(Question::Exists(name)), Value::Int(found)) => {
                match (watches.get_mut(name), found) {
                    (Some(watch), 0) => watch.tell(),
                    (Some(watch), _) if watch.state == State::Asked => {
                        watch.state = State::Listening;
                        Vec::new()
                    }
                    _ => Vec::new(),
                }
            }
            (Some(Question::Pttl(name)), Value::Int(left)) => {
                let left = u64::try_from(left).ok().map(|ms| Duration::from_millis(ms + 1));
                let ends = left.and_then(|left| clock::now().checked_add(left));
                match watches.get_mut(name) {
                    Some(watch) if watch.state == State::Listening => {
                        watch.ends = ends;
                        watch.sleepers()
                    }
                    _ => Vec::new(),
                }
            }
            // The slot has moved, or is on its way: whoever waits tries again, wherever it is by now.
            (Some(Question::Exists(name) | Question::Pttl(name)), Value::ServerError(error))
                if redirect(error.code(), error.details().unwrap_or_default()).is_some() =>
            {
                watches.get_mut(name).map(Watch::tell).unwrap_or_default()
            }
            // Not allowed to ask, or not a Redis server: others may tell, this one does not.
            _ => return Err(io::ErrorKind::Unsupported.into()),
        };
        drop(board);
        told.iter().for_each(Caller::wake);
        Ok(())
    }
}

/// The server says what was changed: a list of names, or nothing when all was flushed.
fn told(ear: &Ear, names: Option<&Value>) {
    let mut board = ear.board();
    let told = if let Some(Value::Array(names)) = names {
        let mut told = Vec::new();
        for name in names {
            if let Value::BulkString(name) = name
                && let Some(watch) = board.watches.get_mut(&name[..])
            {
                told.extend(watch.tell());
            }
        }
        told
    } else {
        board.tell_all()
    };
    drop(board);
    told.iter().for_each(Caller::wake);
}
