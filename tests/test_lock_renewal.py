"""The renewal of a lease outlives errors, and tells when the lease is provably over."""

from __future__ import annotations

import contextlib
import signal
import threading
import time

import pytest
import redis
import redis_lock
import seckill
from support import acl
from support.clients import connected
from support.lock_plots import (
    LEASE,
    Told,
    lost_before_it_is_gone,
    renewed,
    until_gone,
    until_renewed,
    values_within,
)
from support.peers import python_redis_lock_fails
from support.programs import Program
from support.proxy import REPLY, REQUEST, random_faults
from support.threads import wait_until

# -- as long as it is held ------------------------------------------------------------------------


@pytest.mark.core
def test_a_lock_is_renewed_until_it_is_released(server, lock):
    observer, told = server.redis(), Told()
    mine = renewed(connected(server.url, socket_timeout=1), lock, on_lost=told)
    token, fence = mine.local.token, mine.fence
    assert values_within(observer, lock, 2 * LEASE) == {token}
    assert mine.statistics()["renewed"] >= 3
    assert 0 < mine.remaining() <= LEASE
    assert mine.fence == fence
    mine.ensure_held()
    mine.release()
    assert values_within(observer, lock, 0.7 * LEASE) == {None}
    assert mine.lost is False
    assert told.when == []


def test_a_lease_that_was_extended_is_not_cut_short(server, lock):
    observer = server.redis()
    mine = renewed(connected(server.url, socket_timeout=1), lock)
    mine.extend(60)
    time.sleep(LEASE)
    assert observer.pttl(lock) > 50_000
    assert mine.remaining() > 50
    mine.release()


@pytest.mark.parametrize("by", ["reacquire", "extend"])
def test_a_lease_that_was_cut_short_is_renewed_in_time(server, lock, by):
    """The next renewal was due long after the new end."""
    observer = server.redis()
    client = connected(server.url, socket_timeout=1)
    if by == "reacquire":
        mine = renewed(client, lock)
        mine.extend(60)
        time.sleep(LEASE / 2)
        mine.reacquire()
    else:
        mine = renewed(client, lock, timeout=60)
        mine.extend(LEASE, replace_ttl=True)
    assert values_within(observer, lock, 2 * LEASE) == {mine.local.token}
    mine.release()


def test_a_lease_that_was_cut_short_is_lost_at_its_new_end(server, lock):
    observer, told = server.redis(), Told()
    mine = seckill.Lock(connected(server.url, socket_timeout=1), lock, timeout=60, on_lost=told)
    assert mine.acquire()
    mine.extend(0.5, replace_ttl=True)
    lost_before_it_is_gone(observer, mine)
    wait_until(lambda: told.when)
    assert told.locks == [mine]


def test_renewals_are_sent_by_the_third_of_a_lease_and_not_more_often(start_server):
    server = start_server()
    mine = renewed(seckill.Client(server.url))
    until_renewed(mine)
    before, start = mine.statistics()["renewed"], time.monotonic()
    time.sleep(2 * LEASE)
    thirds = (time.monotonic() - start) / (LEASE / 3)
    assert 2 <= mine.statistics()["renewed"] - before <= thirds + 1
    mine.release()


# -- trouble that passes --------------------------------------------------------------------------


@contextlib.contextmanager
def read_only(observer):
    """As in the middle of a fail-over: the server has become a replica, of nobody."""
    observer.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        yield
    finally:
        observer.execute_command("REPLICAOF", "NO", "ONE")


@contextlib.contextmanager
def forbidden(observer):
    observer.execute_command("ACL", "SETUSER", acl.USER, "-@scripting")
    try:
        yield
    finally:
        observer.execute_command("ACL", "SETUSER", acl.USER, "+@scripting")


@contextlib.contextmanager
def forgetful(observer):
    over = threading.Event()

    def forget():
        while not over.wait(0.1):
            observer.script_flush()
            observer.execute_command("CLIENT", "KILL", "SKIPME", "yes")

    thread = threading.Thread(target=forget)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.fixture
def ends_of_threads(monkeypatch):
    """What threads ended with: nobody else is told."""
    ends = []
    monkeypatch.setattr(threading, "excepthook", lambda end: ends.append(end.exc_type))
    return ends


@python_redis_lock_fails
def test_python_redis_locks_renewal_ends_at_the_first_error(start_server, ends_of_threads):
    """And nobody is told: whoever asks later finds the lock gone."""
    server = start_server()
    observer = server.redis()
    theirs = redis_lock.Lock(server.redis(), "name", expire=2, auto_renewal=True)
    assert theirs.acquire()
    with read_only(observer):
        wait_until(lambda: ends_of_threads)
    assert ends_of_threads == [redis.exceptions.ReadOnlyError]
    assert observer.exists("lock:name"), "there was time enough to try again"
    until_gone(observer, "lock:name", within=10)


