"""Fair locks: who came first is served first, among the fair waiters of all processes.

Nobody else stands in that queue: redis-py's lock, and ours without `fair`, take what is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import time

import pytest
import redis.lock
import seckill
import seckill.aio
from support.aio import gathered, waiting
from support.locks import SOMEBODY, strike, until_asleep
from support.programs import Program
from support.servers import ANY
from support.threads import call, wait_until

LIFE = 3  # seconds that a place in the queue outlives the one who stood there

# Those that wait for a place to end take too long to be run on every server.
on_one_server = pytest.mark.parametrize("server", [ANY], indirect=True)


def queue_up(url, name):
    """Waits for the lock once for each line that comes, each time in a thread of its own."""
    import sys
    import threading

    import redis
    import seckill
    from support.acl import as_observer

    observer, client = redis.Redis.from_url(as_observer(url)), seckill.Client(url)
    threads = []

    def wait(who):
        with seckill.Lock(client, name, timeout=60, fair=True):
            observer.rpush(f"{name}:order", who)

    for line in sys.stdin:
        threads.append(threading.Thread(target=wait, args=[line.strip()]))
        threads[-1].start()
        print("come", flush=True)
    for thread in threads:
        thread.join()


@pytest.fixture
def start_queue(server, lock):
    """Start a process whose threads can be sent to stand in the queue for the lock."""
    programs = []

    def start():
        programs.append(Program(queue_up, server.url, lock, limit=60))
        return programs[-1]

    yield start
    for program in programs:
        program.process.kill()
        program.process.communicate()


def come(program, who):
    """One more stands in the queue, in that process."""
    program.say(str(who))
    program.expect("come")
    until_asleep(program.pid)


def order(redis_py, lock, count):
    """Who had the lock, in order, when so many had it."""
    wait_until(lambda: redis_py.llen(f"{lock}:order") >= count, within=30)
    return [int(who) for who in redis_py.lrange(f"{lock}:order", 0, -1)]


@pytest.fixture
def held(client, lock):
    """The lock, held by somebody for whose release the others wait."""
    held = seckill.Lock(client, lock, timeout=600, fair=True)
    held.acquire()
    yield held
    with contextlib.suppress(seckill.LockError):
        held.release()


# -- order ------------------------------------------------------------------------------------


@pytest.mark.core
def test_waiters_of_all_processes_are_served_in_the_order_of_their_arrival(
    start_queue, held, lock, redis_py
):
    processes = [start_queue() for _ in range(4)]
    for number in range(16):
        # Each process has the places 0 4 .., or next to each other.
        come(processes[number % 4 if number < 8 else (number - 8) // 2], number)
    held.release()
    assert order(redis_py, lock, 16) == list(range(16))


@pytest.mark.core
def test_a_waiter_is_behind_those_who_came_before(start_queue, held, client, lock, redis_py):
    """The releasing process gets no second turn before the others have had theirs."""
    come(start_queue(), 1)
    again = seckill.Lock(client, lock, timeout=60, fair=True)

    def wait():
        with again:
            redis_py.rpush(f"{lock}:order", 2)

    waiter = call(wait).until_asleep()
    held.release()
    waiter.result()
    assert order(redis_py, lock, 2) == [1, 2]


@pytest.mark.core
async def test_tasks_are_served_in_the_order_of_their_arrival(server, lock, loop_kind):
    client, served = seckill.aio.Client(server.url), []
    holder = seckill.aio.Lock(client, lock, timeout=60, fair=True)
    await holder.acquire()

    async def wait(number):
        async with seckill.aio.Lock(client, lock, timeout=60, fair=True):
            served.append(number)

    waiters = await waiting(client, *map(wait, range(20)))
    await holder.release()
    await gathered(waiters)
    assert served == list(range(20))
    await client.aclose()


@on_one_server
def test_the_first_in_the_queue_is_served_when_a_lease_ends(start_queue, lock, redis_py):
    redis_py.set(lock, SOMEBODY, px=1500)
    processes = [start_queue() for _ in range(2)]
    for number in range(4):
        come(processes[number % 2], number)
    assert order(redis_py, lock, 4) == [0, 1, 2, 3]


def test_a_fair_lock_excludes_every_other(held, client, lock, redis_py):
    others = [
        redis.lock.Lock(redis_py, lock),
        seckill.Lock(client, lock),
        seckill.Lock(client, lock, fair=True),
    ]
    assert [other.acquire(blocking=False) for other in others] == [False] * 3
    held.release()
    for other in others:
        assert other.acquire(blocking=False) is True
        assert held.acquire(blocking=False) is False
        other.release()


# -- who leaves -------------------------------------------------------------------------------


def served_within(waiter, release):
    """How long after the release the waiter has the lock."""
    start = time.monotonic()
    release()
    assert waiter.result() is True
    return waiter.ended - start


def test_a_waiter_whose_time_is_over_delays_nobody(start_queue, held, client, lock, redis_py):
    gone = seckill.Lock(client, lock, fair=True, blocking_timeout=0.3)
    leaving = call(gone.acquire).until_asleep()
    process = start_queue()
    come(process, 1)
    assert leaving.result() is False
    start = time.monotonic()
    held.release()
    assert order(redis_py, lock, 1) == [1]
    assert time.monotonic() - start < LIFE / 2


def test_a_waiter_that_is_interrupted_delays_nobody(start_queue, held, client, lock, server):
    waits = Program(wait_for_it, server.url, lock)
    waits.expect("waits")
    until_asleep(waits.pid)
    waiter = call(seckill.Lock(client, lock, timeout=60, fair=True).acquire).until_asleep()
    waits.process.send_signal(signal.SIGINT)
    assert waits.ended().value == "KeyboardInterrupt"
    assert served_within(waiter, held.release) < LIFE / 2


def wait_for_it(url, name):
    import seckill

    print("waits", flush=True)
    try:
        seckill.Lock(url, name, timeout=60, fair=True).acquire()
    except KeyboardInterrupt:
        return "KeyboardInterrupt"


async def test_a_task_that_is_cancelled_delays_nobody(server, lock, loop_kind):
    client, other = seckill.aio.Client(server.url), seckill.aio.Client(server.url)
    holder = seckill.aio.Lock(client, lock, timeout=60, fair=True)
    await holder.acquire()
    [gone] = await waiting(client, seckill.aio.Lock(client, lock, fair=True).acquire())
    behind = seckill.aio.Lock(other, lock, timeout=60, fair=True)
    [waiter] = await waiting(other, behind.acquire())
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    start = time.monotonic()
    await holder.release()
    assert await waiter is True
    assert time.monotonic() - start < LIFE / 2
    await gathered([client.aclose(), other.aclose()])


@on_one_server
@pytest.mark.parametrize("fate", [signal.SIGKILL, signal.SIGSTOP])
def test_a_dead_waiter_delays_by_no_more_than_its_place(
    start_queue, held, client, lock, redis_py, fate
):
    dead = start_queue()
    come(dead, 1)
    waiter = call(seckill.Lock(client, lock, timeout=60, fair=True).acquire).until_asleep()
    strike(dead.pid, fate)
    assert served_within(waiter, held.release) < LIFE + 2
    assert redis_py.llen(f"{lock}:order") == 0


@on_one_server
def test_many_dead_waiters_delay_no_longer_than_one(start_queue, held, client, lock):
    processes = [start_queue() for _ in range(4)]
    for number, process in enumerate(processes):
        come(process, number)
    waiter = call(seckill.Lock(client, lock, timeout=60, fair=True).acquire).until_asleep()
    for process in processes:
        strike(process.pid, signal.SIGKILL)
    assert served_within(waiter, held.release) < LIFE + 2


@on_one_server
def test_a_waiter_that_slept_past_its_place_is_served_all_the_same(
    start_queue, held, client, lock, redis_py
):
    """And does not believe that it holds the lock meanwhile."""
    sleeper = start_queue()
    come(sleeper, 1)
    made = seckill.Lock(client, lock, timeout=60, thread_local=False, fair=True)
    waiter = call(made.acquire).until_asleep()
    strike(sleeper.pid, signal.SIGSTOP)
    held.release()
    assert waiter.result() is True
    sleeper.process.send_signal(signal.SIGCONT)
    until_asleep(sleeper.pid)
    made.ensure_held()
    assert redis_py.llen(f"{lock}:order") == 0
    made.release()
    assert order(redis_py, lock, 1) == [1]


# -- who does not queue up --------------------------------------------------------------------


def test_who_does_not_wait_stands_in_nobodys_way(held, client, lock, redis_py):
    """A try that fails leaves no place behind."""
    made = seckill.Lock(client, lock, timeout=60, fair=True)
    for _ in range(3):
        assert made.acquire(blocking=False) is False
        assert made.acquire(blocking_timeout=0) is False
    waiter = call(seckill.Lock(client, lock, timeout=60, fair=True).acquire).until_asleep()
    assert served_within(waiter, held.release) < LIFE / 2


@on_one_server
def test_a_fair_try_does_not_overtake_but_others_may(start_queue, held, client, lock, redis_py):
    """A place that is nobody's any more is kept for a while: who respects it is seen."""
    dead = start_queue()
    come(dead, 1)
    strike(dead.pid, signal.SIGKILL)
    held.release()
    assert not redis_py.exists(lock)
    fair = seckill.Lock(client, lock, timeout=60, fair=True)
    assert fair.acquire(blocking=False) is False
    for barges_in in (seckill.Lock(client, lock), redis.lock.Lock(redis_py, lock)):
        assert barges_in.acquire(blocking=False) is True
        barges_in.release()
    assert fair.acquire() is True
    fair.release()


def test_what_fair_promises_is_said_where_it_is_chosen():
    for face in (seckill.Lock, seckill.aio.Lock):
        assert "fair" in face.__doc__
        assert "redis-py" in face.__doc__
