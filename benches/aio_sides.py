"""One sale, as each library makes it, awaited: plain loops as their users write them.

As in sides.py, and what has to be set so that so many tasks work at all is set. An opener is an
asynchronous context manager: a client of one event loop, open meanwhile.
"""

from __future__ import annotations

import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from typing import Any

from .sides import Job

Sell = Callable[[], Awaitable[object]]
Seller = Callable[[], Sell]
Opener = Callable[[Job], AbstractAsyncContextManager[Seller]]


@asynccontextmanager
async def seckill(job: Job) -> AsyncIterator[Seller]:
    import seckill.aio

    pairs = job.pairs()
    async with seckill.aio.configure(job.source, **job.options):
        # Nothing between the loop and the call: at its rate a lambda would show.
        yield lambda: partial(seckill.aio.update_inventory, *next(pairs), -1)


@asynccontextmanager
async def redis_py(job: Job) -> AsyncIterator[Seller]:
    """Its default pool raises when all of its 100 connections are in use.

    So with more tasks than that they queue for the 50 connections that its blocking pool has by
    default. That is its best size here: with 1,000 tasks 5 connections sold 11,700 a second, 10
    12,500, 50 13,200, 100 12,300, 1,000 11,000, and a default pool of 10,000 12,400.
    """
    from redis.asyncio import BlockingConnectionPool, Redis

    if job.tasks <= 100:
        client = Redis(host="127.0.0.1", port=job.port)
    else:
        client = Redis.from_pool(
            BlockingConnectionPool(host="127.0.0.1", port=job.port, timeout=None)
        )

    def seller() -> Sell:
        keys, args = job.call.session()
        return lambda: client.evalsha(sha, len(keys), *keys, *args())

    async with client:
        sha = await client.script_load(job.call.source)
        yield seller


@asynccontextmanager
async def glide(job: Job) -> AsyncIterator[Seller]:
    """By default it refuses more than 1,000 requests in flight, and waits 250 ms for an answer."""
    glide: Any = importlib.import_module("glide")
    client = await glide.GlideClient.create(
        glide.GlideClientConfiguration(
            [glide.NodeAddress("127.0.0.1", job.port)],
            inflight_requests_limit=max(1_000, job.tasks),
            request_timeout=10_000,
        )
    )
    # The server keeps the script as long as the Script object lives.
    script = glide.Script(job.call.source)

    def seller() -> Sell:
        keys, args = job.call.session()
        return lambda: client.invoke_script(script, keys=keys, args=args())

    try:
        yield seller
    finally:
        await client.close()


@asynccontextmanager
async def coredis(job: Job) -> AsyncIterator[Seller]:
    """Its default pool: 64 connections, which tasks share. 1 or 8 of them sell as much."""
    coredis: Any = importlib.import_module("coredis")

    def seller() -> Sell:
        keys, args = job.call.session()
        return lambda: client.evalsha(sha, keys, args())

    async with coredis.Redis(host="127.0.0.1", port=job.port) as client:
        sha = await client.script_load(job.call.source)
        yield seller


MODULES = {
    "seckill": "seckill",
    "redis-py": "redis",
    "GLIDE": "glide",
    "coredis": "coredis",
}
"""What must be installed for each."""

OPENERS: dict[str, Opener] = {
    "seckill": seckill,
    "redis-py": redis_py,
    "GLIDE": glide,
    "coredis": coredis,
}