def failed(observer):
    """How many scripts have failed on the server."""
    counts = observer.info("commandstats")
    names = ("cmdstat_eval", "cmdstat_evalsha")
    rows = [counts.get(name, {}) for name in names]
    return sum(row.get("failed_calls", 0) + row.get("rejected_calls", 0) for row in rows)


@pytest.mark.parametrize("trouble", [read_only, forbidden, forgetful])
def test_a_renewal_that_fails_is_tried_again(start_server, trouble):
    server = start_server()
    observer, told = server.redis(), Told()
    mine = renewed(seckill.Client(server.url), timeout=3, on_lost=told)
    token = mine.local.token
    until_renewed(mine)
    before = failed(observer)
    with trouble(observer):
        time.sleep(1.7)
    assert failed(observer) > before
    until_renewed(mine)
    assert values_within(observer, "name", 3) == {token}
    assert mine.lost is False
    assert told.when == []
    mine.release()


def test_a_full_server_renews_leases(start_server):
    server = start_server()
    observer = server.redis()
    mine = renewed(seckill.Client(server.url))
    observer.config_set("maxmemory-policy", "noeviction")
    observer.config_set("maxmemory", "1")
    assert values_within(observer, "name", 2 * LEASE) == {mine.local.token}
    mine.release()
    assert not observer.exists("name")


def test_a_server_that_stands_still_for_less_than_the_lease_costs_no_lock(start_server):
    server = start_server()
    observer, told = server.redis(), Told()
    mine = renewed(seckill.Client(server.url, socket_timeout=0.2), timeout=4, on_lost=told)
    for _ in range(2):
        until_renewed(mine)
        with server.frozen():
            time.sleep(2)  # the next renewal is due after 1.3 s
        until_renewed(mine)
    assert observer.get("name") == mine.local.token
    mine.release()
    assert told.when == []


def test_a_connection_that_breaks_again_and_again_costs_no_lock(start_server, start_proxy):
    server = start_server()
    observer, proxy, told = server.redis(), start_proxy(server), Told()
    mine = renewed(connected(proxy.url), timeout=2, on_lost=told)
    token = mine.local.token
    proxy.faults = random_faults(seed=1, mean_bytes=1000)
    proxy.cut()
    end = time.monotonic() + 5
    while time.monotonic() < end:
        proxy.cut(reset=True)
        assert values_within(observer, "name", 0.2) == {token}
    assert mine.lost is False
    assert told.when == []
    proxy.faults = lambda: None
    proxy.cut()
    mine.release()


@pytest.mark.parametrize("direction", [REQUEST, REPLY])
def test_a_network_that_falls_silent_for_less_than_the_lease_costs_no_lock(
    start_server, start_proxy, direction
):
    server = start_server()
    observer, proxy = server.redis(), start_proxy(server)
    mine = renewed(connected(proxy.url, socket_timeout=0.2), timeout=4)
    until_renewed(mine)
    proxy.swallow(direction)
    time.sleep(2)
    proxy.swallow()
    until_renewed(mine)
    assert observer.get("name") == mine.local.token
    assert mine.lost is False
    mine.release()


def test_a_server_that_is_started_again_with_its_data_costs_no_lock(start_server):
    server = start_server("appendonly yes", "appendfsync always")
    mine = renewed(seckill.Client(server.url, socket_timeout=0.2), timeout=8)
    token = mine.local.token
    until_renewed(mine)
    server.kill()
    time.sleep(0.5)
    server.start()
    until_renewed(mine)
    assert server.redis().get("name") == token
    mine.release()
    assert not server.redis().exists("name")


# -- trouble that does not pass -------------------------------------------------------------------


def is_told_at_the_end_of_its_lease(mine, told, began, left):
    """Once, of that lock, in a thread of its own; not before the lease was over, and soon after."""
    assert mine.lost is False
    wait_until(lambda: told.when)
    assert mine.lost is True
    assert mine.remaining() == 0
    assert left - 0.05 < told.when[0] - began < left + 5
    assert told.locks == [mine]
    assert told.threads[0] is not threading.main_thread()


