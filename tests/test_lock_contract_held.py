"""The contract with redis-py's lock, once it is held: how it is prolonged, released and lost.

Where redis-py 8.1 does not do what it says itself, a test takes `ours` and says so.
"""

from __future__ import annotations

import logging
import time

import pytest
import redis
import seckill
from redis.exceptions import LockError, LockNotOwnedError
from support.locks import ALL, DIRECT, OURS, SOMEBODY, locks, server_of_the_place
from support.threads import call, wait_until

pytestmark = pytest.mark.core

# Which locks a test is about: all of them; without redis-py's awaited one, which mixes its tasks up
# and names no lock; ours alone; and those that do not forget a lock when its release failed.
server = server_of_the_place
make = locks(*ALL)
strict = locks(*ALL)
ours = locks(*OURS)
keepers = locks(DIRECT)


SHORT = {"timeout": 0.5, "socket_timeout": 0.5}  # a client that gives up soon


def wait_for_the_end_of(lock, redis_py):
    wait_until(lambda: not redis_py.exists(lock))


# -- release ----------------------------------------------------------------------------------


def test_a_release_frees_the_lock_and_forgets_the_token(make, lock, redis_py):
    made = make(lock)
    made.acquire()
    assert made.release() is None
    assert not redis_py.exists(lock)
    assert made.local.token is None


def test_a_lost_lock_is_not_released_but_forgotten(make, lock, redis_py):
    made = make(lock)
    made.acquire()
    redis_py.set(lock, SOMEBODY, px=60_000)
    with pytest.raises(LockNotOwnedError):
        made.release()
    assert redis_py.get(lock) == SOMEBODY
    assert made.local.token is None
    redis_py.delete(lock)
    assert made.acquire(blocking=False) is True
    made.release()


def test_a_lock_whose_lease_ended_is_not_released_but_forgotten(make, lock, redis_py):
    made, other = make(lock, timeout=0.05), make(lock)
    made.acquire()
    wait_for_the_end_of(lock, redis_py)
    other.acquire()
    with pytest.raises(LockNotOwnedError):
        made.release()
    assert other.owned() is True
    assert made.local.token is None
    other.release()


def test_a_lock_is_released_once(make, lock, redis_py):
    made = make(lock)
    made.acquire()
    made.release()
    redis_py.set(lock, SOMEBODY)
    with pytest.raises(LockError) as caught:
        made.release()
    assert not isinstance(caught.value, LockNotOwnedError)
    assert redis_py.get(lock) == SOMEBODY


def test_a_token_from_elsewhere_releases(make, lock, redis_py):
    """As one process acquires, and another, which was sent the token, releases."""
    redis_py.set(lock, b"from elsewhere", px=5000)
    made = make(lock, timeout=20, thread_local=False)
    made.local.token = b"from elsewhere"
    assert made.owned() is True
    assert made.reacquire() is True
    assert redis_py.pttl(lock) > 10_000
    made.release()
    assert not redis_py.exists(lock)
    assert made.local.token is None


def test_a_release_that_failed_on_the_connection_can_be_made_again(
    keepers, lock, redis_py, server, start_proxy
):
    proxy = start_proxy(server)
    keepers = keepers.at(proxy.url, **(SHORT if keepers.kind == DIRECT else {}))
    made = keepers(lock, timeout=60)
    made.acquire()
    token = made.local.token
    proxy.refuse()
    proxy.cut()
    with pytest.raises(redis.exceptions.ConnectionError):
        made.release()
    assert made.local.token == token == redis_py.get(lock)
    proxy.listen()
    made.release()
    assert made.local.token is None
    assert not redis_py.exists(lock)


def test_a_release_that_was_never_sent_can_be_made_again(
    keepers, lock, redis_py, server, start_proxy
):
    proxy = start_proxy(server)
    proxy.refuse()
    redis_py.set(lock, b"token")
    made = keepers.at(proxy.url)(lock)
    made.local.token = b"token"
    with pytest.raises(redis.exceptions.ConnectionError):
        made.release()
    assert made.local.token == b"token" == redis_py.get(lock)
    proxy.listen()
    made.release()
    assert made.local.token is None
    assert not redis_py.exists(lock)


# -- extend and reacquire ---------------------------------------------------------------------


@pytest.mark.parametrize("more", [10, 10.0, 9.5])
def test_extend_adds_to_what_is_left(make, lock, redis_py, more):
    made = make(lock, timeout=10)
    made.acquire()
    assert made.extend(more) is True
    assert 16_000 < redis_py.pttl(lock) <= (10 + more) * 1000
    redis_py.pexpire(lock, 5000)  # what is left at the server counts
    assert made.extend(more) is True
    assert 11_000 < redis_py.pttl(lock) <= (5 + more) * 1000
    made.release()


