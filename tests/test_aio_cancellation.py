"""A cancelled update counts once or not at all, and costs nobody else an answer."""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from typing import Any

import anyio
import pytest
import seckill
import seckill.aio
from support.aio import eventually, gathered, on_loop, waiting
from support.cancelling import WAYS, Stop, Way, only_stops
from support.crowd import Crowd
from support.proxy import random_faults
from support.servers import KINDS
from support.threads import wait_until

pytestmark = pytest.mark.core

HOUR = 3_600_000  # a lease that nobody waits out
STRESS = bool(os.environ.get("SECKILL_STRESS"))
ROUNDS, CALLS = (20, 2000) if STRESS else (1, 800)


def a_while(dice: random.Random) -> float:
    """Nothing, or what a call may take: from 10 us to 30 ms, short and long ones equally often."""
    return 0 if dice.random() < 0.2 else 10 ** dice.uniform(-5, -1.5)


async def come_and_go(
    face: Any, crowd: Crowd, ways: list[Way], patient: float = 0.3, tasks: int = 50, seed: int = 0
) -> None:
    """Make all calls of the crowd, many at once; of those that are not patient cancel each."""
    numbers = iter(range(crowd.size))

    async def customer(dice: random.Random) -> None:
        for number in numbers:
            call = crowd.ask(face, number, time_out=30_000)
            if dice.random() < patient:
                await call
            else:
                await dice.choice(ways)(call, a_while(dice))

    await gathered(customer(random.Random(1000 * seed + task)) for task in range(tasks))


# -- at random moments ----------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_calls_cancelled_at_random_moments_count_once_or_not_at_all(
    start_server, name, loop_kind, way
):
    server = start_server()
    crowd = Crowd(server.redis(), name, 1000)
    async with seckill.aio.Client(server.url, socket_timeout=0.1) as client:
        await come_and_go(client, crowd, [way])
    # What was cancelled on its way may still be applied for so long.
    await asyncio.sleep(0.1)
    told = crowd.audit()
    assert told["cancelled"] + told["not begun"] > 50
    assert told["done"] > 100
    assert told["answered"] > 20
    assert told["done"] + told["answered"] + told["cancelled"] + told["not begun"] == crowd.size


@pytest.mark.stress
@pytest.mark.parametrize("round_", range(ROUNDS))
async def test_calls_cancelled_on_a_lossy_network_count_once_or_not_at_all(
    server, start_proxy, name, loop_kind, round_
):
    crowd = Crowd(server.redis(), name, CALLS)
    proxy = start_proxy(server)
    client = seckill.aio.Client(proxy.url, socket_timeout=0.1, socket_connect_timeout=0.1)
    await client.incr_inventory(name("warm"), 0)
    proxy.faults = random_faults(seed=100 * round_ + KINDS.index(server.kind), mean_bytes=2000)
    proxy.cut()
    await come_and_go(client, crowd, WAYS, seed=round_)
    await asyncio.sleep(0.1)
    told = crowd.audit()
    assert told["cancelled"] > CALLS // 20
    assert told["done"] > CALLS // 8
    assert told["unknown"] + told["unsent"] <= 20, "with so much time, nearly all can be learnt"
    assert proxy.faults_met > 5
    await client.aclose()


async def test_threads_that_share_the_client_with_cancelled_tasks_get_their_own_answers(
    start_server, name, loop_kind
):
    server = start_server()
    observer = server.redis()
    awaited, plain = Crowd(observer, name, 2000), Crowd(observer, lambda kind: kind, 2000)
    seckill.aio.configure(server.url, socket_timeout=0.1)
    numbers = iter(range(plain.size))

    def thread() -> None:
        for number in numbers:
            plain.ask_plainly(seckill, number, time_out=30_000)

    threads = [threading.Thread(target=thread) for _ in range(4)]
    for one in threads:
        one.start()
    await come_and_go(seckill.aio, awaited, WAYS)
    await eventually(lambda: not any(one.is_alive() for one in threads))
    await asyncio.sleep(0.1)
    assert awaited.audit()["cancelled"] > 50
    told = plain.audit()
    assert told["done"] == 1600
    assert told["answered"] == 400


async def test_every_second_call_of_a_crowd_is_cancelled_and_the_others_get_their_answers(
    start_server, name, loop_kind
):
    """All but the first are still in the queue: they are not sent, and that is seen to the unit."""
    server = start_server()
    crowd = Crowd(server.redis(), name, 2000)
    async with seckill.aio.Client(server.url) as client:
        await client.incr_inventory(name("warm"), 0)
        with server.frozen():
            first = await waiting(client, client.incr_inventory(name("warm"), 1))
            tasks = [
                asyncio.ensure_future(crowd.ask(client, number, time_out=30_000))
                for number in range(crowd.size)
            ]
            await asyncio.sleep(0.05)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.wait(tasks[::2])
            assert all(task.cancelled() for task in tasks[::2])
        await asyncio.wait([*first, *tasks], timeout=30)
    assert crowd.told[::2] == ["cancelled"] * 1000
    crowd.told[::2] = ["not begun"] * 1000  # which may not have been applied at all
    assert crowd.audit() == {"not begun": 1000, "done": 800, "answered": 200}


# -- at a certain moment --------------------------------------------------------------------------


async def test_a_call_that_is_cancelled_before_its_first_step_sends_nothing(
    start_server, key, lock, loop_kind
):
    server = start_server()
    server.redis().set(key, 10)
    async with seckill.aio.Client(server.url) as client:
        task = asyncio.ensure_future(client.update_inventory(lock, key, -1))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        client.update_inventory(lock, key, -1).close()
        assert client.statistics()["batches"] == client.statistics()["connects"] == 0
        await client.update_inventory(lock, key, -2)
    assert server.redis().get(key) == b"8"


