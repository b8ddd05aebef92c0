"""The exceptions of seckill.

    SeckillError
    ├─ InventoryError             (a ValueError)
    │   ├─ NoInventory                the stock key does not exist        str: 没有库存
    │   ├─ InsufficientInventory      fewer units left than asked for     str: 库存不足
    │   └─ InvalidInventory           what is stored is no stock, or would overflow
    ├─ LockTimeout                (a TimeoutError) another held the lock for too long
    ├─ LockError                  (a ValueError) the lock was not free in time, or is not held here
    │   └─ LockNotOwnedError          the lock is another's, or nobody's
    │       └─ LockLostError              though it was acquired here, and not released
    ├─ ConnectionError            (a builtin ConnectionError) server gone, refused, too slow
    │   ├─ OutcomeUnknown             may have been applied, will not be applied any more
    │   └─ AuthenticationError        wrong user name or password
    ├─ NotReplicated              it was done, and is not as safe as it was to be
    └─ ServerError                the server answered with an error; nothing was changed

All of them survive `pickle`: they cross process pools and task queues.

Code that was written for redis-py catches redis-py's exceptions. Where redis-py is loaded, those
from LockError on are therefore raised as *twins*: the same class once more, with redis-py's one as
a second base. A twin carries its class's name and is caught by both `except` clauses. redis-py is
never imported for this (that takes longer than all of seckill's import), only looked up among the
loaded modules; and never a base of the plain classes, so that a pickled exception can be read
without it.
"""

from __future__ import annotations

import builtins
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, ClassVar


class SeckillError(Exception):
    """Base of everything that seckill raises, bad arguments (TypeError, ValueError) aside.

    Examples:
        >>> issubclass(InventoryError, SeckillError), issubclass(LockTimeout, SeckillError)
        (True, True)
    """

    _redis_name: ClassVar[str | None] = None  # the exception of redis-py that a twin is as well

    def __init__(self, *args: object) -> None:
        # Past redis-py's constructors, which would be next in a twin: what they set on the object
        # would be pickled with it.
        Exception.__init__(self, *args)

    def _arguments(self) -> tuple[object, ...]:
        """What the constructor was given: all that pickle, copy and repr need."""
        return self.args

    def __reduce__(self) -> tuple[Callable[..., SeckillError], tuple[object, ...], dict[str, Any]]:
        cls = type(self)
        return _rebuild, (getattr(cls, "_plain", cls), *self._arguments()), vars(self)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(repr, self._arguments()))})"


class InventoryError(SeckillError, ValueError):
    """Base of the refusals that concern the stock: nothing was changed.

    Attributes:
        key: name of the stock key, `str` where it is UTF-8, else `bytes`.

    Examples:
        >>> import seckill
        >>> with seckill.embedded() as server, server.client() as client:
        ...     try:
        ...         client.update_inventory("lockname", "inventory", -1)
        ...     except seckill.InventoryError as refusal:
        ...         refusal
        NoInventory('inventory')
    """

    def __init__(self, message: str, key: str | bytes) -> None:
        super().__init__(message)
        self.key = key

    def _arguments(self) -> tuple[object, ...]:
        return (str(self), self.key)


class NoInventory(InventoryError):
    """The stock key does not exist; nothing was created.

    Attributes:
        key: name of the stock key, `str` where it is UTF-8, else `bytes`.

    Examples:
        >>> str(NoInventory("inventory"))
        '没有库存'
    """

    def __init__(self, key: str | bytes) -> None:
        super().__init__("没有库存", key)

    def _arguments(self) -> tuple[object, ...]:
        return (self.key,)


class InsufficientInventory(InventoryError):
    """Fewer units are left than were asked for; nothing was changed.

    Attributes:
        key: name of the stock key, `str` where it is UTF-8, else `bytes`.
        available: units in stock when the server judged.
        requested: units asked for, that is, `-change_num`.

    Examples:
        >>> refusal = InsufficientInventory("inventory", available=1, requested=2)
        >>> str(refusal), refusal.available, refusal.requested
        ('库存不足', 1, 2)
    """

    def __init__(self, key: str | bytes, available: int, requested: int) -> None:
        super().__init__("库存不足", key)
        self.available = available
        self.requested = requested

    def _arguments(self) -> tuple[object, ...]:
        return (self.key, self.available, self.requested)


class InvalidInventory(InventoryError):
    """What the key holds is no stock, or the change would overflow int64; nothing was changed.

    Attributes:
        key: name of the stock key, `str` where it is UTF-8, else `bytes`.
        value: what is stored there, or its type where it is not a string.
        reason: what is wrong with it, in words.

    Examples:
        >>> str(InvalidInventory("inventory", "ten", "not an integer"))
        "inventory 'inventory' holds 'ten': not an integer"
    """

    def __init__(self, key: str | bytes, value: str | bytes, reason: str) -> None:
        super().__init__(f"inventory {key!r} holds {value!r}: {reason}", key)
        self.value = value
        self.reason = reason

    def _arguments(self) -> tuple[object, ...]:
        return (self.key, self.value, self.reason)


