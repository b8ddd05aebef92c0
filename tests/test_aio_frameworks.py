"""What people run coroutines with: pytest-asyncio, unittest, anyio; and trio, which is refused."""

from __future__ import annotations

import inspect
import unittest

import anyio
import pytest
import seckill.aio
import trio
from support.aio import every_call, on_loop
from support.clients import HOUR

pytestmark = pytest.mark.core

# -- frameworks for tests ------------------------------------------------------------------------


@pytest.mark.asyncio
async def test_in_a_test_function_of_pytest_asyncio(coroutines, name):
    assert await every_call(coroutines, name) == 7


class TestInATestCase(unittest.IsolatedAsyncioTestCase):
    """As people test who have no pytest. Set-up and test may be tasks of their own."""

    @pytest.fixture(autouse=True)
    def _server(self, start_server):
        self.server = start_server()

    async def asyncSetUp(self):
        self.client = seckill.aio.Client(self.server.url)
        self.addAsyncCleanup(self.client.aclose)
        await self.client.incr_inventory("stock", 10)
        assert await self.client.acquire_lock("lock", HOUR)

    async def test_in_an_asyncio_test_case(self):
        await self.client.release_lock("lock")
        await self.client.update_inventory("lock", "stock", -3, time_out=0)

    async def asyncTearDown(self):
        await self.client.update_inventory("lock", "stock", -7, time_out=0)
        assert self.server.redis().get("stock") == b"0"


# -- anyio --------------------------------------------------------------------------------------


@pytest.fixture(params=["asyncio", "uvloop"])
def anyio_backend(request):
    return "asyncio", {"use_uvloop": request.param == "uvloop"}


@pytest.mark.anyio
async def test_on_anyios_asyncio_backend(coroutines, name):
    assert await every_call(coroutines, name) == 7


@pytest.mark.anyio
async def test_in_a_task_group_of_anyio(coroutines, redis_py, key, lock):
    redis_py.set(key, 100)
    async with anyio.create_task_group() as group:
        for _ in range(30):
            group.start_soon(coroutines.update_inventory, lock, key, -1)
    assert redis_py.get(key) == b"70"


@pytest.mark.anyio
async def test_anyios_time_limits_end_a_wait_and_leave_no_lock(coroutines, redis_py, key, lock):
    redis_py.set(key, 5)
    redis_py.set(lock, "somebody", px=HOUR)
    with anyio.move_on_after(0.1) as scope:
        await coroutines.acquire_lock(lock, HOUR, 60_000)
    assert scope.cancelled_caught
    with pytest.raises(TimeoutError) as caught, anyio.fail_after(0.1):
        await coroutines.update_inventory(lock, key, -1, 5000, 60_000)
    assert not isinstance(caught.value, seckill.LockTimeout)
    assert redis_py.get(lock) == b"somebody"
    redis_py.delete(lock)
    await coroutines.update_inventory(lock, key, -2)  # behind whatever the two may have left
    assert redis_py.get(key) == b"3"
    assert not redis_py.exists(lock)


@pytest.mark.anyio
async def test_a_shielded_release_is_awaited_in_a_cancelled_scope(coroutines, redis_py, lock):
    with anyio.move_on_after(0.05) as scope:
        assert await coroutines.acquire_lock(lock, HOUR)
        try:
            await anyio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                await coroutines.release_lock(lock)
    assert scope.cancelled_caught
    assert not redis_py.exists(lock)


@pytest.mark.anyio
async def test_calls_from_anyios_worker_threads(coroutines, redis_py, key, lock):
    redis_py.set(key, 10)
    await anyio.to_thread.run_sync(seckill.update_inventory, lock, key, -1)
    await anyio.to_thread.run_sync(
        lambda: anyio.from_thread.run(coroutines.update_inventory, lock, key, -1)
    )
    assert redis_py.get(key) == b"8"


# -- no loop of asyncio's -----------------------------------------------------------------------

WANTED = ("asyncio event loop", "asyncio, uvloop", "trio is not supported")


def calls(shop):
    return [
        shop.acquire_lock("lock", 1000, 0),
        shop.release_lock("lock"),
        shop.incr_inventory("stock", 1),
        shop.update_inventory("lock", "stock", 1),
    ]


def says_what_is_wanted(caught):
    message = str(caught.value)
    assert all(words in message for words in WANTED), message


def test_under_trio_the_error_says_so(start_server, name):
    server = start_server()
    client = seckill.aio.Client(server.url)

    async def main():
        for coroutine in calls(client):
            with pytest.raises(RuntimeError) as caught:
                await coroutine
            says_what_is_wanted(caught)

    trio.run(main)
    assert client.statistics() == dict.fromkeys(client.statistics(), 0)
    assert server.redis().keys() == []
    assert on_loop(every_call(client, name)) == 7, "and the client is none the worse for it"


def test_under_anyios_trio_backend_the_error_says_so(coroutines):
    async def main():
        with pytest.raises(RuntimeError) as caught:
            await coroutines.acquire_lock("lock")
        says_what_is_wanted(caught)

    anyio.run(main, backend="trio")


def test_driven_by_hand_the_error_says_what_is_missing(start_server):
    server = start_server()
    client = seckill.aio.Client(server.url)
    for coroutine in calls(client):
        with pytest.raises(RuntimeError) as caught:
            coroutine.send(None)
        says_what_is_wanted(caught)
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    assert server.redis().keys() == []


def test_a_coroutine_that_is_dropped_warns_as_pythons_own_do(coroutines):
    coroutine = coroutines.acquire_lock("lock")
    with pytest.warns(RuntimeWarning, match="acquire_lock' was never awaited"):
        del coroutine
