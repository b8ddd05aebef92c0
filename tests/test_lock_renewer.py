"""Who renews: one thread for all locks of a process, for those who are there to hold them.

It does not need the GIL, and stops renewing for whoever is gone.
"""

from __future__ import annotations

import gc
import time

import pytest
import seckill
import seckill.aio
from support.aio import on_loop
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
from support.programs import Program, run
from support.proxy import REPLY, Fault
from support.threads import call, wait_until

# -- the end of renewing --------------------------------------------------------------------------


@pytest.mark.core
def test_a_handle_that_is_dropped_is_not_renewed_any_more(start_server):
    server = start_server()
    observer = server.redis()
    client = seckill.Client(server.url)
    kept, dropped = renewed(client, "kept"), renewed(client, "dropped")
    until_renewed(dropped)
    del dropped
    until_gone(observer, "dropped", within=10)
    assert values_within(observer, "kept", LEASE) == {kept.local.token}
    kept.release()


@pytest.mark.core
def test_a_handle_is_dropped_whatever_its_on_lost_refers_to(start_server):
    server = start_server()
    observer = server.redis()

    class Job:
        def __init__(self, client):
            self.lock = renewed(client, on_lost=self.stop)

        def stop(self, lock):
            assert lock is self.lock

    job = Job(seckill.Client(server.url))
    until_renewed(job.lock)
    del job
    gc.collect()
    until_gone(observer, "name", within=10)


def test_max_hold_ends_the_renewing(start_server):
    server = start_server()
    observer, told = server.redis(), Told()
    client = seckill.Client(server.url)
    start = time.monotonic()
    mine = renewed(client, timeout=1, max_hold=3, on_lost=told)
    token = mine.local.token
    assert values_within(observer, "name", 2.5) == {token}
    lost_before_it_is_gone(observer, mine)
    assert 2.7 < time.monotonic() - start < 8
    wait_until(lambda: told.when)
    assert told.locks == [mine]
    assert mine.statistics()["renewed"] <= 10, "by the third of a lease"
    assert renewed(client, timeout=1, max_hold=3).remaining() <= 1


def test_towards_max_hold_the_end_of_a_lease_does_not_come_nearer(start_server):
    """What was said to be left once is there."""
    mine = renewed(seckill.Client(start_server().url), timeout=0.5, max_hold=1)
    promised = 0.0
    while not mine.lost:
        before = time.monotonic()
        left = mine.remaining()
        if left:
            assert time.monotonic() + left >= promised
            promised = max(promised, before + left)
        time.sleep(0.0005)
    assert time.monotonic() >= promised


@pytest.mark.core
def test_a_thread_that_has_ended_holds_nothing_any_more(start_server):
    server = start_server()
    observer = server.redis()
    mine = seckill.Lock(seckill.Client(server.url), "name", timeout=LEASE, auto_renew=True)
    assert call(mine.acquire).result() is True
    assert mine.local.token is None
    assert observer.exists("name")
    until_gone(observer, "name", within=10)
    assert mine.acquire(blocking=False) is True
    mine.release()


@pytest.mark.core
def test_without_thread_local_a_lock_outlives_the_thread_that_took_it(start_server):
    server = start_server()
    observer = server.redis()
    client = seckill.Client(server.url)
    mine = seckill.Lock(client, "name", timeout=LEASE, auto_renew=True, thread_local=False)
    assert call(mine.acquire).result() is True
    assert values_within(observer, "name", 2 * LEASE) == {mine.local.token}
    mine.release()


@pytest.mark.core
def test_a_task_that_has_ended_holds_nothing_any_more(start_server, loop_kind):
    server = start_server()
    observer = server.redis()
    client = seckill.aio.Client(server.url)
    mine = seckill.aio.Lock(client, "name", timeout=LEASE, auto_renew=True)
    assert on_loop(mine.acquire(), loop_kind) is True
    assert observer.exists("name")
    until_gone(observer, "name", within=10)
    on_loop(client.aclose(), loop_kind)


