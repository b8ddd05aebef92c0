"""A crowd of tasks shares round trips and wake-ups, and each gets the answer that is its own."""

from __future__ import annotations

import asyncio

import pytest
import seckill.aio
import uvloop
from hypothesis import example, given
from hypothesis import strategies as st
from seckill import _core
from support.aio import LOOPS, gathered, on_loop, outcomes, waiting
from support.clients import HOUR
from support.interleaving import (
    CREATED_IN_MID_BATCH,
    LAST_UNIT,
    TwoStocks,
    ask,
    ask_awaited,
    crowds,
    many_examples,
    stocks,
)
from support.threads import all_of, call

pytestmark = pytest.mark.core


def since(client, before):
    """What a client has done since then."""
    return {name: count - before[name] for name, count in client.statistics().items()}


async def connected(url):
    """A client that has been connected: what it does from now on belongs to the test."""
    client = seckill.aio.Client(url)
    await client.incr_inventory("warm", 1)
    return client, client.statistics()


def in_two_batches(done, steps):
    """The first who came was on the way alone; all others make the second batch.

    A frozen server may cost repeats of the one in flight, which are no calls of their own.
    """
    assert done["steps"] == steps
    assert done["calls"] <= 2 + done["asked_again"]


# -- any interleaving gives what a sequential model gives ---------------------------------------


@pytest.mark.stress
@many_examples
@given(
    stock=st.tuples(stocks, stocks),
    crowd=crowds,
    threads=st.integers(0, 2),
    kind=st.sampled_from(sorted(LOOPS)),
    together=st.booleans(),
)
@example(stock=(1, 0), crowd=LAST_UNIT, threads=2, kind="asyncio", together=True)
@example(stock=(None, None), crowd=CREATED_IN_MID_BATCH, threads=0, kind="uvloop", together=True)
def test_any_interleaving_gives_each_caller_what_a_sequential_model_gives(
    own_server, stock, crowd, threads, kind, together
):
    """The first few of the crowd are threads, the others tasks: on one client, the default one."""
    seckill.configure(own_server.url)
    two = TwoStocks(own_server, stock)

    async def task(wishes):
        return [(i, await ask_awaited(seckill.aio, two.lock, two.keys[i], *w)) for i, w in wishes]

    def tasks():
        return on_loop(gathered(map(task, crowd[threads:])), kind)

    def thread(wishes):
        return lambda: [[(i, ask(seckill, two.lock, two.keys[i], *wish)) for i, wish in wishes]]

    with two.asked_together(together):
        told = all_of([tasks, *map(thread, crowd[:threads])])
    two.audit(answer for buyers in told for answers in buyers for answer in answers)


async def test_each_of_a_thousand_tasks_gets_its_own_answer(own_server, loop_kind):
    """Distinct keys and distinct changes, a third of them refused, all in a few batches."""
    observer = own_server.redis()
    client, before = await connected(own_server.url)

    async def task(number):
        key = f"stock:{number % 100}:{number}"
        await client.incr_inventory(key, 1000 + number)
        if number % 3:
            await client.update_inventory("lock", key, -number)
            return key, 1000
        with pytest.raises(seckill.InsufficientInventory) as caught:
            await client.update_inventory("lock", key, -5000 - number)
        error = caught.value
        assert (error.key, error.available, error.requested) == (key, 1000 + number, 5000 + number)
        return key, 1000 + number

    told = dict(await gathered(map(task, range(1000))))
    assert len(told) == 1000
    assert [int(units) for units in observer.mget(list(told))] == list(told.values())
    assert since(client, before)["steps"] == 2000
    await client.aclose()


async def test_a_crowd_is_served_in_the_order_in_which_it_came(own_server, loop_kind):
    client, _ = await connected(own_server.url)
    own_server.redis().set("stock", 10)
    with own_server.frozen():
        updates = [client.update_inventory("lock", "stock", -1) for _ in range(25)]
        tasks = await waiting(client, *updates)
    told = await outcomes(tasks)
    assert told[:10] == [None] * 10
    assert [(type(error), error.available) for error in told[10:]] == [
        (seckill.InsufficientInventory, 0)
    ] * 15
    await client.aclose()


