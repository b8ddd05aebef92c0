"""The table of what each function promises, row by row, on every server.

The first line of a test's docstring is the case of the table that it is about.
"""

from __future__ import annotations

import logging
import threading
import time

import pytest
import redis
import seckill
from support.programs import run

pytestmark = pytest.mark.core

SOMEBODY = b"somebody else's token"


def in_thread(function, *arguments):
    """What a function gives (or raises) in a thread of its own."""
    result = []

    def call():
        try:
            result.append(function(*arguments))
        except Exception as error:
            result.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join(30)
    assert not thread.is_alive()
    return result[0]


# -- locks ------------------------------------------------------------------------------------


def test_a_free_lock_is_taken(shop, lock, redis_py):
    """lock is free or frees up in time"""
    assert shop.acquire_lock(lock) is True
    assert redis_py.exists(lock)
    shop.release_lock(lock)
    assert not redis_py.exists(lock)


def test_a_lock_that_frees_up_in_time_is_taken(shop, lock, redis_py):
    """lock is free or frees up in time"""
    redis_py.set(lock, SOMEBODY, px=60_000)
    timer = threading.Timer(0.3, redis_py.delete, [lock])
    timer.start()
    assert shop.acquire_lock(lock, 5000, 20_000) is True
    timer.join()
    shop.release_lock(lock)


def test_the_lease_is_acquire_time_in_milliseconds(shop, lock, redis_py):
    """lock is free or frees up in time"""
    assert shop.acquire_lock(lock, acquire_time=7000)
    assert 5000 < redis_py.pttl(lock) <= 7000
    shop.release_lock(lock)
    assert shop.acquire_lock(lock)
    assert 3000 < redis_py.pttl(lock) <= 5000
    shop.release_lock(lock)


def test_a_lock_that_stays_held_is_not_taken(shop, lock, redis_py):
    """lock still held after time_out"""
    redis_py.set(lock, SOMEBODY, px=60_000)
    start = time.monotonic()
    assert shop.acquire_lock(lock, 5000, 300) is False
    assert time.monotonic() - start >= 0.29
    assert redis_py.get(lock) == SOMEBODY


def test_a_time_out_of_zero_tries_once(shop, lock, redis_py):
    """lock still held after time_out"""
    assert shop.acquire_lock(lock, time_out=0) is True
    shop.release_lock(lock)
    redis_py.set(lock, SOMEBODY, px=60_000)
    assert shop.acquire_lock(lock, time_out=0) is False


def test_a_lock_without_a_lease_is_waited_for_too(shop, lock, redis_py):
    """lock still held after time_out"""
    redis_py.set(lock, SOMEBODY)
    assert shop.acquire_lock(lock, 5000, 100) is False
    timer = threading.Timer(0.2, redis_py.delete, [lock])
    timer.start()
    assert shop.acquire_lock(lock, 5000, 20_000) is True
    timer.join()
    shop.release_lock(lock)


def test_a_lock_is_owned_by_a_random_token(shop, lock, redis_py):
    """who owns it"""
    tokens = set()
    for _ in range(50):
        assert shop.acquire_lock(lock)
        tokens.add(redis_py.get(lock))
        shop.release_lock(lock)
    assert len(tokens) == 50
    # 128 bits: at least 16 bytes, or 22 characters where they are spelt in base 64.
    assert all(len(token) >= 16 for token in tokens)


def test_one_holders_second_acquire_waits_and_keeps_the_first_token(shop, lock, redis_py):
    """who owns it"""
    assert shop.acquire_lock(lock)
    token = redis_py.get(lock)
    assert shop.acquire_lock(lock, time_out=0) is False
    assert redis_py.get(lock) == token
    shop.release_lock(lock)
    assert not redis_py.exists(lock)


