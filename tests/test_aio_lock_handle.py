"""What an awaited lock object is beyond redis-py's: the tests of the plain one, and its own.

Each thread of those tests is a task of one loop here. What tasks and loops add follows.
"""

from __future__ import annotations

import asyncio
import inspect
import pickle
import sys
import threading

import pytest
import redis.asyncio
import seckill.aio
import test_lock_arguments
import test_lock_handle
import test_lock_stock
import valkey.asyncio
from support.aio import eventually, gathered, outcomes
from support.locks import DIRECT, SOMEBODY, locks, server_of_the_place
from test_lock_arguments import host  # noqa: F401  (a fixture of the tests that are taken over)
from test_lock_stock import LOSSES

pytestmark = pytest.mark.core
on_loops = pytest.mark.usefixtures("loop_kind")

for module in (test_lock_handle, test_lock_stock, test_lock_arguments):
    globals().update(
        {
            name: test
            for name, test in vars(module).items()
            if name[:5] == "test_" and "make" in inspect.signature(test).parameters
        }
    )

server = server_of_the_place
make = locks(DIRECT, awaited=True)


@pytest.fixture
def new(aio_client, lock, loop_kind):
    """Makes locks, in a test that runs on either loop."""
    return lambda **options: seckill.aio.Lock(aio_client, lock, **options)


# -- tasks ------------------------------------------------------------------------------------


async def test_each_task_has_its_own_acquisition(new, lock, redis_py):
    made = new(timeout=60)
    await made.acquire()
    redis_py.delete(lock)

    async def other():
        state = [made.lost, made.remaining(), made.fence, made.local.token]
        await made.acquire(blocking=False)
        return state, made.fence

    before, fence = await asyncio.ensure_future(other())
    assert before == [False, 0.0, None, None]
    assert made.fence < fence
    with pytest.raises(seckill.LockLostError):
        await made.ensure_held()
    assert made.lost is True


async def test_a_child_of_the_holding_task_updates_with_the_lock_in_its_hand(
    new, aio_client, lock, key, redis_py
):
    """As the tasks of a `gather` do; by the lock's name it is a task like any."""
    redis_py.set(key, 10)
    async with new(timeout=60) as made:
        await gathered([aio_client.update_inventory(made, key, -1) for _ in range(3)])
        told = await outcomes([aio_client.update_inventory(lock, key, -1, 5000, 0)])
        assert [type(error) for error in told] == [seckill.LockTimeout]
        assert redis_py.get(key) == b"7"
        redis_py.set(lock, SOMEBODY)
        told = await outcomes([aio_client.update_inventory(made, key, -1) for _ in range(3)])
        assert all(isinstance(error, seckill.LockLostError) for error in told)
        redis_py.set(lock, made.local.token)
    assert redis_py.get(key) == b"7"


@on_loops
@pytest.mark.parametrize("loss", LOSSES)
async def test_the_coroutines_of_the_module_know_the_locks_too(server, lock, key, redis_py, loss):
    redis_py.set(key, 10)
    client = seckill.aio.configure(server.url)

    async def work():
        async with seckill.aio.Lock(None, lock, timeout=0.5 if loss == "ends" else 60) as made:
            await seckill.aio.update_inventory(made, key, -1)
            await seckill.aio.update_inventory(lock, key, -1)
            LOSSES[loss](made, redis_py)
            for mine in (made, lock):
                with pytest.raises(seckill.LockLostError):
                    await seckill.aio.update_inventory(mine, key, -1)

    with pytest.raises(seckill.LockLostError):
        await work()
    assert redis_py.get(key) == b"8"
    await client.aclose()


@on_loops
async def test_a_lock_takes_any_client_or_url(server, lock, redis_py):
    theirs = redis.asyncio.Redis(host=server.host, port=server.port)
    client = seckill.aio.configure(server.url)
    sources = [client, theirs, valkey.asyncio.Valkey(host=server.host, port=server.port)]
    sources += [seckill.Client(server.url), redis_py, server.url, None]
    for source in sources:
        made = seckill.aio.Lock(source, lock, timeout=60)
        assert made.redis is source
        assert await made.acquire(blocking=False) is True
        for other in sources:
            assert await seckill.aio.Lock(other, lock).acquire(blocking=False) is False
        await made.release()
        assert not redis_py.exists(lock)
    await client.aclose()
    await theirs.aclose()


