"""The module to import instead of redis-py's awaited lock: what people patch and subclass in it."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
from unittest import mock

import pytest
from support.aio import eventually
from support.locks import BY_REDIS, COMPAT, MODULES, REFERENCE, SOMEBODY, connect, lock_class
from test_lock_compat import Clock, subclass

pytestmark = [pytest.mark.core, pytest.mark.usefixtures("loop_kind")]

OURS = MODULES[COMPAT][1]


@pytest.fixture(params=[MODULES[REFERENCE][1], OURS])
def module(request):
    return importlib.import_module(request.param)


@pytest.fixture
def compat():
    return importlib.import_module(OURS)


@pytest.fixture(params=[REFERENCE, COMPAT, BY_REDIS])
def base(request):
    return subclass(lock_class(request.param, awaited=True))


class AwaitedClock(Clock):
    """In the place of the whole of asyncio, as the module knows it."""

    def get_running_loop(self):
        return self

    def time(self):
        return self.now

    async def sleep(self, seconds):
        super().sleep(seconds)


@pytest.fixture
def clock(module, monkeypatch):
    clock = AwaitedClock()
    monkeypatch.setattr(module, "asyncio", clock)
    return clock


@contextlib.asynccontextmanager
async def a_client(server):
    client = connect(REFERENCE, server.url, awaited=True)
    try:
        yield client
    finally:
        await client.aclose()


async def test_a_patched_clock_is_the_one_that_counts(module, clock, server, redis_py, lock):
    redis_py.set(lock, SOMEBODY)
    async with a_client(server) as client:
        made = module.Lock(client, lock, sleep=10, blocking_timeout=50)
        assert await made.acquire() is False
        assert clock.slept == [10] * 5
        assert await made.acquire(blocking_timeout=25) is False
        assert clock.slept == [10] * 7
        assert made.local.token is None


async def test_after_every_sleep_of_a_patched_clock_it_tries_again(
    module, clock, server, redis_py, lock
):
    redis_py.set(lock, SOMEBODY)
    clock.at_sleep[3] = lambda: redis_py.delete(lock)
    async with a_client(server) as client:
        made = module.Lock(client, lock, timeout=60, sleep=10)
        assert await made.acquire() is True
        assert clock.slept == [10] * 3
        assert redis_py.get(lock) == made.local.token
        await made.release()
    assert not redis_py.exists(lock)


async def test_the_clocks_functions_may_be_patched_where_they_are(module, server, redis_py, lock):
    redis_py.set(lock, SOMEBODY)
    async with a_client(server) as client:
        made = module.Lock(client, lock, sleep=300)
        with mock.patch(f"{module.__name__}.asyncio.sleep") as sleep:
            sleep.side_effect = lambda _: sleep.call_count == 3 and redis_py.delete(lock)
            assert await made.acquire() is True
        assert sleep.mock_calls == [mock.call(300)] * 3
        await made.release()


async def test_with_the_real_clock_a_waiter_is_told(compat, server, redis_py, lock):
    redis_py.set(lock, SOMEBODY)
    async with a_client(server) as client:
        made = compat.Lock(client, lock, sleep=30)
        waiter = asyncio.ensure_future(made.acquire())
        await asyncio.sleep(0.1)
        redis_py.delete(lock)
        await eventually(waiter.done)
        assert await waiter is True


async def test_a_subclass_may_acquire_in_its_own_way(base, server, redis_py, lock):
    class Lock(base):
        tokens = ()

        async def do_acquire(self, token):
            self.tokens += (token,)
            return len(self.tokens) == 3 and await super().do_acquire(token)

    async with a_client(server) as client:
        made = Lock(client, lock, sleep=0.001)
        assert await made.acquire() is True
        token = redis_py.get(lock)
        assert made.tokens == (token,) * 3 == (made.local.token,) * 3
        await made.release()


async def test_a_subclass_may_do_the_rest_in_its_own_way(base, server, lock):
    done = []

    class Lock(base):
        async def do_acquire(self, token):
            return True

        async def do_release(self, expected_token):
            done.append(expected_token)

        async def do_extend(self, additional_time, replace_ttl):
            done.append((additional_time, replace_ttl))
            return True

        async def do_reacquire(self):
            done.append("reacquire")
            return True

    async with a_client(server) as client:
        async with Lock(client, lock, timeout=10) as made:
            token = made.local.token
            assert await made.extend(1.5) is True
            assert await made.extend(2, replace_ttl=True) is True
            assert await made.reacquire() is True
        assert done == [(1.5, False), (2, True), "reacquire", token]
        assert made.local.token is None
        assert await made.locked() is False


async def test_a_script_may_be_replaced(module, server, redis_py, lock):
    class Lock(module.Lock):
        lua_release = None
        LUA_RELEASE_SCRIPT = """
            redis.call('rename', KEYS[1], KEYS[1] .. ':' .. ARGV[1])
            return 1
        """

    async with a_client(server) as client:
        made = Lock(client, lock, timeout=10)
        await made.acquire(token="test")
        await made.release()
    assert redis_py.get(f"{lock}:test") == b"test"
    assert not redis_py.exists(lock)


async def test_what_runs_a_script_may_be_replaced(module, server, lock):
    async with a_client(server) as client:
        made = subclass(module.Lock)(client, lock, timeout=10)
        await made.acquire(token="test")
        made.lua_extend = mock.AsyncMock(return_value=1)
        assert await made.extend(1.5) is True
        made.lua_extend.assert_awaited_once_with(
            keys=[lock], args=[b"test", 1500, "0"], client=client
        )
        made.lua_release = mock.AsyncMock(return_value=0)
        with pytest.raises(module.LockNotOwnedError):
            await made.release()
        made.lua_release.assert_awaited_once_with(keys=[lock], args=[b"test"], client=client)
        assert made.local.token is None
