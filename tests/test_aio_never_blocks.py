"""Nothing on the loop blocks: in debug mode, asyncio names each callback that takes 10 ms.

A machine that is busy with other things makes any callback slow. So what is seen is held against
the time for which the thread was ready to run and others had the cores; and a load that was slow
is repeated, some few times: what blocks does so each time. That the log would tell is tested, too.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import re
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import seckill
import seckill.aio
from support.aio import on_loop
from support.programs import run
from support.proxy import SilentHost, random_faults
from support.resolver import slow_resolver

pytestmark = pytest.mark.core

SLOW = 0.01  # seconds
HOUR = 3_600_000

Load = Callable[[], Awaitable[None]]


@contextlib.contextmanager
def slow_callbacks() -> Iterator[list[str]]:
    """What asyncio's logger says about callbacks that took too long."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)


async def watched(load: Load) -> None:
    asyncio.get_running_loop().slow_callback_duration = SLOW
    await load()


def kept_waiting() -> float:
    """The seconds for which this thread was ready to run, and others had the cores."""
    with contextlib.suppress(FileNotFoundError):  # not every kernel tells
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    return 0.0


def slow_ones(load: Load, kind: str, attempts: int = 6) -> list[str]:
    """The slow callbacks of the best of several runs."""
    runs = []
    for _ in range(attempts):
        gc.collect()
        gc.disable()  # what pytest and all that it has loaded keep would make for long pauses
        before = kept_waiting()
        try:
            with slow_callbacks() as said:
                on_loop(watched(load), kind, debug=True)
        finally:
            gc.enable()
        took = [float(found[1]) for words in said if (found := re.search(r"took ([\d.]+)", words))]
        if sum(took) <= kept_waiting() - before:
            return []
        runs.append(said)
    return min(runs, key=len)


async def started(calls: Iterable[Coroutine[Any, Any, Any]]) -> list[asyncio.Task[Any]]:
    """Make tasks of them, a few at a time: in debug mode they are dear to make."""
    tasks = []
    for number, call in enumerate(calls):
        tasks.append(asyncio.ensure_future(call))
        if number % 5 == 0:
            await asyncio.sleep(0)
    return tasks


async def all_refused(*calls: Coroutine[Any, Any, Any]) -> None:
    """Wait until each of the calls has failed on the connection."""
    for task in await started(calls):
        with pytest.raises(seckill.ConnectionError):
            await task


def test_a_blocked_loop_is_seen(start_server, loop_kind):
    """By a call of the sync face: were the awaited one like it, the tests below would tell."""
    server = start_server()
    server.redis().set("held", "somebody", px=HOUR)
    plain = seckill.Client(server.url)

    async def load() -> None:
        await asyncio.sleep(0)
        assert plain.acquire_lock("held", 5000, 300) is False

    assert slow_ones(load, loop_kind, attempts=1)


@pytest.mark.parametrize("full", [False, True], ids=["handshake", "connect"])
def test_connecting_to_a_host_that_does_not_answer(loop_kind, full):
    with SilentHost(full=full) as host:

        async def load() -> None:
            client = seckill.aio.Client(host.url, socket_timeout=0.2)
            await all_refused(
                client.acquire_lock("lock", time_out=200),
                client.incr_inventory("stock"),
                client.update_inventory("lock", "stock", -1, time_out=200),
            )
            await client.aclose()

        assert not slow_ones(load, loop_kind)


def test_reconnecting_while_the_server_is_away(start_server, start_proxy, loop_kind):
    server = start_server()
    proxy = start_proxy(server)

    async def load() -> None:
        in_a_thread = partial(asyncio.get_running_loop().run_in_executor, None)
        client = seckill.aio.Client(proxy.url, socket_timeout=0.2, timeout=0.3)
        await client.incr_inventory("stock", 10)
        await in_a_thread(proxy.refuse)
        await in_a_thread(proxy.cut)
        await all_refused(
            client.acquire_lock("lock", time_out=300),
            client.incr_inventory("stock"),
            *(client.update_inventory("lock", "stock", -1, time_out=300) for _ in range(50)),
        )
        await in_a_thread(proxy.listen)
        await client.incr_inventory("stock", 10)
        await client.aclose()

    assert not slow_ones(load, loop_kind)


def test_a_server_that_is_stopped(start_server, loop_kind):
    server = start_server()

    async def load() -> None:
        client = seckill.aio.Client(server.url, socket_timeout=0.1)
        await client.incr_inventory("stock", 10)
        server.freeze()
        await all_refused(
            *(client.update_inventory("lock", "stock", -1, time_out=200) for _ in range(50))
        )
        server.thaw()
        await client.aclose()

    assert not slow_ones(load, loop_kind)


