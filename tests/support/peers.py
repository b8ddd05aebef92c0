"""The peers of our locks, as PyPI has them: redis-py's and python-redis-lock's.

A peer's failure is shown beside ours, with the release that it was seen in. A later release may
have mended it: then the test of the peer's half may fail, and only that half.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterator
from importlib.metadata import version
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import ConstantBackoff, NoBackoff
from redis.retry import Retry

from support.acl import as_observer


def _seen_in(distribution: str, release: str) -> pytest.MarkDecorator:
    installed = version(distribution)
    reason = f"seen in {distribution} {release}; {installed} may have mended it"
    return pytest.mark.xfail(installed != release, reason=reason, strict=False)


redis_py_fails = _seen_in("redis", "8.1.0")
python_redis_lock_fails = _seen_in("python-redis-lock", "4.0.1")


# -- clients of the peers -------------------------------------------------------------------------


@contextlib.contextmanager
def resending(url: str, resends: int = 3) -> Iterator[redis.Redis]:
    """redis-py as it is: it sends again what broke off. Without its pauses, and fewer times."""
    options: dict[str, Any] = {"retry": Retry(NoBackoff(), resends), "socket_timeout": 0.5}
    with redis.Redis.from_url(as_observer(url), **options) as client:
        client.ping()
        yield client


@contextlib.asynccontextmanager
async def resending_in_a_loop(url: str, resends: int = 3, pause: float = 0) -> AsyncIterator[Any]:
    """The same of redis.asyncio."""
    backoff = ConstantBackoff(pause)
    options: dict[str, Any] = {"retry": AsyncRetry(backoff, resends), "socket_timeout": 0.5}
    async with redis.asyncio.Redis.from_url(as_observer(url), **options) as client:
        await client.ping()
        yield client


def warmed(lock: Any) -> Any:
    """Have the server know the scripts of a lock: what is lost next is an answer that matters."""
    assert lock.acquire(blocking_timeout=20)
    if lock.timeout:
        lock.extend(1)
    lock.release()
    return lock


async def warmed_in_a_loop(lock: Any) -> Any:
    """The same, awaited."""
    assert await lock.acquire(blocking_timeout=20)
    if lock.timeout:
        await lock.extend(1)
    await lock.release()
    return lock
