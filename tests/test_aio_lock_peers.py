"""What redis-py's asyncio lock gets wrong, and ours does not: tasks, and what cancels them."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import redis
import seckill
import seckill.aio
from support.aio import eventually, gathered, waiting
from support.cancelling import WAYS, by_close, cancelled, stays
from support.peers import redis_py_fails, resending_in_a_loop, warmed_in_a_loop
from support.proxy import REPLY, Fault, random_faults
from support.servers import KINDS

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("loop_kind")]

HOUR = 3600  # a lease that nobody waits out: a lock that is left behind stays
ROUNDS = 20 if os.environ.get("SECKILL_STRESS") else 1
WITHIN = 10  # seconds until an undoing has been done, generously
LOST = ["cut", "reset", "swallow"]
WAYS_OUT = [way for way in WAYS if way is not by_close]  # a closed coroutine cannot release


@pytest.fixture
def any_server(start_server):
    """One kind is as good as another for the peers: it is in them that they fail."""
    return start_server()


@asynccontextmanager
async def ours(url: str, name: str, lease: float | None = HOUR, **options: Any) -> AsyncIterator:
    """A lock of ours, and with its client everything is well so far."""
    settings = {"socket_timeout": 0.2, "socket_connect_timeout": 1, "timeout": 20} | options
    async with seckill.aio.Client(url, **settings) as client:
        yield await warmed_in_a_loop(seckill.aio.Lock(client, name, timeout=lease))


async def told(function: Any, *arguments: object) -> Any:
    """What an awaited function gives; the name of what it raises."""
    try:
        return await function(*arguments)
    except Exception as error:
        return type(error).__name__


async def in_a_task(function: Any, *arguments: object) -> Any:
    """The same in a task of its own."""
    return await asyncio.create_task(told(function, *arguments))


# -- whose the token is ---------------------------------------------------------------------------


@redis_py_fails
async def test_redis_pys_tasks_share_one_token(any_server, lock):
    async with resending_in_a_loop(any_server.url) as client:
        theirs = client.lock(lock, timeout=60)
        assert await theirs.acquire()
        assert await in_a_task(theirs.owned) is True
        await in_a_task(theirs.release)
        assert not any_server.redis().exists(lock), "released by one who never had it"


@redis_py_fails
async def test_redis_pys_tasks_release_each_others_lock(any_server, lock):
    """The first one's lease has ended, and the second one holds the lock."""
    async with resending_in_a_loop(any_server.url) as client:
        theirs = client.lock(lock, timeout=60)
        assert await theirs.acquire()
        any_server.redis().delete(lock)
        assert await in_a_task(theirs.acquire) is True
        await theirs.release()
        assert not any_server.redis().exists(lock)


async def test_another_task_holds_nothing_and_is_told_so(server, lock):
    observer = server.redis()
    async with ours(server.url, lock) as mine:
        assert await mine.acquire()
        token = mine.local.token

        async def look() -> list[object]:
            return [mine.local.token, mine.lost, mine.remaining(), mine.fence]

        assert await in_a_task(look) == [None, False, 0.0, None]
        assert await in_a_task(mine.owned) is False
        assert await in_a_task(mine.release) == "LockError"
        assert await in_a_task(mine.ensure_held) == "LockError"
        assert observer.get(lock) == mine.local.token == token
        await mine.release()
        assert not observer.exists(lock)


async def test_a_task_that_lost_the_lock_does_not_release_the_next_ones(server, lock):
    observer = server.redis()
    async with ours(server.url, lock) as mine:
        assert await mine.acquire()
        observer.delete(lock)
        taken, done = asyncio.Event(), asyncio.Event()

        async def next_one() -> bool:
            assert await mine.acquire()
            taken.set()
            await done.wait()
            assert await mine.owned()
            await mine.release()
            return True

        task = asyncio.create_task(next_one())
        await taken.wait()
        with pytest.raises(seckill.LockLostError):
            await mine.release()
        assert observer.exists(lock)
        done.set()
        assert await task is True
        assert not observer.exists(lock)


async def test_without_thread_local_the_tasks_share_the_token(server, lock):
    async with seckill.aio.Client(server.url) as client:
        mine = seckill.aio.Lock(client, lock, timeout=HOUR, thread_local=False)
        assert await in_a_task(mine.acquire) is True
        assert await mine.owned() is True
        assert await in_a_task(mine.release) is None
        assert mine.local.token is None
        assert not server.redis().exists(lock)


BY = {
    "wait_for": lambda call: asyncio.wait_for(call, 20),
    "shield": asyncio.shield,
    "a task": asyncio.ensure_future,
    "gather": asyncio.gather,
}


