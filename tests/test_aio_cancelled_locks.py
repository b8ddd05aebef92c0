"""A cancelled acquire leaves no lock that nobody holds, and nobody waiting in vain behind it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest
import seckill
import seckill.aio
from support.aio import eventually, gathered, on_loop, waiting
from support.cancelling import cancelled
from support.programs import Program
from support.proxy import REPLY, REQUEST, Fault, random_faults
from support.servers import KINDS
from support.threads import wait_until
from test_late_arrivals import evaluated, late

pytestmark = pytest.mark.core

HOUR = 3_600_000  # a lease that nobody waits out: a lock that is left behind stays
ROUNDS = 20 if os.environ.get("SECKILL_STRESS") else 1
WITHIN = 10  # seconds until an undoing has been done, generously


async def free_for_good(observer: Any, lock: str) -> None:
    """The lock is free after a while, and nothing that is still under way takes it again."""
    await eventually(lambda: not observer.exists(lock), WITHIN)
    end = time.monotonic() + 0.3
    while time.monotonic() < end:
        assert not observer.exists(lock)
        await asyncio.sleep(0.01)


async def took_one(client: Any) -> None:
    """The client is connected, and the server knows the script."""
    assert await client.acquire_lock("another")
    await client.release_lock("another")


# -- at random moments ----------------------------------------------------------------------------


class Doors:
    """Locks, of which half are wanted by one task each and one by all the others."""

    def __init__(self, name: Callable[[str], str], visitors: int) -> None:
        shared = f"{name('lock')}:shared"
        self.lock_of = [f"{name('lock')}:{n}" if n % 2 else shared for n in range(visitors)]
        self.inside: set[str] = set()
        self.acquired = self.cancelled = 0

    async def visit(self, client: Any, number: int, times: int, seed: int) -> None:
        dice, lock = random.Random(1000 * seed + number), self.lock_of[number]
        for _ in range(times):
            acquiring = asyncio.ensure_future(client.acquire_lock(lock, HOUR, 60_000))
            if dice.random() < 0.7:
                await asyncio.wait([acquiring], timeout=10 ** dice.uniform(-5, -1.5))
                acquiring.cancel()
            try:
                assert await acquiring is True
            except asyncio.CancelledError:
                self.cancelled += 1
                continue
            self.acquired += 1
            assert lock not in self.inside
            self.inside.add(lock)
            await asyncio.sleep(dice.random() / 2000)
            self.inside.remove(lock)
            await client.release_lock(lock)


@pytest.mark.parametrize("round_", range(ROUNDS))
@pytest.mark.stress
async def test_acquires_cancelled_at_random_moments_leave_no_lock_that_nobody_holds(
    server, name, loop_kind, round_
):
    observer = server.redis()
    doors = Doors(name, 40)
    client = seckill.aio.Client(server.url)
    kept = [f"{name('kept')}:{number}" for number in range(5)]
    for lock in kept:
        assert await client.acquire_lock(lock, HOUR)
    await gathered(doors.visit(client, number, 20, round_) for number in range(40))
    await eventually(lambda: not observer.exists(*doors.lock_of), WITHIN)
    assert doors.cancelled > 50
    assert doors.acquired > 150
    assert observer.exists(*kept) == len(kept), "who was told True holds it"
    for lock in kept:
        await client.release_lock(lock)
    assert not observer.exists(*kept)
    await client.aclose()


@pytest.mark.parametrize("round_", range(ROUNDS))
@pytest.mark.stress
async def test_acquires_cancelled_on_a_lossy_network_leave_no_lock_that_nobody_holds(
    server, start_proxy, name, loop_kind, round_
):
    observer = server.redis()
    doors = Doors(name, 20)
    proxy = start_proxy(server)
    client = seckill.aio.Client(proxy.url, socket_timeout=0.1, socket_connect_timeout=0.1)
    await client.incr_inventory(name("warm"), 0)
    proxy.faults = random_faults(seed=100 * round_ + KINDS.index(server.kind), mean_bytes=2000)
    proxy.cut()
    await gathered(doors.visit(client, number, 10, round_) for number in range(20))
    await eventually(lambda: not observer.exists(*doors.lock_of), WITHIN)
    assert doors.cancelled > 20
    assert doors.acquired > 40
    assert proxy.faults_met > 5
    await client.aclose()


async def test_a_cancelled_release_has_released_or_can_be_repeated(server, name, loop_kind):
    observer = server.redis()
    dice = random.Random(KINDS.index(server.kind))
    lock = name("lock")
    async with seckill.aio.Client(server.url) as client:
        for _ in range(200):
            assert await client.acquire_lock(lock, HOUR, 10_000)
            releasing = asyncio.ensure_future(client.release_lock(lock))
            await asyncio.sleep(dice.choice([0, 10 ** dice.uniform(-5, -2.5)]))
            releasing.cancel()
            await asyncio.wait([releasing])
            await client.release_lock(lock)
            assert not observer.exists(lock)


async def test_a_release_that_is_cancelled_is_carried_out_all_the_same(server, name, loop_kind):
    observer = server.redis()
    locks = [f"{name('lock')}:{number}" for number in range(100)]
    async with seckill.aio.Client(server.url) as client:
        for lock in locks:
            assert await client.acquire_lock(lock, HOUR)
        releases = [asyncio.ensure_future(client.release_lock(lock)) for lock in locks]
        await asyncio.sleep(0)
        for task in releases:
            task.cancel()
        await asyncio.wait(releases)
        assert all(task.cancelled() for task in releases)
        await eventually(lambda: not observer.exists(*locks), WITHIN)


# -- at a certain moment --------------------------------------------------------------------------


async def test_an_acquire_that_is_cancelled_before_its_first_step_sends_nothing(
    start_server, lock, loop_kind
):
    server = start_server()
    async with seckill.aio.Client(server.url) as client:
        task = asyncio.ensure_future(client.acquire_lock(lock, HOUR))
        await cancelled(task)
        client.acquire_lock(lock, HOUR).close()
        assert client.statistics()["batches"] == client.statistics()["connects"] == 0
        assert await client.acquire_lock(lock, HOUR, 0) is True
        await client.release_lock(lock)


async def test_an_acquire_that_is_cancelled_when_its_answer_has_just_come_is_undone(
    start_server, lock, loop_kind
):
    """The loop is busy while the answer arrives, and sees the cancellation first."""
    server = start_server()
    observer = server.redis()
    async with seckill.aio.Client(server.url) as client:
        await client.release_lock(lock)
        for _ in range(5):
            task = asyncio.ensure_future(client.acquire_lock(lock, HOUR))
            await asyncio.sleep(0)
            wait_until(lambda: observer.exists(lock))  # not a turn of the loop
            time.sleep(0.01)
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():  # it was answered in its first step: a fast server
                assert task.result() is True
                await client.release_lock(lock)
            await eventually(lambda: not observer.exists(lock), WITHIN)
        await free_for_good(observer, lock)
        assert await client.acquire_lock(lock, HOUR, 0) is True
        await client.release_lock(lock)


@pytest.mark.parametrize("debug", [False, True])
async def test_acquires_that_are_cancelled_between_answer_and_next_step_are_undone(
    start_server, loop_kind, debug
):
    """Answers come many at a time: whoever runs first cancels the next two, which have theirs."""
    asyncio.get_running_loop().set_debug(debug)
    server = start_server()
    observer = server.redis()
    locks = [f"lock:{number}" for number in range(100)]
    tasks: list[asyncio.Task[None]] = []
    async with seckill.aio.Client(server.url) as client:

        async def take(number: int) -> None:
            assert await client.acquire_lock(locks[number], HOUR, 10_000)
            for next_ in tasks[number + 1 : number + 3]:
                next_.cancel()

        for _ in range(10):
            tasks[:] = [asyncio.ensure_future(take(number)) for number in range(len(locks))]
            await asyncio.wait(tasks, timeout=30)
            held = {lock for lock, task in zip(locks, tasks, strict=True) if not task.cancelled()}
            assert len(held) < len(locks) - 10
            await eventually(lambda held=held: observer.exists(*locks) == len(held), WITHIN)
            assert {lock for lock in locks if observer.exists(lock)} == held
            await gathered(client.release_lock(lock) for lock in held)
            assert not observer.exists(*locks)


async def test_a_coroutine_that_is_closed_in_mid_acquire_leaves_no_lock(
    start_server, lock, loop_kind
):
    server = start_server()
    observer = server.redis()
    async with seckill.aio.Client(server.url) as client:
        for pause in (0, 0, 0.0002, 0.001, 0.01, 0.05):
            acquiring = client.acquire_lock(lock, HOUR)
            with contextlib.suppress(StopIteration):  # a fast server answers in its first step
                acquiring.send(None)
                await asyncio.sleep(pause)
                acquiring.close()
                await eventually(lambda: not observer.exists(lock), WITHIN)
            await client.release_lock(lock)
        await free_for_good(observer, lock)


@pytest.mark.parametrize("sent", [True, False])
async def test_an_acquire_that_is_cancelled_at_a_stopped_server_leaves_no_lock_when_it_goes_on(
    start_server, loop_kind, sent
):
    server = start_server()
    observer = server.redis()
    async with seckill.aio.Client(server.url, socket_timeout=5) as client:
        await client.incr_inventory("warm", 0)
        server.freeze()
        others = [] if sent else [client.incr_inventory("warm", 1)]
        *others, task = await waiting(client, *others, client.acquire_lock("lock", HOUR, 30_000))
        await cancelled(task)
        server.thaw()
        await asyncio.gather(*others)
        await free_for_good(observer, "lock")
        assert await client.acquire_lock("lock", HOUR, 0) is True
        await asyncio.sleep(0.3)
        assert observer.exists("lock"), "the undoing is of the cancelled one, and of no other"


@pytest.mark.parametrize("direction", [REQUEST, REPLY])
async def test_an_acquire_whose_bytes_were_lost_leaves_no_lock_when_it_is_cancelled(
    start_server, start_proxy, loop_kind, direction
):
    server = start_server()
    observer = server.redis()
    proxy = start_proxy(server)
    client = seckill.aio.Client(proxy.url, socket_timeout=5)
    await took_one(client)
    proxy.strike(Fault("swallow", direction))
    (task,) = await waiting(client, client.acquire_lock("lock", HOUR, 30_000))
    if direction == REPLY:
        await eventually(lambda: observer.exists("lock"))
    await cancelled(task)
    await free_for_good(observer, "lock")
    await client.aclose()


async def test_an_acquire_that_arrives_after_it_was_undone_takes_no_lock(
    start_server, start_proxy, loop_kind
):
    """It was on a slow way; the undoing overtook it, and found nothing to undo."""
    server = start_server()
    observer = server.redis()
    proxy = start_proxy(server)
    client = seckill.aio.Client(proxy.url, socket_timeout=5)
    await took_one(client)
    proxy.strike(Fault("hold", REQUEST))
    (task,) = await waiting(client, client.acquire_lock("lock", HOUR, 30_000))
    before = evaluated(observer)
    await cancelled(task)
    await eventually(lambda: evaluated(observer) > before)
    late(proxy, observer)
    await free_for_good(observer, "lock")
    assert await client.acquire_lock("lock", HOUR, 0) is True
    await client.aclose()


async def test_an_undoing_that_is_cut_off_is_done_on_the_next_connection(
    start_server, start_proxy, loop_kind
):
    server = start_server()
    observer = server.redis()
    proxy = start_proxy(server)
    client = seckill.aio.Client(proxy.url, socket_timeout=0.5)
    await took_one(client)
    proxy.strike(Fault("swallow", REPLY))
    (task,) = await waiting(client, client.acquire_lock("lock", HOUR, 30_000))
    await eventually(lambda: observer.exists("lock"))
    proxy.refuse()
    await cancelled(task)
    proxy.cut()
    await asyncio.sleep(0.3)
    assert observer.exists("lock"), "nobody can have undone it yet"
    proxy.listen()
    await free_for_good(observer, "lock")
    await client.aclose()


def test_an_undoing_goes_on_when_the_loop_has_ended(start_server, loop_kind):
    server = start_server()
    observer = server.redis()
    client = seckill.aio.Client(server.url, socket_timeout=5)

    async def leave() -> None:
        await client.incr_inventory("warm", 0)
        server.freeze()
        (task,) = await waiting(client, client.acquire_lock("lock", HOUR, 30_000))
        await cancelled(task)

    on_loop(leave(), loop_kind)
    server.thaw()
    on_loop(free_for_good(observer, "lock"), loop_kind)
    assert on_loop(client.acquire_lock("lock", HOUR, 0), loop_kind) is True
    on_loop(client.aclose(), loop_kind)


@pytest.mark.parametrize("cancels_the_closing", [False, True])
async def test_closing_the_client_waits_until_all_is_undone(
    start_server, start_proxy, loop_kind, cancels_the_closing
):
    """Whoever cancels the closing does not cancel what is to be undone."""
    server = start_server()
    observer = server.redis()
    proxy = start_proxy(server)
    client = seckill.aio.Client(proxy.url, socket_timeout=5)
    await took_one(client)
    proxy.strike(Fault("swallow", REPLY))
    (task,) = await waiting(client, client.acquire_lock("lock", HOUR, 30_000))
    await eventually(lambda: observer.exists("lock"))
    proxy.refuse()
    await cancelled(task)
    closing = asyncio.ensure_future(client.aclose())
    await asyncio.sleep(0.1)
    assert observer.exists("lock")
    assert not closing.done()
    if cancels_the_closing:
        await cancelled(closing)
    proxy.listen()
    if not cancels_the_closing:
        await closing
        assert not observer.exists("lock")
    await free_for_good(observer, "lock")
    await client.aclose()


def takes_locks_until_interrupted(url, key):
    import asyncio

    import seckill.aio

    async def main():
        async with seckill.aio.Client(url) as client:
            await client.incr_inventory(key)
            print("ready", flush=True)
            while True:
                for number in range(20):
                    await client.acquire_lock(f"lock:{number}", 3_600_000, 10_000)
                    await client.release_lock(f"lock:{number}")

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        return "interrupted"


@pytest.mark.skipif(
    sys.version_info < (3, 11),
    reason="asyncio.run cancels only since 3.11; before, the interrupt is raised between any two"
    " bytecodes, also between the answer True and the `try` of who gets it",
)
def test_ctrl_c_leaves_no_lock(start_server):
    """asyncio.run cancels what it ran; the client closes when all is undone."""
    server = start_server()
    observer = server.redis()
    for _ in range(5):
        program = Program(takes_locks_until_interrupted, server.url, "stock")
        program.expect("ready")
        time.sleep(random.random() / 10)
        program.process.send_signal(signal.SIGINT)
        assert program.ended().value == "interrupted"
        assert observer.keys("lock:*") == []


async def test_a_cancelled_acquire_and_at_once_another_of_the_same_lock(server, lock, loop_kind):
    """The other one may not be taken for the cancelled one, nor be undone in its place."""
    observer = server.redis()
    async with seckill.aio.Client(server.url) as client:
        for turns in range(100):
            task = asyncio.ensure_future(client.acquire_lock(lock, HOUR))
            for _ in range(turns % 5):
                await asyncio.sleep(0)
            if not task.cancel():  # the answer was faster
                await client.release_lock(lock)
            assert await client.acquire_lock(lock, HOUR, 20_000) is True
            await asyncio.wait([task])
            token = observer.get(lock)
            await client.incr_inventory(f"{lock}:other")  # behind whatever is still to be undone
            assert observer.get(lock) == token
            await client.release_lock(lock)
            assert not observer.exists(lock)