async def test_a_call_that_is_cancelled_when_its_answer_has_just_come_is_cancelled(
    start_server, key, lock, loop_kind
):
    """The loop is busy while the answer arrives, and sees the cancellation first."""
    server = start_server()
    observer = server.redis()
    observer.set(key, 20)
    count = 0
    async with seckill.aio.Client(server.url) as client:
        await client.update_inventory(lock, key, 0)
        for left in range(19, 9, -1):
            task = asyncio.ensure_future(client.update_inventory(lock, key, -1))
            await asyncio.sleep(0)
            answered = task.done()  # in its first step: a fast server, and a slow machine
            wait_until(lambda left=left: int(observer.get(key)) == left)  # not a turn of the loop
            time.sleep(0.005)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled() or answered
            count += task.cancelled()
        await client.update_inventory(lock, key, -10)
        with pytest.raises(seckill.InsufficientInventory):
            await client.update_inventory(lock, key, -1)
    assert count > 0


@pytest.mark.parametrize("debug", [False, True])
async def test_a_call_that_is_cancelled_between_its_answer_and_its_next_step_is_cancelled(
    start_server, name, loop_kind, debug
):
    """Answers come many at a time: whoever runs first cancels the next two, which have theirs.

    And then asks for something else: what it gets to wait with is not what they have let go of.
    """
    asyncio.get_running_loop().set_debug(debug)
    server = start_server()
    crowd = Crowd(server.redis(), name, 2000)
    tasks: list[asyncio.Task[None]] = []
    async with seckill.aio.Client(server.url) as client:

        async def ask(number: int) -> None:
            await crowd.ask(client, number)
            for next_ in tasks[number + 1 : number + 3]:
                next_.cancel()
            await crowd.ask(client, number + 1000)

        tasks += [asyncio.ensure_future(ask(number)) for number in range(1000)]
        await asyncio.wait(tasks, timeout=10)
        assert all(task.done() for task in tasks)
    await asyncio.sleep(0.1)
    told = crowd.audit()
    assert told["cancelled"] > 100
    assert told["done"] + told["answered"] > 100
    assert set(told) <= {"cancelled", "done", "answered", "not begun"}


async def test_a_call_that_is_cancelled_while_it_waits_for_a_lock_is_not_made(
    server, key, lock, loop_kind
):
    observer = server.redis()
    observer.set(key, 10)
    observer.set(lock, "somebody", px=HOUR)
    async with seckill.aio.Client(server.url) as client:
        tasks = await waiting(
            client, *(client.update_inventory(lock, key, -1, 5000, 60_000) for _ in range(5))
        )
        for task in tasks[1:]:
            task.cancel()
        await asyncio.wait(tasks[1:])
        assert all(task.cancelled() for task in tasks[1:])
        observer.delete(lock)
        await asyncio.wait_for(tasks[0], 10)
        assert observer.get(key) == b"9"


async def test_a_failing_group_takes_its_calls_with_it_and_leaves_the_others(
    start_server, name, loop_kind
):
    server = start_server()
    crowd = Crowd(server.redis(), name, 1000)
    async with seckill.aio.Client(server.url) as client:

        async def failing_group() -> None:
            with only_stops():
                async with anyio.create_task_group() as group:
                    for number in range(0, crowd.size, 2):
                        group.start_soon(crowd.ask, client, number)
                    await crowd.ask(client, 1)
                    raise Stop

        others = [crowd.ask(client, number) for number in range(3, crowd.size, 2)]
        await gathered([failing_group(), *others])
    await asyncio.sleep(0.1)
    crowd.audit()
    assert set(crowd.told[1::2]) == {"done", "answered"}


async def test_a_shielded_call_is_made_though_its_waiter_is_cancelled(
    start_server, key, lock, loop_kind
):
    server = start_server()
    server.redis().set(key, 10)
    async with seckill.aio.Client(server.url) as client:
        inner = asyncio.ensure_future(client.update_inventory(lock, key, -1))
        outer = asyncio.ensure_future(asyncio.wait_for(asyncio.shield(inner), 60))
        await asyncio.sleep(0)
        outer.cancel()
        with pytest.raises(asyncio.CancelledError):
            await outer
        await inner
    assert server.redis().get(key) == b"9"


def test_a_loop_that_ends_in_mid_call_leaves_nothing_behind(start_server, name, loop_kind):
    """The tasks are cancelled and the loop is closed; answers that come later find nobody."""
    server = start_server()
    client = seckill.aio.Client(server.url, socket_timeout=0.3)
    crowds = [Crowd(server.redis(), lambda kind, n=n: f"{kind}:{n}", 200) for n in range(10)]

    async def leave(crowd: Crowd) -> None:
        tasks = [asyncio.ensure_future(crowd.ask(client, number)) for number in range(crowd.size)]
        await asyncio.sleep(random.random() / 1000)
        for task in tasks:
            task.cancel()

    async def stay(crowd: Crowd) -> None:
        await gathered(crowd.ask(client, number) for number in range(crowd.size))

    for crowd in crowds[:-1]:
        on_loop(leave(crowd), loop_kind)
    with server.frozen():
        on_loop(leave(crowds[-1]), loop_kind)
    last = Crowd(server.redis(), name, 200)
    on_loop(stay(last), loop_kind)
    on_loop(client.aclose(), loop_kind)
    time.sleep(0.3)
    for crowd in crowds:
        crowd.audit()
    assert last.audit() == {"done": 160, "answered": 40}
