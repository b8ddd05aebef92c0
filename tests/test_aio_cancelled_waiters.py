"""Who is cancelled while waiting for a lock leaves it to the others, wherever in the queue."""

from __future__ import annotations

import asyncio
import random

import pytest
import seckill
import seckill.aio
from support.aio import eventually, waiting
from support.cancelling import cancelled
from support.servers import KINDS
from support.threads import call

pytestmark = pytest.mark.core

HOUR = 3_600_000  # a lease that nobody waits out
WITHIN = 10  # seconds until a lock has been handed on, generously


@pytest.mark.parametrize("leaving", [0, 1, 2])
async def test_waiters_in_front_of_behind_and_around_a_cancelled_one_are_served(
    server, lock, loop_kind, leaving
):
    """The first asks the server, the others queue behind it: whoever leaves, the rest move up."""
    observer = server.redis()
    observer.set(lock, "somebody", px=HOUR)
    async with seckill.aio.Client(server.url) as client:
        waiters = await waiting(client, *(client.acquire_lock(lock, HOUR, 60_000) for _ in "abc"))
        await cancelled(waiters.pop(leaving))
        observer.delete(lock)
        for _ in range(2):
            done, rest = await asyncio.wait(
                waiters, timeout=10, return_when=asyncio.FIRST_COMPLETED
            )
            assert [task.result() for task in done] == [True]
            waiters = list(rest)
            await client.release_lock(lock)
        assert not observer.exists(lock)


async def test_a_waiter_that_is_cancelled_leaves_the_lock_to_another_process(
    server, lock, loop_kind
):
    observer = server.redis()
    observer.set(lock, "somebody", px=HOUR)
    async with seckill.aio.Client(server.url) as client:
        waiters = await waiting(client, *(client.acquire_lock(lock, HOUR, 60_000) for _ in "ab"))
        other_process = seckill.Client(server.url)
        other = call(other_process.acquire_lock, lock, HOUR, 60_000).until_asleep()
        for waiter in waiters:
            await cancelled(waiter)
        observer.delete(lock)
        await eventually(lambda: not other.is_alive(), WITHIN)
        assert other.result() is True
        other_process.release_lock(lock)
        assert not observer.exists(lock)
        other_process.close()


async def test_a_waiter_that_is_cancelled_as_the_lock_is_freed_leaves_it_to_the_next(
    server, lock, loop_kind
):
    """It may have been told, may have asked, may even have been given the lock."""
    observer = server.redis()
    dice = random.Random(KINDS.index(server.kind))
    async with seckill.aio.Client(server.url) as client:
        for _ in range(50):
            observer.set(lock, "somebody", px=HOUR)
            first = asyncio.ensure_future(client.acquire_lock(lock, HOUR, 60_000))
            second = asyncio.ensure_future(client.acquire_lock(lock, HOUR, 60_000))
            await asyncio.sleep(0.005)
            observer.delete(lock)
            await asyncio.wait([first], timeout=10 ** dice.uniform(-5, -2))
            first.cancel()
            await asyncio.wait([first])
            if not first.cancelled():
                await client.release_lock(lock)
            assert await asyncio.wait_for(second, WITHIN) is True
            await client.release_lock(lock)
            assert not observer.exists(lock)


async def test_updates_behind_a_cancelled_acquire_go_through(server, key, lock, loop_kind):
    observer = server.redis()
    observer.set(key, 10)
    async with seckill.aio.Client(server.url) as client:
        for _ in range(20):
            acquiring = asyncio.ensure_future(client.acquire_lock(lock, HOUR))
            updating = asyncio.ensure_future(client.update_inventory(lock, key, -1, 5000, 30_000))
            await asyncio.sleep(0)
            if not acquiring.cancel():  # the answer was faster
                await client.release_lock(lock)
            await asyncio.wait_for(updating, WITHIN)
            await client.incr_inventory(key, 1)
    assert observer.get(key) == b"10"


async def test_a_crowd_of_waiters_that_is_cancelled_leaves_the_lock_to_who_is_left(
    server, lock, loop_kind
):
    observer = server.redis()
    observer.set(lock, "somebody", px=HOUR)
    async with seckill.aio.Client(server.url) as client:
        waiters = await waiting(
            client, *(client.acquire_lock(lock, HOUR, 60_000) for _ in range(500))
        )
        survivor = waiters.pop(250)
        for waiter in waiters:
            waiter.cancel()
        await asyncio.wait(waiters, timeout=10)
        assert all(waiter.cancelled() for waiter in waiters)
        observer.delete(lock)
        assert await asyncio.wait_for(survivor, WITHIN) is True
        await client.release_lock(lock)
        assert not observer.exists(lock)