def test_extend_can_replace_what_is_left(make, lock, redis_py):
    made = make(lock, timeout=10)
    made.acquire()
    assert made.extend(5, replace_ttl=True) is True
    assert 3000 < redis_py.pttl(lock) <= 5000
    assert made.extend(30.5, True) is True
    assert 28_000 < redis_py.pttl(lock) <= 30_500
    assert made.extend(additional_time=10, replace_ttl=False) is True
    assert 38_000 < redis_py.pttl(lock) <= 40_500
    made.release()


def test_reacquire_sets_the_ttl_back_to_the_timeout(make, lock, redis_py):
    made = make(lock, timeout=10)
    made.acquire()
    for left in (5000, 60_000):
        redis_py.pexpire(lock, left)
        assert made.reacquire() is True
        assert 8000 < redis_py.pttl(lock) <= 10_000
    assert made.local.token == redis_py.get(lock)
    made.release()


@pytest.mark.parametrize("prolong", [lambda lock: lock.extend(10), lambda lock: lock.reacquire()])
def test_a_lost_lock_is_not_prolonged(make, lock, redis_py, prolong):
    made = make(lock, timeout=10)
    made.acquire()
    redis_py.set(lock, SOMEBODY, px=5000)
    with pytest.raises(LockNotOwnedError):
        prolong(made)
    assert redis_py.get(lock) == SOMEBODY
    assert redis_py.pttl(lock) <= 5000
    with pytest.raises(LockNotOwnedError):  # that it was held is not forgotten
        made.release()


def test_the_hooks_may_be_called_by_themselves(make, lock, redis_py):
    """They do what they say with the token that they are given, and remember none."""
    made = make(lock, timeout=10)
    assert made.do_acquire(b"token") is True
    assert made.do_acquire(b"another") is False
    assert redis_py.get(lock) == b"token"
    assert redis_py.pttl(lock) > 8000
    assert made.local.token is None
    with pytest.raises(LockNotOwnedError):
        made.do_release(b"another")
    made.do_release(b"token")
    assert not redis_py.exists(lock)


# -- errors -----------------------------------------------------------------------------------


def held(make, lock, redis_py, **options):
    made = make(lock, **options)
    made.acquire()
    return made


def lost(make, lock, redis_py):
    made = held(make, lock, redis_py, timeout=10)
    redis_py.delete(lock)
    return made


def enter_held(make, lock, redis_py):
    redis_py.set(lock, SOMEBODY)
    with make(lock, blocking_timeout=0.05):
        pass


def leave_lost(make, lock, redis_py):
    with make(lock, timeout=10):
        redis_py.set(lock, SOMEBODY)


STATES = {
    "release of what is not held": lambda make, *its: make(its[0], timeout=1).release(),
    "extend of what is not held": lambda make, *its: make(its[0], timeout=1).extend(1),
    "reacquire of what is not held": lambda make, *its: make(its[0], timeout=1).reacquire(),
    "extend without timeout": lambda *its: held(*its).extend(1),
    "reacquire without timeout": lambda *its: held(*its).reacquire(),
    "with, while another holds it": enter_held,
}
LOST = {
    "release of what was lost": lambda *its: lost(*its).release(),
    "extend of what was lost": lambda *its: lost(*its).extend(1),
    "replacing the ttl of what was lost": lambda *its: lost(*its).extend(1, replace_ttl=True),
    "reacquire of what was lost": lambda *its: lost(*its).reacquire(),
    "end of a with, of what was lost": leave_lost,
}


def check(error, lock):
    assert isinstance(error, redis.exceptions.RedisError)
    assert isinstance(error, ValueError)
    assert error.lock_name == lock
    assert error.message
    assert error.message == str(error)


@pytest.mark.parametrize("wrong", STATES)
def test_what_cannot_be_in_this_state_is_a_lock_error(strict, lock, redis_py, wrong):
    with pytest.raises(LockError) as caught:
        STATES[wrong](strict, lock, redis_py)
    assert not isinstance(caught.value, LockNotOwnedError)
    check(caught.value, lock)


@pytest.mark.parametrize("wrong", LOST)
def test_what_cannot_be_since_the_lock_was_lost_is_a_lock_not_owned_error(
    strict, lock, redis_py, wrong
):
    with pytest.raises(LockNotOwnedError) as caught:
        LOST[wrong](strict, lock, redis_py)
    check(caught.value, lock)


@pytest.mark.parametrize("wrong", STATES | LOST)
def test_our_errors_are_caught_by_either_name(ours, lock, redis_py, wrong):
    with pytest.raises(seckill.LockError) as caught:
        (STATES | LOST)[wrong](ours, lock, redis_py)
    error = caught.value
    assert isinstance(error, seckill.SeckillError)
    assert isinstance(error, LockError)
    for ours, theirs in (
        (seckill.LockNotOwnedError, LockNotOwnedError),
        (seckill.LockLostError, LockNotOwnedError),
    ):
        assert isinstance(error, ours) is isinstance(error, theirs) is (wrong in LOST)


