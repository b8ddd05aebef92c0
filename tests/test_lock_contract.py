"""The contract with redis-py's lock: who moves from that one to ours notices no difference.

Every statement is held against redis-py's own class as well: what is tested is what redis-py does,
not what we think of it. The same tests are held against the awaited locks.
"""

from __future__ import annotations

import inspect
import time

import pytest
import redis
import redis.lock
from redis.exceptions import LockError
from support.locks import (
    ALL,
    BY_REDIS,
    COMPAT,
    DIRECT,
    REFERENCE,
    SOMEBODY,
    lock_class,
    locks,
    server_of_the_place,
)
from support.proxy import SilentHost
from support.servers import free_port
from support.threads import call

pytestmark = pytest.mark.core


# Which locks a test is about: all of them, or those that a redis-py client makes.
server = server_of_the_place
make = locks(*ALL)
by_redis = locks(REFERENCE, BY_REDIS, COMPAT)


# -- what it is made of -----------------------------------------------------------------------

METHODS = ["acquire", "release", "extend", "reacquire", "locked", "owned"]
HOOKS = ["do_acquire", "do_release", "do_extend", "do_reacquire"]


def parameters(function):
    return [(p.name, p.kind, p.default) for p in inspect.signature(function).parameters.values()]


@pytest.mark.parametrize("kind", [DIRECT, COMPAT])
def test_the_constructor_begins_as_redis_pys(kind):
    theirs, ours = parameters(lock_class(REFERENCE)), parameters(lock_class(kind))
    assert ours[: len(theirs)] == theirs
    for name, how, default in ours[len(theirs) :]:
        assert how is inspect.Parameter.KEYWORD_ONLY, name
        assert default is not inspect.Parameter.empty, name


@pytest.mark.parametrize("kind", [DIRECT, COMPAT])
@pytest.mark.parametrize("method", METHODS + HOOKS)
def test_a_method_takes_what_redis_pys_takes(kind, method):
    theirs, ours = getattr(lock_class(REFERENCE), method), getattr(lock_class(kind), method)
    assert parameters(ours) == parameters(theirs)
    assert inspect.iscoroutinefunction(ours) is False


def test_what_was_not_given_has_redis_pys_default(make, lock):
    made = make(lock)
    assert made.redis is make.client
    assert made.name == lock
    assert made.timeout is None
    assert made.sleep == 0.1
    assert made.blocking is True
    assert made.blocking_timeout is None
    assert made.thread_local is True
    assert made.raise_on_release_error is True
    assert made.local.token is None


def test_what_was_given_can_be_read(make, lock):
    given = {"timeout": 5, "sleep": 0.25, "blocking": False, "blocking_timeout": 1.5}
    given |= {"thread_local": False, "raise_on_release_error": False}
    made = make(lock, **given)
    assert {name: getattr(made, name) for name in given} == given
    assert made.local.token is None


def test_what_is_changed_counts_from_then_on(make, lock, redis_py):
    made = make(f"{lock}:before")
    made.name, made.timeout, made.blocking = lock, 10, False
    assert made.acquire() is True
    assert redis_py.get(lock) == made.local.token
    assert 8000 < redis_py.pttl(lock) <= 10_000
    assert made.acquire() is False
    made.release()
    assert not redis_py.exists(lock, f"{lock}:before")


def test_a_client_makes_what_it_was_asked_for(by_redis, lock):
    """Its keywords are the constructor's."""
    made = by_redis.client.lock(
        lock,
        timeout=5,
        sleep=0.25,
        blocking=False,
        blocking_timeout=1.5,
        lock_class=lock_class(by_redis.kind, awaited=by_redis.awaited),
        thread_local=False,
        raise_on_release_error=False,
    )
    assert type(made) is lock_class(by_redis.kind, awaited=by_redis.awaited)


def test_making_a_lock_sends_nothing(make, lock):
    with SilentHost() as host:
        make.at(host.url)(lock, timeout=5)
        assert host.received() == (0, b"")


# -- acquire ----------------------------------------------------------------------------------


def test_a_lock_is_its_token_at_its_name(make, lock, redis_py):
    made = make(lock)
    assert made.acquire() is True
    token = made.local.token
    assert type(token) is bytes
    assert redis_py.get(lock) == token
    made.release()


@pytest.mark.parametrize("timeout", [None, 0])
def test_a_lock_without_timeout_has_no_ttl(make, lock, redis_py, timeout):
    made = make(lock, timeout=timeout)
    made.acquire()
    assert redis_py.pttl(lock) == -1
    made.release()


