"""Whose lock it is among tasks: the task's that took it, and of nobody else of the same thread."""

from __future__ import annotations

import asyncio
import gc

import pytest
import seckill.aio
from seckill import _core
from support.aio import eventually, gathered, on_loop, outcomes, waiting
from support.clients import HOUR
from support.programs import run
from support.threads import call

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("loop_kind")]


def in_task(coroutine):
    return asyncio.ensure_future(coroutine)


async def in_thread(function, *arguments):
    """What a plain function gives in a thread of its own, while the loop runs."""
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def client_of(shop):
    """Where the statistics are: the methods' client, or the coroutines' default one."""
    return shop if isinstance(shop, seckill.aio.Client) else _core.get_default()


# -- tasks exclude each other -----------------------------------------------------------------


async def test_two_tasks_of_one_thread_exclude_each_other(aio_shop, lock, redis_py):
    assert await aio_shop.acquire_lock(lock, HOUR) is True
    token = redis_py.get(lock)
    assert await in_task(aio_shop.acquire_lock(lock, HOUR, 0)) is False
    assert await in_task(aio_shop.acquire_lock(lock, HOUR, 100)) is False
    assert redis_py.get(lock) == token
    await aio_shop.release_lock(lock)
    assert await in_task(aio_shop.acquire_lock(lock, HOUR, 0)) is True
    await aio_shop.release_lock(lock)
    assert not redis_py.exists(lock)


async def test_a_task_waits_for_a_lock_while_the_loop_goes_on(aio_shop, lock, redis_py):
    assert await aio_shop.acquire_lock(lock, HOUR)
    [waiter] = await waiting(client_of(aio_shop), aio_shop.acquire_lock(lock, HOUR, 60_000))
    assert not waiter.done()
    await aio_shop.release_lock(lock)
    assert await waiter is True
    await aio_shop.release_lock(lock)


async def test_never_two_tasks_at_once_between_acquire_and_release(aio_shop, lock):
    inside = 0

    async def in_turn():
        nonlocal inside
        for _ in range(10):
            assert await aio_shop.acquire_lock(lock, HOUR, 60_000)
            inside += 1
            assert inside == 1
            await asyncio.sleep(0)
            inside -= 1
            await aio_shop.release_lock(lock)

    await gathered([in_turn() for _ in range(20)])


async def test_tasks_get_the_lock_in_the_order_in_which_they_came(aio_shop, lock, redis_py):
    redis_py.set(lock, "somebody", px=HOUR)
    order = []

    async def take_and_pass_on(number):
        assert await aio_shop.acquire_lock(lock, HOUR, 60_000)
        order.append(number)
        await aio_shop.release_lock(lock)

    waiters = await waiting(client_of(aio_shop), *map(take_and_pass_on, range(30)))
    redis_py.delete(lock)
    await gathered(waiters)
    assert order == list(range(30))


async def test_waiting_tasks_send_one_contender_to_the_server(aio_client, lock, redis_py):
    redis_py.set(lock, "somebody", px=HOUR)
    await aio_client.incr_inventory(f"{lock}:warm")
    asked = aio_client.statistics()["steps"]
    waiters = [in_task(aio_client.acquire_lock(lock, HOUR, 400)) for _ in range(50)]
    await waiting(aio_client)
    assert aio_client.statistics()["steps"] - asked <= 3
    assert await gathered(waiters) == [False] * 50


async def test_each_waiting_task_has_its_own_time_out(aio_client, lock, redis_py):
    redis_py.set(lock, "somebody", px=HOUR)
    clock = asyncio.get_running_loop().time

    async def seconds_waited(milliseconds):
        start = clock()
        assert await aio_client.acquire_lock(lock, 1000, milliseconds) is False
        return clock() - start

    patience = range(100, 600, 100)
    waited = await gathered(map(seconds_waited, patience))
    for milliseconds, seconds in zip(patience, waited, strict=True):
        assert milliseconds - 10 < seconds * 1000 < milliseconds + 1000


# -- updates under the lock -------------------------------------------------------------------