# -- with -------------------------------------------------------------------------------------


def test_with_holds_the_lock(make, lock, redis_py):
    made = make(lock, blocking_timeout=5)
    with made as entered:
        assert entered is made
        assert redis_py.get(lock) == made.local.token
    assert not redis_py.exists(lock)
    assert made.local.token is None


def test_with_releases_when_its_body_raises(make, lock, redis_py):
    with pytest.raises(ZeroDivisionError), make(lock):
        raise ZeroDivisionError
    assert not redis_py.exists(lock)


def test_with_runs_no_body_without_the_lock(make, lock, redis_py):
    redis_py.set(lock, SOMEBODY)
    for options in ({"blocking": False}, {"blocking_timeout": 0.05}):
        with pytest.raises(LockError), make(lock, **options):
            pytest.fail("this is not locked")
    assert redis_py.get(lock) == SOMEBODY


def test_with_prolongs_as_anybody_does(make, lock, redis_py):
    with make(lock, timeout=10) as made:
        assert made.extend(10) is True
        assert made.reacquire() is True
    with pytest.raises(LockError), make(lock) as made:
        made.reacquire()  # without a timeout
    assert not redis_py.exists(lock)


def gone_by_the_end(made, redis_py, how):
    with made:
        if how == "lost":
            redis_py.set(made.name, SOMEBODY)
        else:
            made.release()


@pytest.mark.parametrize("how", ["lost", "released"])
def test_the_end_of_with_raises_when_the_lock_is_gone(make, lock, redis_py, caplog, how):
    with pytest.raises(LockError):
        gone_by_the_end(make(lock), redis_py, how)
    assert not caplog.records


@pytest.mark.parametrize("how", ["lost", "released"])
def test_the_end_of_with_may_log_it_instead(make, lock, redis_py, caplog, how):
    made = make(lock, raise_on_release_error=False)
    with caplog.at_level(logging.WARNING):
        gone_by_the_end(made, redis_py, how)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert made.local.token is None


def test_a_release_that_is_called_raises_also_where_with_would_log(make, lock):
    with pytest.raises(LockError):
        make(lock, raise_on_release_error=False).release()


def test_the_end_of_with_hides_no_connection_error(keepers, lock, server, start_proxy):
    proxy = start_proxy(server)
    keepers = keepers.at(proxy.url, **(SHORT if keepers.kind == DIRECT else {}))
    made = keepers(lock, timeout=60, raise_on_release_error=False)

    def disconnected_by_the_end():
        with made:
            proxy.refuse()
            proxy.cut()

    with pytest.raises(redis.exceptions.ConnectionError):
        disconnected_by_the_end()


# -- threads ----------------------------------------------------------------------------------


def test_a_token_is_of_the_thread_that_acquired(strict, lock, redis_py):
    """The lease of one thread ended, and another has taken the lock since, with the same object."""
    made = strict(lock, timeout=0.05)
    made.acquire()
    wait_for_the_end_of(lock, redis_py)

    def take():
        made.timeout = None  # read anew by every acquire
        assert made.acquire(blocking=False)
        return made.local.token

    token = call(take).result()
    assert redis_py.get(lock) == token != made.local.token
    assert made.owned() is False
    with pytest.raises(LockNotOwnedError):
        made.release()
    assert redis_py.get(lock) == token


def test_threads_that_share_a_lock_take_turns(strict, lock):
    made, inside = strict(lock, sleep=0.005), []

    def work():
        for _ in range(5):
            with made:
                inside.append(1)
                assert len(inside) == 1
                time.sleep(0.001)
                inside.pop()

    for worker in [call(work) for _ in range(4)]:
        worker.result()


def test_without_thread_local_another_thread_may_release(make, lock, redis_py):
    made = make(lock, timeout=10, thread_local=False)
    made.acquire()
    token = made.local.token
    assert call(lambda: made.local.token).result() == token
    assert call(made.owned).result() is True
    assert call(made.extend, 5).result() is True
    call(made.release).result()
    assert made.local.token is None
    assert not redis_py.exists(lock)


def test_another_thread_has_nothing_to_release(ours, lock, redis_py):
    """redis-py has an AttributeError for it."""
    made = ours(lock, timeout=10)
    made.acquire()
    token = made.local.token
    assert call(lambda: made.local.token).result() is None
    assert call(made.owned).result() is False
    assert call(made.locked).result() is True
    for use in (made.release, made.reacquire, lambda: made.extend(1)):
        with pytest.raises(LockError) as caught:
            call(use).result()
        assert not isinstance(caught.value, LockNotOwnedError)
    assert made.local.token == token == redis_py.get(lock)
    made.release()
