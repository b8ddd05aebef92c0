"""Servers that stop, die or refuse: the sync face's errors, in time, and the loop goes on."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import AsyncIterator

import pytest
import seckill
import seckill.aio
from support.aio import LOOPS, eventually, gathered, outcomes, waiting
from support.crowd import Crowd
from support.proxy import SilentHost
from support.threads import wait_until

pytestmark = pytest.mark.core


class Heart:
    """Beats every few milliseconds, if the loop lets it."""

    def __init__(self) -> None:
        self.beats = 0

    async def beat(self) -> None:
        while True:
            await asyncio.sleep(0.005)
            self.beats += 1


@contextlib.asynccontextmanager
async def beating() -> AsyncIterator[Heart]:
    heart = Heart()
    beating = asyncio.ensure_future(heart.beat())
    yield heart
    beating.cancel()
    await asyncio.wait([beating])


# -- a server that is not there ----------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True], ids=["handshake", "connect"])
async def test_a_host_that_never_answers_is_a_connection_error_in_time(loop_kind, full):
    with SilentHost(full=full) as host:
        client = seckill.aio.Client(host.url, socket_timeout=0.2)
        async with beating() as heart:
            errors = await outcomes(
                [
                    client.acquire_lock("lock", 5000, 30_000),
                    client.incr_inventory("stock", 1),
                    client.update_inventory("lock", "stock", -1, 5000, 30_000),
                ],
                within=10,
            )
        for error in errors:
            assert isinstance(error, seckill.ConnectionError), error
            assert error.sent is False
        assert heart.beats > 5
        await client.aclose()


async def test_a_crowd_at_a_server_that_is_not_there_fails_at_once_and_works_when_it_is(
    start_server, loop_kind
):
    """A first connection is not waited for; nor is anybody told an old error later."""
    server = start_server()
    server.kill()
    client = seckill.aio.Client(server.url)
    calls = (client.update_inventory("lock", "stock", -1, 5000, 60_000) for _ in range(1000))
    errors = await outcomes(calls, within=20)
    assert {type(error).__name__ for error in errors} == {"ConnectionError"}
    assert not any(error.sent for error in errors)
    assert len({id(error) for error in errors}) == len(errors), "each has its own"
    server.start()
    await client.incr_inventory("stock", 1)
    await client.update_inventory("lock", "stock", -1)
    await client.aclose()


# -- a server that is stopped ---------------------------------------------------------------------


async def test_calls_on_a_stopped_server_raise_in_time_and_have_no_late_effect(
    start_server, loop_kind
):
    server = start_server()
    observer = server.redis()
    observer.set("stock", 10)
    client = seckill.aio.Client(server.url, socket_timeout=0.2, timeout=0.5)
    assert await client.acquire_lock("held", 60_000)
    await client.update_inventory("free", "stock", 0)
    async with beating() as heart:
        with server.frozen():
            started = time.monotonic()
            errors = await outcomes(
                [
                    client.acquire_lock("lock", 60_000, 500),
                    client.release_lock("held"),
                    client.incr_inventory("stock", 5),
                    *(client.update_inventory("free", "stock", -1, 5000, 500) for _ in range(50)),
                ]
            )
            assert 0.4 < time.monotonic() - started < 10
    assert all(isinstance(error, seckill.ConnectionError) for error in errors), errors
    assert heart.beats > 20, "the loop went on"
    await asyncio.sleep(0.3)
    assert observer.get("stock") == b"10"
    assert not observer.exists("lock")
    await client.release_lock("held")
    assert not observer.exists("held")
    await client.aclose()


async def test_a_call_gets_one_attempt_however_short_its_time_out(start_server, loop_kind):
    server = start_server()
    client = seckill.aio.Client(server.url, socket_timeout=0.6)
    await client.incr_inventory("stock", 10)
    with server.frozen():
        started = time.monotonic()
        with pytest.raises(seckill.OutcomeUnknown):
            await client.update_inventory("lock", "stock", -1, time_out=50)
        assert 0.5 < time.monotonic() - started < 10
    await client.aclose()


async def test_a_stop_that_ends_in_time_costs_nobody_anything(start_server, name, loop_kind):
    """Longer than an attempt: a copy follows the first, and one of them counts."""
    server = start_server()
    crowd = Crowd(server.redis(), name, 500)
    client = seckill.aio.Client(server.url, socket_timeout=0.1, socket_connect_timeout=0.1)
    await client.incr_inventory("warm", 0)
    server.freeze()
    asking = asyncio.ensure_future(
        gathered(crowd.ask(client, number, time_out=30_000) for number in range(crowd.size))
    )
    await asyncio.sleep(0.5)
    server.thaw()
    await asking
    assert crowd.audit() == {"done": 400, "answered": 100}
    assert client.statistics()["asked_again"] >= 1
    await client.aclose()


# -- a server that is killed ----------------------------------------------------------------------


async def test_a_server_that_is_killed_and_restarted_in_mid_sale_is_ridden_out(
    start_server, name, loop_kind
):
    server = start_server("appendonly yes", "appendfsync always")
    crowd = Crowd(server.redis(), name, 20_000)
    client = seckill.aio.Client(server.url, socket_timeout=0.5)
    numbers = iter(range(crowd.size))
    over = False

    async def customer() -> None:
        for number in numbers:
            await crowd.ask(client, number, time_out=60_000)
            if over:
                break

    async def trouble() -> None:
        nonlocal over
        for _ in range(3):
            served = sum(told in ("done", "answered") for told in crowd.told)
            await eventually(
                lambda served=served: (
                    sum(told in ("done", "answered") for told in crowd.told) > served + 100
                )
            )
            server.kill()
            await asyncio.sleep(0.05)
            server.start()
        over = True

    async with beating() as heart:
        await gathered([trouble(), *(customer() for _ in range(50))])
    told = crowd.audit()
    assert set(told) == {"done", "answered", "not begun"}, f"everybody rode it out: {told}"
    assert client.statistics()["connects"] >= 4
    assert heart.beats > 20
    await client.aclose()


async def test_a_killed_server_that_stays_away_is_a_connection_error_after_time_out(
    start_server, loop_kind
):
    server = start_server()
    client = seckill.aio.Client(server.url, timeout=0.6, socket_timeout=0.3)
    await client.incr_inventory("stock", 10)
    server.kill()
    async with beating() as heart:
        started = time.monotonic()
        errors = await outcomes(
            [
                client.update_inventory("lock", "stock", -1, time_out=600),
                client.acquire_lock("lock", time_out=600),
                client.incr_inventory("stock", 1),
            ]
        )
        assert 0.5 < time.monotonic() - started < 10
    assert all(isinstance(error, seckill.ConnectionError) for error in errors), errors
    assert heart.beats > 20
    await client.aclose()


async def test_connections_that_are_killed_in_mid_sale_are_replaced(start_server, name, loop_kind):
    server = start_server()
    observer = server.redis()
    crowd = Crowd(observer, name, 3000)
    client = seckill.aio.Client(server.url, socket_timeout=0.5)
    numbers = iter(range(crowd.size))

    async def customer() -> None:
        for number in numbers:
            await crowd.ask(client, number, time_out=30_000)
            if number % 100 == 0:
                observer.client_kill_filter(_type="normal", skipme=True)
                observer.script_flush()

    await gathered(customer() for _ in range(20))
    assert crowd.audit() == {"done": 2400, "answered": 600}
    assert client.statistics()["connects"] > 5
    await client.aclose()


# -- waiting for a lock meanwhile -----------------------------------------------------------------


async def test_waiters_ride_out_a_restart_of_the_server(start_server, loop_kind):
    server = start_server()
    server.redis().set("lock", "somebody", px=3_600_000)
    client = seckill.aio.Client(server.url, socket_timeout=0.5)
    await client.incr_inventory("warm", 1)
    waiters = await waiting(client, *(client.acquire_lock("lock", 60_000, 60_000) for _ in "abc"))
    server.kill()
    server.start()  # empty: the lock is gone
    for _ in waiters:
        done, rest = await asyncio.wait(waiters, timeout=20, return_when=asyncio.FIRST_COMPLETED)
        assert [task.result() for task in done] == [True]
        waiters = list(rest)
        await client.release_lock("lock")
    await client.aclose()


async def test_waiters_who_cannot_reach_the_server_any_more_raise_and_do_not_say_false(
    start_server, loop_kind
):
    """It is not known whether the lock is held: ConnectionError, not False, not LockTimeout."""
    server = start_server()
    server.redis().mset({"lock": "somebody", "stock": 1})
    client = seckill.aio.Client(server.url)
    waiters = await waiting(
        client,
        *(client.acquire_lock("lock", 60_000, 1500) for _ in "ab"),
        client.update_inventory("lock", "stock", -1, 5000, 1500),
    )
    server.kill()
    for error in await outcomes(waiters, within=20):
        assert isinstance(error, seckill.ConnectionError), error
    await client.aclose()


async def test_a_lock_is_waited_for_with_the_loop_free(start_server, key, lock, loop_kind):
    server = start_server()
    observer = server.redis()
    observer.set(key, 1)
    observer.set(lock, "somebody", px=3_600_000)
    async with seckill.aio.Client(server.url) as client, beating() as heart:
        errors = await outcomes(
            [
                client.acquire_lock(lock, 5000, 300),
                client.acquire_lock(lock, 5000, 300),
                client.update_inventory(lock, key, -1, 5000, 300),
            ]
        )
        assert errors[:2] == [False, False]
        assert isinstance(errors[2], seckill.LockTimeout)
    assert heart.beats > 5
    assert observer.get(key) == b"1"


# -- a loop that is busy, or careless -------------------------------------------------------------


async def test_an_answer_that_came_in_time_is_told_though_the_loop_looks_too_late(
    start_server, key, lock, loop_kind
):
    server = start_server()
    observer = server.redis()
    observer.set(key, 5)
    async with seckill.aio.Client(server.url, socket_timeout=0.2) as client:
        await client.update_inventory(lock, key, 0)
        buying = asyncio.ensure_future(client.update_inventory(lock, key, -1, time_out=200))
        refused = asyncio.ensure_future(client.update_inventory(lock, key, -9, time_out=200))
        await asyncio.sleep(0)
        wait_until(lambda: observer.get(key) == b"4")
        time.sleep(0.5)  # beyond every bound of the calls
        await buying
        with pytest.raises(seckill.InsufficientInventory):
            await refused


async def test_who_is_told_after_the_end_of_the_lease_that_he_has_a_lock_has_it(
    start_server, lock, loop_kind
):
    """The loop was busy for longer than the lease: it is asked for anew before anybody is told."""
    server = start_server()
    observer = server.redis()
    async with seckill.aio.Client(server.url) as client:
        await client.release_lock(lock)
        acquiring = asyncio.ensure_future(client.acquire_lock(lock, 300, 10_000))
        await asyncio.sleep(0)
        wait_until(lambda: acquiring.done() or observer.exists(lock))
        if not acquiring.done():  # a fast server answers within the first step
            wait_until(lambda: not observer.exists(lock))
            assert await acquiring is True
            assert observer.exists(lock)


async def test_calls_whose_tasks_nobody_else_holds_are_made(start_server, name, loop_kind):
    """asyncio keeps no task alive: what it waits for has to."""
    server = start_server()
    observer = server.redis()
    crowd = Crowd(observer, name, 100)
    observer.set(crowd.lock, "somebody", px=3_600_000)
    async with seckill.aio.Client(server.url) as client:
        await waiting(
            client, *(crowd.ask(client, number, time_out=30_000) for number in range(100))
        )
        gc.collect()
        observer.delete(crowd.lock)
        await eventually(lambda: "cancelled" not in crowd.told)
    assert crowd.audit() == {"done": 80, "answered": 20}


# -- a loop that is stopped -----------------------------------------------------------------------


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_that_a_task_lets_out_of_the_loop_costs_the_others_nothing(
    start_server, name, loop_kind, interrupt
):
    """Many answers are there when it comes: they are handed out when the loop runs on.

    And another loop of the thread does not get in their way, nor they in its.
    """
    server = start_server()
    crowd = Crowd(server.redis(), name, 1000)
    client = seckill.aio.Client(server.url)
    first, second = LOOPS[loop_kind](), LOOPS[loop_kind]()

    async def ask(number: int) -> None:
        await crowd.ask(client, number)
        if number == 20:
            raise interrupt

    async def all_ask() -> None:
        tasks.extend(asyncio.ensure_future(ask(number)) for number in range(crowd.size))
        await asyncio.sleep(0)
        wait_until(lambda: client.statistics()["steps"] == crowd.size)  # not a turn of the loop
        await asyncio.wait(tasks)

    tasks: list[asyncio.Task[None]] = []
    asking = first.create_task(all_ask())
    with pytest.raises(interrupt) as raised:
        first.run_until_complete(asking)
    if loop_kind == "asyncio":  # uvloop stops some turns later
        assert not all(task.done() for task in tasks)
    assert raised.tb is not None, "and its frames are kept"
    second.run_until_complete(asyncio.wait_for(client.incr_inventory("stock"), 20))
    first.run_until_complete(asyncio.wait_for(asking, 20))
    assert [task.exception() for task in tasks if task.exception()] == [raised.value]
    assert crowd.audit() == {"done": 800, "answered": 200}
    second.run_until_complete(client.aclose())
    first.close()
    second.close()