@pytest.mark.core
def test_a_frozen_server_ends_the_lease_by_our_own_clock(start_server):
    server = start_server()
    told = Told()
    mine = renewed(seckill.Client(server.url, socket_timeout=0.2), on_lost=told)
    until_renewed(mine)
    with server.frozen():
        began, left = time.monotonic(), mine.remaining()
        assert 0 < left <= LEASE
        is_told_at_the_end_of_its_lease(mine, told, began, left)
        time.sleep(0.5)  # by the server's clock it is over a moment later
    with pytest.raises(seckill.LockLostError):
        mine.ensure_held()
    with pytest.raises(seckill.LockLostError):
        mine.release()
    time.sleep(LEASE / 2)
    assert not server.redis().exists("name"), "a renewal that was under way came late"
    assert mine.acquire(blocking=False) is True
    assert mine.lost is False
    mine.release()
    assert len(told.when) == 1


def test_a_killed_server_ends_the_lease_by_our_own_clock(start_server):
    server = start_server()
    told = Told()
    mine = renewed(seckill.Client(server.url, socket_timeout=0.2), on_lost=told)
    until_renewed(mine)
    began, left = time.monotonic(), mine.remaining()
    server.kill()
    is_told_at_the_end_of_its_lease(mine, told, began, left)
    server.start()
    with pytest.raises(seckill.LockLostError):
        mine.release()
    assert renewed(seckill.Client(server.url)).lost is False


def test_a_server_that_comes_back_empty_is_believed_at_once(start_server):
    """Long before the lease's end: the lock is not ours any more, and anybody may have it."""
    server = start_server()
    told = Told()
    mine = renewed(seckill.Client(server.url, socket_timeout=0.2), timeout=15, on_lost=told)
    server.kill()
    server.start()
    wait_until(lambda: mine.lost, within=14)
    wait_until(lambda: told.when)
    assert told.locks == [mine]
    assert not server.redis().exists("name"), "what is lost is not taken again by a renewal"


@pytest.mark.parametrize("how", ["refused", "silent"])
def test_a_network_that_is_gone_ends_the_lease_before_the_server_does(
    start_server, start_proxy, how
):
    server = start_server()
    observer, proxy, told = server.redis(), start_proxy(server), Told()
    mine = renewed(connected(proxy.url), on_lost=told)
    until_renewed(mine)
    began, left = time.monotonic(), mine.remaining()
    if how == "refused":
        proxy.refuse()
        proxy.cut()
    else:
        proxy.swallow(REQUEST)
    lost_before_it_is_gone(observer, mine)
    wait_until(lambda: told.when)
    assert told.locks == [mine]
    assert told.when[0] - began > left - 0.05


@pytest.mark.parametrize("by", ["deletion", "theft", "another type"])
def test_a_lock_that_was_taken_away_is_lost_at_the_next_renewal(start_server, by):
    server = start_server()
    observer, told = server.redis(), Told()
    mine = renewed(seckill.Client(server.url), timeout=6, on_lost=told)
    observer.delete("name")
    if by == "theft":
        observer.set("name", "thief", px=60_000)
    elif by == "another type":
        observer.rpush("name", "list")
    wait_until(lambda: told.when)
    assert mine.lost is True
    assert mine.statistics()["lost"] == 1
    assert observer.pttl("name") in {"deletion": {-2}, "another type": {-1}}.get(
        by, range(40_000, 60_000)
    )


def stopped_past_its_lease(url):
    import sys
    import time

    import seckill
    from support.lock_plots import outcome

    client = seckill.Client(url)
    client.incr_inventory("stock", 10)
    told = []
    lock = seckill.Lock(client, "name", timeout=1, auto_renew=True, on_lost=told.append)
    assert lock.acquire()
    print("held", flush=True)
    sys.stdin.readline()  # stopped here, for long enough
    looks = [lock.lost, lock.remaining(), lock.owned(), outcome(lock.ensure_held)]
    looks.append(outcome(client.update_inventory, lock, "stock", -1))
    end = time.monotonic() + 20
    while not told and time.monotonic() < end:
        time.sleep(0.01)
    return [*looks, told == [lock], outcome(lock.release)]


@pytest.mark.core
def test_a_holder_that_was_stopped_past_its_lease_knows_it_and_renews_nobodys(start_server):
    server = start_server()
    observer = server.redis()
    program = Program(stopped_past_its_lease, server.url)
    program.expect("held")
    program.process.send_signal(signal.SIGSTOP)
    until_gone(observer, "name", within=10)
    observer.set("name", "next", px=60_000)
    program.process.send_signal(signal.SIGCONT)
    program.say("go on")
    lost = "LockLostError"
    assert program.ended().value == [True, 0.0, False, lost, lost, True, lost]
    assert observer.get("name") == b"next"
    assert observer.pttl("name") > 30_000
    assert observer.get("stock") == b"10"
