"""The contract with redis-py's awaited lock: the tests of the plain one are held against it.

Each thread of those tests is a task of one loop here. What only concerns what is awaited follows.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect

import pytest
import test_lock_contract
import test_lock_contract_held
from redis.exceptions import LockError, LockNotOwnedError
from support.aio import eventually, gathered
from support.locks import (
    ALL,
    BY_REDIS,
    COMPAT,
    DIRECT,
    OURS,
    REFERENCE,
    SOMEBODY,
    connect,
    lock_class,
    locks,
    places,
    server_of_the_place,
)
from test_lock_contract import HOOKS, METHODS, parameters

pytestmark = pytest.mark.core

for module in (test_lock_contract, test_lock_contract_held):
    globals().update({name: test for name, test in vars(module).items() if name[:5] == "test_"})

server = server_of_the_place
make = locks(*ALL, awaited=True)
strict = locks(*OURS, awaited=True)
by_redis = locks(REFERENCE, BY_REDIS, COMPAT, awaited=True)
ours = locks(*OURS, awaited=True)
keepers = locks(REFERENCE, DIRECT, awaited=True)


# -- what differs from the plain one ----------------------------------------------------------


@pytest.mark.parametrize("kind", [DIRECT, COMPAT])
def test_the_constructor_begins_as_redis_pys(kind):
    theirs = parameters(lock_class(REFERENCE, awaited=True))
    ours = parameters(lock_class(kind, awaited=True))
    assert ours[: len(theirs)] == theirs
    assert ours == parameters(lock_class(kind))


@pytest.mark.parametrize("kind", [DIRECT, COMPAT])
@pytest.mark.parametrize("method", METHODS + HOOKS)
def test_a_method_takes_what_redis_pys_takes(kind, method):
    theirs = getattr(lock_class(REFERENCE, awaited=True), method)
    assert parameters(getattr(lock_class(kind, awaited=True), method)) == parameters(theirs)


def test_the_sleep_of_a_call_goes_before_the_locks(make, lock):
    """There is none: an awaited acquire takes the three others."""
    made = make(lock)
    with pytest.raises(TypeError):
        made.acquire(sleep=1)
    assert made.acquire(False, 0, "token") is True
    made.release()


# -- what is awaited --------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def on_a_client(kind, server, **options):
    """Make locks, on the loop that runs."""
    client = connect(kind, server.url, awaited=True, **options)
    cls = lock_class(kind, awaited=True)
    try:
        yield lambda name, **options: cls(client, name, **options)
    finally:
        await client.aclose()


def kinds(*kinds):
    where = [(place.kind, place.server) for place in places(*kinds)]
    return pytest.mark.parametrize(("kind", "server"), where, indirect=["server"])


every_kind = kinds(REFERENCE, DIRECT, COMPAT)
our_kinds = kinds(DIRECT, COMPAT)
on_loops = pytest.mark.usefixtures("loop_kind")


@every_kind
@on_loops
async def test_every_call_is_a_coroutine(server, lock, kind):
    """Which can be made a task."""
    async with on_a_client(kind, server) as make:
        made = make(lock, timeout=10)
        for call in (
            made.acquire,
            made.locked,
            made.owned,
            lambda: made.extend(1),
            made.reacquire,
            made.release,
        ):
            coroutine = call()
            assert inspect.iscoroutine(coroutine)
            assert await asyncio.ensure_future(coroutine) in (True, None)


@every_kind
@on_loops
async def test_what_was_not_awaited_has_not_happened(server, lock, kind, redis_py):
    async with on_a_client(kind, server) as make:
        made = make(lock, timeout=10)
        acquire = made.acquire()
        await asyncio.sleep(0.05)
        assert not redis_py.exists(lock)
        assert await acquire is True
        extend = made.extend(1000)
        release = made.release()
        await asyncio.sleep(0.05)
        assert 0 < redis_py.pttl(lock) <= 10_000
        assert await extend is True
        await release
        assert not redis_py.exists(lock)


@every_kind
@on_loops
async def test_extend_and_reacquire_look_at_the_state_before_they_are_awaited(server, lock, kind):
    async with on_a_client(kind, server) as make:
        endless = make(lock)
        for made in (make(lock, timeout=10), endless):
            for prolong in (made.reacquire, lambda made=made: made.extend(1)):
                with pytest.raises(LockError) as caught:
                    prolong()
                assert not isinstance(caught.value, LockNotOwnedError)
            assert made is endless or not await endless.locked()
            await endless.acquire(blocking=False)
        await endless.release()


@every_kind
@on_loops
async def test_a_loop_goes_on_while_a_task_waits(server, lock, kind, redis_py):
    redis_py.set(lock, SOMEBODY)
    async with on_a_client(kind, server) as make:
        made, turns = make(lock, blocking_timeout=60), 0
        waiter = asyncio.ensure_future(made.acquire())
        for _ in range(100):
            await asyncio.sleep(0.001)
            turns += 1
        assert not waiter.done()
        redis_py.delete(lock)
        assert await waiter is True
        assert turns == 100


@every_kind
@on_loops
async def test_async_with_holds_the_lock(server, lock, kind, redis_py):
    async with on_a_client(kind, server) as make:
        made = make(lock, timeout=10)
        async with made as entered:
            assert entered is made
            assert redis_py.get(lock) == made.local.token
            with pytest.raises(LockError):
                async with make(lock, blocking=False):
                    pytest.fail("this is not locked")
        assert not redis_py.exists(lock)
        assert made.local.token is None


@every_kind
@on_loops
async def test_there_is_no_plain_with(server, lock, kind):
    async with on_a_client(kind, server) as make:
        with pytest.raises((TypeError, AttributeError)), make(lock):
            pass


# -- cancelled --------------------------------------------------------------------------------


@every_kind
@on_loops
async def test_a_cancelled_release_can_be_made_again_or_was_made(
    server, lock, kind, redis_py, start_proxy
):
    """Either the token is kept, and a second release works, or neither token nor key is left."""
    proxy = start_proxy(server)
    async with on_a_client(kind, proxy) as make:
        for delay in (0, 0.0002, 0.001, 0.005, 0.02):
            made = make(lock)
            await made.acquire(blocking=False)
            release = asyncio.ensure_future(made.release())
            await asyncio.sleep(delay)
            release.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await release
            if made.local.token is None:
                await eventually(lambda: not redis_py.exists(lock))
            else:
                with contextlib.suppress(LockNotOwnedError):  # the first one has arrived by now
                    await made.release()
                assert made.local.token is None
                assert not redis_py.exists(lock)


@our_kinds
@on_loops
async def test_a_cancelled_acquire_leaves_no_lock_that_nobody_holds(
    server, lock, kind, redis_py, start_proxy
):
    """redis-py's leaves a key without an owner."""
    proxy = start_proxy(server)
    async with on_a_client(kind, proxy) as make:
        for delay in (0, 0.0002, 0.0005, 0.001, 0.002, 0.005):
            made = make(lock)
            acquire = asyncio.ensure_future(made.acquire())
            await asyncio.sleep(delay)
            acquire.cancel()
            try:
                assert await acquire is True
                await made.release()
            except asyncio.CancelledError:
                assert made.local.token is None
            await eventually(lambda: not redis_py.exists(lock))