def test_releasing_what_another_holds_changes_nothing(shop, lock, redis_py, caplog):
    """release_lock by one who does not hold it"""
    redis_py.set(lock, SOMEBODY, px=60_000)
    with caplog.at_level(logging.DEBUG, logger="seckill"):
        assert shop.release_lock(lock) is None
    assert redis_py.get(lock) == SOMEBODY
    assert [record.levelname for record in caplog.records] == ["DEBUG"]
    assert lock in caplog.text


def test_releasing_what_nobody_holds_changes_nothing(shop, lock, redis_py):
    """release_lock by one who does not hold it"""
    assert shop.release_lock(lock) is None
    assert not redis_py.exists(lock)


def test_releasing_twice_frees_nobody_elses_lock(shop, lock, redis_py):
    """release_lock by one who does not hold it"""
    assert shop.acquire_lock(lock)
    shop.release_lock(lock)
    redis_py.set(lock, SOMEBODY, px=60_000)
    shop.release_lock(lock)
    assert redis_py.get(lock) == SOMEBODY


def test_releasing_after_the_lease_ended_frees_nobody_elses_lock(shop, lock, redis_py):
    """release_lock by one who does not hold it"""
    assert shop.acquire_lock(lock, acquire_time=50)
    while redis_py.exists(lock):
        time.sleep(0.005)
    redis_py.set(lock, SOMEBODY, px=60_000)
    shop.release_lock(lock)
    assert redis_py.get(lock) == SOMEBODY


def test_a_late_release_leaves_the_lock_to_the_thread_that_has_it_now(shop, lock, redis_py):
    """release_lock by one who does not hold it"""
    assert shop.acquire_lock(lock, acquire_time=50)
    while redis_py.exists(lock):
        time.sleep(0.005)
    assert in_thread(shop.acquire_lock, lock, 60_000) is True
    shop.release_lock(lock)  # as by the `finally:` of one whose work took longer than his lease
    assert redis_py.exists(lock)
    shop.release_lock(lock)  # and now on behalf of the other thread
    assert not redis_py.exists(lock)


def test_a_lock_that_was_lost_and_released_can_be_taken_again(shop, lock, redis_py):
    """release_lock by one who does not hold it"""
    assert shop.acquire_lock(lock)
    redis_py.set(lock, SOMEBODY, px=60_000)
    shop.release_lock(lock)
    redis_py.delete(lock)
    assert shop.acquire_lock(lock, time_out=0) is True
    shop.release_lock(lock)
    assert not redis_py.exists(lock)


def test_another_thread_of_the_process_may_release(shop, lock, redis_py):
    """release_lock from another thread of the acquiring process"""
    assert shop.acquire_lock(lock)
    assert in_thread(shop.release_lock, lock) is None
    assert not redis_py.exists(lock)
    assert shop.acquire_lock(lock, time_out=0) is True
    shop.release_lock(lock)


def release_elsewhere(url, lock):
    import seckill

    seckill.configure(url)
    seckill.release_lock(lock)


def test_another_process_cannot_release(shop, server, lock, redis_py):
    """release_lock by one who does not hold it"""
    assert shop.acquire_lock(lock, acquire_time=60_000)
    assert run(release_elsewhere, server.url, lock).value is None
    assert redis_py.exists(lock)
    shop.release_lock(lock)
    assert not redis_py.exists(lock)


# -- update_inventory and the lock ------------------------------------------------------------


def test_the_holder_itself_updates_under_its_lock(shop, key, lock, redis_py):
    """lock held by the calling thread itself, then update_inventory on it"""
    shop.incr_inventory(key, 5)
    assert shop.acquire_lock(lock)
    token = redis_py.get(lock)
    shop.update_inventory(lock, key, -2, time_out=0)
    assert redis_py.get(key) == b"3"
    assert redis_py.get(lock) == token
    shop.release_lock(lock)


def test_another_thread_does_not_update_under_the_holders_lock(shop, key, lock, redis_py):
    """update_inventory while another holds the lock"""
    shop.incr_inventory(key, 5)
    assert shop.acquire_lock(lock)
    error = in_thread(shop.update_inventory, lock, key, -2, 5000, 100)
    assert type(error).__name__ == "LockTimeout"
    assert redis_py.get(key) == b"5"
    shop.release_lock(lock)
    assert in_thread(shop.update_inventory, lock, key, -2, 5000, 100) is None
    assert redis_py.get(key) == b"3"