def test_a_lock_that_is_not_renewed_is_lost_at_the_end_of_its_lease(server, lock):
    observer, told = server.redis(), Told()
    client = connected(server.url)
    mine = seckill.Lock(client, lock, timeout=0.8, on_lost=told)
    assert mine.acquire()
    lost_before_it_is_gone(observer, mine)
    wait_until(lambda: told.when)
    assert told.locks == [mine]
    assert mine.statistics()["renewed"] == 0


# -- one thread for all ---------------------------------------------------------------------------


def many_locks(urls):
    import gc
    import time

    import seckill
    from support.lock_plots import renewers
    from support.threads import wait_until

    clients = [seckill.Client(url) for url in urls * 2]
    counts = {"before": renewers()}
    with seckill.Lock(clients[0], "plain", timeout=60):
        counts["without renewal"] = renewers()
    locks = [
        seckill.Lock(client, f"lock:{c}:{n}", timeout=3, auto_renew=True)
        for c, client in enumerate(clients)
        for n in range(25)
    ]
    for lock in locks:
        assert lock.acquire()
    wait_until(lambda: min(lock.statistics()["renewed"] for lock in locks) >= 2)
    counts["at work"] = renewers()
    for lock in locks:
        lock.ensure_held()
        lock.release()
    wait_until(lambda: renewers() == 0)
    counts["idle"] = renewers()
    assert locks[0].acquire()
    time.sleep(4)
    locks[0].ensure_held()
    counts["again"] = renewers()
    locks.clear()
    del lock
    gc.collect()
    wait_until(lambda: renewers() == 0)
    return counts


@pytest.mark.core
def test_one_thread_renews_all_locks_of_all_clients_and_goes_when_it_is_idle(start_server):
    urls = [start_server().url, start_server().url]
    counts = run(many_locks, urls, limit=60).value
    assert counts == {"before": 0, "without renewal": 0, "at work": 1, "idle": 0, "again": 1}


def test_a_server_that_is_gone_does_not_keep_the_others_locks_from_renewal(start_server):
    gone, server = start_server(), start_server()
    observer = server.redis()
    lost, kept = (seckill.Client(each.url, socket_timeout=5) for each in (gone, server))
    theirs = [renewed(lost, f"lost:{number}") for number in range(5)]
    mine = renewed(kept)
    until_renewed(mine)
    with gone.frozen():
        assert values_within(observer, "name", 3 * LEASE) == {mine.local.token}
        assert all(lock.lost for lock in theirs)
    mine.release()


def naps(url):
    """How often the renewer has gone to sleep in two seconds."""
    import time
    from pathlib import Path

    import seckill
    from support.lock_plots import RENEWER
    from support.threads import wait_until

    client = seckill.Client(url)
    locks = [seckill.Lock(client, f"lock:{n}", timeout=60, auto_renew=True) for n in range(50)]
    for lock in locks:
        assert lock.acquire()

    def found():
        tasks = Path("/proc/self/task").iterdir()
        return [task for task in tasks if (task / "comm").read_text().strip() == RENEWER]

    def slept():
        lines = (found()[0] / "status").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)

    wait_until(found)
    time.sleep(0.5)
    before = slept()
    time.sleep(2)
    return slept() - before


def test_the_renewer_sleeps_until_the_next_renewal_is_due(start_server):
    assert run(naps, start_server().url).value < 10


def on_lost_that_hangs_and_one_that_raises(url):
    import threading
    import time

    import redis
    import seckill
    from support.acl import as_observer
    from support.threads import wait_until

    client, observer = seckill.Client(url), redis.Redis.from_url(as_observer(url))
    calls, over = [], []

    def hangs(lock):
        calls.append("hangs")
        blocked.wait(60)
        over.append(threading.current_thread() is threading.main_thread())

    def raises(lock):
        calls.append("raises")
        raise RuntimeError("out of on_lost")

    blocked = threading.Event()
    locks = [
        seckill.Lock(client, name, timeout=1.5, auto_renew=True, on_lost=on_lost)
        for name, on_lost in [("hangs", hangs), ("raises", raises), ("kept", None)]
    ]
    for lock in locks:
        assert lock.acquire()
    observer.delete("hangs", "raises")
    wait_until(lambda: len(calls) == 2)
    end = time.monotonic() + 4
    while time.monotonic() < end:
        assert observer.get("kept") == locks[2].local.token
        time.sleep(0.02)
    locks[2].release()
    blocked.set()
    wait_until(lambda: over)
    return [sorted(calls), over]


