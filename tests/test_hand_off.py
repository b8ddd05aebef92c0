"""Waiting for a lock: who waits is told, or woken by the lease's end; nobody polls in vain."""

from __future__ import annotations

import multiprocessing
import time

import pytest
import seckill
from support import fleet
from support.clients import HOUR, wait_for_lock
from support.threads import all_of, call

pytestmark = pytest.mark.core


# -- being told -------------------------------------------------------------------------------

WAYS_TO_FREE = {
    "DEL": lambda redis: redis.delete("lock"),
    "UNLINK": lambda redis: redis.unlink("lock"),
    "GETDEL": lambda redis: redis.getdel("lock"),
    "RENAME": lambda redis: redis.rename("lock", "elsewhere"),
    "PEXPIRE 0": lambda redis: redis.pexpire("lock", 0),
    "FLUSHALL": lambda redis: redis.flushall(),
    "FLUSHDB": lambda redis: redis.flushdb(),
    "script": lambda redis: redis.eval("return redis.call('del', KEYS[1])", 1, "lock"),
    "transaction": lambda redis: redis.pipeline().delete("lock").execute(),
}


@pytest.mark.parametrize("way", WAYS_TO_FREE)
def test_a_waiter_is_told_however_the_lock_is_freed(observer, warm_client, way):
    """An hour's lease, and not one question while it lasts: who has it then has been told."""
    rounds, waited = 6, 0.0
    for _ in range(rounds):
        observer.set("lock", "somebody", px=HOUR)
        waiter = wait_for_lock(warm_client)
        asked = warm_client.statistics()["calls"]
        freed = time.monotonic()
        WAYS_TO_FREE[way](observer)
        assert waiter.result(10) is True
        waited += waiter.ended - freed
        assert observer.get("lock") != b"somebody"
        assert warm_client.statistics()["calls"] <= asked + 3
        warm_client.release_lock("lock")
    # A millisecond each time. One who only looks once a second would have waited for three seconds.
    assert waited < rounds * 0.25


def test_a_waiter_who_will_be_told_asks_once_a_second_to_keep_its_place(observer, warm_client):
    observer.set("lock", "somebody", px=HOUR)
    waiter = wait_for_lock(warm_client)
    asked = warm_client.statistics()["calls"]
    time.sleep(1.5)
    assert warm_client.statistics()["calls"] <= asked + 2
    observer.delete("lock")
    assert waiter.result(10) is True


def test_an_update_that_waits_is_told_too(observer, warm_client):
    observer.set("stock", 5)
    observer.set("lock", "somebody", px=HOUR)
    waiter = call(warm_client.update_inventory, "lock", "stock", -1, 5000, 60_000).until_asleep()
    asked = warm_client.statistics()["calls"]
    time.sleep(0.5)
    assert warm_client.statistics()["calls"] == asked
    observer.delete("lock")
    waiter.result(10)
    assert observer.get("stock") == b"4"
    assert not observer.exists("lock")


def release_later(url):
    import sys

    import seckill

    seckill.configure(url)
    assert seckill.acquire_lock("lock", 3_600_000)
    print("taken", flush=True)
    sys.stdin.readline()
    seckill.release_lock("lock")


def test_a_waiter_is_told_of_a_release_in_another_process(own_server, observer, warm_client):
    from support.programs import Program

    program = Program(release_later, own_server.url)
    program.expect("taken")
    waiter = wait_for_lock(warm_client)
    program.say("release")
    assert waiter.result(10) is True
    assert program.ended().status == 0


def test_a_waiter_is_told_of_a_release_by_another_client_and_thread(own_server, warm_client):
    other = seckill.Client(own_server.url)
    assert other.acquire_lock("lock", HOUR)
    waiter = wait_for_lock(warm_client)
    other.release_lock("lock")
    assert waiter.result(10) is True
    waiter = wait_for_lock(warm_client)
    warm_client.release_lock("lock")
    assert waiter.result(10) is True
    waiter = wait_for_lock(other)
    warm_client.release_lock("lock")
    assert waiter.result(10) is True


def test_a_waiter_is_told_again_and_again(observer, warm_client):
    """Freed and taken by others before him, many times: no wake-up is lost in between."""
    observer.set("lock", "0", px=HOUR)
    waiter = wait_for_lock(warm_client)
    for number in range(50):
        observer.pipeline().delete("lock").set("lock", number, px=HOUR).execute()
    waiter.until_asleep()
    assert waiter.is_alive()
    observer.delete("lock")
    assert waiter.result(10) is True


def test_no_wake_up_is_lost_between_a_failed_try_and_the_wait(observer, warm_client):
    """Freed at any moment of the waiter's way into its sleep."""
    for number in range(100):
        observer.set("lock", "somebody", px=HOUR)
        waiter = call(warm_client.acquire_lock, "lock", HOUR, 60_000)
        time.sleep(number * 0.00003)
        observer.delete("lock")
        assert waiter.result(10) is True
        warm_client.release_lock("lock")


# -- the lease's end --------------------------------------------------------------------------


def test_the_end_of_the_lease_wakes_a_waiter_though_nobody_announces_it(observer, warm_client):
    """Expired keys stay where they are until somebody looks: so on a busy server for seconds."""
    observer.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    start = time.monotonic()
    for _ in range(6):
        observer.set("lock", "somebody", px=400)
        assert warm_client.acquire_lock("lock", HOUR, 60_000) is True
        warm_client.release_lock("lock")
    # Not by chance, nor by asking once a second whether it is still there: six leases, one by one.
    assert 2.3 < time.monotonic() - start < 4.2