class LockTimeout(SeckillError, TimeoutError):
    """Another held the lock until `time_out` was over; the stock was not changed.

    Attributes:
        lock_name: name of the lock, `str` where it is UTF-8, else `bytes`.
        time_out: the wait that was allowed, in milliseconds.

    Examples:
        >>> str(LockTimeout("lockname", 10000))
        "lock 'lockname' was not free within 10000 ms"
    """

    def __init__(self, lock_name: str | bytes, time_out: float) -> None:
        super().__init__(f"lock {lock_name!r} was not free within {time_out:.12g} ms")
        self.lock_name = lock_name
        self.time_out = time_out

    def _arguments(self) -> tuple[object, ...]:
        return (self.lock_name, self.time_out)


class LockError(SeckillError, ValueError):
    """A `Lock` was not free in time, or was asked for what only its holder can do.

    Where redis-py is loaded it is a `redis.exceptions.LockError` as well.

    Attributes:
        message: what is wrong, in words.
        lock_name: name of the lock, as the lock was given it; None where it is not known.

    Examples:
        >>> import seckill
        >>> try:
        ...     seckill.Lock(None, "lockname").release()
        ... except seckill.LockError as refusal:
        ...     refusal.lock_name
        'lockname'
    """

    _redis_name = "LockError"

    def __init__(self, message: str = "", lock_name: str | bytes | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.lock_name = lock_name

    def _arguments(self) -> tuple[object, ...]:
        return (self.message, self.lock_name)


class LockNotOwnedError(LockError):
    """The lock is another's, or nobody's; nothing was changed.

    Where redis-py is loaded it is a `redis.exceptions.LockNotOwnedError` as well.

    Attributes:
        message: what is wrong, in words.
        lock_name: name of the lock, as the lock was given it; None where it is not known.

    Examples:
        >>> LockNotOwnedError("it is another's", "lockname").lock_name
        'lockname'
    """

    _redis_name = "LockNotOwnedError"


class LockLostError(LockNotOwnedError):
    """The lock was acquired here and is not held any more, though it was not released.

    Its lease has ended, or somebody took the key away; nothing was changed. Where redis-py is
    loaded it is a `redis.exceptions.LockNotOwnedError` as well.

    Attributes:
        message: what is wrong, in words.
        lock_name: name of the lock, as the lock was given it; None where it is not known.

    Examples:
        >>> import seckill
        >>> with seckill.embedded() as server, server.client() as client:
        ...     lock = seckill.Lock(client, "lockname", timeout=5)
        ...     held = lock.acquire()
        ...     thief = seckill.Lock(client, "lockname")
        ...     thief.local.token = lock.local.token
        ...     thief.release()
        ...     try:
        ...         lock.release()
        ...     except seckill.LockLostError as loss:
        ...         loss.lock_name
        'lockname'
    """


class ConnectionError(SeckillError, builtins.ConnectionError):
    """The server cannot be reached, or does not answer in time.

    Where redis-py is loaded it is a `redis.exceptions.ConnectionError` as well.

    Attributes:
        sent: whether anything was sent. If not, nothing can have been changed.

    Examples:
        >>> ConnectionError("connection refused: localhost:6379").sent
        False
    """

    _redis_name = "ConnectionError"

    def __init__(self, message: str, sent: bool = False) -> None:
        super().__init__(message)
        self.sent = sent

    def _arguments(self) -> tuple[object, ...]:
        return (str(self), self.sent)


class OutcomeUnknown(ConnectionError):
    """The answer was lost: the call may have been applied before, and will not be applied later.

    Attributes:
        sent: always True.

    Examples:
        >>> OutcomeUnknown("no answer within 10000 ms").sent
        True
    """

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=True)

    def _arguments(self) -> tuple[object, ...]:
        return (str(self),)


class AuthenticationError(ConnectionError):
    """The server did not accept the user name or password; nothing was changed.

    Where redis-py is loaded it is a `redis.exceptions.AuthenticationError` as well.

    Attributes:
        sent: always False.

    Examples:
        >>> import seckill
        >>> with seckill.embedded(config={"requirepass": "right"}) as server:
        ...     try:
        ...         server.client(password="wrong").incr_inventory("inventory")
        ...     except seckill.AuthenticationError as refusal:
        ...         refusal.sent
        False
    """

    _redis_name = "AuthenticationError"

    def __init__(self, message: str) -> None:
        super().__init__(message, sent=False)

    def _arguments(self) -> tuple[object, ...]:
        return (str(self),)


