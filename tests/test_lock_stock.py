"""A lock fences the stock: only while that very acquisition holds does its holder's update count.

The same tests are held against the awaited lock, where a thread is a task.
"""

from __future__ import annotations

import signal

import pytest
import seckill
from support.locks import DIRECT, SOMEBODY, locks, server_of_the_place, strike
from support.programs import Program
from support.threads import all_of, call, wait_until

pytestmark = pytest.mark.core

server = server_of_the_place
make = locks(DIRECT)


def test_the_holder_updates_with_the_lock_in_its_hand(make, lock, key, redis_py):
    redis_py.set(key, 10)
    made = make(lock, timeout=60)
    made.acquire()
    make.update(made, key, -1)
    made.extend(60)
    make.update(made, key, -2)
    assert redis_py.get(key) == b"7"
    assert redis_py.get(lock) == made.local.token
    made.release()
    assert redis_py.get(key) == b"7"


def test_an_update_with_a_lock_that_is_not_held_is_refused(make, lock, key, redis_py):
    redis_py.set(key, 10)
    made = make(lock, timeout=60)

    def refused():
        with pytest.raises(seckill.LockError) as caught:
            make.update(made, key, -1)
        assert not isinstance(caught.value, seckill.LockNotOwnedError)
        assert caught.value.lock_name == lock

    refused()
    made.acquire()
    call(refused).result()  # another thread holds nothing
    made.release()
    refused()
    assert redis_py.get(key) == b"10"


def ends(made, redis_py):
    wait_until(lambda: not redis_py.exists(made.name))


def is_taken(made, redis_py):
    redis_py.set(made.name, SOMEBODY)


LOSSES = {"ends": ends, "is taken": is_taken}


@pytest.mark.parametrize("loss", LOSSES)
def test_an_update_with_a_lost_lock_is_refused_and_the_stock_untouched(
    make, lock, key, redis_py, loss
):
    redis_py.set(key, 10)
    made = make(lock, timeout=0.1 if loss == "ends" else 60)
    made.acquire()
    LOSSES[loss](made, redis_py)
    for change in (-1, 1, -11):  # the loss is told before that there is not enough
        with pytest.raises(seckill.LockLostError) as caught:
            make.update(made, key, change)
        assert caught.value.lock_name == lock
    assert redis_py.get(key) == b"10"
    assert (made.lost, made.remaining()) == (True, 0.0)


def test_it_counts_that_very_acquisition(make, lock, key, redis_py):
    """Not that the thread holds the lock: it has acquired it again meanwhile."""
    redis_py.set(key, 10)
    first, second = make(lock, timeout=60), make(lock, timeout=60)
    first.acquire()
    redis_py.delete(lock)
    second.acquire()
    with pytest.raises(seckill.LockLostError):
        make.update(first, key, -1)
    make.update(second, key, -2)
    assert redis_py.get(key) == b"8"
    second.release()


@pytest.mark.parametrize("loss", LOSSES)
def test_inside_with_an_update_by_name_is_refused_too(make, lock, key, redis_py, loss):
    redis_py.set(key, 10)

    def work():
        with make(lock, timeout=0.1 if loss == "ends" else 60) as made:
            LOSSES[loss](made, redis_py)
            with pytest.raises(seckill.LockLostError):
                make.update(lock, key, -1)
            with pytest.raises(seckill.LockLostError):
                make.update(lock.encode(), key, -1)
            with pytest.raises(seckill.LockLostError):
                make.update(made, key, -1)

    with pytest.raises(seckill.LockLostError):
        work()
    assert redis_py.get(key) == b"10"
    redis_py.delete(lock)
    make.update(lock, key, -1)  # by now a name like any
    assert redis_py.get(key) == b"9"


