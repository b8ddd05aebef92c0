"""A loop that does not run, because somebody blocks it or has stopped it, deceives nobody else."""

from __future__ import annotations

import asyncio
import threading

import pytest
import seckill
import seckill.aio
from support.aio import eventually
from support.programs import Program, run

pytestmark = pytest.mark.core


@pytest.mark.parametrize("how", ["blocked", "stopped"])
def test_a_lock_that_is_freed_behind_a_stuck_loop_is_not_called_held(own_server, lock, how):
    """The first in the process's queue for it is a task, which only asks when its loop runs."""
    observer = own_server.redis()
    observer.set(lock, "somebody", px=3_600_000)
    client = seckill.configure(own_server.url)
    waits, done = threading.Event(), threading.Event()
    loop = asyncio.new_event_loop()

    async def wait() -> asyncio.Task[bool]:
        waiting = asyncio.ensure_future(seckill.aio.acquire_lock(lock, 5000, 60_000))
        await eventually(lambda: client.statistics()["steps"] > 0)
        # The observer, the call's connection, and the ear, which asks again what it has missed.
        await eventually(lambda: len(observer.client_list()) >= 3)
        waits.set()
        if how == "blocked":
            done.wait(30)
        return waiting

    def run() -> None:
        waiting = loop.run_until_complete(wait())
        done.wait(30)
        waiting.cancel()
        loop.run_until_complete(asyncio.wait([waiting]))
        loop.close()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        assert waits.wait(30)
        observer.delete(lock)
        assert seckill.acquire_lock(lock, 60_000, 10_000) is True
        seckill.release_lock(lock)
    finally:
        done.set()
        thread.join()


def stopped_by_an_exit_handler(url):
    import asyncio
    import atexit
    import threading

    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()

    def run(coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    # Before seckill is imported, and so called after its own handler.
    atexit.register(lambda: (run(client.aclose()), print("closed", flush=True)))

    import seckill.aio

    client = seckill.aio.Client(url)
    run(client.incr_inventory("stock", 1))


def test_an_exit_handler_may_wait_for_a_loop_in_a_daemon_thread(own_server):
    ended = Program(stopped_by_an_exit_handler, own_server.url, limit=30).ended()
    assert (ended.status, ended.stderr) == (0, "")
    assert "closed" in ended.stdout


def loops_dropped_without_close(url):
    import asyncio
    import gc
    import weakref

    import seckill.aio

    async def wait() -> None:
        await seckill.aio.incr_inventory("stock")
        waiting.append(asyncio.ensure_future(seckill.aio.acquire_lock("held", 60_000, 60_000)))
        await asyncio.sleep(0.05)

    seckill.aio.configure(url)
    waiting: list[object] = []
    loops = []
    for _ in range(5):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(wait())
        loops.append(weakref.ref(loop))
        waiting.clear()
        del loop
    gc.collect()
    return sum(loop() is not None for loop in loops)


def test_loops_that_are_dropped_without_a_close_are_collected_with_the_calls_that_wait(own_server):
    own_server.redis().set("held", "somebody")
    quiet = {"PYTHONWARNINGS": "ignore"}
    assert run(loops_dropped_without_close, own_server.url, env=quiet).value == 0