async def test_the_task_that_holds_the_lock_updates_under_it(aio_shop, key, lock, redis_py):
    """lock held by the calling task itself, then update_inventory on it"""
    redis_py.set(key, 10)

    async def deeper():
        await asyncio.sleep(0)
        await aio_shop.update_inventory(lock, key, -2, time_out=0)

    assert await aio_shop.acquire_lock(lock, HOUR)
    token = redis_py.get(lock)
    await aio_shop.update_inventory(lock, key, -1, time_out=0)
    await deeper()  # the same task, in another coroutine
    assert redis_py.get(key) == b"7"
    assert redis_py.get(lock) == token
    await aio_shop.release_lock(lock)


async def test_another_task_does_not_update_under_it(aio_shop, key, lock, redis_py):
    """update_inventory while another holds the lock"""
    redis_py.set(key, 10)
    assert await aio_shop.acquire_lock(lock, HOUR)
    for time_out in (0, 100):
        with pytest.raises(seckill.LockTimeout) as caught:
            await in_task(aio_shop.update_inventory(lock, key, -1, 5000, time_out))
        assert (caught.value.lock_name, caught.value.time_out) == (lock, time_out)
    assert redis_py.get(key) == b"10"
    await aio_shop.release_lock(lock)
    await in_task(aio_shop.update_inventory(lock, key, -1, 5000, 0))
    assert redis_py.get(key) == b"9"


async def test_a_child_of_the_holding_task_waits_as_anybody_does(aio_shop, key, lock, redis_py):
    redis_py.set(key, 10)

    async def holder():
        assert await aio_shop.acquire_lock(lock, HOUR)
        update = (lock, key, -1, 5000, 100)
        children = [aio_shop.update_inventory(*update) for _ in range(3)]  # `gather` makes tasks
        errors = await outcomes([*children, in_task(aio_shop.update_inventory(*update))])
        assert [type(error) for error in errors] == [seckill.LockTimeout] * 4
        patient = in_task(aio_shop.update_inventory(lock, key, -3, 5000, 60_000))
        await aio_shop.update_inventory(lock, key, -1, 5000, 0)
        assert not patient.done()
        await aio_shop.release_lock(lock)
        await patient

    await in_task(holder())
    assert redis_py.get(key) == b"6"


async def test_an_update_waits_for_a_holder_elsewhere_and_no_lock_stays(
    aio_shop, key, lock, redis_py
):
    redis_py.set(key, 10)
    redis_py.set(lock, 1, px=HOUR)
    updates = [aio_shop.update_inventory(lock, key, -1, 5000, 60_000) for _ in range(5)]
    waiters = await waiting(client_of(aio_shop), *updates)
    assert not any(waiter.done() for waiter in waiters)
    redis_py.delete(lock)
    await gathered(waiters)
    assert redis_py.get(key) == b"5"
    assert not redis_py.exists(lock)


async def test_tasks_with_different_locks_do_not_wait_for_each_other(aio_shop, name, redis_py):
    key = name("stock")
    redis_py.set(key, 100)

    async def hold_and_sell(number):
        assert await aio_shop.acquire_lock(name(f"lock{number}"), HOUR, 0)
        await aio_shop.update_inventory(name(f"lock{number}"), key, -1, 5000, 0)
        await asyncio.sleep(0.01)
        await aio_shop.release_lock(name(f"lock{number}"))

    await gathered(map(hold_and_sell, range(20)))
    assert redis_py.get(key) == b"80"


# -- who may release --------------------------------------------------------------------------


async def test_any_other_task_may_release(aio_shop, lock, redis_py):
    assert await aio_shop.acquire_lock(lock, HOUR)
    assert await in_task(aio_shop.release_lock(lock)) is None
    assert not redis_py.exists(lock)
    assert await aio_shop.acquire_lock(lock, HOUR, 0) is True
    await aio_shop.release_lock(lock)


async def test_a_task_on_the_loop_of_another_thread_may_release(aio_shop, lock, redis_py):
    assert await aio_shop.acquire_lock(lock, HOUR)
    assert await in_thread(lambda: on_loop(aio_shop.acquire_lock(lock, HOUR, 0))) is False
    await in_thread(lambda: on_loop(aio_shop.release_lock(lock)))
    assert not redis_py.exists(lock)


async def test_a_late_release_leaves_the_lock_to_the_task_that_has_it_now(aio_shop, lock, redis_py):
    assert await aio_shop.acquire_lock(lock, 50)
    await eventually(lambda: not redis_py.exists(lock))
    assert await in_task(aio_shop.acquire_lock(lock, HOUR)) is True
    await aio_shop.release_lock(lock)  # its own, which is over
    assert redis_py.exists(lock)
    await aio_shop.release_lock(lock)  # and now on behalf of the other task
    assert not redis_py.exists(lock)


