"""Every kind of event loop, any number of them, in any thread, one after the other or at once."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import logging
import sys
import threading

import pytest
import seckill.aio
from support.aio import LOOPS, eventually, every_call, gathered, on_loop, waiting
from support.clients import HOUR
from support.programs import run
from support.threads import all_of, native_threads, open_files

pytestmark = pytest.mark.core

# -- kinds of loops ---------------------------------------------------------------------------


async def test_on_each_kind_of_loop(coroutines, name, loop_kind):
    assert type(asyncio.get_running_loop()).__module__.partition(".")[0] == loop_kind
    assert await every_call(coroutines, name) == 7


@pytest.mark.parametrize("kind", LOOPS)
def test_in_debug_mode(coroutines, name, kind, caplog):
    with caplog.at_level(logging.WARNING, logger="asyncio"):
        assert on_loop(every_call(coroutines, name), kind, debug=True) == 7
    # How long a step of the loop took is no concern of this test.
    assert [r.getMessage() for r in caplog.records if " took " not in r.getMessage()] == []


@pytest.mark.skipif(sys.version_info < (3, 12), reason="this Python has no eager tasks")
async def test_in_eager_tasks(coroutines, name, redis_py, loop_kind):
    """They begin at once, inside of another task that is running."""
    key, lock = name("stock"), name("lock")

    def eager(coroutine):
        return asyncio.Task(coroutine, loop=asyncio.get_running_loop(), eager_start=True)

    await coroutines.incr_inventory(key, 100)
    assert await coroutines.acquire_lock(lock, HOUR)
    child = eager(coroutines.update_inventory(lock, key, -1, 5000, 0))
    await coroutines.update_inventory(lock, key, -1, 5000, 0)
    with pytest.raises(seckill.LockTimeout):
        await child
    await coroutines.release_lock(lock)
    with pytest.raises(ValueError, match="change_num"):  # it has ended before it is awaited
        await eager(coroutines.update_inventory(lock, key, 2**63))
    await gathered([eager(coroutines.update_inventory(lock, key, -1)) for _ in range(50)])
    assert redis_py.get(key) == b"49"


# -- many loops ---------------------------------------------------------------------------------


@pytest.mark.parametrize("kinds", [["asyncio", "asyncio"], ["uvloop", "asyncio", "uvloop"]])
def test_a_client_goes_from_loop_to_loop(aio_client, redis_py, key, lock, kinds):
    async def sell():
        await gathered([aio_client.update_inventory(lock, key, -1) for _ in range(20)])

    redis_py.set(key, 100)
    for kind in kinds:
        on_loop(sell(), kind)
    assert int(redis_py.get(key)) == 100 - 20 * len(kinds)
    assert aio_client.statistics()["connects"] == 1, "its connection stays"


def a_hundred_loops(url, kind):
    import asyncio

    import seckill.aio
    import uvloop
    from support.threads import native_threads, open_files, wait_until

    client = seckill.aio.Client(url)
    new_loop = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[kind]

    async def sell():
        await client.update_inventory("lock", "stock", -1)
        assert await client.acquire_lock("held", 1000, 20) is False
        await client.update_inventory("lock", "stock", -1)

    def use_one():
        loop = new_loop()
        loop.run_until_complete(sell())
        loop.close()

    for _ in range(3):  # what is opened once and kept
        use_one()
    before = open_files(), native_threads()
    for _ in range(100):
        use_one()
    # A thread that has nothing to do any more may take a moment to end.
    wait_until(lambda: open_files() <= before[0] and native_threads() <= before[1])
    return client.statistics()["connects"]


@pytest.mark.parametrize("kind", LOOPS)
def test_a_hundred_loops_leave_no_file_and_no_thread(start_server, kind):
    server = start_server()
    server.redis().set("stock", 1000)
    server.redis().set("held", "somebody", px=HOUR)
    ended = run(a_hundred_loops, server.url, kind, limit=60)
    assert ended.value == 1
    assert ended.stderr == ""
    assert server.redis().get("stock") == b"794"


def test_a_hundred_asyncio_runs(coroutines, redis_py, key, lock):
    redis_py.set(key, 1000)
    for _ in range(100):
        asyncio.run(coroutines.update_inventory(lock, key, -1))
    assert redis_py.get(key) == b"900"


@pytest.mark.parametrize("kind", LOOPS)
def test_a_client_that_is_gone_leaves_no_file_and_no_thread(start_server, kind):
    """Dropped without a word, on a loop that goes on."""
    server = start_server()

    async def use_and_drop():
        for _ in range(5):
            await seckill.aio.Client(server.url).incr_inventory("stock", 1)
        before = open_files(), native_threads()
        for _ in range(20):
            await seckill.aio.Client(server.url).incr_inventory("stock", 1)
        await eventually(
            lambda: open_files() <= before[0] and native_threads() <= before[1], within=10
        )

    on_loop(use_and_drop(), kind)


@pytest.mark.parametrize("kinds", [["asyncio"] * 6, ["uvloop"] * 6, ["asyncio", "uvloop"] * 3])
def test_loops_in_several_threads_share_a_client(aio_client, redis_py, name, kinds):
    """Each answer finds the loop, and the task on it, that asked."""
    common, lock = name("stock"), name("lock")
    redis_py.set(common, 10_000)

    async def buyer(thread, number):
        own = name(f"stock{thread}.{number}")
        for i in range(10):
            await aio_client.incr_inventory(own, 1)
            with pytest.raises(seckill.InsufficientInventory) as caught:
                await aio_client.update_inventory(lock, own, -100 - i)
            assert (caught.value.available, caught.value.requested) == (i + 1, 100 + i)
            await aio_client.update_inventory(lock, common, -1)

    def crowd(thread, kind):
        return lambda: on_loop(gathered([buyer(thread, number) for number in range(20)]), kind)

    all_of([crowd(thread, kind) for thread, kind in enumerate(kinds)])
    assert int(redis_py.get(common)) == 10_000 - len(kinds) * 20 * 10
    assert aio_client.statistics()["connects"] == 1


def test_tasks_of_several_loops_take_turns_with_a_lock(aio_client, lock, redis_py):
    inside = []

    async def in_turn(me):
        for _ in range(10):
            assert await aio_client.acquire_lock(lock, HOUR, 60_000)
            inside.append(me)
            assert inside == [me]
            await asyncio.sleep(0)
            inside.remove(me)
            await aio_client.release_lock(lock)

    def crowd(thread, kind):
        return lambda: on_loop(gathered([in_turn((thread, i)) for i in range(3)]), kind)

    all_of([crowd(thread, kind) for thread, kind in enumerate(["asyncio", "uvloop"] * 2)])
    assert not redis_py.exists(lock)


@pytest.mark.parametrize("next_one", ["a task", "a thread"])
@pytest.mark.parametrize("kind", LOOPS)
def test_a_loop_that_is_closed_with_calls_pending_harms_nobody_else(
    server, redis_py, name, kind, next_one, caplog
):
    """Tasks in mid-call are gone with their loop, and so are their places in the queue."""
    client = seckill.aio.configure(server.url)
    key, held = name("stock"), name("held")
    redis_py.set(key, 100)
    redis_py.set(held, "somebody", px=HOUR)
    calls = [
        *(client.acquire_lock(held, HOUR, 60_000) for _ in range(3)),
        *(client.update_inventory(held, key, -50, 5000, 60_000) for _ in range(3)),
    ]
    loop = LOOPS[kind]()
    tasks = loop.run_until_complete(waiting(client, *calls))
    assert len(tasks) == 6
    loop.close()
    with caplog.at_level(logging.CRITICAL, logger="asyncio"):  # "Task was destroyed ..."
        del tasks, calls, loop
        gc.collect()

    async def go_on():
        await client.update_inventory(name("lock"), key, -1)
        redis_py.delete(held)
        assert await client.acquire_lock(held, HOUR, 5000) is True
        await client.release_lock(held)
        await client.update_inventory(held, key, -1)

    def go_on_in_a_thread():
        seckill.update_inventory(name("lock"), key, -1)
        redis_py.delete(held)
        assert seckill.acquire_lock(held, HOUR, 5000) is True
        seckill.release_lock(held)
        seckill.update_inventory(held, key, -1)

    on_loop(go_on(), kind) if next_one == "a task" else go_on_in_a_thread()
    assert redis_py.get(key) == b"98"
    assert not redis_py.exists(held)


def test_a_loop_in_a_thread_that_ends_is_followed_by_another(aio_client, redis_py, key, lock):
    redis_py.set(key, 100)

    def use():
        on_loop(gathered([aio_client.update_inventory(lock, key, -1) for _ in range(5)]))

    for _ in range(10):
        thread = threading.Thread(target=use)
        thread.start()
        thread.join()
    assert redis_py.get(key) == b"50"


def test_a_loop_that_pauses_goes_on_with_its_calls(aio_client, redis_py, key, lock):
    """`run_until_complete` again and again, as notebooks do: answers wait for the loop to run."""
    redis_py.set(key, 10)
    loop = asyncio.new_event_loop()
    tasks = [loop.create_task(aio_client.update_inventory(lock, key, -1)) for _ in range(3)]
    loop.run_until_complete(asyncio.sleep(0))  # they have asked, and nobody looks at the answer
    seckill.Client(**aio_client.settings()).update_inventory(lock, key, -1)
    loop.run_until_complete(gathered(tasks))
    loop.close()
    assert redis_py.get(key) == b"6"


@pytest.mark.parametrize("kinds", [("asyncio", "asyncio"), ("asyncio", "uvloop")])
def test_two_loops_of_one_thread_take_turns(aio_client, redis_py, name, kinds):
    """Answers for the one that does not run wait for it, and never reach the other's tasks."""
    key, held = name("stock"), name("held")
    redis_py.set(key, 100)
    redis_py.set(held, "somebody", px=HOUR)
    loops = [LOOPS[kind]() for kind in kinds]

    def call_on_each():
        return [
            loop.create_task(aio_client.update_inventory(held, key, -1, 5000, 60_000))
            for loop in loops
            for _ in range(3)
        ]

    tasks = call_on_each()
    for loop in loops:
        loop.run_until_complete(waiting(aio_client))
    redis_py.delete(held)
    tasks += call_on_each()
    for loop in reversed(loops):
        loop.run_until_complete(gathered(task for task in tasks if task.get_loop() is loop))
    for loop in loops:
        loop.close()
    assert redis_py.get(key) == b"88"


