"""A process that has awaited seckill forks: the child starts afresh, the parent is unharmed."""

from __future__ import annotations

import os

import pytest
from support.aio import LOOPS
from support.programs import Program, run
from support.threads import wait_until

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
    import os
    import sys

    import seckill.aio

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

    def fork_again():
        use()
        pid = os.fork()
        use()
        if pid:
            assert os.waitpid(pid, 0)[1] == 0

    def leave():
        use()
        sys.exit(0)  # with all that an interpreter does at its end

    statuses = []
    for do in (use, use_plainly, close, use_and_close, forget, fork_again, leave) * 3:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                do()
                status = 0
            finally:
                if do is not leave:
                    os._exit(status)
        statuses.append(os.waitpid(pid, 0)[1])
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
    import os
    import time

    import seckill.aio
    import uvloop

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
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    in_child()
                    status = 0
                finally:
                    os._exit(status)
            patience = time.monotonic() + 20
            while True:
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    break
                if time.monotonic() > patience:
                    os.kill(pid, 9)
                    _, status = os.waitpid(pid, 0)
                    break
                await asyncio.sleep(0.001)
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
    import os

    import seckill.aio

    client = seckill.aio.configure(url)

    async def main():
        waiters = [asyncio.ensure_future(client.acquire_lock("held", 60_000, 60_000))]
        await asyncio.sleep(0.1)
        statuses = []
        for _ in range(20):
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    taken = asyncio.run(client.acquire_lock("held", 1000, 20))
                    asyncio.run(client.update_inventory("lock", "stock", -1))
                    status = 10 if taken else 0
                finally:
                    os._exit(status)
            statuses.append(os.waitpid(pid, 0)[1])
        print("forked", flush=True)
        got = [await waiter for waiter in waiters]
        await client.release_lock("held")
        return [got, sorted(set(statuses))]

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
