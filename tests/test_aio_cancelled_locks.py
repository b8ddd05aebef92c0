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
from support.programs import Program, run
from support.proxy import REPLY, REQUEST, Fault, random_faults
from support.servers import KINDS
from support.threads import wait_until
from test_late_arrivals import evaluated, late

pytestmark = pytest.mark.core

HOUR = 3_600_000  # a lease that nobody waits out: a lock that is left behind stays
ROUNDS = 20 if os.environ.get("SECKILL_STRESS") else 1
ANSWER_LOST = Fault("swallow", REPLY)
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


@pytest.fixture
def own_server(start_server):
    """Of one kind, for it is the client that is tried."""
    return start_server()


@pytest.fixture
def struck(own_server, observer, start_proxy):
    """Begin an acquire of "lock" that meets a fault: the proxy, the client, and the task."""

    async def begin(fault: Fault, socket_timeout: float = 5) -> tuple[Any, Any, asyncio.Task[Any]]:
        proxy = start_proxy(own_server)
        client = seckill.aio.Client(proxy.url, socket_timeout=socket_timeout)
        await took_one(client)
        proxy.strike(fault)
        (task,) = await waiting(client, client.acquire_lock("lock", HOUR, 30_000))
        if fault == ANSWER_LOST:
            await eventually(lambda: observer.exists("lock"))
        return proxy, client, task

    return begin


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
    own_server, lock, loop_kind
):
    async with seckill.aio.Client(own_server.url) as client:
        task = asyncio.ensure_future(client.acquire_lock(lock, HOUR))
        await cancelled(task)
        client.acquire_lock(lock, HOUR).close()
        assert client.statistics()["batches"] == client.statistics()["connects"] == 0
        assert await client.acquire_lock(lock, HOUR, 0) is True
        await client.release_lock(lock)


async def test_an_acquire_that_is_cancelled_when_its_answer_has_just_come_is_undone(
    own_server, observer, lock, loop_kind
):
    """The loop is busy while the answer arrives, and sees the cancellation first."""
    async with seckill.aio.Client(own_server.url) as client:
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
    own_server, observer, loop_kind, debug
):
    """Answers come many at a time: whoever runs first cancels the next two, which have theirs."""
    asyncio.get_running_loop().set_debug(debug)
    locks = [f"lock:{number}" for number in range(100)]
    tasks: list[asyncio.Task[None]] = []
    async with seckill.aio.Client(own_server.url) as client:

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
    own_server, observer, lock, loop_kind
):
    async with seckill.aio.Client(own_server.url) as client:
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
    own_server, observer, loop_kind, sent
):
    async with seckill.aio.Client(own_server.url, socket_timeout=5) as client:
        await client.incr_inventory("warm", 0)
        own_server.freeze()
        others = [] if sent else [client.incr_inventory("warm", 1)]
        *others, task = await waiting(client, *others, client.acquire_lock("lock", HOUR, 30_000))
        await cancelled(task)
        own_server.thaw()
        await asyncio.gather(*others)
        await free_for_good(observer, "lock")
        assert await client.acquire_lock("lock", HOUR, 0) is True
        await asyncio.sleep(0.3)
        assert observer.exists("lock"), "the undoing is of the cancelled one, and of no other"


@pytest.mark.parametrize("direction", [REQUEST, REPLY])
async def test_an_acquire_whose_bytes_were_lost_leaves_no_lock_when_it_is_cancelled(
    struck, observer, loop_kind, direction
):
    _, client, task = await struck(Fault("swallow", direction))
    await cancelled(task)
    await free_for_good(observer, "lock")
    await client.aclose()


async def test_an_acquire_that_arrives_after_it_was_undone_takes_no_lock(
    struck, observer, loop_kind
):
    """It was on a slow way; the undoing overtook it, and found nothing to undo."""
    proxy, client, task = await struck(Fault("hold", REQUEST))
    before = evaluated(observer)
    await cancelled(task)
    await eventually(lambda: evaluated(observer) > before)
    late(proxy, observer)
    await free_for_good(observer, "lock")
    assert await client.acquire_lock("lock", HOUR, 0) is True
    await client.aclose()


async def test_an_undoing_that_is_cut_off_is_done_on_the_next_connection(
    struck, observer, loop_kind
):
    proxy, client, task = await struck(ANSWER_LOST, socket_timeout=0.5)
    proxy.refuse()
    await cancelled(task)
    proxy.cut()
    await asyncio.sleep(0.3)
    assert observer.exists("lock"), "nobody can have undone it yet"
    proxy.listen()
    await free_for_good(observer, "lock")
    await client.aclose()