def test_waiting_for_a_lock(start_server, loop_kind):
    """Held by another process, then freed; and given from hand to hand by tasks."""
    server = start_server()
    observer = server.redis()
    observer.set("stock", 10_000)

    async def load() -> None:
        observer.set("lock", "somebody", px=HOUR)
        client = seckill.aio.Client(server.url)

        async def take_turns() -> None:
            assert await client.acquire_lock("lock", HOUR, 60_000)
            await client.release_lock("lock")

        tasks = await started(take_turns() for _ in range(30))
        tasks += await started(
            client.update_inventory("lock", "stock", -1, 5000, 60_000) for _ in range(30)
        )
        assert await client.acquire_lock("lock", HOUR, 100) is False
        observer.delete("lock")
        for task in tasks:
            await task
        await client.aclose()

    assert not slow_ones(load, loop_kind)


def test_a_thousand_tasks_that_sell(start_server, loop_kind):
    server = start_server()
    observer = server.redis()

    async def load() -> None:
        observer.set("stock", 4000)
        client = seckill.aio.Client(server.url)

        refused: list[None] = []

        async def buy() -> None:
            try:
                for _ in range(10):
                    await client.update_inventory("lock", "stock", -1, 5000, 60_000)
            except seckill.InsufficientInventory:
                refused.append(None)

        for task in await started(buy() for _ in range(1000)):
            await task
        assert len(refused) > 500
        await client.aclose()

    assert not slow_ones(load, loop_kind)


def test_tasks_that_are_cancelled_by_the_hundred(start_server, loop_kind):
    server = start_server()

    async def load() -> None:
        client = seckill.aio.Client(server.url)
        await client.incr_inventory("stock", 1)
        for _ in range(20):
            tasks = await started(client.acquire_lock(f"lock:{number}") for number in range(25))
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
        await client.aclose()

    assert not slow_ones(load, loop_kind)


def test_a_lossy_network(start_server, start_proxy, loop_kind):
    server = start_server()
    server.redis().set("stock", 10**9)
    proxy = start_proxy(server)

    async def load() -> None:
        proxy.faults = lambda: None
        client = seckill.aio.Client(proxy.url, socket_timeout=0.1, socket_connect_timeout=0.1)
        await client.incr_inventory("stock", 0)
        proxy.faults = random_faults(seed=1, mean_bytes=2000)
        proxy.cut()

        async def buy() -> None:
            for _ in range(10):
                await client.update_inventory("lock", "stock", -1, 5000, 60_000)

        for task in await started(buy() for _ in range(20)):
            await task
        await client.aclose()

    assert not slow_ones(load, loop_kind)


# -- names ----------------------------------------------------------------------------------------


def looks_up_a_name(port, kind):
    """Who was cancelled, the seconds until that and until the end, and the turns of the loop."""
    import asyncio
    import time

    import seckill.aio
    from support.aio import on_loop

    async def main():
        turns = 0

        async def turn():
            nonlocal turns
            while True:
                await asyncio.sleep(0.005)
                turns += 1

        turning = asyncio.ensure_future(turn())
        client = seckill.aio.Client(
            host="db.slow", port=port, socket_timeout=20, socket_connect_timeout=20
        )
        began = time.monotonic()
        tasks = [asyncio.ensure_future(client.incr_inventory(f"stock:{n}")) for n in range(20)]
        await asyncio.sleep(0.1)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks[::2])
        gone = time.monotonic() - began
        await asyncio.wait(tasks)
        turning.cancel()
        await client.aclose()
        return [[t.cancelled() for t in tasks], gone, time.monotonic() - began, turns]

    return on_loop(main(), kind)


def test_a_name_that_takes_its_time(start_server, loop_kind, tmp_path):
    """getaddrinfo cannot be interrupted: neither the loop nor who is cancelled waits for it."""
    server = start_server()
    resolver = slow_resolver(tmp_path, milliseconds=1000)
    program = run(looks_up_a_name, server.port, loop_kind, env=resolver)
    cancelled, gone, took, turns = program.value
    assert cancelled == [True, False] * 10
    assert gone < took
    assert took > 1, "the name took its time"
    assert turns > 20, "and the loop went on"
    assert server.redis().mget([f"stock:{n}" for n in range(20)]) == [None, b"1"] * 10


def gives_up_on_a_name(port, kind):
    import time

    import seckill.aio
    from support.aio import on_loop

    async def main():
        client = seckill.aio.Client(host="db.slow", port=port, socket_timeout=0.3)
        began = time.monotonic()
        try:
            await client.update_inventory("lock", "stock", -1, time_out=300)
        except seckill.ConnectionError as error:
            return [type(error).__name__, error.sent, time.monotonic() - began]

    return on_loop(main(), kind)


def test_a_name_that_takes_too_long(start_server, loop_kind, tmp_path):
    server = start_server()
    resolver = slow_resolver(tmp_path, milliseconds=3000)
    name, sent, took = run(gives_up_on_a_name, server.port, loop_kind, env=resolver).value
    assert (name, sent) == ("ConnectionError", False)
    assert took < 2.5