@pytest.mark.core
def test_an_on_lost_that_hangs_or_raises_keeps_no_other_lock_from_renewal(start_server):
    ended = run(on_lost_that_hangs_and_one_that_raises, start_server().url)
    assert ended.value == [["hangs", "raises"], [False]]
    assert ended.stderr.count("RuntimeError: out of on_lost") == 1


# -- a process that is busy -----------------------------------------------------------------------


def python_redis_lock_under_a_held_gil(url, seconds):
    import ctypes

    import redis
    import redis_lock
    from support.acl import as_observer

    client = redis.Redis.from_url(as_observer(url))
    lock = redis_lock.Lock(client, "name", expire=1, auto_renewal=True)
    assert lock.acquire()
    print("held", flush=True)
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))  # a call that keeps the GIL


@python_redis_lock_fails
def test_python_redis_lock_does_not_renew_while_somebody_has_the_gil(start_server):
    server = start_server()
    program = Program(python_redis_lock_under_a_held_gil, server.url, 3)
    program.expect("held")
    until_gone(server.redis(), "lock:name", within=2.5)
    assert program.ended().status == 0


def ours_under_a_held_gil(url, seconds, lease, others):
    import ctypes
    import threading

    import seckill

    told, client = [], seckill.Client(url, socket_timeout=5)
    lock = seckill.Lock(client, "name", timeout=lease, auto_renew=True, on_lost=told.append)
    assert lock.acquire()

    def sell():
        while not over.is_set():
            client.incr_inventory("stock", 1)

    def wait():
        seckill.Lock(client, "held").acquire()

    over = threading.Event()
    work = {"sell": sell, "wait": wait}
    threads = [threading.Thread(target=work[name], daemon=True) for name in others]
    for thread in threads:
        thread.start()
    over.wait(0.3)
    print("held", flush=True)
    ctypes.PyDLL(None).usleep(int(seconds * 1_000_000))  # a call that keeps the GIL
    lost = lock.lost
    over.set()
    lock.ensure_held()
    renewed = lock.statistics()["renewed"]
    lock.release()
    return [lost, len(told), renewed]


@pytest.mark.core
@pytest.mark.parametrize("others", [[], ["sell"] * 3, ["wait"] * 2], ids=["alone", "sell", "wait"])
def test_renewal_goes_on_while_somebody_has_the_gil(start_server, start_proxy, others):
    """Also when other threads are in mid-call, on the same connection, and cannot go on either."""
    server = start_server()
    observer, seconds = server.redis(), 4 * LEASE
    observer.set("held", "other")
    proxy = start_proxy(server, lambda: Fault("delay", REPLY, seconds=0.1) if others else None)
    program = Program(ours_under_a_held_gil, proxy.url, seconds, LEASE, others)
    program.expect("held")
    (token,) = values_within(observer, "name", seconds - 0.5)
    assert token is not None
    lost, told, renewals = program.ended().value
    assert (lost, told) == (False, 0)
    assert renewals >= 3
    assert not observer.exists("name")


@pytest.mark.core
def test_renewal_goes_on_while_the_loop_is_blocked(start_server, loop_kind):
    server = start_server()
    observer = server.redis()

    async def block():
        async with seckill.aio.Client(server.url) as client:
            lock = seckill.aio.Lock(client, "name", timeout=LEASE, auto_renew=True)
            async with lock:
                assert values_within(observer, "name", 3 * LEASE) == {lock.local.token}
                await lock.ensure_held()

    on_loop(block(), loop_kind)
    assert not observer.exists("name")
