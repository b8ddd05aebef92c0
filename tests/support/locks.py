"""Locks in the tests: redis-py's own, and ours in each of the ways in which it takes its place.

`Locks` makes locks of one such kind on one client: `make("name", timeout=5)`. What is awaited can
be asked as if it were not: each thread of the test is then a task of one loop, so that the same
words are held against both faces.
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest
import redis
import redis.asyncio
import seckill
import seckill.aio
from redis.backoff import NoBackoff
from redis.retry import Retry

from support.aio import LOOPS, Awaited
from support.servers import ANY, KINDS, Server, missing_kinds
from support.threads import wait_until

SOMEBODY = b"somebody else's token"

REFERENCE = "redis-py"  # the class that the contract is taken from
BY_REDIS = "redis_client.lock"  # seckill's class, made by a redis-py client
DIRECT = "seckill.Client"  # the same, made with a client of ours
COMPAT = "seckill.compat"  # the class of the module to import in the place of redis-py's

OURS = (BY_REDIS, DIRECT, COMPAT)
ALL = (REFERENCE, *OURS)

MODULES = {
    REFERENCE: ("redis.lock", "redis.asyncio.lock"),
    COMPAT: ("seckill.compat.redis_lock", "seckill.compat.redis_asyncio_lock"),
}


def lock_class(kind: str, *, awaited: bool = False) -> Any:
    """The class that a kind is about."""
    if kind in MODULES:
        return importlib.import_module(MODULES[kind][awaited]).Lock
    return (seckill.aio if awaited else seckill).Lock


def connect(kind: str, url: str, *, awaited: bool = False, **options: Any) -> Any:
    """A client to make such locks with; redis-py's tries nothing twice."""
    if kind == DIRECT:
        return (seckill.aio if awaited else seckill).Client(url, **options)
    place = urlsplit(url)
    options = {"host": place.hostname, "port": place.port, "retry": Retry(NoBackoff(), 0)} | options
    return (redis.asyncio if awaited else redis).Redis(**options)


class Locks:
    """Makes locks of one kind on one client: plain ones, or on a loop awaited ones."""

    def __init__(
        self,
        kind: str,
        url: str,
        cleanup: contextlib.ExitStack,
        loop: Loop | None = None,
        **options: Any,
    ) -> None:
        self.kind = kind
        self._url = url
        self._cleanup = cleanup
        self._loop = loop
        self._options = options
        self._client: Any = None

    @property
    def awaited(self) -> bool:
        return self._loop is not None

    @property
    def client(self) -> Any:
        if self._client is None:
            self._client = self._do(
                lambda: connect(self.kind, self._url, awaited=self.awaited, **self._options)
            )
            close = self._client.aclose if self.awaited else self._client.close
            self._cleanup.callback(self._do, close)
        return self._client

    def __call__(self, name: Any, **options: Any) -> Any:
        client, cls = self.client, lock_class(self.kind, awaited=self.awaited)
        if self.kind == DIRECT:
            lock = self._do(lambda: cls(client, name, **options))
        else:
            lock = self._do(lambda: client.lock(name, lock_class=cls, **options))
        return AwaitedLock(self._loop, lock) if self._loop else lock

    def update(self, lockname: Any, key: str, change: int, time_out: float = 0) -> None:
        """`update_inventory` of the client, by the thread (or task) that asks."""
        if isinstance(lockname, AwaitedLock):
            lockname = vars(lockname)["_lock"]
        self._do(lambda: self.client.update_inventory(lockname, key, change, 5000, time_out))

    def at(self, url: str | None = None, **options: Any) -> Locks:
        """The same elsewhere, or with options for the client."""
        return Locks(self.kind, url or self._url, self._cleanup, self._loop, **options)

    def _do(self, action: Callable[[], Any]) -> Any:
        return self._loop.do(action) if self._loop else action()


# -- fixtures: a test file assigns them to the names that it gives them -----------------------


class Place(NamedTuple):
    """Where a test makes its locks."""

    kind: str
    server: str
    loop: str | None = None


def places(*kinds: str, awaited: bool = False) -> list[Place]:
    """Locks of ours on every server, the others on one; those that are awaited on either loop."""
    loops = itertools.cycle(LOOPS if awaited else [None])
    return [
        Place(kind, server, next(loops))
        for kind in kinds
        for server in (KINDS if kind == DIRECT else [ANY])
        if server not in missing_kinds()
    ]