@pytest.mark.parametrize("by", BY)
async def test_a_lock_is_the_task_s_that_called_acquire(server, lock, by):
    """Whatever it is handed to, and whatever task that runs it in (`wait_for` does, until 3.11)."""
    async with ours(server.url, lock) as mine:
        assert await BY[by](mine.acquire()) in (True, [True])
        assert mine.local.token == server.redis().get(lock)
        assert mine.fence is not None
        assert await BY[by](mine.owned()) in (True, [True])
        assert await in_a_task(mine.owned) is False
        await BY[by](mine.extend(5))
        await BY[by](mine.release())
        assert mine.local.token is None
        assert not server.redis().exists(lock)


# -- a lost reply ---------------------------------------------------------------------------------


@redis_py_fails
@pytest.mark.parametrize("action", LOST)
async def test_redis_pys_answers_are_wrong_when_a_reply_was_lost(
    any_server, start_proxy, lock, action
):
    proxy, observer = start_proxy(any_server), any_server.redis()
    async with resending_in_a_loop(proxy.url) as client:
        theirs = await warmed_in_a_loop(client.lock(lock, timeout=60))
        proxy.strike(Fault(action, REPLY))
        assert await theirs.acquire(blocking=False, token="mine") is False
        assert observer.get(lock) == b"mine"
        observer.delete(lock)
        assert await theirs.acquire()
        proxy.strike(Fault(action, REPLY))
        await theirs.extend(600)
        assert observer.pttl(lock) > 1_200_000
        proxy.strike(Fault(action, REPLY))
        with pytest.raises(redis.exceptions.LockNotOwnedError):
            await theirs.release()
        assert not observer.exists(lock)


@pytest.mark.parametrize("action", LOST)
async def test_a_lost_reply_changes_no_answer(server, start_proxy, lock, action):
    proxy, observer = start_proxy(server), server.redis()
    async with ours(proxy.url, lock, lease=60) as mine:
        proxy.strike(Fault(action, REPLY))
        assert await mine.acquire(blocking_timeout=20, token="mine") is True
        assert observer.get(lock) == b"mine"
        proxy.strike(Fault(action, REPLY))
        assert await mine.extend(600) is True
        assert 600_000 < observer.pttl(lock) <= 660_000
        proxy.strike(Fault(action, REPLY))
        await mine.release()
        assert proxy.faults_met == 3
        assert mine.local.token is None
        assert not observer.exists(lock)


# -- a cancelled release --------------------------------------------------------------------------


@redis_py_fails
async def test_redis_pys_cancelled_release_leaves_the_lock(any_server, start_proxy, lock):
    """The network is away for a moment, and whoever leaves the block is told to be quick."""
    proxy, observer = start_proxy(any_server), any_server.redis()
    async with resending_in_a_loop(proxy.url, resends=100, pause=0.2) as client:

        async def visit() -> None:
            async with client.lock(lock, timeout=60):
                proxy.refuse()
                proxy.cut()

        task = asyncio.create_task(visit())
        await asyncio.wait([task], timeout=0.5)
        await cancelled(task)
        proxy.listen()
        await client.ping()
        token = observer.get(lock)
        assert token is not None
        assert await stays(observer, lock, token, 1)


async def test_a_cancelled_release_is_carried_out_all_the_same(server, start_proxy, lock):
    proxy, observer = start_proxy(server), server.redis()
    async with ours(proxy.url, lock) as mine:

        async def visit() -> None:
            async with mine:
                proxy.refuse()
                proxy.cut()

        task = asyncio.create_task(visit())
        await asyncio.wait([task], timeout=0.5)
        await cancelled(task)
        assert observer.exists(lock)
        proxy.listen()
        await eventually(lambda: not observer.exists(lock), WITHIN)


async def test_a_cancelled_release_can_be_repeated(server, lock):
    """Either it still has its token, and can be released, or there is neither token nor key."""
    observer, dice = server.redis(), random.Random(KINDS.index(server.kind))
    async with ours(server.url, lock) as mine:
        for _ in range(200):
            assert await mine.acquire(blocking_timeout=20)
            releasing = asyncio.ensure_future(mine.release())
            await asyncio.sleep(dice.choice([0, 10 ** dice.uniform(-5, -2.5)]))
            releasing.cancel()
            await asyncio.wait([releasing])
            if mine.local.token is not None:
                await mine.release()
            assert await told(mine.release) == "LockError"
            assert mine.local.token is None
            assert not observer.exists(lock)


async def test_a_block_that_is_cancelled_releases_its_lock(server, lock):
    observer = server.redis()
    async with ours(server.url, lock) as mine:

        async def visit() -> None:
            async with mine:
                await asyncio.sleep(60)

        task = asyncio.create_task(visit())
        await eventually(lambda: observer.exists(lock))
        await cancelled(task)
        assert not observer.exists(lock)


# -- a cancelled acquire --------------------------------------------------------------------------


@redis_py_fails
@pytest.mark.parametrize("by", ["cancel", "wait_for"])
async def test_redis_pys_cancelled_acquire_leaves_a_key_that_nobody_owns(
    any_server, start_proxy, lock, by
):
    proxy, observer = start_proxy(any_server), any_server.redis()
    async with resending_in_a_loop(proxy.url) as client:
        theirs = client.lock(lock)
        proxy.strike(Fault("swallow", REPLY))
        await given_up(theirs, observer, by)
        assert theirs.local.token is None
        assert observer.ttl(lock) == -1