@our_kinds
@on_loops
async def test_a_cancelled_waiter_takes_nothing_when_the_lock_is_free(server, lock, kind, redis_py):
    redis_py.set(lock, SOMEBODY)
    async with on_a_client(kind, server) as make:
        gone, stays = make(lock), make(lock)
        waiters = [asyncio.ensure_future(made.acquire()) for made in (gone, stays)]
        await asyncio.sleep(0.1)
        waiters[0].cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiters[0]
        redis_py.delete(lock)
        assert await waiters[1] is True
        assert gone.local.token is None
        assert redis_py.get(lock) != SOMEBODY


# -- whose token it is ------------------------------------------------------------------------


@our_kinds
@on_loops
async def test_a_token_is_of_the_task_that_called_acquire(server, lock, kind, redis_py):
    """Tasks share redis-py's."""
    async with on_a_client(kind, server) as make:
        made = make(lock, timeout=10)
        assert await made.acquire()
        token = made.local.token

        async def other():
            seen = [made.local.token, await made.owned(), await made.locked()]
            for use in (made.release, made.reacquire, lambda: made.extend(1)):
                with pytest.raises(LockError) as caught:
                    await use()
                assert not isinstance(caught.value, LockNotOwnedError)
            return seen

        assert await asyncio.ensure_future(other()) == [None, False, True]
        assert made.local.token == token == redis_py.get(lock)
        await made.release()


@our_kinds
@on_loops
@pytest.mark.parametrize("wrap", ["wait_for", "ensure_future", "shield", "gather"])
async def test_a_call_in_a_task_of_its_own_is_of_the_task_that_made_it(
    server, lock, kind, redis_py, wrap
):
    """`wait_for` of Python before 3.12 runs what it is given in another task."""
    wrapped = {
        "wait_for": lambda call: asyncio.wait_for(call, 20),
        "ensure_future": asyncio.ensure_future,
        "shield": asyncio.shield,
        "gather": lambda call: gathered([call]),
    }[wrap]
    async with on_a_client(kind, server) as make:
        made = make(lock, timeout=10)
        assert await wrapped(made.acquire()) in (True, [True])
        assert made.local.token == redis_py.get(lock)
        assert await wrapped(made.owned()) in (True, [True])
        assert await wrapped(made.extend(5)) in (True, [True])
        assert await wrapped(made.release()) in (None, [None])
        assert made.local.token is None
        assert not redis_py.exists(lock)


@our_kinds
@on_loops
async def test_without_thread_local_every_task_has_the_token(server, lock, kind, redis_py):
    async with on_a_client(kind, server) as make:
        made = make(lock, thread_local=False)
        assert await asyncio.ensure_future(made.acquire()) is True
        assert made.local.token == redis_py.get(lock)
        await asyncio.ensure_future(made.release())
        assert made.local.token is None


@our_kinds
@on_loops
async def test_tasks_that_share_a_lock_take_turns(server, lock, kind):
    async with on_a_client(kind, server) as make:
        made, inside = make(lock), 0

        async def work():
            nonlocal inside
            for _ in range(5):
                async with made:
                    inside += 1
                    assert inside == 1
                    await asyncio.sleep(0)
                    inside -= 1

        await gathered(work() for _ in range(10))