async def test_the_newest_is_released_by_one_who_holds_nothing(aio_shop, lock, redis_py):
    """Two tasks think that they hold it: the first one's lease was ended from outside."""
    assert await in_task(aio_shop.acquire_lock(lock, HOUR))
    redis_py.delete(lock)
    assert await in_task(aio_shop.acquire_lock(lock, HOUR))
    await aio_shop.release_lock(lock)
    assert not redis_py.exists(lock)


def release_after_fork(url):
    import asyncio
    import os

    import seckill.aio

    seckill.aio.configure(url)

    async def holder():
        assert await seckill.aio.acquire_lock("lock", 3_600_000)
        pid = os.fork()
        if pid == 0:
            try:
                # The running loop is the parent's: this makes one of the child's own.
                asyncio.run(seckill.aio.release_lock("lock"))
                seckill.release_lock("lock")
                os._exit(0)
            finally:
                os._exit(1)
        status = os.waitpid(pid, 0)[1]
        held = await asyncio.create_task(seckill.aio.acquire_lock("lock", 1000, 0)) is False
        await seckill.aio.release_lock("lock")
        return [status, held, await seckill.aio.acquire_lock("lock", 1000, 0)]

    return asyncio.run(holder())


async def test_a_forked_child_releases_nothing(start_server):
    """release_lock in a forked child"""
    ended = await in_thread(run, release_after_fork, start_server().url)
    assert ended.value == [0, True, True]


# -- tasks that end with the lock held ---------------------------------------------------------


async def hold_and_end(shop, lock):
    assert await shop.acquire_lock(lock, HOUR)


async def hold_and_fail(shop, lock):
    assert await shop.acquire_lock(lock, HOUR)
    raise ZeroDivisionError


async def hold_and_be_cancelled(shop, lock):
    assert await shop.acquire_lock(lock, HOUR)
    asyncio.current_task().cancel()
    await asyncio.sleep(60)


ENDS = {"returned": hold_and_end, "failed": hold_and_fail, "cancelled": hold_and_be_cancelled}


@pytest.mark.parametrize("end", ENDS)
async def test_the_lock_of_a_task_that_has_ended_is_still_held(aio_shop, key, lock, redis_py, end):
    redis_py.set(key, 5)
    await outcomes([in_task(ENDS[end](aio_shop, lock))])
    assert await aio_shop.acquire_lock(lock, HOUR, 0) is False
    with pytest.raises(seckill.LockTimeout):
        await aio_shop.update_inventory(lock, key, -1, 5000, 0)
    await aio_shop.release_lock(lock)  # of all the process, the one live acquisition
    assert not redis_py.exists(lock)


@pytest.mark.parametrize("end", ENDS)
async def test_a_new_task_in_the_place_of_a_dead_one_does_not_inherit_its_lock(
    aio_shop, key, lock, redis_py, end
):
    redis_py.set(key, 5)
    places = {}

    async def holder(number):
        places[id(asyncio.current_task())] = f"{lock}:{number}"
        await ENDS[end](aio_shop, f"{lock}:{number}")

    async def heir():
        mine = places.get(id(asyncio.current_task()))
        if mine:
            with pytest.raises(seckill.LockTimeout):
                await aio_shop.update_inventory(mine, key, -1, 5000, 0)
        return mine

    # CPython puts new objects into the places of dead ones of the same size, as long as others
    # around them live on.
    tasks, neighbours = [], []
    for number in range(200):
        tasks.append(in_task(holder(number)))
        neighbours.append(in_task(asyncio.sleep(0)))
    await asyncio.wait([*tasks, *neighbours])
    failed = [task for task in tasks if not task.cancelled() and task.exception()]
    assert bool(failed) == (end == "failed")
    del tasks, failed
    gc.collect()  # what they raised may have kept them
    taken = set(await gathered([heir() for _ in range(2000)])) - {None}
    assert taken, "no task had the id() of a dead one"
    assert redis_py.get(key) == b"5"
    await gathered(map(aio_shop.release_lock, places.values()))
    assert not list(redis_py.scan_iter(f"{lock}:*"))