async def given_up(lock: Any, observer: Any, by: str) -> None:
    """The server has carried it out, and the answer is on its way for ever."""
    if by == "wait_for":
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(lock.acquire(), 0.3)
    else:
        task = asyncio.ensure_future(lock.acquire())
        await eventually(lambda: observer.exists(lock.name))
        await cancelled(task)


@pytest.mark.parametrize("by", ["cancel", "wait_for"])
async def test_a_cancelled_acquire_leaves_no_key(server, start_proxy, lock, by):
    proxy, observer = start_proxy(server), server.redis()
    async with ours(proxy.url, lock, lease=None, socket_timeout=5) as mine:
        proxy.strike(Fault("swallow", REPLY))
        await given_up(mine, observer, by)
        assert mine.local.token is None
        await eventually(lambda: not observer.exists(lock), WITHIN)
        assert await stays(observer, lock, None)
        with pytest.raises(seckill.LockError):
            await mine.release()
        assert await mine.acquire(blocking=False) is True
        await mine.release()


async def test_a_cancelled_waiter_takes_nothing_and_is_in_nobodys_way(server, lock):
    observer = server.redis()
    async with seckill.aio.Client(server.url) as client:
        mine = seckill.aio.Lock(client, lock, timeout=HOUR)
        observer.set(lock, "other", px=60_000)
        first, second = await waiting(client, mine.acquire(), mine.acquire())
        await cancelled(first)
        observer.delete(lock)
        assert await asyncio.wait_for(second, 20) is True
        await mine.release()
        observer.set(lock, "other", px=60_000)
        (third,) = await waiting(client, mine.acquire())
        await cancelled(third)
        observer.delete(lock)
        assert await stays(observer, lock, None)
        assert mine.local.token is None


class Doors:
    """Locks that tasks go through, and out of which they are thrown at random moments."""

    def __init__(self, client: Any, name: str, visitors: int) -> None:
        shared = seckill.aio.Lock(client, f"{name}:shared", timeout=HOUR)
        self.locks = [
            shared if number % 2 else seckill.aio.Lock(client, f"{name}:{number}", timeout=HOUR)
            for number in range(visitors)
        ]
        self.names = {lock.name for lock in self.locks}
        self.inside: set[str] = set()
        self.tried = self.entered = self.left = 0

    async def visit(self, lock: Any, way_in: str, seconds: float) -> None:
        self.tried += 1
        if way_in == "block":
            async with lock:
                await self.stay(lock, seconds)
            return
        acquiring = lock.acquire(blocking_timeout=60)
        assert await (asyncio.wait_for(acquiring, 60) if way_in == "wait_for" else acquiring)
        try:
            await self.stay(lock, seconds)
        finally:
            await lock.release()

    async def stay(self, lock: Any, seconds: float) -> None:
        assert lock.name not in self.inside
        assert lock.local.token is not None
        self.entered += 1
        self.inside.add(lock.name)
        try:
            await asyncio.sleep(seconds)
        finally:
            self.inside.remove(lock.name)
        self.left += 1

    async def visitor(self, number: int, times: int, seed: int) -> None:
        dice, lock = random.Random(1000 * seed + number), self.locks[number]
        for _ in range(times):
            way_in = dice.choice(["block", "wait_for", "call"])
            visit = self.visit(lock, way_in, dice.random() / 2000)
            if dice.random() < 0.3:
                await asyncio.create_task(visit)
            else:
                await dice.choice(WAYS_OUT)(visit, 10 ** dice.uniform(-4.5, -1.5))


@pytest.mark.stress
@pytest.mark.parametrize("round_", range(ROUNDS))
async def test_visits_that_end_at_random_moments_leave_no_lock(server, name, round_):
    observer = server.redis()
    async with seckill.aio.Client(server.url) as client:
        doors = Doors(client, name("lock"), 30)
        await gathered(doors.visitor(number, 20, round_) for number in range(30))
        await eventually(lambda: not observer.exists(*doors.names), WITHIN)
        assert doors.left > 150
        assert doors.tried - doors.left > 50


@pytest.mark.stress
@pytest.mark.parametrize("round_", range(ROUNDS))
async def test_visits_on_a_lossy_network_leave_no_lock(server, start_proxy, name, round_):
    proxy, observer = start_proxy(server), server.redis()
    async with ours(proxy.url, name("warm")) as warm:
        doors = Doors(warm.redis, name("lock"), 16)
        seed = 100 * round_ + KINDS.index(server.kind)
        proxy.faults = random_faults(seed, mean_bytes=3000)
        proxy.cut()
        await gathered(doors.visitor(number, 10, round_) for number in range(16))
        await eventually(lambda: not observer.exists(*doors.names), WITHIN)
        assert doors.left > 40
        assert doors.tried - doors.left > 20
        assert proxy.faults_met > 5
