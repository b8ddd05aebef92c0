"""A process that has awaited seckill forks: the child starts afresh, the parent is unharmed."""

from __future__ import annotations

import os

import pytest
from support.aio import LOOPS
from support.programs import Program, run
from support.threads import call, wait_until

pytestmark = pytest.mark.core


# From Python 3.12 on a fork beside a thread that knows nothing of Python is warned of, too.
QUIET = {"PYTHONWARNINGS": "ignore::DeprecationWarning"}


def connections(observer, name):
    return sorted(c["id"] for c in observer.client_list() if c["name"] == name)


# -- os.fork ------------------------------------------------------------------------------------


def fork_between_runs(url):
    """The loop is closed, the leader's thread perhaps still there; children do what children do."""
    import asyncio
    import gc
    import sys

    import seckill.aio
    from support.children import ended, fork, fork_again

    client = seckill.aio.Client(url, client_name="parent")
    default = seckill.aio.configure(url, client_name="parent")
    asyncio.run(client.incr_inventory("stock", 1000))
    asyncio.run(seckill.aio.incr_inventory("stock", 1))

    async def crowd():
        buyers = [client.update_inventory("lock", "stock", -1) for _ in range(10)]
        await asyncio.gather(*buyers, seckill.aio.update_inventory("lock", "stock", -1))

    def use():
        asyncio.run(crowd())

    def use_plainly():
        seckill.update_inventory("lock", "stock", -1)
        use()

    def close():
        asyncio.run(client.aclose())

    def use_and_close():
        use()
        close()

    def forget():
        global nothing
        nothing = seckill.aio.configure(url)
        gc.collect()

    def leave():
        use()
        sys.exit(0)  # with all that an interpreter does at its end

    statuses = []
    for do in (use, use_plainly, close, use_and_close, forget, lambda: fork_again(use), leave) * 3:
        statuses.append(ended(fork(do, leaves=do is leave)))
        asyncio.run(crowd())
    print("forked", flush=True)
    sys.stdin.readline()
    return [statuses, client.statistics()["connects"], default.statistics()["connects"]]


def test_what_children_do_leaves_the_parents_connections_alone(start_server):
    server = start_server()
    observer = server.redis()
    program = Program(fork_between_runs, server.url, limit=60, env=QUIET)
    program.expect("forked")
    # Those of the children are gone with them; the parent's two are those that it began with.
    wait_until(lambda: len(connections(observer, "parent")) == 2)
    program.say("end")
    ended = program.ended()
    assert ended.value == [[0] * 21, 1, 1]
    assert ended.stderr == ""
    crowds_of_children = 3 * (1 + 1 + 1 + 3 + 1)
    left = 1001 - 11 * (crowds_of_children + 21) - 3
    assert int(observer.get("stock")) == left


def fork_in_mid_call(url, kind, forks):
    """From inside the running loop, while its tasks are in mid-call."""
    import asyncio

    import seckill.aio
    import uvloop
    from support.children import ended_meanwhile, fork

    new_loop = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[kind]
    seckill.aio.configure(url)

    def in_child():
        async def sell():
            await asyncio.gather(
                *(seckill.aio.update_inventory("lock", "stock", -1) for _ in range(10))
            )
            await seckill.aio.release_lock("held")  # the parent's, if anybody's

        loop = new_loop()
        loop.run_until_complete(sell())
        loop.close()

    async def main():
        await seckill.aio.incr_inventory("stock", 10_000_000)
        sold, over = [0] * 50, False

        async def buyer(number):
            while not over:
                await seckill.aio.update_inventory("lock", "stock", -1, 5000, 30_000)
                sold[number] += 1

        async def holder():
            while not over:
                assert await seckill.aio.acquire_lock("held", 60_000, 30_000)
                await seckill.aio.release_lock("held")

        tasks = [asyncio.ensure_future(buyer(number)) for number in range(50)]
        tasks += [asyncio.ensure_future(holder()) for _ in range(3)]
        statuses = {}
        for _ in range(forks):
            await asyncio.sleep(0.002)
            status = await ended_meanwhile(fork(in_child))
            statuses[status] = statuses.get(status, 0) + 1
        over = True
        await asyncio.gather(*tasks)
        return {"statuses": statuses, "sold": sum(sold)}

    loop = new_loop()
    try:
        return loop.run_until_complete(main())
    finally:
        loop.close()


FORKS = 1000 if os.environ.get("SECKILL_STRESS") else 150


@pytest.mark.stress
@pytest.mark.parametrize("kind", LOOPS)
def test_forks_from_a_running_loop_with_tasks_in_mid_call_hang_nobody(start_server, kind):
    server = start_server()
    ended = run(fork_in_mid_call, server.url, kind, FORKS, limit=60 + FORKS * 0.1, env=QUIET)
    observer = server.redis()
    assert ended.value["statuses"] == {"0": FORKS}
    assert int(observer.get("stock")) == 10_000_000 - ended.value["sold"] - 10 * FORKS
    assert not observer.exists("held")
    assert ended.stderr == ""


def fork_while_tasks_wait_for_a_lock(url):
    import asyncio

    import seckill.aio
    from support.children import ended, fork

    client = seckill.aio.configure(url)

    def use():
        taken = asyncio.run(client.acquire_lock("held", 1000, 20))
        asyncio.run(client.update_inventory("lock", "stock", -1))
        return 10 if taken else 0

    async def main():
        waiters = [asyncio.ensure_future(client.acquire_lock("held", 60_000, 60_000))]
        await asyncio.sleep(0.1)
        statuses = {ended(fork(use)) for _ in range(20)}
        print("forked", flush=True)
        got = [await waiter for waiter in waiters]
        await client.release_lock("held")
        return [got, sorted(statuses)]

    return asyncio.run(main())