@pytest.mark.parametrize("timeout", [10, 10.0, 9.5])
def test_a_timeout_is_the_ttl_in_seconds(make, lock, redis_py, timeout):
    made = make(lock, timeout=timeout)
    assert made.acquire(blocking=False)
    assert 8000 < redis_py.pttl(lock) <= timeout * 1000
    made.release()


def test_a_timeout_is_cut_to_milliseconds(make, lock, redis_py):
    made, seen = make(lock, timeout=10.0009), []
    for _ in range(10):  # at least once within the first millisecond, where 10001 would be seen
        made.acquire()
        seen.append(redis_py.pttl(lock))
        assert made.extend(20.0009, replace_ttl=True)
        seen.append(redis_py.pttl(lock) - 10_000)
        assert made.reacquire()
        seen.append(redis_py.pttl(lock))
        made.release()
    assert 8000 < max(seen) <= 10_000


@pytest.mark.parametrize("kind", ["锁:{}", b"lock:\xff\x00:%s", "a lock:{}"])
def test_the_key_is_the_name_as_it_is(make, lock, redis_py, kind):
    given = kind.format(lock) if isinstance(kind, str) else kind % lock.encode()
    made = make(given)
    assert made.acquire(blocking=False) is True
    assert made.name == given
    assert redis_py.get(given) == made.local.token
    made.release()
    assert not redis_py.exists(given)


@pytest.mark.parametrize(
    ("token", "stored"),
    [("test", b"test"), ("锁", "锁".encode()), (b"\x00\xff", b"\x00\xff"), ("a b\n", b"a b\n")],
)
def test_a_token_may_be_given(make, lock, redis_py, token, stored):
    made = make(lock)
    assert made.acquire(blocking=False, token=token) is True
    assert redis_py.get(lock) == stored
    assert made.local.token == stored
    assert made.owned() is True
    made.release()
    assert not redis_py.exists(lock)


def test_every_acquisition_has_a_token_of_its_own(make, lock):
    one, other, tokens = make(lock), make(lock), set()
    for _ in range(20):
        for made in (one, other):
            assert made.acquire()
            tokens.add(made.local.token)
            made.release()
    assert len(tokens) == 40


def test_two_locks_of_one_name_exclude_each_other_in_one_thread(make, lock):
    one, other = make(lock), make(lock)
    assert one.acquire(blocking=False) is True
    assert other.acquire(blocking=False) is False
    assert other.local.token is None
    one.release()
    assert other.acquire(blocking=False) is True
    assert one.acquire(blocking=False) is False
    other.release()


def test_a_lock_that_is_held_is_not_acquired_once_more(make, lock, redis_py):
    made = make(lock, timeout=10)
    made.acquire()
    token = made.local.token
    assert made.acquire(blocking=False) is False
    assert made.local.token == token == redis_py.get(lock)
    assert made.owned() is True
    made.release()
    assert not redis_py.exists(lock)


def test_what_another_put_there_is_left_alone(make, lock, redis_py):
    redis_py.set(lock, SOMEBODY, px=60_000)
    assert make(lock, timeout=1).acquire(blocking=False) is False
    assert redis_py.get(lock) == SOMEBODY
    assert redis_py.pttl(lock) > 30_000


def test_a_lock_that_does_not_block_tries_once(make, lock, redis_py):
    redis_py.set(lock, SOMEBODY)
    start = time.monotonic()
    assert make(lock, blocking=False, blocking_timeout=60).acquire() is False
    assert make(lock, blocking_timeout=60).acquire(blocking=False) is False
    assert time.monotonic() - start < 10
    redis_py.delete(lock)
    made = make(lock, blocking=False)
    assert made.acquire() is True
    made.release()


def test_what_a_call_says_goes_before_what_the_lock_says(make, lock, redis_py):
    redis_py.set(lock, SOMEBODY, px=100)
    made = make(lock, sleep=0.02, blocking=False, blocking_timeout=0)
    assert made.acquire(blocking=True, blocking_timeout=60) is True
    made.release()


def test_a_wait_is_given_up_when_its_time_is_over(make, lock, redis_py):
    """One `sleep` before its end at the earliest: the next try would come too late."""
    redis_py.set(lock, SOMEBODY)
    made = make(lock, sleep=0.05, blocking_timeout=0.15)
    start = time.monotonic()
    assert made.acquire() is False
    assert 0.1 < time.monotonic() - start < 5
    assert make(lock, sleep=0.05).acquire(blocking_timeout=0.15) is False
    assert redis_py.get(lock) == SOMEBODY


