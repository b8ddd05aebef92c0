"""What the two faces of the lock share: all that asks the server nothing."""

from __future__ import annotations

from _weakref import ref

from seckill import _core
from seckill._exceptions import LockError, caught, make
from seckill._holding import Acquisition, Slot, ThreadSlot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from logging import Logger
    from typing import Any, Literal, TypeVar
    from weakref import WeakValueDictionary

    from seckill._core import _Name
    from seckill._sources import Source

    AnyLock = TypeVar("AnyLock", bound="LockBase")

LONGEST = 2**42  # milliseconds, 139 years: what the core takes
SETTINGS = (
    *("redis", "name", "timeout", "sleep", "blocking", "blocking_timeout", "thread_local"),
    *("raise_on_release_error", "auto_renew", "max_hold", "on_lost", "fair"),
)


class LockBase:
    """The state and the settings of a lock; `Lock` says what each one means."""

    _slot: type[Slot] = ThreadSlot
    _words: tuple[str, ...] = ()  # what `on_lost` may say instead of being called

    def __init__(
        self,
        redis: Source,
        name: _Name,
        timeout: float | None = None,
        sleep: float = 0.1,
        blocking: bool = True,
        blocking_timeout: float | None = None,
        thread_local: bool = True,
        raise_on_release_error: bool = True,
        *,
        auto_renew: bool = False,
        max_hold: float | None = None,
        on_lost: Callable[[Any], object] | Literal["cancel"] | None = None,
        fair: bool = False,
    ) -> None:
        from weakref import WeakValueDictionary

        self.redis = redis
        self.name = name
        self.timeout = timeout
        self.sleep = sleep
        self.blocking = blocking
        self.blocking_timeout = blocking_timeout
        self.thread_local = bool(thread_local)
        self.raise_on_release_error = raise_on_release_error
        self.auto_renew = auto_renew
        self.max_hold = max_hold
        self.on_lost = on_lost
        self.fair = fair
        self.local: Slot = self._slot() if self.thread_local else Slot()
        # Those that are in a slot, by token; and one that `do_acquire` made and nobody took yet.
        self._live: WeakValueDictionary[Any, Acquisition] = WeakValueDictionary()
        self._offered: Acquisition | None = None
        self._build()
        self._terms()
        self._wait(*self._patience(None, None, None))
        if on_lost is not None and not callable(on_lost) and on_lost not in self._words:
            words = " or ".join(["a callable", *map(repr, self._words)])
            raise TypeError(f"on_lost must be {words}, not {on_lost!r}")
        self._made()

    def _made(self) -> None:
        """For a subclass that has more to do."""

    # -- what is known without asking ---------------------------------------------------------

    @property
    def lost(self) -> bool:
        """Whether this thread's (or task's) acquisition is over without having been released.

        That is so when its lease has ended by the local clock, or the server said that the lock is
        another's; until the next one is made.
        """
        mine = self.local._find()
        return mine is not None and mine.lost

    @property
    def fence(self) -> int | None:
        """The number of this thread's (or task's) acquisition, to be checked by what it writes to.

        It grows with every acquisition of that name. One that is lost still tells its own; None
        when nothing was acquired, and after the release.
        """
        mine = self.local._find()
        return None if mine is None or mine.held is None else mine.held.fence

    def remaining(self) -> float:
        """Tell for how many seconds the lock is provably held, without asking the server.

        It goes by the local clock since before the server was asked. A token that was assigned to
        `local.token` proves nothing.

        Returns:
            Seconds; infinity without a `timeout`, 0.0 when the lock is not held or lost.

        Examples:
            >>> import seckill
            >>> with seckill.embedded() as server, server.client() as client:
            ...     with seckill.Lock(client, "sku:1", timeout=5) as lock:
            ...         4 < lock.remaining() <= 5
            True
        """
        mine = self.local._find()
        if mine is None or mine.held is None or mine.told:
            return 0.0
        return mine.held.remaining()

    def statistics(self) -> dict[str, float]:
        """Count what this lock object has done in this process, in all its threads and tasks.

        Returns:
            `acquired`, `refused` (waits that ended without the lock), `released`, `lost`, `renewed`
            (by `auto_renew`); and `waited`: seconds spent in `acquire`, in all.

        Examples:
            >>> import seckill
            >>> with seckill.embedded() as server, server.client() as client:
            ...     with seckill.Lock(client, "sku:1") as lock:
            ...         lock.statistics()["acquired"]
            1
        """
        return self._native().statistics()

    def __repr__(self) -> str:
        cls = type(self)
        return f"<{cls.__module__}.{cls.__qualname__} {self._name()!r}: {self._state()}>"

    def _state(self) -> str:
        mine = self.local._find()
        if mine is None or (mine.token is None and mine.held is None):
            return "not held"
        if mine.held is None:
            return "held by an assigned token"
        left = self.remaining()
        state = "lost" if mine.lost else "being released" if mine.leaving else "held"
        time = "" if state != "held" or left == float("inf") else f", {left:.3f} s left"
        return f"{state}, fence {mine.held.fence}{time}"

    # -- pickle -------------------------------------------------------------------------------

    def __reduce__(self) -> tuple[object, ...]:
        # Pools pickle in a thread of their own: it is not enough that this one holds nothing.
        everybodys = [mine() for mine in self._live.valuerefs()]
        if self.local.token is not None or any(
            mine is not None and mine.token is not None and not (mine.lost or mine.inherited)
            for mine in everybodys
        ):
            raise TypeError(f"cannot pickle lock {self._name()!r} while it is held")
        native = self._native()
        own = ("local", "_live", "_offered", "_built")
        state = {name: value for name, value in vars(self).items() if name not in own}
        if isinstance(self.name, memoryview):
            state["name"] = native.name
        if hasattr(self.redis, "connection_pool") or hasattr(self.redis, "nodes_manager"):
            state["redis"] = self._built[2]  # redis-py's cannot travel
        return _restore, (type(self), state)

    # -- for the faces ------------------------------------------------------------------------

    def _build(self) -> _core.CoreLock:
        from seckill._sources import client_of

        client = client_of(self.redis)
        name = self.name
        if isinstance(name, str):
            name = self._encoded("name", name)
        native = _core.CoreLock(client, name)
        self._built = (self.redis, self.name, client, native)
        return native

    def _native(self) -> _core.CoreLock:
        """The lock in the core; another one when a subclass or user has changed the attributes."""
        built = self._built
        if built[0] is self.redis and built[1] is self.name:
            return built[3]
        return self._build()

    def _encoded(self, argument: str, text: str) -> bytes:
        """As the redis client does it, if there is one."""
        try:
            for owner in (self.redis, getattr(self.redis, "connection_pool", None)):
                get_encoder = getattr(owner, "get_encoder", None)
                if get_encoder is not None:
                    return bytes(get_encoder().encode(text))
            return text.encode()
        except UnicodeEncodeError as error:
            words = f"{argument} must be text that {error.encoding} can encode, not {text!r}"
            raise ValueError(words) from None

    def _token(self, token: object) -> bytes:
        """A token as the server knows it; redis-py's encoder takes the same."""
        if isinstance(token, bytes) and token:
            return token
        if isinstance(token, str):
            encoded = self._encoded("token", token)
        elif isinstance(token, bytes | bytearray | memoryview):
            encoded = bytes(token)
        elif isinstance(token, int | float) and not isinstance(token, bool):
            encoded = repr(token).encode()
        else:
            raise TypeError(f"token must be str or bytes, not {type(token).__name__}")
        if not encoded:
            raise ValueError("token must not be empty")
        return encoded

    def _terms(self) -> tuple[int | None, bool, bool, float | None]:
        """Lease in milliseconds, fair, renew, and seconds of the longest hold: for the core."""
        lease = None
        if self.timeout is not None:
            timeout = seconds("timeout", self.timeout)
            if timeout:
                lease = milliseconds("timeout", timeout)
        max_hold = self.max_hold
        if self.auto_renew:
            if lease is None:
                raise ValueError("auto_renew needs a timeout: that is what is renewed")
            if max_hold is not None:
                max_hold = milliseconds("max_hold", seconds("max_hold", max_hold)) / 1000
        elif max_hold is not None:
            raise ValueError("max_hold needs auto_renew=True: without it, timeout is the longest")
        return lease, bool(self.fair), bool(self.auto_renew), max_hold

    def _patience(
        self, sleep: float | None, blocking: bool | None, blocking_timeout: float | None
    ) -> tuple[float, bool, float | None]:
        """What a call says about waiting, or the lock where it says nothing."""
        return (
            self.sleep if sleep is None else sleep,
            self.blocking if blocking is None else blocking,
            self.blocking_timeout if blocking_timeout is None else blocking_timeout,
        )

    @staticmethod
    def _wait(sleep: float, blocking: bool, blocking_timeout: float | None) -> float | None:
        """The longest wait in seconds: None for ever, 0 to try once."""
        pause = seconds("sleep", sleep)
        if pause < 0:
            raise ValueError(f"sleep must not be negative, not {sleep}")
        if blocking_timeout is None:
            return None if blocking else 0.0
        limit = seconds("blocking_timeout", blocking_timeout)
        if not blocking or pause > limit:
            return 0.0  # as if the next try came too late
        if limit * 1000 > LONGEST:
            return None
        # To be back before the time is over, and not much before the last try would have been.
        return limit - min(pause / 2, 0.05)

    def _holding(self, what: str, mine: Acquisition | None) -> Acquisition:
        if mine is None or mine.token is None:
            raise self._error(f"cannot {what} a lock that is not held here", LockError)
        return mine

    def _offer(self, mine: Acquisition) -> None:
        self._offered = mine

    def _acquired(self, token: bytes) -> Acquisition:
        """The acquisition with this token, if it was made here; else one that knows no more."""
        mine = self._live.get(token)
        return Acquisition(token) if mine is None or mine.inherited else mine

    def _with_timeout(self, what: str) -> None:
        if not self.timeout:
            raise self._error(f"cannot {what} a lock that has no timeout", LockError)

    def _gone(self, what: str, mine: Acquisition) -> Exception:
        """The lock is not the holder's: an exception, to be raised."""
        kind = "LockNotOwnedError"
        if mine.held is not None:
            kind, mine.told = "LockLostError", True
            mine.held.lose()
        name = self._name()
        return make(kind, f"cannot {what} lock {name!r}: it is no longer held", name)

    def _error(self, message: str, kind: type[Exception]) -> Exception:
        name = self._name()
        return make(kind.__name__, f"{message}: {name!r}", name)

    def _name(self) -> str | bytes:
        return self.name if isinstance(self.name, str | bytes) else self._native().name

    def _held_or_lost(self, mine: Acquisition | None) -> Acquisition:
        if mine is not None and mine.token is None and mine.lost:
            raise self._gone("use", mine)
        return self._holding("use", mine)

    def _is_holder(self, mine: Acquisition, token: object, holder: bytes | None) -> bool:
        """Whether the answer to a question that was asked with that token says so."""
        if holder == self._token(token):
            return True
        # Unless another thread, or task, has begun to release it meanwhile.
        if mine.held is not None and mine.token == token and not mine.leaving:
            mine.told = True
            mine.held.lose()
        return False

    def _judge(self, mine: Acquisition, token: object, holder: bytes | None) -> None:
        # Who has been told that the lock is lost is not told otherwise.
        if not self._is_holder(mine, token, holder) or mine.lost:
            raise self._gone("use", mine)

    def _proving(self) -> Acquisition | None:
        return self.local._find()

    def _proof(self) -> tuple[bytes, bytes]:
        """Name and token; what `update_inventory` asks for when it is given a lock."""
        mine = self._held_or_lost(self._proving())
        return self._native().name, self._token(mine.token)

    def _overridden(self, hook: Callable[..., object]) -> bool:
        """Whether a hook of ours was overridden by a subclass, or patched."""
        name = hook.__name__
        return name in vars(self) or getattr(type(self), name) is not hook

    def _raises(self, kind: type[BaseException] | None) -> bool:
        """Whether a block that ends with `kind` raises that the lock was lost."""
        # Neither Ctrl-C nor a cancellation is to be lost over it.
        return self.raise_on_release_error and (kind is None or issubclass(kind, Exception))

    def _warn(self) -> None:
        words = "lock %r was not held any more at the end of its block"
        self._logger().warning(words, self._name())

    def _logger(self) -> Logger:
        from logging import getLogger  # takes longer than all of our import

        return getLogger("seckill")