@pytest.mark.parametrize("kind", LOOPS)
def test_a_loop_that_is_kept_busy_holds_up_no_other(aio_client, redis_py, key, lock, kind):
    async def sell(calls):
        for _ in range(calls):
            await gathered([aio_client.update_inventory(lock, key, -1) for _ in range(50)])

    async def block():
        asking = [asyncio.ensure_future(sell(1)) for _ in range(10)]
        await asyncio.sleep(0)
        all_of([lambda: on_loop(sell(20), kind)] * 2)  # this loop stands still meanwhile
        await gathered(asking)

    redis_py.set(key, 10_000)
    on_loop(block(), kind)
    assert int(redis_py.get(key)) == 10_000 - 10 * 50 - 2 * 20 * 50


# -- each task is itself ------------------------------------------------------------------------

who = contextvars.ContextVar("who")


async def test_a_task_finds_its_own_context_after_an_await(aio_client, name, loop_kind):
    key, lock = name("stock"), name("lock")
    await aio_client.incr_inventory(key, 1_000_000)

    async def task(number):
        who.set(number)
        me = asyncio.current_task()
        for i in range(10):
            await aio_client.update_inventory(lock, key, -1)
            assert who.get() == number
            assert asyncio.current_task() is me
            who.set(number := number + i)
            if i % 5 == 0:
                assert await aio_client.acquire_lock(f"{lock}{number}", 1000, 5000)
                assert who.get() == number
                await aio_client.release_lock(f"{lock}{number}")
                assert who.get() == number

    who.set("nobody")
    await gathered([task(number * 1000) for number in range(100)])
    assert who.get() == "nobody"


async def test_a_call_may_be_awaited_in_another_context(aio_client, redis_py, key, loop_kind):
    """As frameworks do that run handlers in a copied context."""
    context = contextvars.copy_context()
    context.run(who.set, "copied")
    seen = []

    async def handler():
        await aio_client.incr_inventory(key, 1)
        seen.append(who.get())

    await context.run(asyncio.ensure_future, handler())
    assert seen == ["copied"]


async def test_other_callbacks_run_while_calls_are_answered(aio_client, name, loop_kind):
    """One who never waits for long does not keep the loop for himself."""
    turns, over = 0, False

    async def other():
        nonlocal turns
        while not over:
            turns += 1
            await asyncio.sleep(0)

    running = asyncio.ensure_future(other())
    for _ in range(50):
        await aio_client.incr_inventory(name("stock"), 1)
    over = True
    await running
    assert turns >= 25