def test_a_wait_is_given_up_at_once_when_the_next_try_would_come_too_late(make, lock, redis_py):
    redis_py.set(lock, SOMEBODY)
    start = time.monotonic()
    assert make(lock, sleep=60, blocking_timeout=20).acquire() is False
    assert make(lock, sleep=60).acquire(blocking_timeout=20) is False
    assert time.monotonic() - start < 10


def test_the_sleep_of_a_call_goes_before_the_locks(make, lock, redis_py):
    redis_py.set(lock, SOMEBODY)
    start = time.monotonic()
    assert make(lock).acquire(sleep=60, blocking_timeout=20) is False
    assert make(lock).acquire(60, True, 20) is False
    assert time.monotonic() - start < 10


def test_a_blocking_timeout_of_zero_tries_once(make, lock, redis_py):
    redis_py.set(lock, SOMEBODY)
    assert make(lock, blocking_timeout=0).acquire() is False
    redis_py.delete(lock)
    made = make(lock, blocking_timeout=0)
    assert made.acquire() is True
    made.release()


def test_a_wait_without_an_end_lasts_until_the_lock_is_free(make, lock, redis_py):
    redis_py.set(lock, SOMEBODY)
    made = make(lock, sleep=0.05)
    waiter = call(made.acquire).until_asleep()
    assert waiter.is_alive()
    redis_py.delete(lock)
    assert waiter.result() is True
    assert redis_py.get(lock) not in (None, SOMEBODY)


def test_a_wait_ends_with_the_lease_of_the_holder(make, lock, redis_py):
    redis_py.set(lock, SOMEBODY, px=100)
    made = make(lock, sleep=0.02, blocking_timeout=60)
    assert made.acquire() is True
    assert redis_py.get(lock) == made.local.token
    made.release()


def test_a_server_that_cannot_be_reached_is_a_connection_error(make, lock):
    made = make.at(f"redis://127.0.0.1:{free_port()}")(lock, blocking_timeout=1)
    for use in (made.acquire, made.locked):
        with pytest.raises(redis.exceptions.ConnectionError) as caught:
            use()
        assert not isinstance(caught.value, LockError)
    assert made.local.token is None


# -- locked and owned -------------------------------------------------------------------------


def look(*made):
    """What they say of themselves; `is` tells a bool from what is as good as one."""
    said = [(one.locked(), one.owned()) for one in made]
    assert all(type(answer) is bool for pair in said for answer in pair)
    return said


def test_locked_is_whether_anybody_holds_it_and_owned_whether_we_do(make, lock, redis_py):
    one, other = make(lock), make(lock)
    assert look(one, other) == [(False, False), (False, False)]
    one.acquire()
    assert look(one, other) == [(True, True), (True, False)]
    one.release()
    assert look(one, other) == [(False, False), (False, False)]
    redis_py.set(lock, SOMEBODY)
    assert look(one, other) == [(True, False), (True, False)]


def test_a_lock_whose_key_is_gone_or_anothers_is_not_owned(make, lock, redis_py):
    made = make(lock)
    made.acquire()
    redis_py.set(lock, SOMEBODY)
    assert look(made) == [(True, False)]
    redis_py.delete(lock)
    assert look(made) == [(False, False)]


def test_an_empty_value_locks_too(make, lock, redis_py):
    redis_py.set(lock, b"")
    made = make(lock)
    assert look(made) == [(True, False)]
    assert made.acquire(blocking=False) is False


def test_a_client_that_decodes_responses_makes_no_difference(by_redis, lock, redis_py):
    by_redis = by_redis.at(decode_responses=True)
    one, other = by_redis(lock, timeout=10), by_redis(lock, timeout=10)
    one.acquire()
    assert type(one.local.token) is bytes
    assert look(one, other) == [(True, True), (True, False)]
    assert one.extend(10) is True
    assert one.reacquire() is True
    one.release()
    assert other.acquire(token="锁") is True
    assert other.local.token == "锁".encode()
    assert look(one, other) == [(True, False), (True, True)]
    redis_py.set(lock, SOMEBODY)
    assert look(one, other) == [(True, False), (True, False)]


def test_names_and_tokens_are_encoded_as_the_client_does(by_redis, lock, redis_py):
    by_redis = by_redis.at(encoding="gbk")
    made = by_redis(f"锁:{lock}")
    assert made.acquire(token="秒杀") is True
    assert redis_py.get(f"锁:{lock}".encode("gbk")) == "秒杀".encode("gbk") == made.local.token
    made.release()
