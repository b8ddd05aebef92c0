"""A hundred thousand tasks at once: bounded batches, bounded turns of the loop, bounded queues."""

from __future__ import annotations

import asyncio
import os
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import seckill
import seckill.aio
from support.aio import waiting
from support.programs import run
from support.relay import Relay
from support.servers import Server
from support.threads import wait_until

STRESS = bool(os.environ.get("SECKILL_STRESS"))
CROWD = 100_000
MOST_STEPS, MOST_CALLS, MOST_RUNS = 8192, 128, 1024  # of a batch
MOST_WAITING = 2**20  # in a queue
HOUR = 3_600_000


# -- what is on the wire --------------------------------------------------------------------------


class Wire:
    """What a client sends to its server, word for word."""

    def __init__(self, server: Server) -> None:
        self._sent: dict[int, list[bytes]] = {}
        self._relay = Relay((server.host, server.port))
        self._relay.on_request = self._take_down
        self.url, self.close = self._relay.url, self._relay.close

    def _take_down(self, connection: int, data: bytes, on: Callable[[bytes], None]) -> None:
        self._sent.setdefault(connection, []).append(data)
        on(data)

    def batches(self) -> dict[int, list[list[int]]]:
        """For each batch's number, its calls; for each call, how many callers its runs hold."""
        batches: dict[int, list[list[int]]] = {}
        for data in self._sent.values():
            for name, *words in commands(b"".join(data)):
                if name in (b"EVALSHA", b"EVAL"):
                    # script, number of keys, keys, batch, deadline, life, token, right, runs
                    own = words[2 + int(words[1]) :]
                    runs = [int(count) for count in own[6::2]]
                    batches.setdefault(int(own[0]), []).append(runs)
        return batches


def commands(data: bytes) -> Iterator[list[bytes]]:
    at = 0

    def number() -> int:
        nonlocal at
        end = data.index(b"\r\n", at)
        value, at = int(data[at + 1 : end]), end + 2
        return value

    while at < len(data):
        words = []
        for _ in range(number()):
            length = number()
            words.append(data[at : at + length])
            at += length + 2
        yield words


@pytest.fixture
def server(start_server: Callable[..., Server]) -> Server:
    return start_server()


@pytest.fixture
def wire(server: Server) -> Iterator[Wire]:
    wire = Wire(server)
    yield wire
    wire.close()


def milliseconds_per_script(server: Server) -> float:
    """On average: on a busy machine a single one may take any time. 20 are too many."""
    return server.redis().info("commandstats")["cmdstat_evalsha"]["usec_per_call"] / 1000


async def at_once(calls: list[Any], within: float = 60) -> Counter[str]:
    """Make all calls at once; how many had which outcome."""
    told = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), within)
    return Counter("done" if outcome is None else repr(outcome) for outcome in told)


async def test_a_crowd_that_asks_for_the_same_travels_in_bounded_batches(server, wire, loop_kind):
    observer = server.redis()
    observer.set("stock", 60_000)
    async with seckill.aio.Client(wire.url, socket_timeout=20) as client:
        await client.update_inventory("lock", "stock", 0)  # the server knows the script
        told = await at_once(
            [client.update_inventory("lock", "stock", -1, time_out=60_000) for _ in range(CROWD)]
        )
        assert client.statistics()["steps"] == CROWD + 1
    assert told == {"done": 60_000, "InsufficientInventory('stock', 0, 1)": 40_000}
    assert observer.get("stock") == b"0"
    sizes = [sum(map(sum, calls)) for calls in wire.batches().values()]
    assert sum(sizes) == CROWD + 2, "the first was sent twice, with the script's text"
    assert 1000 < max(sizes) <= MOST_STEPS
    assert milliseconds_per_script(server) < 20