async def test_both_faces_of_a_lock_exclude_each_other(client, new, lock):
    plain, awaited = seckill.Lock(client, lock), new()
    plain.acquire()
    assert await awaited.acquire(blocking=False) is False
    plain.release()
    await awaited.acquire()
    assert plain.acquire(blocking=False) is False
    await awaited.release()


# -- decorator --------------------------------------------------------------------------------


async def test_a_lock_decorates_a_coroutine_function(new, lock, redis_py):
    @new(timeout=60)
    async def double(number, *, plus=0):
        """Twice as much."""
        assert redis_py.exists(lock)
        if number < 0:
            raise ZeroDivisionError
        await asyncio.sleep(0)
        return 2 * number + plus

    assert await double(3, plus=1) == 7
    assert not redis_py.exists(lock)
    with pytest.raises(ZeroDivisionError):
        await double(-1)
    assert not redis_py.exists(lock)
    assert inspect.iscoroutinefunction(double)
    assert (double.__name__, double.__doc__) == ("double", "Twice as much.")
    assert list(inspect.signature(double).parameters) == ["number", "plus"]


async def test_a_decorated_coroutine_does_not_run_without_the_lock(new, lock, redis_py):
    redis_py.set(lock, SOMEBODY)

    @new(blocking=False)
    async def work():
        pytest.fail("this is not locked")

    with pytest.raises(seckill.LockError) as caught:
        await work()
    assert caught.value.lock_name == lock


async def test_tasks_in_a_decorated_coroutine_take_turns(new):
    inside = 0

    @new(timeout=60)
    async def work():
        nonlocal inside
        inside += 1
        assert inside == 1
        await asyncio.sleep(0)
        inside -= 1

    await gathered(work() for _ in range(20))


async def test_what_would_be_over_before_it_runs_is_not_decorated(client, new):
    """A coroutine function in a plain lock, a plain function in an awaited one."""

    async def awaited():
        pass

    def generator():
        yield

    for function in (awaited, generator):
        with pytest.raises(TypeError):
            seckill.Lock(client, "lock")(function)
    with pytest.raises(TypeError):
        new()(lambda: None)


# -- pickle -----------------------------------------------------------------------------------


@on_loops
async def test_a_lock_is_pickled_unless_it_is_held(server, lock, redis_py):
    made = seckill.aio.Lock(server.url, lock, timeout=60, fair=True)
    await made.acquire()
    with pytest.raises(TypeError, match="held"):
        pickle.dumps(made)
    await made.release()
    copy = pickle.loads(pickle.dumps(made))
    assert type(copy) is seckill.aio.Lock
    assert (copy.name, copy.timeout, copy.fair, copy.local.token) == (lock, 60, True, None)
    async with copy:
        assert redis_py.exists(lock)


# -- on_lost ----------------------------------------------------------------------------------


async def test_on_lost_is_called_in_the_loop_with_the_lock(new, lock, redis_py):
    told, holder = [], asyncio.current_task()

    def on_lost(lost):
        # It sees the lock as its holder did.
        told.append((lost, lost.fence, lost.lost, asyncio.current_task() is holder))
        assert threading.current_thread() is thread
        assert asyncio.get_running_loop() is loop

    thread, loop = threading.current_thread(), asyncio.get_running_loop()
    made = new(timeout=0.1, on_lost=on_lost)
    await made.acquire()
    fence = made.fence
    await eventually(lambda: told)
    assert told == [(made, fence, True, False)]
    assert made.lost is True
    await eventually(lambda: not redis_py.exists(lock))  # the server gives a bit more
    with pytest.raises(seckill.LockLostError):
        await made.release()
    await asyncio.sleep(0.05)
    assert len(told) == 1, "once"


async def test_on_lost_may_be_a_coroutine_function(new):
    told = []

    async def on_lost(lost):
        await asyncio.sleep(0)
        told.append((lost, lost.fence))

    made = new(timeout=0.1, on_lost=on_lost)
    await made.acquire()
    await eventually(lambda: told)
    assert told == [(made, made.fence)]