class NotReplicated(SeckillError):
    """It was done on the primary, and is not as safe as `wait_replicas` or `wait_aof` want it.

    A change stands, unless a fail-over undoes it: asking again would do it twice. A lock that was
    to be acquired does not: it is given back. It is no `ConnectionError`, for those are what one
    tries again on.

    Attributes:
        acknowledged: how many replicas are known to have it.
        wanted: how many were to have it.
        reason: what is missing.
        given_back: whether it is a lock, which is not held now.

    Examples:
        >>> str(NotReplicated(0, 1, "0 of 1 replicas have it"))
        'done, but not safe against a fail-over: 0 of 1 replicas have it'
        >>> str(NotReplicated(0, 1, "0 of 1 replicas have it", given_back=True))
        'not safe against a fail-over, and given back: 0 of 1 replicas have it'
    """

    def __init__(
        self, acknowledged: int, wanted: int, reason: str, given_back: bool = False
    ) -> None:
        if given_back:
            what = "not safe against a fail-over, and given back"
        else:
            what = "done, but not safe against a fail-over"
        super().__init__(f"{what}: {reason}")
        self.acknowledged = acknowledged
        self.wanted = wanted
        self.reason = reason
        self.given_back = given_back

    def _arguments(self) -> tuple[object, ...]:
        return (self.acknowledged, self.wanted, self.reason, self.given_back)


class ServerError(SeckillError):
    """The server answered with an error; nothing was changed.

    Where redis-py is loaded it is a `redis.exceptions.ResponseError` as well.

    Attributes:
        code: first word of the answer, such as OOM, READONLY, NOPERM or MISCONF.
        detail: the rest of the answer.

    Examples:
        >>> str(ServerError("READONLY", "You can't write against a read only replica."))
        "READONLY You can't write against a read only replica."
    """

    _redis_name = "ResponseError"

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code} {detail}")
        self.code = code
        self.detail = detail

    def _arguments(self) -> tuple[object, ...]:
        return (self.code, self.detail)


_TREE: dict[str, type[SeckillError]] = {
    cls.__name__: cls
    for cls in (
        SeckillError,
        InventoryError,
        NoInventory,
        InsufficientInventory,
        InvalidInventory,
        LockTimeout,
        LockError,
        LockNotOwnedError,
        LockLostError,
        ConnectionError,
        OutcomeUnknown,
        AuthenticationError,
        NotReplicated,
        ServerError,
    )
}
for _cls in _TREE.values():
    _cls.__module__ = "seckill"  # where users import it from, and what a traceback shows

_twins: dict[tuple[type[SeckillError], type[Exception]], type[SeckillError]] = {}


def make(kind: str, *arguments: object) -> SeckillError:
    """Build the exception named `kind` as it is to be raised now: a twin where redis-py is loaded.

    The Rust core raises through this function.

    Args:
        kind: name of a class of this file.
        arguments: what its constructor takes, in order.

    Returns:
        The exception, not raised.

    Examples:
        >>> make("NoInventory", "inventory").key
        'inventory'
    """
    return _rebuild(_TREE[kind], *arguments)


def caught(cls: type[SeckillError]) -> tuple[type[Exception], ...]:
    """What an except clause names to catch `cls`, and redis-py's own where that is loaded.

    For what a user's code raises that is called by ours.

    Args:
        cls: a class of this file.

    Returns:
        One class, or two.

    Examples:
        >>> LockError in caught(LockError)
        True
    """
    theirs = _theirs(cls)
    return (cls,) if theirs is None else (cls, theirs)


def _rebuild(cls: type[SeckillError], /, *arguments: object) -> SeckillError:
    return _raisable(cls)(*arguments)


def _raisable(cls: type[SeckillError]) -> type[SeckillError]:
    """The class itself, or its twin where redis-py is loaded."""
    theirs = _theirs(cls)
    if theirs is None or _TREE.get(cls.__name__) is not cls:
        return cls  # also a user's own subclass
    twin = _twins.get((cls, theirs))
    if twin is None:
        # redis-py's constructors only set constants. On the class these serve all the same, and
        # stay out of what is pickled, which has to be readable without redis-py.
        constants = vars(theirs(""))
        body = {**constants, "__module__": cls.__module__, "__doc__": cls.__doc__, "_plain": cls}
        twin = _twins.setdefault((cls, theirs), type(cls.__name__, (cls, theirs), body))
    return twin


def _theirs(cls: type[SeckillError]) -> type[Exception] | None:
    """The exception of redis-py that means the same, where redis-py is loaded."""
    if cls._redis_name is None:
        return None
    # The default is for another thread that is importing redis-py right now.
    return getattr(sys.modules.get("redis.exceptions"), cls._redis_name, None)