def test_an_update_waits_for_another_holder_up_to_time_out(shop, key, lock, redis_py):
    """update_inventory while another holds the lock"""
    redis_py.set(key, 5)
    redis_py.set(lock, 1, px=60_000)
    start = time.monotonic()
    with pytest.raises(seckill.LockTimeout) as caught:
        shop.update_inventory(lock, key, -1, 5000, 300)
    assert time.monotonic() - start >= 0.29
    assert isinstance(caught.value, TimeoutError)
    assert not isinstance(caught.value, ValueError)
    assert caught.value.lock_name == lock
    assert caught.value.time_out == 300
    assert redis_py.get(key) == b"5"
    assert redis_py.get(lock) == b"1"


def test_an_update_goes_through_when_the_lock_frees_up(shop, key, lock, redis_py):
    """update_inventory while another holds the lock"""
    redis_py.set(key, 5)
    redis_py.set(lock, 1, px=60_000)
    timer = threading.Timer(0.3, redis_py.delete, [lock])
    timer.start()
    shop.update_inventory(lock, key, -1, 5000, 20_000)
    timer.join()
    assert redis_py.get(key) == b"4"


def test_an_update_leaves_no_lock_behind(shop, key, lock, redis_py):
    """finally: release when the lock was never taken"""
    redis_py.set(key, 5)
    shop.update_inventory(lock, key, -1)
    assert not redis_py.exists(lock)


def test_an_update_that_timed_out_does_not_free_the_holders_lock(shop, key, lock, redis_py):
    """finally: release when the lock was never taken"""
    redis_py.set(key, 5)
    redis_py.set(lock, 1, px=60_000)
    with pytest.raises(seckill.LockTimeout):
        shop.update_inventory(lock, key, -1, 5000, 0)
    assert redis_py.get(lock) == b"1"


def test_a_refused_update_frees_nobodys_lock(shop, key, lock, redis_py):
    """finally: release when the lock was never taken"""
    assert shop.acquire_lock(lock)
    with pytest.raises(seckill.NoInventory):
        shop.update_inventory(lock, key, -1)
    assert redis_py.exists(lock)
    shop.release_lock(lock)


