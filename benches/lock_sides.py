"""A lock, as each library has it: default settings, a lease that nothing here comes near.

An opener gets the port and returns `lock(name, fair)`, which gives a new handle on each call; what
is acquired and released are its functions of these names. Libraries are imported inside, as in
sides.py.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

LEASE = 60.0
"""Seconds; also the longest wait. Far beyond any hand-off: one that needs it is not a hand-off."""


@dataclass(frozen=True)
class Lock:
    acquire: Callable[[], object]
    release: Callable[[], object]


MakeLock = Callable[[str, bool], Lock]


def functions(port: int) -> MakeLock:
    """seckill's `acquire_lock` and `release_lock`."""
    import seckill

    client = seckill.Client(host="127.0.0.1", port=port)
    lease = LEASE * 1000
    return lambda name, fair: Lock(
        partial(client.acquire_lock, name, lease, lease), partial(client.release_lock, name)
    )


def seckill(port: int) -> MakeLock:
    import seckill

    client = seckill.Client(host="127.0.0.1", port=port)

    def make(name: str, fair: bool) -> Lock:
        lock = seckill.Lock(client, name, timeout=LEASE, blocking_timeout=LEASE, fair=fair)
        return Lock(lock.acquire, lock.release)

    return make


def redis_py(port: int) -> MakeLock:
    import redis

    client = redis.Redis(host="127.0.0.1", port=port)

    def make(name: str, fair: bool) -> Lock:
        lock = client.lock(name, timeout=LEASE, blocking_timeout=LEASE)
        return Lock(lock.acquire, lock.release)

    return make


def python_redis_lock(port: int) -> MakeLock:
    import redis

    redis_lock: Any = importlib.import_module("redis_lock")  # it has no types
    client = redis.Redis(host="127.0.0.1", port=port)

    def make(name: str, fair: bool) -> Lock:
        lock = redis_lock.Lock(client, name, expire=LEASE)
        return Lock(partial(lock.acquire, timeout=LEASE), lock.release)

    return make


MODULES = {
    "functions": "seckill",
    "seckill": "seckill",
    "redis-py": "redis",
    "python-redis-lock": "redis_lock",
}
"""What must be installed for each."""

OPENERS: dict[str, Callable[[int], MakeLock]] = {
    "functions": functions,
    "seckill": seckill,
    "redis-py": redis_py,
    "python-redis-lock": python_redis_lock,
}


@dataclass(frozen=True)
class AioLock:
    acquire: Callable[[], Awaitable[object]]
    release: Callable[[], Awaitable[object]]


MakeAioLock = Callable[[str, bool], AioLock]


@asynccontextmanager
async def aio_seckill(port: int) -> AsyncIterator[MakeAioLock]:
    import seckill.aio

    def make(name: str, fair: bool) -> AioLock:
        lock = seckill.aio.Lock(client, name, timeout=LEASE, blocking_timeout=LEASE, fair=fair)
        return AioLock(lock.acquire, lock.release)

    async with seckill.aio.Client(host="127.0.0.1", port=port) as client:
        yield make


@asynccontextmanager
async def aio_redis_py(port: int) -> AsyncIterator[MakeAioLock]:
    """With the pool that lets so many tasks work at all, as in aio_sides.py."""
    from redis.asyncio import BlockingConnectionPool, Redis

    def make(name: str, fair: bool) -> AioLock:
        lock = client.lock(name, timeout=LEASE, blocking_timeout=LEASE)
        return AioLock(lock.acquire, lock.release)

    pool = BlockingConnectionPool(host="127.0.0.1", port=port, timeout=None)
    async with Redis.from_pool(pool) as client:
        yield make


AIO_OPENERS: dict[str, Callable[[int], AbstractAsyncContextManager[MakeAioLock]]] = {
    "seckill": aio_seckill,
    "redis-py": aio_redis_py,
}
