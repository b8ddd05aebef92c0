"""A network that cuts, swallows, resets and delays, under hundreds of tasks: nothing gets mixed."""

from __future__ import annotations

import os
import threading
import time

import pytest
import seckill
import seckill.aio
from support.aio import eventually, gathered, on_loop, outcomes
from support.crowd import Crowd
from support.proxy import REPLY, REQUEST, Fault, in_turn, random_faults
from support.servers import KINDS

pytestmark = pytest.mark.core

STRESS = bool(os.environ.get("SECKILL_STRESS"))
ROUNDS, CALLS = (20, 3000) if STRESS else (1, 1000)


async def connected(url, name, **options):
    """A client that has been connected before the trouble begins."""
    options = {"socket_timeout": 0.1, "socket_connect_timeout": 0.1, "timeout": 20} | options
    client = seckill.aio.Client(url, **options)
    await client.incr_inventory(name("warm"), 0)
    return client


async def sell(client, crowd, tasks, **times):
    """Make all calls of the crowd, so many at a time."""
    numbers = iter(range(crowd.size))

    async def customer():
        for number in numbers:
            await crowd.ask(client, number, **times)

    await gathered(customer() for _ in range(tasks))


@pytest.mark.stress
@pytest.mark.parametrize("round_", range(ROUNDS))
async def test_thousands_of_calls_through_a_lossy_network_count_once_each(
    server, start_proxy, name, loop_kind, round_
):
    crowd = Crowd(server.redis(), name, CALLS)
    proxy = start_proxy(server)
    client = await connected(proxy.url, name)
    proxy.faults = random_faults(seed=100 * round_ + KINDS.index(server.kind), mean_bytes=4000)
    proxy.cut()
    await sell(client, crowd, tasks=300, time_out=30_000)
    told = crowd.audit()
    assert told["unknown"] + told["unsent"] <= 20, "with so much time, nearly all can be learnt"
    assert proxy.faults_met > 5
    assert client.statistics()["asked_again"] > 2
    await client.aclose()


async def test_impatient_calls_through_a_lossy_network_are_consistent(
    server, start_proxy, name, loop_kind
):
    """Short time_outs: more outcomes stay unknown, and each call counts once or not at all."""
    crowd = Crowd(server.redis(), name, 1000)
    proxy = start_proxy(server)
    client = await connected(proxy.url, name, socket_timeout=0.02)
    proxy.faults = random_faults(seed=KINDS.index(server.kind), mean_bytes=5000)
    proxy.cut()
    await sell(client, crowd, tasks=100, time_out=20)
    told = crowd.audit()
    assert told["done"] > 100
    assert told["done"] + told["answered"] + told["unknown"] + told["unsent"] == crowd.size
    assert proxy.faults_met > 5
    await client.aclose()


async def test_a_lost_reply_is_no_lock_out(server, start_proxy, lock, name, loop_kind):
    """A lease of a minute: whoever fails to know his own token again would wait for its end."""
    proxy = start_proxy(server)
    client = await connected(proxy.url, name)
    proxy.faults = random_faults(seed=KINDS.index(server.kind), mean_bytes=1500)
    proxy.cut()
    observer = server.redis()
    locks = [f"{lock}:{number}" for number in range(5)]

    async def take_and_give_back(lock):
        for _ in range(15):
            assert await client.acquire_lock(lock, 60_000, 20_000) is True
            assert observer.exists(lock)
            await client.release_lock(lock)
            assert not observer.exists(lock)

    await gathered(map(take_and_give_back, locks))
    assert proxy.faults_met > 5
    await client.aclose()


@pytest.mark.parametrize("action", ["cut", "reset", "swallow"])
@pytest.mark.parametrize("direction", [REQUEST, REPLY])
async def test_a_batch_that_is_lost_at_any_byte_is_repaired(
    start_server, start_proxy, name, loop_kind, action, direction
):
    """Thirty calls of all kinds in it; part of them answered, part of them not even sent."""
    server = start_server()
    proxy = start_proxy(server)
    client = await connected(proxy.url, name, socket_timeout=0.05)
    steps = range(0, 1500, 150) if direction == REQUEST else range(0, 300, 30)
    for byte in steps:
        crowd = Crowd(server.redis(), lambda kind, byte=byte: f"{kind}:{byte}", 30)
        proxy.strike(Fault(action, direction, byte))
        await gathered(crowd.ask(client, number, time_out=20_000) for number in range(crowd.size))
        assert crowd.audit() == {"done": 24, "answered": 6}
    assert proxy.faults_met > len(steps) // 2
    await client.aclose()