def lock_errors() -> tuple[type[Exception], ...]:
    """What says that a lock is not held; of a user's own hook, too."""
    return caught(LockError)


def seconds(argument: str, value: object) -> float:
    """A number that is one; what redis-py calculates with, so numpy's as well."""
    if isinstance(value, bool | str | bytes) or not (
        hasattr(value, "__float__") or hasattr(value, "__index__")
    ):
        raise TypeError(f"{argument} must be a number of seconds, not {type(value).__name__}")
    number = value if isinstance(value, int | float) else float(value)  # type: ignore[arg-type]
    if number != number:
        raise ValueError(f"{argument} must not be NaN")
    return number


def milliseconds(argument: str, number: float) -> int:
    """Seconds as whole milliseconds, as redis-py rounds them."""
    if number < 0:
        raise ValueError(f"{argument} must not be negative, not {number}")
    if number * 1000 > LONGEST:
        raise ValueError(f"{argument} must be at most 2**42 ms (139 years), not {number} s")
    if number * 1000 < 1:
        raise ValueError(f"{argument} must be at least 1 ms, not {number} s")
    return int(number * 1000)


def told(lock: ref[AnyLock], mine: ref[Acquisition]) -> tuple[AnyLock, Acquisition] | None:
    """Who is to be told of a loss: none if lock or holder is gone, or has released it after all."""
    alive, lost = lock(), mine()
    if alive is None or lost is None:
        return None
    released = lost.leaving and lost.token is None and lost.held is None
    return None if released else (alive, lost)


def _restore(cls: type[LockBase], state: dict[str, Any]) -> LockBase:
    lock = cls.__new__(cls)
    LockBase.__init__(lock, **{name: state.pop(name) for name in SETTINGS})
    vars(lock).update(state)
    return lock