def test_a_lease_far_shorter_than_the_work_oversells_nothing(shop, key, lock, redis_py):
    """lease ends in the middle of an update"""
    redis_py.set(key, 20)
    sold = []

    def buy():
        for _ in range(10):
            try:
                shop.update_inventory(lock, key, -1, 1, 20_000)
                sold.append(1)
            except seckill.InsufficientInventory:
                pass

    threads = [threading.Thread(target=buy) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(sold) == 20
    assert redis_py.get(key) == b"0"


# -- the stock --------------------------------------------------------------------------------


def test_an_update_changes_the_stock_by_change_num(shop, key, lock, redis_py):
    redis_py.set(key, 10)
    assert shop.update_inventory(lock, key, -3) is None
    assert redis_py.get(key) == b"7"
    assert shop.update_inventory(lock, key, 5) is None
    assert redis_py.get(key) == b"12"
    shop.update_inventory(lock, key, -12)
    assert redis_py.get(key) == b"0"


@pytest.mark.parametrize("change", [-1, 0, 1])
def test_a_missing_key_is_no_inventory_and_is_not_created(shop, key, lock, redis_py, change):
    """key missing"""
    with pytest.raises(seckill.NoInventory) as caught:
        shop.update_inventory(lock, key, change)
    assert isinstance(caught.value, ValueError)
    assert str(caught.value) == "没有库存"
    assert caught.value.key == key
    assert not redis_py.exists(key)


def test_not_enough_is_insufficient_inventory_and_changes_nothing(shop, key, lock, redis_py):
    """not enough (stock + change_num < 0)"""
    redis_py.set(key, 3)
    with pytest.raises(seckill.InsufficientInventory) as caught:
        shop.update_inventory(lock, key, -4)
    assert isinstance(caught.value, ValueError)
    assert str(caught.value) == "库存不足"
    assert (caught.value.key, caught.value.available, caught.value.requested) == (key, 3, 4)
    assert redis_py.get(key) == b"3"


def test_sold_out_is_insufficient_inventory_not_no_inventory(shop, key, lock, redis_py):
    """not enough"""
    redis_py.set(key, 1)
    shop.update_inventory(lock, key, -1)
    with pytest.raises(seckill.InsufficientInventory) as caught:
        shop.update_inventory(lock, key, -1)
    assert caught.value.available == 0
    assert redis_py.get(key) == b"0"


def test_a_stock_that_is_no_integer_is_invalid_inventory(shop, key, lock, redis_py):
    """stock is not an integer, is another type, or would overflow int64"""
    redis_py.set(key, "ten")
    for call in (
        lambda: shop.update_inventory(lock, key, -1),
        lambda: shop.incr_inventory(key, 1),
    ):
        with pytest.raises(seckill.InvalidInventory) as caught:
            call()
        assert isinstance(caught.value, ValueError)
        assert caught.value.key == key
        assert caught.value.value == "ten"
        assert key in str(caught.value)
        assert "ten" in str(caught.value)
    assert redis_py.get(key) == b"ten"


def test_incr_creates_a_missing_key(shop, key, redis_py):
    """incr_inventory on a missing key"""
    assert shop.incr_inventory(key, 100) is None
    assert redis_py.get(key) == b"100"
    shop.incr_inventory(key, -30)
    assert redis_py.get(key) == b"70"


def test_incr_has_no_floor(shop, key, redis_py):
    """incr_inventory on a missing key

    It is INCRBY, as it was in the script: whoever sells goes through update_inventory.
    """
    shop.incr_inventory(key, -3)
    assert redis_py.get(key) == b"-3"
    shop.incr_inventory(key, 5)
    assert redis_py.get(key) == b"2"


def test_incr_does_not_look_at_any_lock(shop, key, lock, redis_py):
    """incr_inventory on a missing key"""
    redis_py.set(lock, SOMEBODY, px=60_000)
    shop.incr_inventory(key, 5)
    assert redis_py.get(key) == b"5"


def test_every_refusal_derives_from_seckill_error(shop, key, lock, redis_py):
    redis_py.set(lock, SOMEBODY, px=60_000)
    with pytest.raises(seckill.SeckillError):
        shop.update_inventory(lock, key, -1, time_out=0)
    redis_py.delete(lock)
    with pytest.raises(seckill.SeckillError):
        shop.update_inventory(lock, key, -1)


# -- the server -------------------------------------------------------------------------------


def test_a_server_that_cannot_be_reached_is_both_connection_errors(lock, key, name):
    """server cannot be reached"""
    client = seckill.Client(unix_socket_path=f"/nowhere/{name('socket')}")
    for call in (
        lambda: client.acquire_lock(lock),
        lambda: client.update_inventory(lock, key, -1),
        lambda: client.incr_inventory(key),
    ):
        with pytest.raises(seckill.ConnectionError) as caught:
            call()
        assert isinstance(caught.value, ConnectionError)
        assert isinstance(caught.value, redis.exceptions.ConnectionError)
        assert isinstance(caught.value, seckill.SeckillError)
        assert caught.value.sent is False


def connection_error_without_redis_py(path):
    import sys

    import seckill

    try:
        seckill.Client(unix_socket_path=path).incr_inventory("stock")
    except ConnectionError as error:
        return [type(error) is seckill.ConnectionError, error.sent, "redis" in sys.modules]


def test_without_redis_py_it_is_the_plain_connection_error(name):
    """server cannot be reached"""
    ended = run(connection_error_without_redis_py, f"/nowhere/{name('socket')}")
    assert ended.value == [True, False, False]