# -- tasks and threads on one client -----------------------------------------------------------


@pytest.fixture
def both(server):
    """One client, two faces: the default one."""
    seckill.configure(server.url)
    return seckill


async def test_a_thread_and_a_task_exclude_each_other(both, key, lock, redis_py):
    redis_py.set(key, 10)
    assert await in_thread(both.acquire_lock, lock, HOUR) is True
    assert await both.aio.acquire_lock(lock, HOUR, 0) is False
    with pytest.raises(seckill.LockTimeout):
        await both.aio.update_inventory(lock, key, -1, 5000, 50)
    await both.aio.release_lock(lock)  # from the task, what the thread took
    assert await both.aio.acquire_lock(lock, HOUR, 0) is True
    assert await in_thread(both.acquire_lock, lock, HOUR, 50) is False
    with pytest.raises(seckill.LockTimeout):
        await in_thread(both.update_inventory, lock, key, -1, 5000, 50)
    await both.aio.update_inventory(lock, key, -1, 5000, 0)
    await in_thread(both.release_lock, lock)  # and the other way round
    assert not redis_py.exists(lock)
    assert redis_py.get(key) == b"9"


async def test_a_lock_of_the_threads_own_is_not_its_tasks_lock(both, key, lock, redis_py):
    """Else every task that runs in this thread would go through."""
    redis_py.set(key, 10)
    assert both.acquire_lock(lock, HOUR, 0) is True  # in the thread of the loop, without `await`
    with pytest.raises(seckill.LockTimeout):
        await both.aio.update_inventory(lock, key, -1, 5000, 0)
    both.update_inventory(lock, key, -1, 5000, 0)
    await both.aio.release_lock(lock)
    assert not redis_py.exists(lock)
    assert redis_py.get(key) == b"9"


async def test_threads_and_tasks_get_the_lock_in_the_order_in_which_they_came(both, lock, redis_py):
    redis_py.set(lock, "somebody", px=HOUR)
    client, order, callers = _core.get_default(), [], []

    def take_and_pass_on(name):
        assert both.acquire_lock(lock, HOUR, 60_000)
        order.append(name)
        both.release_lock(lock)

    async def await_and_pass_on(name):
        assert await both.aio.acquire_lock(lock, HOUR, 60_000)
        order.append(name)
        await both.aio.release_lock(lock)

    tasks = []
    for number in range(6):
        callers.append(
            await in_thread(lambda n=number: call(take_and_pass_on, f"thread {n}").until_asleep())
        )
        tasks += await waiting(client, await_and_pass_on(f"task {number}"))
    redis_py.delete(lock)
    await gathered(tasks)
    for caller in callers:
        await in_thread(caller.result)
    assert order == [f"{kind} {number}" for number in range(6) for kind in ("thread", "task")]


async def test_threads_and_tasks_never_hold_it_at_once(both, lock, redis_py, name):
    counter = name("counter")
    redis_py.set(counter, 0)

    def count_up():
        # In two steps, as only one who is alone can.
        redis_py.set(counter, int(redis_py.get(counter)) + 1)

    def in_turn():
        for _ in range(10):
            assert both.acquire_lock(lock, HOUR, 60_000)
            count_up()
            both.release_lock(lock)

    async def awaited_in_turn():
        for _ in range(10):
            assert await both.aio.acquire_lock(lock, HOUR, 60_000)
            await in_thread(count_up)
            await both.aio.release_lock(lock)

    callers = [call(in_turn) for _ in range(5)]
    await gathered([awaited_in_turn() for _ in range(5)])
    for caller in callers:
        await in_thread(caller.result)
    assert redis_py.get(counter) == b"100"


async def test_a_lock_that_was_taken_through_another_client_is_not_the_callers(
    server, key, lock, redis_py
):
    redis_py.set(key, 5)
    one, other = seckill.aio.Client(server.url), seckill.aio.Client(server.url)
    assert await one.acquire_lock(lock, HOUR)
    with pytest.raises(seckill.LockTimeout):
        await other.update_inventory(lock, key, -1, 5000, 0)
    await other.release_lock(lock)  # knows of none
    assert redis_py.exists(lock)
    await one.update_inventory(lock, key, -1, 5000, 0)
    await one.release_lock(lock)
    await gathered([one.aclose(), other.aclose()])
