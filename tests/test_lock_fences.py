"""Fences: a number that grows with every acquisition of a name, and stays with whoever got it.

A store that a lock guards remembers the highest fence that it has seen and refuses lower ones: so
a holder that was paused past its lease does no harm. That needs numbers that grow whatever happens,
and a stale holder that goes on showing its own. Redisson's fenced lock tells a stale holder the
number of the next one, and keeps its counters for ever; it runs on Java, so only our half is here.
"""

from __future__ import annotations

import asyncio
import itertools
import threading

import pytest
import seckill
import seckill.aio
from support.aio import gathered
from support.clients import connected
from support.clock import Clock
from support.lock_plots import until_gone
from support.programs import Program, run
from support.proxy import random_faults
from support.servers import KINDS
from support.threads import all_of, call, wait_until

DAY = 24 * 60 * 60


def taken(lock):
    """Acquire the lock; its fence."""
    assert lock.acquire(blocking_timeout=20) is True
    assert type(lock.fence) is int
    assert 0 < lock.fence < 2**63
    return lock.fence


def taken_and_released(lock):
    fence = taken(lock)
    lock.release()
    return fence


def grows(fences):
    return all(first < second for first, second in itertools.pairwise(fences))


def side_keys(observer):
    """What the library has stored besides the stock and the lock."""
    return list(observer.scan_iter(match="seckill:*", count=1000))


# -- it grows -------------------------------------------------------------------------------------


def test_a_handle_that_has_acquired_nothing_has_no_fence(server, lock):
    server.redis().set(lock, "other", px=60_000)
    mine = seckill.Lock(connected(server.url), lock, timeout=60)
    assert mine.fence is None
    assert mine.acquire(blocking=False) is False
    assert mine.fence is None


def test_a_fence_grows_from_handle_to_handle_and_from_client_to_client(server, lock):
    client, fences = connected(server.url), []
    mine = seckill.Lock(client, lock, timeout=60)
    for _ in range(50):
        other = seckill.Lock(client, lock, timeout=60)
        third = seckill.Lock(connected(server.url), lock, timeout=None)
        fences += [taken_and_released(handle) for handle in (mine, other, mine, third)]
    assert grows(fences)


def test_a_fence_grows_also_within_the_same_microsecond(server, name):
    """By as many acquisitions as one batch has room for."""
    client, fences = connected(server.url), []
    mine = seckill.Lock(client, name("lock"), timeout=60)
    for _ in range(500):
        fences.append(taken_and_released(mine))
    assert grows(fences)


@pytest.mark.core
@pytest.mark.parametrize("fair", [False, True])
def test_a_fence_grows_from_waiter_to_waiter(server, lock, fair):
    """Threads with several clients; each writes its fence down while it holds the lock."""
    clients, fences = [connected(server.url, socket_timeout=1) for _ in range(3)], []

    def take_turns(number):
        mine = seckill.Lock(clients[number % 3], lock, timeout=60, fair=fair)
        for _ in range(10):
            with mine:
                fences.append(mine.fence)

    all_of([lambda number=number: take_turns(number) for number in range(9)])
    assert len(fences) == 90
    assert grows(fences)


@pytest.mark.core
@pytest.mark.usefixtures("loop_kind")
async def test_a_fence_grows_from_task_to_task(server, lock):
    fences = []
    async with seckill.aio.Client(server.url) as client:
        mine = seckill.aio.Lock(client, lock, timeout=60)

        async def take_turns():
            for _ in range(5):
                async with mine:
                    fences.append(mine.fence)
                    await asyncio.sleep(0)

        await gathered(take_turns() for _ in range(20))
    assert len(fences) == 100
    assert grows(fences)


def takes_turns(url, name, times):
    import redis
    import seckill
    from support.acl import as_observer

    observer = redis.Redis.from_url(as_observer(url))
    lock = seckill.Lock(seckill.Client(url), name, timeout=60)
    print("ready", flush=True)
    observer.blpop("begin", 30)
    for _ in range(times):
        with lock:
            observer.rpush("fences", lock.fence)


