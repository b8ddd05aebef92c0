"""When everybody loses the server at once: they come back spread out, and each does so seldom.

A crowd in one process costs what one caller costs.
"""

from __future__ import annotations

import os
import time
from collections import Counter

import pytest
import seckill
import seckill.aio
from support.aio import on_loop, outcomes
from support.clients import connected
from support.gate import Gate
from support.programs import Program
from support.proxy import SilentHost
from support.threads import all_of, wait_until

STRESS = bool(os.environ.get("SECKILL_STRESS"))
PROCESSES = 1000 if STRESS else 100
UNITS = 10_000_000


def crowding(times: list[float]) -> float:
    """With how many one comes on average, if those count who come within the same 10 ms."""
    counts = Counter(int(moment * 100) for moment in times)
    return sum(count * count for count in counts.values()) / len(times)


def most_attempts(seconds: float) -> float:
    """As often may a process come in so long: at once, after 8 ms at the least, 16, 32, ... 250."""
    return 7 + seconds / 0.25


def sellers(url, processes):
    """So many forked processes, each with a client of its own, which sell until told to stop."""
    import json
    import mmap
    import os
    import sys

    import seckill

    over = mmap.mmap(-1, 1)  # shared with all of them
    reading, writing = os.pipe()

    def sell():
        # No attempt shall be too slow for this machine, however many there are.
        client = seckill.Client(url, socket_timeout=30, timeout=60)
        client.incr_inventory("warm", 1)
        os.write(writing, b"ready\n")
        sold, error = 0, None
        while not over[0] and error is None:
            try:
                client.update_inventory("lock", "stock", -1, 5000, 60_000)
                sold += 1
            except seckill.SeckillError as raised:
                error = repr(raised)
        told = [sold, client.statistics()["connects"], error]
        os.write(writing, json.dumps(told).encode() + b"\n")

    pids = []
    for _ in range(processes):
        pids.append(os.fork())
        if pids[-1] == 0:
            try:
                sell()
            finally:
                os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as lines:
        for _ in pids:
            assert next(lines) == "ready\n"
        print("ready", flush=True)
        sys.stdin.readline()
        over[0] = 1
        told = [json.loads(line) for line in lines]
    for pid in pids:
        os.waitpid(pid, 0)
    return told


def accounted_for(observer, told, processes):
    """Each has gone on to the end, and what they sold is what is gone."""
    assert len(told) == processes
    assert [error for _, _, error in told if error] == []
    assert sum(sold for sold, _, _ in told) == UNITS - int(observer.get("stock"))


@pytest.fixture
def gate(start_server):
    server = start_server("maxclients 5000")
    gate = Gate((server.host, server.port))
    gate.server = server
    yield gate
    gate.close()


@pytest.mark.stress
def test_processes_that_lose_the_server_come_back_spread_out_and_sell_on(gate):
    observer = gate.server.redis()
    observer.set("stock", UNITS)
    program = Program(sellers, gate.url, PROCESSES, limit=120)
    program.expect("ready")
    wait_until(lambda: int(observer.get("stock")) < UNITS - 10 * PROCESSES)
    assert len(gate.came) == PROCESSES, "one connection each"
    shut = gate.shut()
    time.sleep(2)  # long enough for all of them to come as seldom as they ever do
    opened = gate.open()
    wait_until(lambda: gate.links >= PROCESSES)
    left = int(observer.get("stock"))
    wait_until(lambda: int(observer.get("stock")) < left - 10 * PROCESSES)
    program.say("")
    told = program.ended().value
    accounted_for(observer, told, PROCESSES)
    assert {connects for _, connects, _ in told} == {2}

    turned_away = [moment for moment in gate.came[PROCESSES:] if moment < opened]
    assert len(turned_away) <= PROCESSES * most_attempts(opened - shut)
    assert crowding([moment for moment in turned_away if moment > shut + 0.7]) < PROCESSES / 6
    assert crowding([moment for moment in gate.came if moment >= opened]) < PROCESSES / 6


def test_processes_sell_on_when_the_server_itself_comes_back(start_server):
    server = start_server("appendonly yes", "appendfsync always")
    observer = server.redis()
    observer.set("stock", UNITS)
    program = Program(sellers, server.url, 20, limit=120)
    program.expect("ready")
    for _ in range(3):
        left = int(observer.get("stock"))
        wait_until(lambda left=left: int(observer.get("stock")) < left - 200)
        server.kill()
        server.start()
    left = int(observer.get("stock"))
    wait_until(lambda: int(observer.get("stock")) < left - 200)
    program.say("")
    accounted_for(observer, program.ended().value, 20)


# -- a server that takes connections and never answers -------------------------------------------


def test_a_silent_server_costs_a_crowd_of_threads_one_time_out():
    with SilentHost() as host:
        client = seckill.Client(host.url, socket_timeout=0.5, timeout=20)
        errors = []

        def caller():
            try:
                client.update_inventory("lock", "stock", -1, time_out=20_000)
            except seckill.ConnectionError as error:
                errors.append(error)

        all_of([caller] * 64)
        assert len(errors) == 64
        assert not any(error.sent for error in errors)
        attempts, _ = host.received()
        assert attempts <= 2, "who comes while somebody tries waits for what comes of it"


def test_a_silent_server_costs_a_crowd_of_tasks_one_time_out(loop_kind):
    async def main(url):
        async with seckill.aio.Client(url, socket_timeout=0.5, timeout=20) as client:
            calls = (
                client.update_inventory("lock", "stock", -1, 5000, 20_000) for _ in range(1000)
            )
            return await outcomes(calls)

    with SilentHost() as host:
        errors = on_loop(main(host.url), loop_kind)
        assert all(isinstance(error, seckill.ConnectionError) for error in errors)
        assert not any(error.sent for error in errors)
        assert host.received()[0] <= 2


@pytest.mark.parametrize("callers", [1, 64])
def test_a_server_that_falls_silent_is_asked_as_often_by_a_crowd_as_by_one(
    start_server, start_proxy, callers
):
    """It was there before, so it is waited for: attempt after attempt, until the time is over."""
    proxy = start_proxy(start_server())
    client = connected(proxy.url, socket_timeout=0.2)
    before = proxy.connections
    proxy.swallow("request", "reply")

    def caller():
        with pytest.raises(seckill.ConnectionError):
            client.update_inventory("lock", "stock", -1, time_out=1000)

    began = time.monotonic()
    all_of([caller] * callers)
    seconds = time.monotonic() - began
    assert proxy.connections - before <= 2 + seconds / 0.2