async def test_a_crowd_that_asks_for_this_and_that_travels_in_bounded_batches(
    server, wire, loop_kind
):
    """Each call differs from the one before: as much work for the server as calls can be."""
    observer = server.redis()
    observer.set("stock", 10**9)
    calls = 30_000
    async with seckill.aio.Client(wire.url, socket_timeout=20) as client:
        told = await at_once(
            [
                client.update_inventory("lock", "stock", -1 - number % 2, time_out=60_000)
                for number in range(calls)
            ]
        )
    assert told == {"done": calls}
    assert int(observer.get("stock")) == 10**9 - calls * 3 // 2
    runs = [len(runs) for calls in wire.batches().values() for runs in calls]
    assert max(runs) == MOST_RUNS
    assert milliseconds_per_script(server) < 20


async def test_a_crowd_with_a_stock_each_travels_in_bounded_batches(server, wire, loop_kind):
    observer = server.redis()
    calls = 5000
    async with seckill.aio.Client(wire.url, socket_timeout=20) as client:
        await client.incr_inventory("stock:0", 0)  # the server knows the script
        told = await at_once([client.incr_inventory(f"stock:{n}") for n in range(calls)])
    assert told == {"done": calls}
    assert len(observer.keys("stock:*")) == calls
    assert max(len(calls) for calls in wire.batches().values()) == MOST_CALLS
    assert milliseconds_per_script(server) < 20


# -- the loop -------------------------------------------------------------------------------------


async def test_a_hundred_thousand_answers_at_once_leave_the_loop_turns_of_its_own(
    server, loop_kind
):
    """The loop is kept busy until all answers are there, and has to hand out all of them."""
    server.redis().set("stock", CROWD)
    loop = asyncio.get_running_loop()
    async with seckill.aio.Client(server.url) as client:
        tasks = [
            asyncio.ensure_future(client.update_inventory("lock", "stock", -1, time_out=60_000))
            for _ in range(CROWD)
        ]
        await asyncio.sleep(0)  # each has asked; each has its answer before the loop turns again
        wait_until(lambda: client.statistics()["steps"] == CROWD, within=60)
        turns, left = 0, len(tasks)

        def count(_: object) -> None:
            nonlocal left
            left -= 1

        for task in tasks:
            task.add_done_callback(count)
        before, most = left, 0

        def turn() -> None:
            nonlocal turns, before, most
            turns, most, before = turns + 1, max(most, before - left), left
            if left:
                loop.call_soon(turn)

        loop.call_soon(turn)
        await asyncio.wait(tasks)
        assert all(task.result() is None for task in tasks)
        # Portions of a millisecond: some hundred of them here, and a dozen where tasks are cheap.
        assert turns >= 12, (turns, most)
        assert most <= CROWD // 4


async def test_a_task_that_keeps_the_loop_busy_does_not_keep_the_calls_of_others_from_being_sent(
    server, loop_kind
):
    """Both are woken in one turn of the loop; the first asks again, the second takes its time."""
    observer = server.redis()
    seen = False
    async with seckill.aio.Client(server.url) as client:

        async def ask_twice() -> None:
            await client.incr_inventory("stock")
            await client.incr_inventory("second")

        async def keep_busy() -> None:
            nonlocal seen
            await client.incr_inventory("stock")
            end = time.monotonic() + 5
            while not seen and time.monotonic() < end:
                seen = observer.exists("second")

        await client.incr_inventory("stock", 0)
        tasks = [asyncio.ensure_future(ask_twice()), asyncio.ensure_future(keep_busy())]
        await asyncio.sleep(0)
        wait_until(lambda: observer.get("stock") == b"2")  # not a turn of the loop
        await asyncio.wait(tasks)
    assert seen


async def test_a_crowd_whose_time_is_over_is_told_so_in_time(server, loop_kind):
    calls = 20_000
    client = seckill.aio.Client(server.url, socket_timeout=0.5)
    await client.incr_inventory("stock", 10)
    with server.frozen():
        started = time.monotonic()
        told = await asyncio.gather(
            *(client.update_inventory("lock", "stock", -1, time_out=1000) for _ in range(calls)),
            return_exceptions=True,
        )
        assert time.monotonic() - started < 20
    assert all(isinstance(error, seckill.ConnectionError) for error in told)
    assert sum(error.sent for error in told) <= 2 * MOST_STEPS, "the others were not even sent"
    assert server.redis().get("stock") == b"10"
    await client.aclose()


# -- coming and going -----------------------------------------------------------------------------