async def test_a_reconnect_that_fails_again_and_again_is_ridden_out(
    start_server, start_proxy, name, loop_kind
):
    server = start_server()
    crowd = Crowd(server.redis(), name, 200)
    proxy = start_proxy(server)
    client = await connected(proxy.url, name)
    proxy.faults = in_turn(
        Fault("cut", REQUEST), Fault("reset", REPLY, 10), Fault("swallow", REPLY), Fault("cut")
    )
    proxy.cut()
    await gathered(crowd.ask(client, number, time_out=20_000) for number in range(crowd.size))
    assert crowd.audit() == {"done": 160, "answered": 40}
    assert proxy.faults_met == 4
    await client.aclose()


async def test_the_outcomes_of_a_whole_batch_are_unknown_together_and_final(
    start_server, start_proxy, name, loop_kind
):
    server = start_server()
    crowd = Crowd(server.redis(), name, 100)
    proxy = start_proxy(server)
    client = await connected(proxy.url, name)
    proxy.strike(Fault("swallow", REPLY))
    proxy.refuse()
    started = time.monotonic()
    await gathered(crowd.ask(client, number, time_out=400) for number in range(crowd.size))
    assert 0.3 < time.monotonic() - started < 10
    told = crowd.audit()
    assert told["unknown"] > 0, "the first was sent"
    assert told["unknown"] + told["unsent"] == crowd.size
    # The way is free again, and the client goes on: what was given up stays as it was.
    proxy.listen()
    after = Crowd(server.redis(), lambda kind: f"{kind}:after", 100)
    await gathered(after.ask(client, number, time_out=20_000) for number in range(after.size))
    assert after.audit() == {"done": 80, "answered": 20}
    assert crowd.audit() == told
    await client.aclose()


async def test_a_slow_network_is_only_slow(start_server, start_proxy, name, loop_kind):
    server = start_server()
    crowd = Crowd(server.redis(), name, 500)
    proxy = start_proxy(server)
    client = await connected(proxy.url, name, socket_timeout=5)
    proxy.faults = lambda: Fault("delay", REPLY, 100, seconds=0.02)
    proxy.cut()
    await sell(client, crowd, tasks=100)
    assert crowd.audit() == {"done": 400, "answered": 100}
    assert client.statistics()["asked_again"] <= 1
    await client.aclose()


def test_loops_of_several_threads_share_a_client_through_a_lossy_network(
    start_server, start_proxy, name
):
    """Loops of both kinds, on one queue and one connection."""
    server = start_server()
    observer = server.redis()
    proxy = start_proxy(server)
    client = on_loop(connected(proxy.url, name))
    proxy.faults = random_faults(seed=1, mean_bytes=8000)
    proxy.cut()
    crowds = [Crowd(observer, lambda kind, n=n: f"{kind}:{n}", 600) for n in range(4)]
    failures = []

    def on_its_own(crowd, kind):
        try:
            on_loop(sell(client, crowd, tasks=50, time_out=30_000), kind)
        except BaseException as error:
            failures.append(error)

    kinds = ("asyncio", "uvloop", "asyncio", "uvloop")
    threads = [
        threading.Thread(target=on_its_own, args=pair) for pair in zip(crowds, kinds, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    for crowd in crowds:
        told = crowd.audit()
        assert told["unknown"] + told["unsent"] <= 20
    assert proxy.faults_met > 4
    on_loop(client.aclose())


async def test_every_waiter_of_a_failed_batch_gets_an_exception_of_its_own(
    start_server, start_proxy, name, loop_kind
):
    """A shared one would collect the tracebacks of all who raise it."""
    server = start_server()
    proxy = start_proxy(server)
    client = await connected(proxy.url, name)
    proxy.refuse()
    proxy.cut()
    await eventually(lambda: not proxy.links)
    errors = await outcomes(
        client.update_inventory("lock", "stock", -1, time_out=200) for _ in range(50)
    )
    assert all(isinstance(error, seckill.ConnectionError) for error in errors)
    assert len({id(error) for error in errors}) == len(errors)
    await client.aclose()