@pytest.fixture
def server_of_the_place(
    request: pytest.FixtureRequest, shared_servers: dict[str, Server]
) -> Server:
    """In the place of the fixture `server`: that of the test's locks, or one for all."""
    given = getattr(request.node, "callspec", None)
    values = given.params.values() if given else ()
    kind = getattr(request, "param", None) or next(
        (value.server for value in values if isinstance(value, Place)), ANY
    )
    if kind not in shared_servers:
        shared_servers[kind] = Server(kind).start()
    return shared_servers[kind]


def locks(*kinds: str, awaited: bool = False) -> Any:
    """`Locks` of each of these kinds in turn."""

    @pytest.fixture(params=places(*kinds, awaited=awaited), ids=lambda p: "-".join(filter(None, p)))
    def make(request: pytest.FixtureRequest, server: Server) -> Iterator[Locks]:
        with contextlib.ExitStack() as cleanup:
            loop = Loop(request.param.loop) if awaited else None
            if loop is not None:
                cleanup.callback(loop.close)
            yield Locks(request.param.kind, server.url, cleanup, loop)

    return make


class Loop:
    """Does things on a loop: what one thread of the test asks for is done by one task."""

    def __init__(self, kind: str) -> None:
        self._tasks = Awaited(self, kind)
        self.close = self._tasks.close

    async def done(self, action: Callable[[], Any]) -> Any:
        value = action()
        return await value if inspect.isawaitable(value) else value

    def do(self, action: Callable[[], Any]) -> Any:
        """What a function returns there, awaited if it can be."""
        return self._tasks.done(action)


class AwaitedLock:
    """A lock that is used, and looked at, by the task that belongs to the calling thread."""

    def __init__(self, loop: Loop, lock: Any) -> None:
        vars(self).update(_loop=loop, _lock=lock)

    def __setattr__(self, name: str, value: Any) -> None:
        self._loop.do(lambda: setattr(self._lock, name, value))

    def __getattr__(self, name: str) -> Any:
        value = self._loop.do(lambda: getattr(self._lock, name))
        if not inspect.ismethod(value):
            return value
        return lambda *given, **named: self._loop.do(lambda: value(*given, **named))

    def __repr__(self) -> str:
        return self._loop.do(lambda: repr(self._lock))

    @property
    def local(self) -> Any:
        return AwaitedLocal(self._loop, self._lock)

    def __enter__(self) -> AwaitedLock:
        assert self._loop.do(self._lock.__aenter__) is self._lock
        return self

    def __exit__(self, *error: Any) -> Any:
        return self._loop.do(lambda: self._lock.__aexit__(*error))


class AwaitedLocal:
    def __init__(self, loop: Loop, lock: Any) -> None:
        self._loop = loop
        self._lock = lock

    @property
    def token(self) -> Any:
        return self._loop.do(lambda: self._lock.local.token)

    @token.setter
    def token(self, token: Any) -> None:
        self._loop.do(lambda: setattr(self._lock.local, "token", token))


def threads_of(pid: int) -> list[list[str]]:
    """Of each thread of a process its state, and how often it was put to sleep."""
    threads = []
    for path in Path(f"/proc/{pid}/task").glob("*/status"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            lines = path.read_text().splitlines()
            threads.append([line for line in lines if "State:" in line or "ctxt" in line])
    return threads


def until_asleep(pid: int) -> None:
    """Return when no thread of a process has been awake for 8 ms.

    Each waiting thread looks after signals ten times a second: with a dozen of them, some gap
    between two looks is as long as that.
    """
    before = None
    end = time.monotonic() + 20
    while (now := threads_of(pid)) != before or any("S (" not in state for state, *_ in now):
        assert time.monotonic() < end, f"process {pid} does not sleep"
        before = now
        time.sleep(0.008)


def strike(pid: int, fate: signal.Signals) -> None:
    """Stop or kill a process; and return when it has happened."""
    os.kill(pid, fate)
    wait_until(lambda: all(state.split()[1] in "TtZX" for state, *_ in threads_of(pid)))
