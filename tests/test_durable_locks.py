"""wait_replicas for locks: one that a fail-over may take away is given back, and nobody's."""

from __future__ import annotations

import contextlib
import threading

import pytest
import seckill
from support.locks import DIRECT, SOMEBODY, Locks, Loop
from support.replicas import (
    commands,
    connect,
    face,
    replicated,
    shared_replicated,
    start_replicated,
)
from support.threads import call, wait_until

FIXTURES = (connect, face, replicated, shared_replicated, start_replicated)
MINUTE = 60_000


@pytest.fixture
def make(face, replicated):
    """Locks of either face: `make(lock, timeout=5)`."""
    with contextlib.ExitStack() as cleanup:
        loop = None if face == "sync" else Loop("asyncio")
        if loop is not None:
            cleanup.callback(loop.close)
        options = {"wait_replicas": 2, "socket_timeout": 0.3}
        yield Locks(DIRECT, replicated.url, cleanup, loop, **options)


# -- the functions -------------------------------------------------------------------------------


def test_a_lock_that_is_where_it_is_to_be_is_held(replicated, connect, lock):
    client = connect(replicated.url, wait_replicas=2, socket_timeout=5)
    assert client.acquire_lock(lock, MINUTE) is True
    token = replicated.primary.redis().get(lock)
    assert [replica.redis().get(lock) for replica in replicated.replicas] == [token] * 2
    client.release_lock(lock)
    assert not replicated.primary.redis().exists(lock)


def test_a_lock_that_falls_short_is_given_back(replicated, connect, lock):
    client = connect(replicated.url, wait_replicas=2)
    observer = replicated.primary.redis()
    with replicated.lagging(1):
        with pytest.raises(seckill.NotReplicated) as caught:
            client.acquire_lock(lock, MINUTE)
        assert (caught.value.acknowledged, caught.value.wanted) == (1, 2)
        assert caught.value.given_back
        assert str(caught.value).startswith("not safe against a fail-over, and given back: ")
        wait_until(lambda: not observer.exists(lock))
        # Nothing of it is left behind: neither for us nor for others.
        client.release_lock(lock)
        another = connect(replicated.url)
        assert another.acquire_lock(lock, MINUTE, 0) is True
        client.release_lock(lock)
        assert observer.exists(lock)
        another.release_lock(lock)


def test_what_is_given_back_is_never_somebody_elses(replicated, connect, lock):
    """The lock goes to another while its first owner waits for the proof."""
    client = connect(replicated.url, wait_replicas=2, socket_timeout=1)
    observer = replicated.primary.redis()
    with replicated.lagging(1):
        acquiring = call(client.acquire_lock, lock, MINUTE)
        wait_until(lambda: observer.exists(lock))
        observer.set(lock, SOMEBODY)
        with pytest.raises(seckill.NotReplicated):
            acquiring.result()
        assert client.acquire_lock(lock, MINUTE, 0) is False  # behind what gives it back
    assert observer.get(lock) == SOMEBODY


def test_to_give_a_lock_back_nobody_waits(replicated, connect, lock):
    client = connect(replicated.url, wait_replicas=2, socket_timeout=5)
    assert client.acquire_lock(lock, MINUTE) is True
    before = commands(replicated.primary, "wait")
    with replicated.lagging(2):
        client.release_lock(lock)
    assert not replicated.primary.redis().exists(lock)
    # The way that `lagging` waits at its end is a WAIT as well.
    assert commands(replicated.primary, "wait") - before < 50


def test_a_waiter_is_told_of_a_lock_that_others_were_not_given(replicated, connect, lock):
    """Who falls short frees it; the next in line has lower demands, and gets it."""
    careful = connect(replicated.url, wait_replicas=2, socket_timeout=1)
    modest = connect(replicated.url, wait_replicas=1, socket_timeout=1)
    observer = replicated.primary.redis()
    with replicated.lagging(1):
        falls_short = call(careful.acquire_lock, lock, MINUTE)
        wait_until(lambda: observer.exists(lock))
        waits = call(modest.acquire_lock, lock, MINUTE, MINUTE)
        with pytest.raises(seckill.NotReplicated):
            falls_short.result()
        assert waits.result() is True
    modest.release_lock(lock)


# -- lock objects --------------------------------------------------------------------------------


def test_a_lock_object_that_falls_short_is_not_acquired(replicated, make, lock):
    mine = make(lock, timeout=60)
    observer = replicated.primary.redis()
    with replicated.lagging(1):
        with pytest.raises(seckill.NotReplicated):
            mine.acquire()
        wait_until(lambda: not observer.exists(lock))
        assert mine.local.token is None
        assert (mine.owned(), mine.locked(), mine.lost) == (False, False, False)
        with pytest.raises(seckill.LockError):
            mine.release()
    with mine:
        assert mine.owned()


def test_a_lock_that_falls_short_does_not_let_into_its_block(replicated, make, lock):
    with replicated.lagging(1), pytest.raises(seckill.NotReplicated), make(lock, timeout=60):
        pytest.fail("nobody gets here")
    wait_until(lambda: not replicated.primary.redis().exists(lock))


def test_an_extension_that_falls_short_is_not_counted_on(replicated, make, lock):
    """The lock stays ours, for as long as it was before."""
    mine = make(lock, timeout=20)
    mine.acquire()
    observer = replicated.primary.redis()
    for extend in (lambda: mine.extend(100), lambda: mine.extend(200, replace_ttl=True)):
        with replicated.lagging(1), pytest.raises(seckill.NotReplicated):
            extend()
        assert observer.pttl(lock) > 100_000
        assert 0 < mine.remaining() <= 20
        assert (mine.owned(), mine.lost) == (True, False)
    mine.extend(100, replace_ttl=True)
    assert 0 < mine.remaining() <= 100
    mine.release()
    assert not observer.exists(lock)


def test_a_renewal_that_falls_short_renews_nothing(replicated, make, lock):
    """When what is safe of the lease is over, the holder knows that it may be another's."""
    told = threading.Event()
    mine = make(lock, timeout=1, auto_renew=True, on_lost=lambda *_: told.set())
    mine.acquire()
    with replicated.lagging(1):
        assert told.wait(20)
        assert mine.lost is True
        assert mine.remaining() == 0
        with pytest.raises(seckill.LockLostError):
            mine.ensure_held()
    # The primary has renewed it all the same: so it is given back, if that is asked for.
    with contextlib.suppress(seckill.LockNotOwnedError):
        mine.release()
    wait_until(lambda: not replicated.primary.redis().exists(lock))


def test_a_lock_that_is_renewed_safely_is_held(replicated, make, lock):
    mine = make(lock, timeout=0.9, auto_renew=True)
    with mine:
        before = commands(replicated.primary, "wait")
        wait_until(lambda: commands(replicated.primary, "wait") - before >= 4)
        assert mine.lost is False
        assert [r.redis().exists(lock) for r in replicated.replicas] == [1, 1]
    assert not replicated.primary.redis().exists(lock)
