//! What a forked child does with the sockets that it inherited: close them, and nothing else.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};

use socket2::Socket;

/// An open socket, on record where a forked child finds it without taking a lock.
///
/// | `fd` | meaning | who changes it |
/// |---|---|---|
/// | -1 | nothing to close | the owner, *before* it closes; a child, when it closes |
/// | number | open, and the connection's own | the owner, right after it opened |
///
/// A fork between opening and storing, or between storing -1 and closing, leaks a descriptor into
/// the child, which is harmless. Closing a number that belongs to somebody else by now, because the
/// child closed all it inherited and opened files of its own (as daemons do), would not be: so the
/// child compares the inode, which no two sockets share.
#[derive(Debug)]
pub struct OpenFd {
    fd: AtomicI32,
    inode: AtomicU64,
}

impl Default for OpenFd {
    fn default() -> Self {
        Self { fd: AtomicI32::new(-1), inode: AtomicU64::new(0) }
    }
}

impl OpenFd {
    /// The owner has opened a socket. Relaxed orderings all through: a child inherits memory as its
    /// only thread saw it when it forked.
    pub(crate) fn opened(&self, socket: &Socket) {
        let fd = socket.as_raw_fd();
        if let Some(inode) = inode_of_socket(fd) {
            self.inode.store(inode, Ordering::Relaxed);
            self.fd.store(fd, Ordering::Relaxed);
        }
    }

    /// The owner is about to close it.
    pub(crate) fn closing(&self) {
        self.fd.store(-1, Ordering::Relaxed);
    }

    /// In a forked child: closes the parent's socket, and does nothing else to the connection.
    pub fn close_inherited(&self) {
        let fd = self.fd.swap(-1, Ordering::Relaxed);
        if fd >= 0 && inode_of_socket(fd) == Some(self.inode.load(Ordering::Relaxed)) {
            // SAFETY: it is the socket of a connection that this process, a forked child, has leaked:
            // nobody here reads, writes or closes it any more.
            unsafe { libc::close(fd) };
        }
    }
}

fn inode_of_socket(fd: RawFd) -> Option<u64> {
    let mut stat = MaybeUninit::<libc::stat>::uninit();
    // SAFETY: fstat takes any number, and writes no more than a stat.
    if unsafe { libc::fstat(fd, stat.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: filled in, since fstat has succeeded.
    let stat = unsafe { stat.assume_init() };
    (stat.st_mode & libc::S_IFMT == libc::S_IFSOCK).then_some(stat.st_ino)
}
