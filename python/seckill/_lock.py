"""`Lock`: what takes the place of redis-py's lock object. Its awaited twin is in `_aio_lock`."""

from __future__ import annotations

import time
from _weakref import ref
from itertools import starmap
from os import urandom

from seckill._exceptions import LockError
from seckill._holding import Acquisition, Leaving
from seckill._lock_base import LockBase, lock_errors, milliseconds, seconds, told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Literal, ParamSpec, Protocol, TypeVar

    from typing_extensions import Self

    from seckill._core import Held

    P = ParamSpec("P")
    R = TypeVar("R")

    class Clock(Protocol):
        """What `time` is, and what people put into its place."""

        def monotonic(self) -> float: ...
        def sleep(self, seconds: float, /) -> object: ...


class Lock(LockBase):
    """A lock that any number of processes and machines share, as redis-py's, without its holes.

    It is a plain key with the holder's token and a time to live: redis-py's own locks, and
    `acquire_lock`, respect it and are respected. A waiter is told when the lock is free. The token
    belongs to the thread that acquired it, in asyncio to the task that called `acquire`; others,
    and forked children, do not hold the lock. What can be given to redis-py's Lock means the same
    here. It can also decorate a function, which then holds the lock whenever it runs.

    Args:
        redis: where the lock is: a `seckill.Client`, a client of redis-py or valkey-py (whose
            settings are read), a URL, or None for the default client.
        name: name of the lock, used verbatim as the key.
        timeout: the lease in seconds, after which the lock frees itself. None: never.
        sleep: seconds. A wait whose `blocking_timeout` is shorter tries once; that is all, since a
            waiter is told and need not look again and again.
        blocking: whether `acquire` waits for the lock, unless it is told otherwise.
        blocking_timeout: the longest wait in seconds, likewise. None: for ever; but a server that
            does not answer for the client's `timeout` is a ConnectionError.
        thread_local: whether an acquisition is its thread's (task's). If not, any may release.
        raise_on_release_error: whether the end of a `with` block raises when the lock is not held
            any more, or only logs a warning.
        auto_renew: renew the lease when a third of it has passed, until the lock is released, lost
            or its holder gone. One thread without Python does this for all locks of the process.
        max_hold: seconds after which it is no longer renewed.
        on_lost: called with the lock when an acquisition is lost, and sees it as its holder did; in
            a thread of its own. In asyncio in the loop, where it may be a coroutine function, or
            "cancel": then the task that holds the lock is cancelled, and its `async with` block
            raises LockLostError.
        fair: who waits gets the lock in the order of arrival, among all that are `fair`; a waiter
            that has died delays the others by three seconds at most.

    Raises:
        TypeError: an argument is of another type; nothing was sent.
        ValueError: an argument is empty, NaN, negative or too large, or a server that this version
            does not support; nothing was sent.

    Examples:
        >>> import seckill
        >>> with seckill.embedded() as server, server.client() as client:
        ...     with seckill.Lock(client, "sku:1", timeout=5) as lock:
        ...         lock.owned()
        ...     lock.locked()
        True
        False
    """

    def acquire(
        self,
        sleep: float | None = None,
        blocking: bool | None = None,
        blocking_timeout: float | None = None,
        token: str | bytes | None = None,
    ) -> bool:
        """Take the lock, waiting for it if somebody else holds it.

        Args:
            sleep: as the constructor's, for this call.
            blocking: as the constructor's, for this call.
            blocking_timeout: as the constructor's, for this call.
            token: what to store as the holder's token. None: 128 random bits.

        Returns:
            True when the lock is the caller's, False when it was not free in time.

        Raises:
            TypeError: an argument is of another type; nothing was sent.
            ValueError: an argument is empty, NaN or negative; nothing was sent.
            ConnectionError: the server could not be reached; nothing was sent.
            OutcomeUnknown: no answer came in time. A lock that was taken all the same is given
                back as soon as the server answers again, or else ends with its lease.
            ServerError: the server refused; nothing was changed.

        Examples:
            >>> import seckill
            >>> with seckill.embedded() as server, server.client() as client:
            ...     lock = seckill.Lock(client, "sku:1", timeout=5)
            ...     lock.acquire()
            ...     lock.acquire(blocking_timeout=0.2)
            ...     lock.release()
            True
            False
        """
        given = None if token is None else self._token(token)
        patience = self._patience(sleep, blocking, blocking_timeout)
        wait = self._wait(*patience)
        clock = self._clock()
        if clock is not None:
            return self._poll(clock, given or urandom(16).hex().encode(), *patience)
        return self._take(given, wait, self.local._keep)

    def release(self) -> None:
        """Give the lock back.

        When its outcome is not known (ConnectionError), the token is kept: release again.

        Raises:
            LockError: the lock is not held here; nothing was sent.
            LockLostError: it was lost before; the token is forgotten.
            LockNotOwnedError: the same, of a token that was assigned.
            ConnectionError: the server could not be reached.
            OutcomeUnknown: no answer came in time; it may have been done, and will not be later.
            ServerError: the server refused; nothing was changed.

        Examples:
            >>> import seckill
            >>> with seckill.embedded() as server, server.client() as client:
            ...     lock = seckill.Lock(client, "sku:1")
            ...     lock.acquire()
            ...     lock.release()
            True
        """
        mine = self._holding("release", self.local._find())
        with Leaving(mine):
            self.do_release(mine.token)  # type: ignore[arg-type]

    def extend(self, additional_time: float, replace_ttl: bool = False) -> Literal[True]:
        """Prolong the lease.

        Args:
            additional_time: seconds.
            replace_ttl: make this the time that is left, instead of adding it to what is left.

        Returns:
            True.

        Raises:
            TypeError: an argument is of another type; nothing was sent.
            ValueError: `additional_time` is less than 1 ms, NaN or too large; nothing was sent.
            LockError: the lock is not held here, or has no timeout; nothing was sent.
            LockLostError: it was lost before.
            LockNotOwnedError: the same, of a token that was assigned.
            ConnectionError: the server could not be reached.
            OutcomeUnknown: no answer came in time; it may have been done, and will not be later.
            ServerError: the server refused; nothing was changed.

        Examples:
            >>> import seckill
            >>> with seckill.embedded() as server, server.client() as client:
            ...     with seckill.Lock(client, "sku:1", timeout=5) as lock:
            ...         lock.extend(10)
            ...         14 < lock.remaining() <= 15
            True
            True
        """
        self._holding("extend", self.local._find())
        self._with_timeout("extend")
        return self.do_extend(additional_time, replace_ttl)

    def reacquire(self) -> Literal[True]:
        """Make the lease as long again as it was in the beginning.

        Returns:
            True.

        Raises:
            LockError: the lock is not held here, or has no timeout; nothing was sent.
            LockLostError: it was lost before.
            LockNotOwnedError: the same, of a token that was assigned.
            ConnectionError: the server could not be reached.
            OutcomeUnknown: no answer came in time; it may have been done, and will not be later.
            ServerError: the server refused; nothing was changed.

        Examples:
            >>> import seckill
            >>> with seckill.embedded() as server, server.client() as client:
            ...     with seckill.Lock(client, "sku:1", timeout=5) as lock:
            ...         lock.reacquire()
            True
        """
        self._holding("reacquire", self.local._find())
        self._with_timeout("reacquire")
        return self.do_reacquire()

    def locked(self) -> bool:
        """Ask whether anybody holds the lock.

        Returns:
            Whether the key exists.

        Raises:
            ConnectionError: the server could not be reached in time.
            ServerError: the server refused.

        Examples:
            >>> import seckill
            >>> with seckill.embedded() as server, server.client() as client:
            ...     lock = seckill.Lock(client, "sku:1")
            ...     lock.locked()
            False
        """
        return self._native().holder() is not None

    def owned(self) -> bool:
        """Ask whether the caller holds the lock.

        Returns:
            Whether the caller's token is at the key.

        Raises:
            ConnectionError: the server could not be reached in time.
            ServerError: the server refused.

        Examples:
            >>> import seckill
            >>> with seckill.embedded() as server, server.client() as client:
            ...     with seckill.Lock(client, "sku:1") as lock:
            ...         lock.owned()
            True
        """
        mine = self.local._find()
        if mine is None or mine.token is None:
            return False
        token = mine.token
        return self._is_holder(mine, token, self._native().holder())

    def ensure_held(self) -> None:
        """Ask whether the caller still holds the lock, and raise if not.

        Raises:
            LockError: the lock was not acquired here; nothing was sent.
            LockLostError: it was, and is lost.
            LockNotOwnedError: the same, of a token that was assigned.
            ConnectionError: the server could not be reached in time.
            ServerError: the server refused.

        Examples:
            >>> import seckill
            >>> with seckill.embedded() as server, server.client() as client:
            ...     with seckill.Lock(client, "sku:1", timeout=5) as lock:
            ...         lock.ensure_held()
        """
        mine = self._held_or_lost(self.local._find())
        token = mine.token
        self._judge(mine, token, self._native().holder())

    def do_acquire(self, token: bytes) -> bool:
        """Try once to take the lock; a subclass may override it, and `acquire` then polls.

        It is polled as redis-py's is, every `sleep` seconds. What it takes becomes the caller's
        when `acquire` has it, which also makes the token.

        Args:
            token: what to store as the holder's token.

        Returns:
            Whether the lock was free, and is taken.

        Examples:
            >>> import seckill
            >>> class Polite(seckill.Lock):
            ...     def do_acquire(self, token):
            ...         print("may I?")
            ...         return super().do_acquire(token)
            >>> with seckill.embedded() as server, server.client() as client:
            ...     lock = Polite(client, "sku:1")
            ...     lock.acquire(blocking=False)
            may I?
            True
        """
        return self._take(self._token(token), 0.0, self._offer)

    def do_release(self, expected_token: bytes) -> None:
        """Give the lock back, if this token holds it; what `release` calls.

        Args:
            expected_token: the holder's.

        Raises:
            LockLostError: it is lost.
            LockNotOwnedError: the same, of a token that was assigned.

        Examples:
            >>> import seckill
            >>> class Talkative(seckill.Lock):
            ...     def do_release(self, expected_token):
            ...         super().do_release(expected_token)
            ...         print("bye")
            >>> with seckill.embedded() as server, server.client() as client:
            ...     with Talkative(client, "sku:1"):
            ...         pass
            bye
        """
        token = self._token(expected_token)
        mine = self._acquired(token)
        if not self._native().release(token, mine.held):
            raise self._gone("release", mine)

    def do_extend(self, additional_time: float, replace_ttl: bool) -> Literal[True]:
        """Prolong the lease of the caller's acquisition; what `extend` calls.

        Args:
            additional_time: seconds.
            replace_ttl: make this the time that is left, instead of adding it to what is left.

        Returns:
            True.

        Raises:
            LockLostError: it is lost.
            LockNotOwnedError: the same, of a token that was assigned.

        Examples:
            >>> import seckill
            >>> class Generous(seckill.Lock):
            ...     def do_extend(self, additional_time, replace_ttl):
            ...         return super().do_extend(additional_time + 1, replace_ttl)
            >>> with seckill.embedded() as server, server.client() as client:
            ...     with Generous(client, "sku:1", timeout=5) as lock:
            ...         lock.extend(10, replace_ttl=True)
            True
        """
        more = milliseconds("additional_time", seconds("additional_time", additional_time))
        return self._prolong("extend", more, "replace" if replace_ttl else "add")

    def do_reacquire(self) -> Literal[True]:
        """Make the lease of the caller's acquisition as long as `timeout`; for `reacquire`.

        Returns:
            True.

        Raises:
            LockLostError: it is lost.
            LockNotOwnedError: the same, of a token that was assigned.

        Examples:
            >>> import seckill
            >>> class Talkative(seckill.Lock):
            ...     def do_reacquire(self):
            ...         print("again")
            ...         return super().do_reacquire()
            >>> with seckill.embedded() as server, server.client() as client:
            ...     with Talkative(client, "sku:1", timeout=5) as lock:
            ...         lock.reacquire()
            again
            True
        """
        lease = milliseconds("timeout", seconds("timeout", self.timeout))
        return self._prolong("reacquire", lease, "reset")

    def __enter__(self) -> Self:
        if self.acquire():
            return self
        raise self._error("the lock was not free in time", LockError)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            self.release()
        except lock_errors():
            if self._raises(kind):
                raise
            self._warn()

    def __call__(self, function: Callable[P, R]) -> Callable[P, R]:
        """As a decorator: the function holds the lock whenever it runs."""
        from functools import wraps

        code = getattr(function, "__code__", None)
        if code is not None and code.co_flags & SUSPENDABLE:
            raise TypeError("only plain functions: the lock would be released before it runs")

        @wraps(function)
        def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            with self:
                return function(*args, **kwargs)

        return locked

    # -- inside -------------------------------------------------------------------------------

    def _clock(self) -> Clock | None:
        """What to poll with; None when the core waits."""
        return time if self._overridden(_do_acquire) else None

    def _poll(
        self, clock: Clock, token: bytes, sleep: float, blocking: bool, limit: float | None
    ) -> bool:
        """Wait as redis-py does, looking at the clock as often."""
        end = None if limit is None else clock.monotonic() + limit
        try:
            while not self.do_acquire(token):
                if not blocking:
                    return False
                next_try = clock.monotonic() + sleep
                if end is not None and next_try > end:
                    return False
                clock.sleep(sleep)
            self.local._keep(self._acquired(token))
            return True
        finally:
            self._offered = None  # a hook of the user's may have raised after ours

    def _take(
        self, token: bytes | None, wait: float | None, keep: Callable[[Acquisition], None]
    ) -> bool:
        native, mine = self._native(), Acquisition()
        lease, fair, renew, max_hold = self._terms()
        tell = None if self.on_lost is None else self._teller(mine)
        taken: list[Held | None] = []
        try:
            # Ctrl-C is raised when a call of native code returns, in the place of what it returned.
            # This one is made, and its outcome kept, by native code.
            taken.extend(
                starmap(native.acquire, [(token, lease, wait, fair, renew, max_hold, tell)])
            )
            held = taken[0]
            if held is None:
                return False
            mine.held, mine.token = held, held.token
            self._live[mine.token] = mine
            keep(mine)
            return True
        except BaseException:
            if taken and taken[0] is not None:
                mine.held = mine.token = None
                native.release(taken[0].token, taken[0])
            raise

    def _prolong(self, what: str, ms: int, how: str) -> Literal[True]:
        mine = self._holding(what, self.local._find())
        held = mine.held
        done = self._native().extend(self._token(mine.token), ms, how, held)
        # Who has been told that the lock is lost is not told otherwise.
        if not done or (held is not None and held.lost):
            raise self._gone(what, mine)
        return True

    def _teller(self, mine: Acquisition) -> Callable[[], None]:
        # It must not keep alive what it tells about, for it lives in the core.
        lock, lost = ref(self), ref(mine)
        return lambda: _tell(lock, lost)


# Generators, coroutines, and both, as a function's code says; `inspect` takes long to import.
SUSPENDABLE = 0x20 | 0x80 | 0x200

_do_acquire = Lock.do_acquire
Lock.__module__ = "seckill"  # where users import it from


def _tell(lock: ref[Lock], mine: ref[Acquisition]) -> None:
    """Call `on_lost`, in a thread that the core has made for it."""
    alive = told(lock, mine)
    if alive is None:
        return
    self, lost = alive
    self.local._show(lost)
    if callable(self.on_lost):
        self.on_lost(self)