def test_an_update_goes_through_when_the_lease_ends(observer, warm_client):
    observer.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    observer.set("stock", 5)
    observer.set("lock", "somebody", px=400)
    start = time.monotonic()
    warm_client.update_inventory("lock", "stock", -1, 5000, 60_000)
    assert 0.3 < time.monotonic() - start < 5
    assert observer.get("stock") == b"4"


def test_a_lease_that_is_prolonged_is_waited_for_to_its_new_end(observer, warm_client):
    observer.set("lock", "somebody", px=300)
    waiter = wait_for_lock(warm_client)
    observer.pexpire("lock", HOUR)
    time.sleep(0.6)
    assert waiter.is_alive()
    assert observer.get("lock") == b"somebody"
    observer.delete("lock")
    assert waiter.result(10) is True


def test_a_lease_that_is_cut_short_is_not_waited_for_to_its_old_end(observer, warm_client):
    observer.execute_command("DEBUG", "SET-ACTIVE-EXPIRE", "0")
    observer.set("lock", "somebody", px=HOUR)
    waiter = wait_for_lock(warm_client)
    observer.pexpire("lock", 300)
    assert waiter.result(10) is True


# -- order and crowds --------------------------------------------------------------------------


def test_the_threads_of_a_process_get_the_lock_in_the_order_in_which_they_came(
    observer, warm_client
):
    observer.set("lock", "somebody", px=HOUR)
    order = []

    def take_and_pass_on(number):
        assert warm_client.acquire_lock("lock", HOUR, 60_000)
        order.append(number)
        warm_client.release_lock("lock")

    waiters = [call(take_and_pass_on, number).until_asleep() for number in range(15)]
    observer.delete("lock")
    for waiter in waiters:
        waiter.result()
    assert order == list(range(15))


def test_one_contender_of_a_process_talks_to_the_server_for_all(observer, warm_client):
    observer.set("lock", "somebody", px=HOUR)
    asked, began = warm_client.statistics()["steps"], time.monotonic()
    waiters = [call(warm_client.acquire_lock, "lock", 1000, 4000).until_asleep() for _ in range(20)]
    # Once a second it asks to keep its place.
    seconds = int(time.monotonic() - began)
    assert warm_client.statistics()["steps"] - asked <= 3 + 2 * seconds
    assert all(waiter.result() is False for waiter in waiters)


def test_a_waiter_whose_time_is_over_delays_nobody_behind_him(observer, warm_client):
    observer.set("lock", "somebody", px=HOUR)
    first = call(warm_client.acquire_lock, "lock", HOUR, 300).until_asleep()
    second = call(warm_client.acquire_lock, "lock", HOUR, 60_000).until_asleep()
    third = call(warm_client.acquire_lock, "lock", HOUR, 400).until_asleep()
    assert first.result() is False
    assert third.result() is False
    assert second.is_alive()
    observer.delete("lock")
    assert second.result(10) is True


def test_each_waiter_has_its_own_time_out(observer, warm_client):
    observer.set("lock", "somebody", px=HOUR)
    waiters = {ms: call(warm_client.acquire_lock, "lock", 1000, ms) for ms in range(100, 1100, 100)}
    for milliseconds, waiter in waiters.items():
        assert waiter.result() is False
        assert milliseconds - 5 < (waiter.ended - waiter.started) * 1000 < milliseconds + 1000


def test_a_waiter_whose_turn_comes_as_its_time_ends_gets_true_or_false(own_server):
    """lock still held after time_out"""
    client = seckill.Client(own_server.url, socket_timeout=0.1)
    for _ in range(5):
        waiters = [call(client.acquire_lock, "lock", 300, 300) for _ in range(8)]
        assert {waiter.result() for waiter in waiters} <= {True, False}
        client.release_lock("lock")


def test_fifty_threads_take_turns(observer, warm_client):
    observer.set("counter", 0)

    def count_up():
        for _ in range(5):
            assert warm_client.acquire_lock("lock", HOUR, 60_000)
            count = int(observer.get("counter"))
            observer.set("counter", count + 1)
            warm_client.release_lock("lock")

    all_of([count_up] * 50)
    assert observer.get("counter") == b"250"


def test_processes_with_threads_take_turns(own_server, observer):
    observer.set("counter", 0)
    context = multiprocessing.get_context("spawn")
    begin, answers = context.Barrier(4), context.Queue()
    processes = [
        context.Process(
            target=fleet.run,
            args=("new_holder", own_server.url, begin, answers, "lock", "counter", 50),
        )
        for _ in range(4)
    ]
    for process in processes:
        process.start()
    told = [answers.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sum(count["disturbed"] for count in told) == 0
    assert observer.get("counter") == b"200"


def test_waiters_for_many_locks_are_each_told_of_theirs(observer, warm_client):
    for number in range(30):
        observer.set(f"lock:{number}", "somebody", px=HOUR)
    waiters = [
        call(warm_client.acquire_lock, f"lock:{number}", HOUR, 60_000) for number in range(30)
    ]
    for waiter in waiters:
        waiter.until_asleep()
    asked = warm_client.statistics()["calls"]
    for number in reversed(range(30)):
        assert waiters[number].is_alive()
        observer.delete(f"lock:{number}")
        assert waiters[number].result(10) is True
    assert warm_client.statistics()["calls"] - asked <= 3 * 30