async def test_on_lost_is_called_when_a_renewal_finds_the_lock_gone(new, lock, redis_py):
    told = []
    made = new(timeout=0.6, auto_renew=True, on_lost=told.append)
    await made.acquire()
    redis_py.set(lock, SOMEBODY, px=60_000)
    await eventually(lambda: told)
    assert told == [made]
    assert redis_py.get(lock) == SOMEBODY


async def test_on_lost_is_not_called_for_what_was_released(new):
    told = []
    made = new(timeout=0.1, on_lost=told.append)
    for _ in range(3):
        async with made:
            pass
    await asyncio.sleep(0.3)
    assert told == []


# -- on_lost="cancel" -------------------------------------------------------------------------


async def test_cancel_ends_the_block_of_the_holder_with_lock_lost_error(new, lock):
    """What it awaits is cancelled; the block then tells why."""
    seen = []

    async def hold():
        async with new(timeout=0.1, on_lost="cancel"):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError as error:
                seen.append(error)
                raise

    with pytest.raises(seckill.LockLostError) as caught:
        await hold()
    assert len(seen) == 1
    assert caught.value.lock_name == lock
    await asyncio.sleep(0)  # the task itself is not cancelled any more


async def test_cancel_cancels_the_task_that_acquired_without_a_block(new):
    made = new(timeout=0.1, on_lost="cancel")

    async def hold():
        await made.acquire()
        await asyncio.sleep(60)

    task = asyncio.ensure_future(hold())
    await asyncio.wait([task])
    assert task.cancelled()


async def test_cancel_leaves_every_other_task_alone(new, name, aio_client):
    """Others that hold other locks, that wait for this one, or were made by the holder."""
    made = new(timeout=0.3, on_lost="cancel")

    async def hold_another():
        async with seckill.aio.Lock(aio_client, name("other"), timeout=60, on_lost="cancel"):
            await asyncio.sleep(0.6)
        return "done"

    async def wait_for_this_one():
        await made.acquire()
        await made.release()
        return "done"

    async def hold():
        async with made:
            others.append(asyncio.ensure_future(asyncio.sleep(0.6, "done")))
            others.append(asyncio.ensure_future(wait_for_this_one()))
            await asyncio.sleep(60)

    others = [asyncio.ensure_future(hold_another())]
    with pytest.raises(seckill.LockLostError):
        await asyncio.ensure_future(hold())
    assert await gathered(others) == ["done"] * 3


async def test_cancel_is_of_the_task_that_called_acquire(new):
    """And not of the one in which `wait_for` ran it, which has long ended."""
    made = new(timeout=0.1, on_lost="cancel")

    async def hold():
        await asyncio.wait_for(made.acquire(), 20)
        await asyncio.sleep(60)

    task = asyncio.ensure_future(hold())
    await asyncio.wait([task])
    assert task.cancelled()


async def test_cancel_does_not_reach_who_has_released(new):
    made = new(timeout=0.1, on_lost="cancel")
    for _ in range(5):
        async with made:
            pass
    await asyncio.sleep(0.3)


async def test_a_block_that_does_not_raise_leaves_it_at_the_cancellation(new):
    made = new(timeout=0.1, on_lost="cancel", raise_on_release_error=False)

    async def hold():
        async with made:
            await asyncio.sleep(60)

    task = asyncio.ensure_future(hold())
    await asyncio.wait([task])
    assert task.cancelled()


@pytest.mark.skipif(sys.version_info < (3, 11), reason="it is not told apart from ours there")
async def test_another_cancellation_is_not_swallowed(new):
    """Who cancels the task at the same time has it cancelled."""

    async def hold():
        async with new(timeout=0.1, on_lost="cancel"):
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                asyncio.current_task().cancel()
                await asyncio.sleep(60)

    task = asyncio.ensure_future(hold())
    await asyncio.wait([task])
    assert task.cancelled()


@on_loops
async def test_what_on_lost_may_be_is_said(aio_client, client):
    for wrong in ("cancelled", 1, []):
        with pytest.raises(TypeError, match=r"^on_lost must be .*'cancel'"):
            seckill.aio.Lock(aio_client, "lock", timeout=1, on_lost=wrong)
    with pytest.raises(TypeError, match=r"^on_lost must "):
        seckill.Lock(client, "lock", timeout=1, on_lost="cancel")