async def test_each_of_a_crowd_is_judged_by_itself(own_server, loop_kind):
    """One who wants too much does not spoil it for those behind."""
    client, _ = await connected(own_server.url)
    own_server.redis().set("stock", 10)
    wishes = [4, 7, 5, 2, -3, 4, 1]
    with own_server.frozen():
        tasks = await waiting(
            client, *(client.update_inventory("lock", "stock", -wish) for wish in wishes)
        )
    told = [getattr(answer, "available", "ok") for answer in await outcomes(tasks)]
    assert told == ["ok", 6, "ok", 1, "ok", "ok", 0]
    await client.aclose()


# -- round trips --------------------------------------------------------------------------------


async def test_a_task_by_itself_makes_one_round_trip_a_call(aio_client, redis_py, name, loop_kind):
    """Nobody is waited for who might come, and nothing is asked in vain."""
    key, lock = name("stock"), name("lock")
    redis_py.set(key, 100)

    async def each_call():
        await aio_client.update_inventory(lock, key, -1)
        await aio_client.incr_inventory(key, 1)
        assert await aio_client.acquire_lock(lock)
        await aio_client.release_lock(lock)

    await each_call()  # the server may have to be told the scripts, once
    before = aio_client.statistics()
    for _ in range(10):
        await each_call()
    one_each = {"steps": 40, "calls": 40, "batches": 40, "asked_again": 0, "connects": 0}
    assert since(aio_client, before) == one_each
    assert before["connects"] == 1


async def test_a_crowd_on_one_key_shares_one_call(own_server, loop_kind):
    client, before = await connected(own_server.url)
    own_server.redis().set("stock", 5000)
    with own_server.frozen():
        updates = [client.update_inventory("lock", "stock", -1, 5000, 60_000) for _ in range(1000)]
        tasks = await waiting(client, *updates)
    await gathered(tasks)
    in_two_batches(since(client, before), 1000)
    assert own_server.redis().get("stock") == b"4000"
    await client.aclose()


async def test_a_crowd_on_many_keys_shares_a_few_batches(own_server, loop_kind):
    client, before = await connected(own_server.url)
    with own_server.frozen():
        calls = [client.incr_inventory(f"stock:{i}", i + 1) for i in range(100)]
        tasks = await waiting(client, *calls)
    await gathered(tasks)
    done = since(client, before)
    assert done["batches"] <= 2 + done["asked_again"]
    left = own_server.redis().mget([f"stock:{i}" for i in range(100)])
    assert [int(units) for units in left] == list(range(1, 101))
    await client.aclose()


async def test_a_thousand_busy_tasks_make_far_fewer_round_trips_than_calls(
    aio_client, redis_py, name, loop_kind
):
    key, lock = name("stock"), name("lock")
    redis_py.set(key, 100_000)
    await aio_client.update_inventory(lock, key, 0)
    before = aio_client.statistics()

    async def buyer():
        for _ in range(10):
            await aio_client.update_inventory(lock, key, -1)

    await gathered([buyer() for _ in range(1000)])
    done = since(aio_client, before)
    assert done["steps"] == 10_000
    assert done["batches"] < 1000
    assert redis_py.get(key) == b"90000"


async def test_tasks_and_threads_on_one_client_share_batches(own_server, loop_kind):
    seckill.configure(own_server.url)
    client = _core.get_default()
    await seckill.aio.incr_inventory("warm", 1)
    own_server.redis().set("stock", 100)
    before, buy = client.statistics(), ("lock", "stock", -1, 5000, 60_000)
    with own_server.frozen():
        tasks = await waiting(client, *(seckill.aio.update_inventory(*buy) for _ in range(20)))
        threads = [call(seckill.update_inventory, *buy).until_asleep() for _ in range(20)]
        tasks += await waiting(client, *(seckill.aio.update_inventory(*buy) for _ in range(20)))
    await gathered(tasks)
    for thread in threads:
        thread.result()
    in_two_batches(since(client, before), 60)
    assert own_server.redis().get("stock") == b"40"