def test_a_fence_grows_from_process_to_process(start_server):
    server = start_server()
    observer = server.redis()
    programs = [Program(takes_turns, server.url, "name", 40) for _ in range(4)]
    for program in programs:
        program.expect("ready")
    observer.rpush("begin", *range(4))
    for program in programs:
        assert program.ended().status == 0
    fences = [int(fence) for fence in observer.lrange("fences", 0, -1)]
    assert len(fences) == 160
    assert grows(fences)


def forks_and_takes(url, name):
    import seckill
    from support.lock_plots import in_a_child

    client = seckill.Client(url)
    lock = seckill.Lock(client, name, timeout=60)

    def fence():
        with lock:
            return [lock.fence]

    fences = fence()
    for _ in range(10):
        fences += [int(told) for told in in_a_child(fence)] + fence()
    return fences


@pytest.mark.core
def test_a_fence_grows_from_parent_to_child_and_back(start_server):
    fences = run(forks_and_takes, start_server().url, "name").value
    assert len(fences) == 21
    assert grows(fences)


@pytest.mark.parametrize("end", ["expiry", "deletion", "theft"])
def test_a_fence_grows_however_the_one_before_came_to_its_end(server, lock, end):
    observer, client, fences = server.redis(), connected(server.url), []
    for _ in range(5):
        mine = seckill.Lock(client, lock, timeout=0.1 if end == "expiry" else 60)
        fences.append(taken(mine))
        if end == "expiry":
            until_gone(observer, lock, within=10)
        elif end == "theft":
            observer.set(lock, "thief", px=20)
            until_gone(observer, lock, within=10)
        else:
            observer.delete(lock)
    assert grows(fences)


def counters(observer):
    found = [key for key in side_keys(observer) if b"fence" in key]
    assert found, "there is none, under the name that we know"
    return found


