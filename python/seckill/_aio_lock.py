"""`seckill.aio.Lock`: the awaited twin of `seckill.Lock`, method by method.

A call is made by one task and may be run by another: by those of `asyncio.gather`, and before
Python 3.12 by that of `asyncio.wait_for`. The lock is for who made it. So the methods are plain
functions that look which task that is, and return a coroutine. Outside of a loop there is none yet;
then it is the one that awaits.
"""

from __future__ import annotations

from _weakref import ref
from contextvars import ContextVar
from os import urandom

from seckill._exceptions import LockError, LockLostError
from seckill._holding import Acquisition, Leaving, TaskSlot, current_task
from seckill._lock import Lock as SyncLock
from seckill._lock_base import LockBase, lock_errors, milliseconds, seconds, told
from seckill._twins import twin_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import Future, Task
    from collections.abc import Awaitable, Callable, Coroutine
    from typing import Any, Literal, ParamSpec, Protocol, TypeAlias, TypeVar

    from typing_extensions import Self

    P = ParamSpec("P")
    R = TypeVar("R")
    True_: TypeAlias = Literal[True]

    class Clock(Protocol):
        """What `asyncio` is, and what people put into its place."""

        def get_running_loop(self) -> Any: ...
        async def sleep(self, seconds: float, /) -> object: ...


# Who took a lock last, of this task and its forebears: a task may prove what its parent holds.
_holder: ContextVar[ref[Task[Any]] | None] = ContextVar("seckill.holder", default=None)

# Loops keep no tasks alive.
_running: set[Future[Any]] = set()


@twin_of(SyncLock)
class Lock(LockBase):
    _slot = TaskSlot
    _words = ("cancel",)

    @twin_of(SyncLock.acquire, without="sleep")
    def acquire(
        self,
        blocking: bool | None = None,
        blocking_timeout: float | None = None,
        token: str | bytes | None = None,
    ) -> Coroutine[Any, Any, bool]:
        given = None if token is None else self._token(token)
        patience = self._patience(None, blocking, blocking_timeout)
        task = current_task()
        if task is not None:
            _holder.set(ref(task))
        return self._acquire(task, given, self._wait(*patience), patience)

    @twin_of(SyncLock.release)
    def release(self) -> Coroutine[Any, Any, None]:
        return self._release(current_task())

    @twin_of(SyncLock.extend)
    def extend(self, additional_time: float, replace_ttl: bool = False) -> Awaitable[True_]:
        if not _in_loop():
            return _later(lambda: self.extend(additional_time, replace_ttl))
        self._holding("extend", self.local._find())
        self._with_timeout("extend")
        return self.do_extend(additional_time, replace_ttl)

    @twin_of(SyncLock.reacquire)
    def reacquire(self) -> Awaitable[True_]:
        if not _in_loop():
            return _later(self.reacquire)
        self._holding("reacquire", self.local._find())
        self._with_timeout("reacquire")
        return self.do_reacquire()

    @twin_of(SyncLock.locked)
    async def locked(self) -> bool:
        return await self._native().begin_holder() is not None

    @twin_of(SyncLock.owned)
    def owned(self) -> Coroutine[Any, Any, bool]:
        return self._owned(current_task())

    @twin_of(SyncLock.ensure_held)
    def ensure_held(self) -> Coroutine[Any, Any, None]:
        return self._ensure_held(current_task())

    @twin_of(SyncLock.remaining)
    def remaining(self) -> float:
        return super().remaining()

    @twin_of(SyncLock.statistics)
    def statistics(self) -> dict[str, float]:
        return super().statistics()

    @twin_of(SyncLock.do_acquire)
    async def do_acquire(self, token: bytes) -> bool:
        self._offered = await self._take(_last_caller(), self._token(token), 0.0)
        return self._offered is not None

    @twin_of(SyncLock.do_release)
    async def do_release(self, expected_token: bytes) -> None:
        token = self._token(expected_token)
        mine = self._acquired(token)
        if not await self._native().begin_release(token, mine.held):
            raise self._gone("release", mine)

    @twin_of(SyncLock.do_extend)
    def do_extend(self, additional_time: float, replace_ttl: bool) -> Awaitable[True_]:
        more = milliseconds("additional_time", seconds("additional_time", additional_time))
        how = "replace" if replace_ttl else "add"
        return self._prolong("extend", self._proving(), more, how)

    @twin_of(SyncLock.do_reacquire)
    def do_reacquire(self) -> Awaitable[True_]:
        lease = milliseconds("timeout", seconds("timeout", self.timeout))
        return self._prolong("reacquire", self._proving(), lease, "reset")

    async def __aenter__(self) -> Self:
        if await self.acquire():
            return self
        raise self._error("the lock was not free in time", LockError)

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        mine = self.local._find()
        # What our cancellation was to say, the exception says, unless it is not the only one.
        cancelled = mine is not None and mine.cancelled and self.raise_on_release_error
        cancelled = cancelled and not _uncancel()
        try:
            await self.release()
        except lock_errors():
            if cancelled or self._raises(kind):
                raise
            self._warn()
        else:
            if cancelled:
                raise self._error("the lock was lost", LockLostError)

    def __call__(self, function: Callable[P, Awaitable[R]]) -> Callable[P, Coroutine[Any, Any, R]]:
        """As a decorator: the coroutine function holds the lock whenever it runs."""
        from functools import wraps

        code = getattr(function, "__code__", None)
        if (
            code is not None
            and not code.co_flags & AWAITABLE
            and not hasattr(function, "__wrapped__")
        ):
            raise TypeError("only coroutine functions; for others there is seckill.Lock")

        @wraps(function)
        async def locked(*args: P.args, **kwargs: P.kwargs) -> R:
            async with self:
                return await function(*args, **kwargs)

        return locked

    # -- inside -------------------------------------------------------------------------------

    def _clock(self) -> Clock | None:
        """What to poll with; None when the core waits."""
        if not self._overridden(_do_acquire):
            return None
        import asyncio

        return asyncio

    async def _acquire(
        self,
        task: Task[Any] | None,
        token: bytes | None,
        wait: float | None,
        patience: tuple[float, bool, float | None],
    ) -> bool:
        clock = self._clock()
        if clock is not None:
            token = token or urandom(16).hex().encode()
            try:
                if not await self._poll(clock, token, *patience):
                    return False
                mine = self._acquired(token)
            finally:
                self._offered = None  # a hook of the user's may have raised after ours
        else:
            taken = await self._take(task, token, wait)
            if taken is None:
                return False
            mine = taken
        self.local._keep(mine, task)
        return True

    async def _poll(
        self, clock: Clock, token: bytes, sleep: float, blocking: bool, limit: float | None
    ) -> bool:
        """Wait as redis-py does, looking at the clock as often."""
        end = None if limit is None else clock.get_running_loop().time() + limit
        while not await self.do_acquire(token):
            if not blocking:
                return False
            next_try = clock.get_running_loop().time() + sleep
            if end is not None and next_try > end:
                return False
            await clock.sleep(sleep)
        return True

    async def _take(
        self, task: Task[Any] | None, token: bytes | None, wait: float | None
    ) -> Acquisition | None:
        mine, task = Acquisition(), task or current_task()
        lease, fair, renew, max_hold = self._terms()
        tell = None if self.on_lost is None else self._teller(mine, task)
        held = await self._native().begin_acquire(
            token, lease, wait, fair, renew, max_hold, tell, task
        )
        if held is None:
            return None
        mine.held, mine.token = held, held.token
        self._live[mine.token] = mine
        if renew and task is not None and isinstance(self.local, TaskSlot):
            self.local._until_done(task)
        return mine

    async def _release(self, task: Task[Any] | None) -> None:
        mine = self._holding("release", self.local._find(task))
        with Leaving(mine):
            await self.do_release(mine.token)  # type: ignore[arg-type]

    async def _owned(self, task: Task[Any] | None) -> bool:
        mine = self.local._find(task)
        if mine is None or mine.token is None:
            return False
        token = mine.token
        return self._is_holder(mine, token, await self._native().begin_holder())

    async def _ensure_held(self, task: Task[Any] | None) -> None:
        mine = self._held_or_lost(self.local._find(task))
        token = mine.token
        self._judge(mine, token, await self._native().begin_holder())

    async def _prolong(self, what: str, mine: Acquisition | None, ms: int, how: str) -> True_:
        mine = self._holding(what, mine)
        held = mine.held
        done = await self._native().begin_extend(self._token(mine.token), ms, how, held)
        if not done or (held is not None and held.lost):
            raise self._gone(what, mine)
        return True

    def _proving(self) -> Acquisition | None:
        mine = self.local._find()
        if mine is None or (mine.token is None and not mine.lost):
            parent = _last_caller()
            if parent is not None:
                return self.local._find(parent)
        return mine

    def _teller(self, mine: Acquisition, task: Task[Any] | None) -> Callable[[], None]:
        from asyncio import get_running_loop

        # It must not keep alive what it tells about, for it lives in the core.
        loop = ref(get_running_loop())
        about = ref(self), ref(mine), None if task is None else ref(task)

        def tell() -> None:
            alive = loop()
            if alive is None:
                return
            try:
                alive.call_soon_threadsafe(_tell, *about)
            except RuntimeError:
                return  # the loop is closed

        return tell