async def test_loops_in_several_threads_share_batches(own_server, loop_kind):
    client, before = await connected(own_server.url)
    own_server.redis().set("stock", 1000)
    buy = ("lock", "stock", -1, 5000, 60_000)

    def crowd():
        on_loop(gathered([client.update_inventory(*buy) for _ in range(100)]), loop_kind)

    with own_server.frozen():
        threads = [call(crowd).until_asleep() for _ in range(3)]
        tasks = await waiting(client, *(client.update_inventory(*buy) for _ in range(100)))
    await gathered(tasks)
    for thread in threads:
        thread.result()
    in_two_batches(since(client, before), 400)
    assert own_server.redis().get("stock") == b"600"
    await client.aclose()


async def test_those_who_wait_for_a_lock_do_not_hold_up_those_who_do_not(
    aio_client, redis_py, name, loop_kind
):
    held, free, key = name("held"), name("free"), name("stock")
    redis_py.set(key, 100)
    redis_py.set(held, 1, px=HOUR)

    async def hold_for_a_moment():
        taken = await aio_client.acquire_lock(held, 5000, 30_000)
        await aio_client.release_lock(held)
        return taken

    waiters = await waiting(
        aio_client,
        *(aio_client.update_inventory(held, key, -1, 5000, 30_000) for _ in range(8)),
        *(hold_for_a_moment() for _ in range(8)),
    )
    for _ in range(50):
        await aio_client.update_inventory(free, key, -1, 5000, 5000)
    assert redis_py.get(key) == b"50"
    assert not any(waiter.done() for waiter in waiters)
    redis_py.delete(held)
    assert await gathered(waiters) == [None] * 8 + [True] * 8
    assert redis_py.get(key) == b"42"
    assert not redis_py.exists(held)


# -- wake-ups -----------------------------------------------------------------------------------


def counting(loop_class):
    """A loop that counts how often a file descriptor woke it, its own self-pipe aside."""

    class Counting(loop_class):
        woken = 0

        def add_reader(self, fd, callback, *args):
            def counted(*args):
                self.woken += 1
                callback(*args)

            return super().add_reader(fd, counted, *args)

    return Counting


COUNTING = {"asyncio": counting(asyncio.SelectorEventLoop), "uvloop": counting(uvloop.Loop)}


@pytest.mark.parametrize("kind", COUNTING)
def test_a_batch_wakes_the_loop_once_and_not_once_for_each_caller(own_server, kind):
    own_server.redis().set("stock", 5000)

    async def main():
        client, before = await connected(own_server.url)
        loop = asyncio.get_running_loop()
        buy = ("lock", "stock", -1, 5000, 60_000)
        with own_server.frozen():
            tasks = await waiting(client, *(client.update_inventory(*buy) for _ in range(1000)))
            loop.woken = 0
        await gathered(tasks)
        # A large batch's results may come in a few portions, so that others have their turn.
        assert 1 <= loop.woken <= since(client, before)["batches"] + 8
        await client.aclose()

    on_loop(main(), COUNTING[kind])


@pytest.mark.parametrize("kind", COUNTING)
def test_busy_tasks_wake_the_loop_about_once_a_batch(server, key, lock, kind):
    async def main():
        async with seckill.aio.Client(server.url) as client:
            await client.incr_inventory(key, 100_000)
            loop, before = asyncio.get_running_loop(), client.statistics()
            loop.woken = 0

            async def buyer():
                for _ in range(10):
                    await client.update_inventory(lock, key, -1)

            await gathered([buyer() for _ in range(500)])
            assert 1 <= loop.woken <= 2 * since(client, before)["batches"]
            assert loop.woken < 5000 / 5

    on_loop(main(), COUNTING[kind])


@pytest.mark.parametrize("kind", COUNTING)
def test_a_task_by_itself_wakes_the_loop_once_a_call_at_most(server, key, kind):
    async def main():
        async with seckill.aio.Client(server.url) as client:
            await client.incr_inventory(key, 1)
            loop = asyncio.get_running_loop()
            loop.woken = 0
            for _ in range(50):
                await client.incr_inventory(key, 1)
            assert 1 <= loop.woken <= 50
            await asyncio.sleep(0.05)
            assert loop.woken <= 50, "and an idle client not at all"

    on_loop(main(), COUNTING[kind])
