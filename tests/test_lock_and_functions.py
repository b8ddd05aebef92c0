"""A lock object and `acquire_lock` are two faces of one lock, also within one process.

They exclude each other and wait in one line; and each gives back what it took itself, no more.
"""

from __future__ import annotations

import pytest
import seckill
import seckill.aio
from support.aio import gathered, waiting
from support.clients import HOUR
from support.locks import SOMEBODY
from support.threads import call

pytestmark = pytest.mark.core


def in_the_same_thread(function, *arguments):
    return function(*arguments)


def in_another_thread(function, *arguments):
    return call(function, *arguments).result()


@pytest.mark.parametrize("ask", [in_the_same_thread, in_another_thread])
def test_they_exclude_each_other(client, lock, ask):
    handle = seckill.Lock(client, lock, timeout=60)
    assert handle.acquire() is True
    assert ask(client.acquire_lock, lock, HOUR, 0) is False
    handle.release()
    assert client.acquire_lock(lock, HOUR, 0) is True
    assert ask(handle.acquire, None, False) is False
    client.release_lock(lock)
    assert handle.acquire(blocking=False) is True
    handle.release()


@pytest.mark.parametrize("ask", [in_the_same_thread, in_another_thread])
def test_release_lock_leaves_the_lock_of_an_object_alone(client, lock, redis_py, ask):
    with seckill.Lock(client, lock, timeout=60) as handle:
        ask(client.release_lock, lock)
        assert redis_py.get(lock) == handle.local.token
        handle.ensure_held()
    assert not redis_py.exists(lock)


def test_an_object_does_not_release_what_acquire_lock_took(client, lock, redis_py):
    handle = seckill.Lock(client, lock, timeout=60)
    assert client.acquire_lock(lock, HOUR, 0) is True
    token = redis_py.get(lock)
    assert (handle.locked(), handle.owned()) == (True, False)
    for ask in (handle.release, handle.reacquire, handle.ensure_held):
        with pytest.raises(seckill.LockError, match="not"):
            ask()
    assert redis_py.get(lock) == token
    client.release_lock(lock)
    assert not redis_py.exists(lock)


def test_each_gives_back_its_own_when_the_other_has_come_after_it(client, lock, redis_py):
    """Its lease ended, and the other took what was free then."""
    handle = seckill.Lock(client, lock, timeout=60)
    assert client.acquire_lock(lock, HOUR, 0) is True
    redis_py.delete(lock)
    assert handle.acquire(blocking=False) is True
    client.release_lock(lock)
    handle.ensure_held()
    redis_py.delete(lock)
    assert client.acquire_lock(lock, HOUR, 0) is True
    with pytest.raises(seckill.LockLostError):
        handle.release()
    assert redis_py.exists(lock)
    client.release_lock(lock)
    assert not redis_py.exists(lock)


def test_threads_that_wait_by_either_stand_in_one_line(client, lock, redis_py):
    redis_py.set(lock, SOMEBODY, px=HOUR)
    served = []

    def by_function(number):
        assert client.acquire_lock(lock, HOUR, 60_000)
        served.append(number)
        client.release_lock(lock)

    def by_object(number):
        with seckill.Lock(client, lock, timeout=60):
            served.append(number)

    turns = [by_function, by_object] * 5
    waiters = [call(turn, number).until_asleep() for number, turn in enumerate(turns)]
    redis_py.delete(lock)
    for waiter in waiters:
        waiter.result()
    assert served == list(range(10))


async def test_tasks_that_wait_by_either_stand_in_one_line(server, lock, redis_py, loop_kind):
    redis_py.set(lock, SOMEBODY, px=HOUR)
    served = []

    async def by_function(number):
        assert await client.acquire_lock(lock, HOUR, 60_000)
        served.append(number)
        await client.release_lock(lock)

    async def by_object(number):
        async with seckill.aio.Lock(client, lock, timeout=60):
            served.append(number)

    async with seckill.aio.Client(server.url) as client:
        turns = [by_function, by_object] * 5
        waiters = await waiting(client, *(turn(number) for number, turn in enumerate(turns)))
        redis_py.delete(lock)
        await gathered(waiters)
    assert served == list(range(10))


async def test_tasks_exclude_each_other_by_either(server, lock, redis_py, loop_kind):
    async with seckill.aio.Client(server.url) as client:
        async with seckill.aio.Lock(client, lock, timeout=60) as handle:
            assert await client.acquire_lock(lock, HOUR, 0) is False
            await client.release_lock(lock)
            assert redis_py.get(lock) == handle.local.token
        assert await client.acquire_lock(lock, HOUR, 0) is True
        assert await handle.acquire(blocking=False) is False
        with pytest.raises(seckill.LockError):
            await handle.release()
        assert redis_py.exists(lock)
        await client.release_lock(lock)
    assert not redis_py.exists(lock)


def test_acquire_lock_counts_among_the_fences(client, lock):
    """It has no fence to show; but who comes after it has a larger one than who came before."""
    handle, fences = seckill.Lock(client, lock, timeout=60), []
    for _ in range(10):
        with handle:
            fences.append(handle.fence)
        assert client.acquire_lock(lock, HOUR, 0)
        client.release_lock(lock)
    assert fences == sorted(set(fences))