def test_an_undoing_goes_on_when_the_loop_has_ended(own_server, observer, loop_kind):
    client = seckill.aio.Client(own_server.url, socket_timeout=5)

    async def leave() -> None:
        await client.incr_inventory("warm", 0)
        own_server.freeze()
        (task,) = await waiting(client, client.acquire_lock("lock", HOUR, 30_000))
        await cancelled(task)

    on_loop(leave(), loop_kind)
    own_server.thaw()
    on_loop(free_for_good(observer, "lock"), loop_kind)
    assert on_loop(client.acquire_lock("lock", HOUR, 0), loop_kind) is True
    on_loop(client.aclose(), loop_kind)


@pytest.mark.parametrize("cancels_the_closing", [False, True])
async def test_closing_the_client_waits_until_all_is_undone(
    struck, observer, loop_kind, cancels_the_closing
):
    """Whoever cancels the closing does not cancel what is to be undone."""
    proxy, client, task = await struck(ANSWER_LOST)
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


# -- Ctrl-C -------------------------------------------------------------------------------------


def takes_locks_until_interrupted(url, key):
    """Returns the locks that it has been told of and not given back."""
    import asyncio

    import seckill.aio

    held = set()

    async def main():
        async with seckill.aio.Client(url) as client:
            await client.incr_inventory(key)
            print("ready", flush=True)
            while True:
                for lock in [f"lock:{number}" for number in range(20)]:
                    if await client.acquire_lock(lock, 3_600_000, 10_000):
                        held.add(lock)
                    await client.release_lock(lock)
                    held.remove(lock)

    try:
        asyncio.run(main())
    except KeyboardInterrupt:
        return sorted(held)


def test_ctrl_c_leaves_no_lock_that_nobody_was_told_of(own_server):
    """asyncio.run cancels what it ran, since Python 3.11; the client closes when all is undone."""
    observer = own_server.redis(decode_responses=True)
    for _ in range(5):
        program = Program(takes_locks_until_interrupted, own_server.url, "stock")
        program.expect("ready")
        time.sleep(random.random() / 10)
        program.process.send_signal(signal.SIGINT)
        told, left = program.ended().value, observer.keys("lock:*")
        assert set(left) <= set(told)
        if CANCELS["asyncio.run"]:
            assert left == []
        elif left:
            observer.delete(*left)


def interrupted_before_the_wait(url):
    """The call has begun, and nobody awaits it yet; the loop stops, and is not closed."""
    import asyncio
    import dis
    import sys

    import seckill.aio

    client, loop = seckill.aio.Client(url), asyncio.new_event_loop()
    code = seckill.aio.Client.acquire_lock.__code__
    names = {instruction.offset: instruction.opname for instruction in dis.get_instructions(code)}

    def interrupt(frame, event, _):
        if frame.f_code is not code:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and names[frame.f_lasti] == "GET_AWAITABLE":
            raise KeyboardInterrupt
        return interrupt

    async def main():
        await client.incr_inventory("stock")
        sys.settrace(interrupt)
        await client.acquire_lock("lock", 3_600_000)

    try:
        loop.run_until_complete(main())
    except KeyboardInterrupt:
        print("interrupted", flush=True)
    input()


def test_an_acquire_that_is_interrupted_before_its_task_waits_leaves_no_lock(own_server, observer):
    program = Program(interrupted_before_the_wait, own_server.url)
    program.expect("interrupted")
    on_loop(free_for_good(observer, "lock"))
    program.say("end")
    assert program.ended().value is None


def interrupted_before_the_release(url, way):
    import asyncio
    import signal

    import anyio
    import seckill.aio

    async def main():
        client = seckill.aio.Client(url)
        if way == "add_signal_handler":
            loop, task = asyncio.get_running_loop(), asyncio.current_task()
            loop.add_signal_handler(signal.SIGINT, task.cancel)
        assert await client.acquire_lock("lock", 3_600_000)
        try:
            await asyncio.sleep(0)
        finally:
            signal.raise_signal(signal.SIGINT)
            await client.release_lock("lock")
            await asyncio.sleep(10)

    run = {"asyncio.run": asyncio.run, "anyio.run": lambda main: anyio.run(lambda: main)}
    try:
        run.get(way, asyncio.new_event_loop().run_until_complete)(main())
    except (KeyboardInterrupt, asyncio.CancelledError) as error:
        return type(error).__name__


# Whether Ctrl-C becomes a cancellation; else it is raised in whatever Python code runs.
CANCELS = {
    "asyncio.run": sys.version_info >= (3, 11),
    "anyio.run": True,
    "add_signal_handler": True,
    "run_until_complete": False,
}


@pytest.mark.parametrize("way", CANCELS)
def test_where_ctrl_c_is_raised_and_does_not_cancel_a_finally_may_not_get_to_its_release(
    own_server, observer, way
):
    """A release that has begun is carried out; before that it is the lease that ends the lock."""
    told = run(interrupted_before_the_release, own_server.url, way).value
    if CANCELS[way]:
        wait_until(lambda: not observer.exists("lock"), WITHIN)
    else:
        assert told == "KeyboardInterrupt"
        assert 0 < observer.pttl("lock") <= HOUR