def test_inside_with_an_update_by_name_goes_through(make, lock, key, redis_py):
    redis_py.set(key, 10)
    with make(lock, timeout=60), make(f"{lock}:2", timeout=60):
        make.update(lock, key, -1)
        make.update(f"{lock}:2", key, -1)
        make.update(f"{lock}:3", key, -1)
    make.update(lock, key, -1)
    assert redis_py.get(key) == b"6"
    assert not redis_py.exists(lock, f"{lock}:2")


def test_inside_with_another_thread_waits_as_anybody_does(make, lock, key, redis_py):
    redis_py.set(key, 10)
    with make(lock, timeout=60):
        with pytest.raises(seckill.LockTimeout):
            call(make.update, lock, key, -1).result()
        waiter = call(make.update, lock, key, -1, 60_000).until_asleep()
        assert redis_py.get(key) == b"10"
    waiter.result()
    assert redis_py.get(key) == b"9"


def test_the_thread_that_acquired_updates_by_name_too(make, lock, key, redis_py):
    redis_py.set(key, 10)
    made = make(lock, timeout=60)
    made.acquire()
    make.update(lock, key, -1)
    assert redis_py.get(key) == b"9"
    made.release()


def test_without_thread_local_another_thread_may_update(make, lock, key, redis_py):
    redis_py.set(key, 10)
    made = make(lock, timeout=60, thread_local=False)
    made.acquire()
    call(make.update, made, key, -1).result()
    assert redis_py.get(key) == b"9"
    call(made.release).result()
    with pytest.raises(seckill.LockError):
        make.update(made, key, -1)


def test_with_a_lock_the_stock_refuses_as_without(make, lock, key, redis_py):
    made = make(lock, timeout=60)
    made.acquire()
    with pytest.raises(seckill.NoInventory):
        make.update(made, key, -1)
    redis_py.set(key, 3)
    with pytest.raises(seckill.InsufficientInventory) as caught:
        make.update(made, key, -4)
    assert (caught.value.available, caught.value.requested) == (3, 4)
    redis_py.set(key, "three")
    with pytest.raises(seckill.InvalidInventory):
        make.update(made, key, -1)
    made.ensure_held()
    made.release()


def test_threads_with_locks_of_their_own_update_one_stock(make, lock, key, redis_py):
    """Their steps may travel together; each is judged by its own lock."""
    redis_py.set(key, 100)
    lost = make(lock, timeout=60)
    lost.acquire()
    redis_py.delete(lock)
    holder = make(lock, timeout=60, thread_local=False)
    holder.acquire()

    def stale():
        with pytest.raises(seckill.LockError):
            make.update(lost, key, -1)

    def current():
        make.update(holder, key, -1)

    def anybody():
        with pytest.raises(seckill.LockTimeout):
            make.update(lock, key, -1)

    all_of([stale, current, anybody] * 8)
    assert redis_py.get(key) == b"92"
    holder.release()


def update_when_told(url):
    import sys

    import seckill

    client = seckill.Client(url)
    told = []
    with seckill.Lock(client, "lock", timeout=1, raise_on_release_error=False) as lock:
        client.update_inventory(lock, "stock", -1)
        print("held", flush=True)
        sys.stdin.readline()
        for name in (lock, "lock"):
            try:
                client.update_inventory(name, "stock", -1)
            except seckill.LockLostError:
                told.append("lost")
        told.append(lock.lost)
    return told


def test_a_holder_that_was_paused_past_its_lease_sells_nothing(start_server):
    server = start_server()
    observer = server.redis()
    observer.set("stock", 10)
    program = Program(update_when_told, server.url)
    program.expect("held")
    strike(program.pid, signal.SIGSTOP)
    wait_until(lambda: not observer.exists("lock"))
    with seckill.Lock(seckill.Client(server.url), "lock", timeout=60) as lock:
        lock.redis.update_inventory(lock, "stock", -2)
        program.process.send_signal(signal.SIGCONT)
        program.say("go on")
        assert program.ended().value == ["lost", "lost", True]
        lock.ensure_held()
    assert observer.get("stock") == b"7"