AWAITABLE = 0x80 | 0x100  # what a function's code says; `inspect` takes long to import

_do_acquire = Lock.do_acquire
Lock.__module__ = "seckill.aio"  # where users import it from


def _last_caller() -> Task[Any] | None:
    """Who called an `acquire` last: the running task, or one that it descends from."""
    holder = _holder.get()
    return None if holder is None else holder()


def _tell(lock: ref[Lock], mine: ref[Acquisition], task: ref[Task[Any]] | None) -> None:
    """Call `on_lost`, or cancel the task; in the loop, where no task runs now."""
    alive = told(lock, mine)
    if alive is None:
        return
    self, lost = alive
    on_lost, holder = self.on_lost, None if task is None else task()
    if on_lost == "cancel":
        # Who is about to release will be told by that.
        if holder is not None and not holder.done() and not lost.leaving:
            lost.cancelled = True
            holder.cancel(f"lock {self._name()!r} is lost")
    elif callable(on_lost):
        before = self.local._find()
        self.local._show(lost)
        try:
            answer = on_lost(self)
        finally:
            self.local._show(before)
        if hasattr(answer, "__await__"):
            from asyncio import ensure_future

            running = ensure_future(_told(self, lost, answer))
            _running.add(running)
            running.add_done_callback(_running.discard)


async def _told(lock: Lock, lost: Acquisition, answer: Awaitable[object]) -> None:
    lock.local._show(lost)
    await answer


def _uncancel() -> int:
    """Take a cancellation of the running task back, and tell how many others there are."""
    uncancel = getattr(current_task(), "uncancel", None)  # since Python 3.11
    return uncancel() if uncancel is not None else 0


def _in_loop() -> bool:
    from asyncio import get_running_loop

    try:
        get_running_loop()
    except RuntimeError:
        return False
    return True


async def _later(call: Callable[[], Awaitable[True_]]) -> True_:
    return await call()
