"""The modules to import instead of redis-py's: for code that patches or subclasses those.

What is held against redis-py's own module as well has it among its parameters.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import time
from unittest import mock

import pytest
import redis
import redis.asyncio
import seckill
import seckill.aio
from support.locks import BY_REDIS, COMPAT, MODULES, REFERENCE, SOMEBODY, lock_class
from support.threads import call

pytestmark = pytest.mark.core

THEIRS, OURS = MODULES[REFERENCE][0], MODULES[COMPAT][0]


@pytest.fixture(params=[THEIRS, OURS])
def module(request):
    return importlib.import_module(request.param)


@pytest.fixture
def compat():
    return importlib.import_module(OURS)


@pytest.fixture(params=[REFERENCE, COMPAT, BY_REDIS])
def base(request):
    """What a class may derive from; nothing that a test does to it is left."""
    return subclass(lock_class(request.param))


def subclass(cls):
    return type("Lock", (cls,), {})


class Clock:
    """All that the module has of a clock, in either module."""

    def __init__(self):
        self.now = 1000.0
        self.slept = []
        self.at_sleep = {}  # what happens during the first one, the second one ...

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds
        self.at_sleep.get(len(self.slept), lambda: None)()


@pytest.fixture
def clock(module, monkeypatch):
    clock = Clock()
    monkeypatch.setattr(module, "mod_time", clock)
    return clock


# -- what is in them --------------------------------------------------------------------------


@pytest.mark.parametrize("awaited", [False, True])
def test_a_module_has_what_redis_pys_has(awaited):
    ours = importlib.import_module(MODULES[COMPAT][awaited])
    assert isinstance(ours.logger, logging.Logger)
    assert ours.Lock.__module__ == ours.__name__
    assert issubclass(ours.Lock, (seckill.aio if awaited else seckill).Lock)
    clock = ours.asyncio if awaited else ours.mod_time
    assert clock is (asyncio if awaited else time)
    for error in ("LockError", "LockNotOwnedError"):
        assert hasattr(ours, error)
    for script in ("LUA_RELEASE_SCRIPT", "LUA_EXTEND_SCRIPT", "LUA_REACQUIRE_SCRIPT"):
        assert isinstance(getattr(ours.Lock, script), str)
    for hook in ("lua_release", "lua_extend", "lua_reacquire", "register_scripts"):
        assert hasattr(ours.Lock, hook)


def test_the_modules_errors_are_what_its_locks_raise(module, redis_py, lock):
    made = module.Lock(redis_py, lock)
    with pytest.raises(module.LockError):
        made.release()
    made.acquire()
    redis_py.delete(lock)
    with pytest.raises(module.LockNotOwnedError):
        made.release()


def test_the_modules_logger_is_the_one_that_warns(module, redis_py, lock):
    made = module.Lock(redis_py, lock, raise_on_release_error=False)
    with mock.patch.object(module, "logger") as logger, made:
        redis_py.delete(lock)
    logger.warning.assert_called_once()


def test_a_client_of_ours_will_do(client, compat, redis_py, lock):
    made = compat.Lock(client, lock, timeout=10)
    with made:
        assert redis_py.get(lock) == made.local.token
        assert made.extend(10) is True
        assert made.reacquire() is True
        assert made.owned() is True
    assert not redis_py.exists(lock)


def test_with_the_real_clock_a_waiter_is_told(compat, redis_py, lock):
    """It does not ask again every thirty seconds."""
    redis_py.set(lock, SOMEBODY)
    waiter = call(compat.Lock(redis_py, lock, sleep=30).acquire).until_asleep()
    redis_py.delete(lock)
    assert waiter.result(20) is True


# -- its clock --------------------------------------------------------------------------------


def test_a_patched_clock_is_the_one_that_counts(module, clock, redis_py, lock):
    redis_py.set(lock, SOMEBODY)
    made = module.Lock(redis_py, lock, sleep=10, blocking_timeout=50)
    assert made.acquire() is False
    assert clock.slept == [10] * 5
    assert made.local.token is None
    assert redis_py.get(lock) == SOMEBODY


def test_after_every_sleep_of_a_patched_clock_it_tries_again(module, clock, redis_py, lock):
    redis_py.set(lock, SOMEBODY)
    clock.at_sleep[3] = lambda: redis_py.delete(lock)
    made = module.Lock(redis_py, lock, timeout=60, sleep=10)
    assert made.acquire() is True
    assert clock.slept == [10] * 3
    assert redis_py.get(lock) == made.local.token
    assert 50_000 < redis_py.pttl(lock) <= 60_000
    made.release()
    assert not redis_py.exists(lock)


def test_the_arguments_of_a_call_go_before_the_locks(module, clock, redis_py, lock):
    redis_py.set(lock, SOMEBODY)
    made = module.Lock(redis_py, lock, sleep=10, blocking_timeout=50)
    assert made.acquire(sleep=20, blocking_timeout=50) is False
    assert clock.slept == [20, 20]
    assert made.acquire(blocking_timeout=0) is False
    assert made.acquire(blocking=False) is False
    assert made.acquire(sleep=60) is False
    assert clock.slept == [20, 20]


def test_a_free_lock_needs_no_clock(module, redis_py, lock, monkeypatch):
    monkeypatch.setattr(module, "mod_time", None)
    made = module.Lock(redis_py, lock, timeout=60)
    assert made.acquire() is True
    assert made.owned() is True
    made.release()


def test_a_module_may_be_patched_by_its_name(module, redis_py, lock):
    redis_py.set(lock, SOMEBODY)
    with mock.patch(f"{module.__name__}.mod_time") as clock:
        clock.monotonic.side_effect = [100, 100, 107, 114]
        assert module.Lock(redis_py, lock, sleep=5, blocking_timeout=15).acquire() is False
    assert clock.sleep.mock_calls == [mock.call(5)] * 2


def test_the_clocks_functions_may_be_patched_where_they_are(module, redis_py, lock):
    """This patches `time` itself, in all of the process."""
    redis_py.set(lock, SOMEBODY)
    real = time.sleep
    with mock.patch(f"{module.__name__}.mod_time.sleep") as sleep:
        sleep.side_effect = lambda seconds: (
            real(0) or (sleep.call_count == 3 and redis_py.delete(lock))
        )
        assert module.Lock(redis_py, lock, sleep=300).acquire() is True
    assert sleep.mock_calls == [mock.call(300)] * 3


# -- subclasses -------------------------------------------------------------------------------


def test_a_subclass_may_acquire_in_its_own_way(base, redis_py, lock):
    class Lock(base):
        tokens = ()

        def do_acquire(self, token):
            self.tokens += (token,)
            return len(self.tokens) == 3 and super().do_acquire(token)

    made = Lock(redis_py, lock, timeout=60, sleep=0.001)
    assert made.acquire() is True
    token = redis_py.get(lock)
    assert made.tokens == (token,) * 3 == (made.local.token,) * 3
    assert 50_000 < redis_py.pttl(lock) <= 60_000
    made.release()
    assert not redis_py.exists(lock)


def test_a_subclass_is_asked_once_where_nothing_blocks(base, redis_py, lock):
    class Lock(base):
        asked = 0

        def do_acquire(self, token):
            self.asked += 1
            return False

    made = Lock(redis_py, lock, sleep=0.001)
    assert made.acquire(blocking=False) is False
    assert made.acquire(blocking_timeout=0) is False
    assert made.asked == 2
    assert made.acquire(blocking_timeout=0.02) is False
    assert made.asked > 3
    assert made.local.token is None


def test_a_subclass_may_do_the_rest_in_its_own_way(base, redis_py, lock):
    done = []

    class Lock(base):
        def do_acquire(self, token):
            return True

        def do_release(self, expected_token):
            done.append(expected_token)

        def do_extend(self, additional_time, replace_ttl):
            done.append((additional_time, replace_ttl))
            return True

        def do_reacquire(self):
            done.append("reacquire")
            return True

    with Lock(redis_py, lock, timeout=10) as made:
        token = made.local.token
        assert made.extend(1.5) is True
        assert made.extend(2, replace_ttl=True) is True
        assert made.reacquire() is True
    assert done == [(1.5, False), (2, True), "reacquire", token]
    assert made.local.token is None
    assert not redis_py.exists(lock)


def test_a_subclass_may_do_more_than_it_was_asked(base, redis_py, lock):
    """With `super()` doing what was asked."""
    done = []

    class Lock(base):
        def do_release(self, expected_token):
            super().do_release(expected_token)
            done.append("release")

        def do_extend(self, additional_time, replace_ttl):
            done.append("extend")
            return super().do_extend(additional_time * 2, replace_ttl)

        def do_reacquire(self):
            done.append("reacquire")
            return super().do_reacquire()

    with Lock(redis_py, lock, timeout=60) as made:
        assert made.extend(60) is True
        assert 150_000 < redis_py.pttl(lock) <= 180_000
        assert made.reacquire() is True
        assert 50_000 < redis_py.pttl(lock) <= 60_000
    assert not redis_py.exists(lock)
    made.acquire()
    redis_py.set(lock, SOMEBODY)
    with pytest.raises(redis.exceptions.LockNotOwnedError):
        made.release()
    assert done == ["extend", "reacquire", "release"]
    assert made.local.token is None


def test_a_subclass_whose_release_fails_keeps_the_token(compat, redis_py, lock):
    """redis-py 8.1 has forgotten it by then."""

    class Lock(compat.Lock):
        def do_release(self, expected_token):
            raise ZeroDivisionError

    made = Lock(redis_py, lock)
    made.acquire(token="test")
    with pytest.raises(ZeroDivisionError):
        made.release()
    assert made.local.token == b"test"


# -- scripts ----------------------------------------------------------------------------------


def test_a_script_may_be_replaced(module, redis_py, lock):
    """As redis-py has it, a class that does must forget what its base has registered."""

    class Lock(module.Lock):
        lua_release = lua_extend = lua_reacquire = None
        LUA_RELEASE_SCRIPT = """
            redis.call('rename', KEYS[1], KEYS[1] .. ':' .. ARGV[1])
            return 1
        """
        LUA_EXTEND_SCRIPT = """
            redis.call('set', KEYS[1] .. ':extend', ARGV[1] .. ' ' .. ARGV[2] .. ' ' .. ARGV[3])
            return 1
        """
        LUA_REACQUIRE_SCRIPT = """
            redis.call('set', KEYS[1] .. ':reacquire', ARGV[1] .. ' ' .. ARGV[2])
            return 1
        """

    made = Lock(redis_py, lock, timeout=10)
    made.acquire(token="test")
    assert made.extend(1.5) is True
    assert redis_py.get(f"{lock}:extend") == b"test 1500 0"
    assert made.extend(2, replace_ttl=True) is True
    assert redis_py.get(f"{lock}:extend") == b"test 2000 1"
    assert made.reacquire() is True
    assert redis_py.get(f"{lock}:reacquire") == b"test 10000"
    made.release()
    assert redis_py.get(f"{lock}:test") == b"test"
    assert not redis_py.exists(lock)


@pytest.mark.parametrize("refusing", ["release", "extend", "reacquire"])
def test_a_script_that_answers_0_says_that_the_lock_is_not_ours(module, redis_py, lock, refusing):
    Lock = type(  # noqa: N806
        "Lock",
        (module.Lock,),
        {f"lua_{refusing}": None, f"LUA_{refusing.upper()}_SCRIPT": "return 0"},
    )
    made = Lock(redis_py, lock, timeout=10)
    made.acquire()
    with pytest.raises(module.LockNotOwnedError):
        getattr(made, refusing)(*[1] * (refusing == "extend"))
    assert redis_py.exists(lock)


def test_what_runs_a_script_may_be_replaced(module, redis_py, lock):
    made = subclass(module.Lock)(redis_py, lock, timeout=10)
    made.acquire(token="test")
    made.lua_extend = mock.Mock(return_value=1)
    assert made.extend(1.5) is True
    assert made.extend(2, replace_ttl=True) is True
    assert made.lua_extend.mock_calls == [
        mock.call(keys=[lock], args=[b"test", 1500, "0"], client=redis_py),
        mock.call(keys=[lock], args=[b"test", 2000, "1"], client=redis_py),
    ]
    made.lua_reacquire = mock.Mock(return_value=1)
    assert made.reacquire() is True
    made.lua_reacquire.assert_called_once_with(keys=[lock], args=[b"test", 10_000], client=redis_py)
    made.lua_release = mock.Mock(return_value=0)
    with pytest.raises(module.LockNotOwnedError):
        made.release()
    made.lua_release.assert_called_once_with(keys=[lock], args=[b"test"], client=redis_py)
    assert made.local.token is None
    assert redis_py.get(lock) == b"test"


def test_what_runs_a_script_may_be_replaced_in_the_class(module, redis_py, lock):
    made = module.Lock(redis_py, lock)
    made.acquire(token="test")
    with mock.patch.object(module.Lock, "lua_release", mock.Mock(return_value=1)) as release:
        made.release()
    release.assert_called_once_with(keys=[lock], args=[b"test"], client=redis_py)
    assert made.local.token is None
    assert redis_py.get(lock) == b"test"


def test_what_runs_a_script_may_be_called(module, redis_py, lock):
    made = module.Lock(redis_py, lock, timeout=10)
    made.acquire(token="test")
    own = {"keys": [lock], "client": redis_py}
    assert made.lua_reacquire(args=[b"test", 60_000], **own) == 1
    assert 50_000 < redis_py.pttl(lock) <= 60_000
    assert made.lua_extend(args=[b"test", 60_000, "0"], **own) == 1
    assert 100_000 < redis_py.pttl(lock) <= 120_000
    assert (
        made.lua_release(
            args=[
                b"another",
            ],
            **own,
        )
        == 0
    )
    assert made.lua_release(args=[b"test"], **own) == 1
    assert not redis_py.exists(lock)


def test_a_subclass_may_register_its_scripts_itself(module, redis_py, lock):
    class Lock(module.Lock):
        registered = 0

        def register_scripts(self):
            assert self.redis is redis_py
            self.registered += 1
            self.lua_release = mock.Mock(return_value=1)

    made = Lock(redis_py, lock)
    assert made.registered == 1
    made.acquire(token="test")
    made.release()
    made.lua_release.assert_called_once_with(keys=[lock], args=[b"test"], client=redis_py)
    assert made.registered == 1


# -- patched objects --------------------------------------------------------------------------


def test_an_object_may_be_patched(base, redis_py, lock):
    made = base(redis_py, lock, timeout=10, sleep=0.001)
    with mock.patch.object(made, "do_acquire", side_effect=[False, False, True]) as do_acquire:
        assert made.acquire(token="test") is True
    assert do_acquire.mock_calls == [mock.call(b"test")] * 3
    assert made.local.token == b"test"
    assert not redis_py.exists(lock)
    with mock.patch.object(made, "do_extend", return_value=True) as do_extend:
        assert made.extend(5) is True
    do_extend.assert_called_once_with(5, False)
    with mock.patch.object(made, "do_reacquire", return_value=True) as do_reacquire:
        assert made.reacquire() is True
    do_reacquire.assert_called_once_with()
    with mock.patch.object(made, "do_release") as do_release:
        made.release()
    do_release.assert_called_once_with(b"test")
    assert made.local.token is None


def test_after_a_patch_it_is_as_it_was(base, redis_py, lock):
    made = base(redis_py, lock, timeout=10)
    with mock.patch.object(made, "do_acquire", return_value=False):
        assert made.acquire(blocking=False) is False
    with made:
        assert redis_py.get(lock) == made.local.token
    assert not redis_py.exists(lock)


def test_with_uses_what_was_patched(base, redis_py, lock):
    made = base(redis_py, lock)
    with (
        mock.patch.object(base, "acquire", return_value=True) as acquire,
        mock.patch.object(base, "release") as release,
    ):
        with made:
            acquire.assert_called_once_with()
            release.assert_not_called()
        release.assert_called_once_with()
    with (
        mock.patch.object(made, "acquire", return_value=False),
        pytest.raises(redis.exceptions.LockError),
        made,
    ):
        pytest.fail("this is not locked")
    assert not redis_py.exists(lock)