async def best(measure: Callable[[int], Awaitable[float]], count: int) -> float:
    """The lesser of two measurements: a busy machine only ever adds."""
    return min([await measure(count) for _ in range(2)])


@pytest.mark.stress
@pytest.mark.parametrize("what", ["for_the_server", "for_a_lock", "to_take_a_lock"])
async def test_what_it_costs_to_come_and_go_does_not_grow_with_the_crowd(server, loop_kind, what):
    """Eight times as many take about eight times as long; sixty times if each one looks at all."""
    observer = server.redis()
    observer.set("stock", CROWD)
    observer.set("held", "somebody", px=HOUR)
    client = seckill.aio.Client(server.url, socket_timeout=60, timeout=60)
    await client.update_inventory("lock", "stock", 0)
    call = {
        "for_the_server": lambda: client.update_inventory("lock", "stock", -1, 5000, HOUR),
        "for_a_lock": lambda: client.update_inventory("held", "stock", -1, 5000, HOUR),
        "to_take_a_lock": lambda: client.acquire_lock("held", 5000, HOUR),
    }[what]

    async def come_and_go(count: int) -> float:
        started = time.process_time()
        tasks = [asyncio.ensure_future(call()) for _ in range(count)]
        await asyncio.sleep(0)
        if what != "for_the_server":
            await waiting(client)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        return time.process_time() - started

    many = CROWD if STRESS else 40_000 if what == "for_the_server" else 20_000
    if what == "for_the_server":
        server.freeze()
    growth = await best(come_and_go, many) / await best(come_and_go, many // 8)
    assert growth < 30
    server.thaw()
    observer.delete("held")
    await asyncio.wait_for(call(), 20)
    await client.aclose()


async def test_a_crowd_that_waits_for_a_lock_goes_through_when_it_is_freed(server, loop_kind):
    observer = server.redis()
    observer.mset({"stock": 15_000, "lock": "somebody"})
    calls = 20_000
    async with seckill.aio.Client(server.url) as client:
        buying = [client.update_inventory("lock", "stock", -1, 5000, HOUR) for _ in range(calls)]
        (asking,) = await waiting(client, at_once(buying))
        assert observer.get("stock") == b"15000"
        observer.delete("lock")
        told = await asyncio.wait_for(asking, 60)
    assert told == {"done": 15_000, "InsufficientInventory('stock', 0, 1)": 5000}
    assert observer.get("stock") == b"0"
    assert milliseconds_per_script(server) < 20


# -- the queue ------------------------------------------------------------------------------------


def fills_the_queue(url, pid):
    """More calls than a queue holds; without tasks, which would take gigabytes more."""
    import asyncio
    import os
    import signal

    import seckill.aio

    async def main():
        client = seckill.aio.Client(url, socket_timeout=600, timeout=600)
        await client.incr_inventory("stock", 0)
        os.kill(pid, signal.SIGSTOP)
        first = asyncio.ensure_future(client.incr_inventory("first"))
        await asyncio.sleep(0.1)  # it is under way, and those who come now queue
        waiting, told = [], None
        try:
            while told is None and len(waiting) < 2**20 + 10_000:
                call = client.incr_inventory("stock")
                try:
                    call.send(None)
                    waiting.append(call)
                except seckill.ConnectionError as error:
                    told = [type(error).__name__, error.sent]
            for call in waiting:
                call.close()
            # Who has left does not wait: there is room again, though the server still sleeps.
            last = asyncio.ensure_future(client.incr_inventory("last"))
            await asyncio.sleep(0.1)
            room = not last.done()
        finally:
            os.kill(pid, signal.SIGCONT)
        await first
        if room:
            await last
        await client.aclose()
        return [len(waiting), told, room]

    return asyncio.run(main())


def test_who_comes_when_a_million_calls_are_waiting_is_told_at_once(server):
    count, told, room = run(fills_the_queue, server.url, server.pid, limit=120).value
    assert told == ["ConnectionError", False]
    assert count == MOST_WAITING
    assert room
    assert server.redis().mget("stock", "first", "last") == [b"0", b"1", b"1"]