def test_a_task_that_waits_for_a_lock_gets_it_after_forks(start_server):
    server = start_server()
    observer = server.redis()
    observer.set("held", 1, px=600_000)
    observer.set("stock", 100)
    program = Program(fork_while_tasks_wait_for_a_lock, server.url)
    program.expect("forked")
    observer.delete("held")
    assert program.ended().value == [[True], [0]]
    assert not observer.exists("held")
    assert observer.get("stock") == b"80"


def fork_beside_an_answer(url, pid, kind):
    """Nobody has looked at it: the loop is not running, and the leader has gone."""
    import asyncio
    import gc
    import os
    import signal
    import time

    import seckill.aio
    import uvloop
    from support.children import ended, fork
    from support.threads import native_threads, wait_until

    client = seckill.aio.Client(url, socket_timeout=10)
    new_loop = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[kind]
    kept = {"loop": new_loop()}
    # The epoll set of a loop is shared with the parent, and libuv takes from it what it closes.
    drops = ["coroutine", "loop", "everything"] if kind == "asyncio" else ["coroutine"]

    async def begin():
        kept["task"] = asyncio.ensure_future(client.acquire_lock("lock", 3_600_000))
        await asyncio.sleep(0)

    def drop(what):
        if what == "coroutine":
            kept["task"].get_coro().close()
        elif what == "loop":
            kept["loop"].close()
        else:
            kept.clear()
            gc.collect()
        time.sleep(0.3)  # for what a thread might be up to
        return native_threads() - 1

    kept["loop"].run_until_complete(client.incr_inventory("stock"))
    os.kill(pid, signal.SIGSTOP)
    kept["loop"].run_until_complete(begin())
    os.kill(pid, signal.SIGCONT)
    wait_until(lambda: native_threads() == 1)
    statuses = [ended(fork(lambda what=what: drop(what))) for what in drops]
    taken = kept["loop"].run_until_complete(kept["task"])
    kept["loop"].run_until_complete(client.incr_inventory("stock", 5))
    kept["loop"].close()
    done = client.statistics()
    return [any(statuses), taken, done["connects"], done["calls"]]


@pytest.mark.parametrize("kind", LOOPS)
def test_a_child_that_drops_its_parents_calls_leaves_them_to_the_parent(start_server, kind):
    server = start_server()
    ended = run(fork_beside_an_answer, server.url, server.pid, kind)
    # The calls of the parent: three, and the texts of two scripts.
    assert ended.value == [False, True, 1, 5]
    assert server.redis().exists("lock")
    assert server.redis().get("stock") == b"6"


def fork_beside_a_busy_ear(url, forks):
    """Nothing but the calls themselves holds their client; its thread is told again and again."""
    import asyncio

    import seckill.aio
    from support.children import ended_meanwhile, fork

    async def main():
        seckill.aio.configure(url)
        calls = [seckill.aio.acquire_lock(f"held:{number}", 1000, 60_000) for number in range(5)]
        tasks = [asyncio.ensure_future(call) for call in calls]
        await asyncio.sleep(0.2)
        seckill.aio.configure(url)

        def drop():
            for task in tasks:
                task.get_coro().close()

        statuses = {}
        for _ in range(forks):
            await asyncio.sleep(0.002)
            status = await ended_meanwhile(fork(drop))
            statuses[status] = statuses.get(status, 0) + 1
        waiting = not any(task.done() for task in tasks)
        print("forked", flush=True)
        return [statuses, waiting, await asyncio.gather(*tasks)]

    return asyncio.run(main())


@pytest.mark.stress
def test_a_child_that_drops_its_parents_calls_waits_for_none_of_its_threads(start_server):
    """One of them may have been in the middle of something when the process forked."""
    server = start_server()
    observer = server.redis()
    locks = {f"held:{number}": "somebody" for number in range(5)}
    observer.mset(locks)
    program = Program(fork_beside_a_busy_ear, server.url, FORKS, env=QUIET)
    forked = call(program.expect, "forked")
    while forked.is_alive():
        observer.mset(locks)
    forked.result()
    observer.delete(*locks)
    assert program.ended().value == [{"0": FORKS}, True, [True] * 5]


# -- multiprocessing ----------------------------------------------------------------------------


def processes_from_a_running_loop(url, method):
    import asyncio
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    import seckill.aio
    from support import aio

    client = seckill.aio.configure(url)

    async def main():
        await client.incr_inventory("stock", 100)
        loop, context = asyncio.get_running_loop(), multiprocessing.get_context(method)
        with ProcessPoolExecutor(3, mp_context=context) as pool:
            work = [loop.run_in_executor(pool, aio.buy, 3) for _ in range(40)]
            told = await asyncio.gather(*work, return_exceptions=True)
            # And a client that travels, with the functions themselves.
            await loop.run_in_executor(pool, aio.await_in_a_loop, client.incr_inventory, "other", 5)
        await client.incr_inventory("stock", 1)
        refused = [error for error in told if isinstance(error, seckill.InsufficientInventory)]
        sold = [units for units in told if isinstance(units, int)]
        assert {(error.key, error.available, error.requested) for error in refused} <= {
            ("stock", 1, 3)
        }
        return [sum(sold), len(refused), client.statistics()["connects"]]

    return asyncio.run(main())


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_a_process_pool_of_a_running_loop_sells_what_there_is(start_server, method):
    server = start_server()
    ended = run(
        *(processes_from_a_running_loop, server.url, method),
        limit=60,
        env={"SECKILL_REDIS_URL": server.url},
    )
    assert ended.value == [99, 7, 1]
    assert server.redis().get("stock") == b"2"
    assert server.redis().get("other") == b"5"