LOSSES = {
    "the counter": lambda observer: observer.delete(*counters(observer)),
    "all side keys": lambda observer: observer.delete(*side_keys(observer)),
    "all data": lambda observer: observer.flushall(),
    "its worth": lambda observer: observer.mset(dict.fromkeys(counters(observer), "no number")),
    "its type": lambda observer: [
        observer.pipeline().delete(key).rpush(key, "1").execute() for key in counters(observer)
    ],
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_fence_grows_when_its_counter_is_lost(own_server, loss):
    observer, client = own_server.redis(), connected(own_server.url)
    mine, fences = seckill.Lock(client, "name", timeout=60), []
    for _ in range(10):
        fences += [taken_and_released(mine) for _ in range(3)]
        LOSSES[loss](observer)
    fences.append(taken(mine))
    assert grows(fences)


def test_a_fence_grows_when_the_server_starts_again_with_nothing(start_server):
    server = start_server()
    client = connected(server.url)
    mine, fences = seckill.Lock(client, "name", timeout=60), []
    for _ in range(2):
        fences.append(taken_and_released(mine))
        server.kill()
        server.start()
    fences.append(taken(mine))
    assert grows(fences)


def test_a_fence_grows_when_the_servers_clock_is_set_back(start_server, tmp_path):
    clock = Clock(tmp_path, 0)
    server = start_server(environment=clock.environment)
    mine, fences = seckill.Lock(connected(server.url), "name", timeout=60), []
    for hours in (0, -1, -2, -24):
        clock.step_to(3600 * hours)
        fences += [taken_and_released(mine) for _ in range(3)]
    assert grows(fences)


def test_a_fence_grows_on_a_lossy_network(server, start_proxy, lock):
    """One that is asked for again after a lost reply is still one: what the holder got is told."""
    observer, proxy, fences = server.redis(), start_proxy(server), []
    mine = seckill.Lock(connected(proxy.url, socket_connect_timeout=1), lock, timeout=60)
    proxy.faults = random_faults(seed=KINDS.index(server.kind), mean_bytes=2000)
    proxy.cut()
    for _ in range(80):
        fences.append(taken_and_released(mine))
        assert not observer.exists(lock)
    assert proxy.faults_met > 5
    assert grows(fences)


# -- whose it is ----------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("same_handle", [False, True])
def test_a_stale_holder_keeps_its_own_fence(server, lock, same_handle):
    """Paused past its lease: the number that it shows is the one to be refused by."""
    observer, client = server.redis(), connected(server.url)
    stale = seckill.Lock(client, lock, timeout=0.1)
    fence = taken(stale)
    until_gone(observer, lock, within=10)
    done = threading.Event()

    def next_one():
        handle = stale if same_handle else seckill.Lock(client, lock, timeout=0.1)
        higher = taken(handle)
        handle.extend(60)
        told.append(higher)
        done.wait(30)
        assert handle.fence == higher
        handle.release()

    told = []
    holder = call(next_one)
    wait_until(lambda: told or not holder.is_alive())
    assert told[0] > fence
    assert stale.fence == fence
    assert stale.lost is True
    with pytest.raises(seckill.LockLostError):
        stale.ensure_held()
    assert stale.fence == fence
    with pytest.raises(seckill.LockLostError):
        stale.release()
    assert stale.fence == fence
    assert observer.exists(lock)
    done.set()
    holder.result()
    assert taken(stale) > told[0]


def test_a_fence_is_of_its_acquisition_whatever_becomes_of_the_lease(server, lock):
    mine = seckill.Lock(connected(server.url), lock, timeout=60)
    fence = taken(mine)
    mine.extend(60)
    mine.reacquire()
    assert mine.owned()
    assert mine.fence == fence
    mine.release()
    assert mine.fence is None


@pytest.mark.core
@pytest.mark.usefixtures("loop_kind")
async def test_each_task_has_its_own_fence(server, lock):
    observer = server.redis()
    async with seckill.aio.Client(server.url) as client:
        mine = seckill.aio.Lock(client, lock, timeout=60)
        assert await mine.acquire()
        fence = mine.fence

        async def next_one():
            assert mine.fence is None
            assert await mine.acquire(blocking=False)
            higher = mine.fence
            await mine.release()
            return higher

        observer.delete(lock)
        assert await asyncio.create_task(next_one()) > fence
        assert mine.fence == fence


# -- what is stored -------------------------------------------------------------------------------


def test_every_side_key_has_a_time_to_live(own_server):
    """A record or a counter that stays is one for each lock there ever was: millions."""
    observer, client = own_server.redis(), seckill.Client(own_server.url)
    observer.set("held", "other")
    fair = [seckill.Lock(client, "held", timeout=60, fair=True) for _ in range(3)]
    waiters = [call(lock.acquire, blocking_timeout=1.5).until_asleep() for lock in fair]
    for number in range(100):
        lock = seckill.Lock(client, f"lock:{number}", timeout=60, fair=bool(number % 2))
        assert lock.acquire()
        lock.extend(1)
        lock.release()
    kept = [
        seckill.Lock(client, "short", timeout=0.5),
        seckill.Lock(client, "renewed", timeout=60, auto_renew=True),
        seckill.Lock(client, "endless", fair=True),
    ]
    for lock in kept:
        assert lock.acquire()

    def living():
        left = {key: observer.pttl(key) for key in observer.scan_iter(count=1000)}
        return {key: ms for key, ms in left.items() if ms != -2}  # gone while we looked

    def for_ever(left):
        return {key for key, ms in left.items() if ms == -1}

    left = living()
    assert len(left) > 105
    assert for_ever(left) == {b"held", b"endless"}, "the locks without a lease themselves"
    assert max(left.values()) < DAY * 1000
    assert [waiter.result() for waiter in waiters] == [False] * 3
    assert for_ever(living()) == {b"held", b"endless"}
    for lock in kept[1:]:
        lock.release()
    left = living()
    assert for_ever(left) == {b"held"}
    assert not [key for key in left if not key.startswith((b"seckill:", b"held", b"short"))]


def test_a_counter_outlives_the_lease_that_it_has_numbered(own_server):
    observer, client = own_server.redis(), seckill.Client(own_server.url)
    mine = seckill.Lock(client, "name", timeout=3 * DAY)
    assert mine.acquire()
    (counter,) = counters(observer)
    assert observer.pttl(counter) > observer.pttl("name") > 2 * DAY * 1000
    mine.release()
    assert observer.pttl(counter) > 0
