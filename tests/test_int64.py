"""The stock is an int64, exactly: Lua's doubles would lose units from 2**53 on."""

from __future__ import annotations

import pytest
import seckill

pytestmark = pytest.mark.core

LARGEST = 2**63 - 1
SMALLEST = -(2**63)


@pytest.mark.parametrize(
    ("stock", "change"),
    [
        (9007199254740995, -9007199254740995),
        (9007199254740993, -1),
        (9007199254740992, 1),
        (9007199254740994, -9007199254740993),
        (2**53, -(2**53)),
        (10**18 + 1, -(10**18)),
        (LARGEST, -1),
        (LARGEST, -LARGEST),
        (LARGEST, 0),
        (LARGEST - 1, 1),
        (0, LARGEST),
        (0, 0),
        (1, -1),
        (-5, 5),
        (-5, LARGEST),
        (SMALLEST + 1, LARGEST),
    ],
)
def test_a_change_that_fits_is_exact(client, redis_py, key, lock, stock, change):
    redis_py.set(key, stock)
    client.update_inventory(lock, key, change)
    assert redis_py.get(key) == str(stock + change).encode()


@pytest.mark.parametrize(
    ("stock", "change"),
    [
        (9007199254740995, -9007199254740996),
        (9007199254740992, -9007199254740993),
        (2**62, -(2**62) - 1),
        (LARGEST - 1, -LARGEST),
        (LARGEST, SMALLEST),
        (0, -1),
        (0, SMALLEST),
        (-5, 4),
        (-5, 0),
        (-5, -1),
        (SMALLEST, LARGEST),
        (SMALLEST + 1, -1),
    ],
)
def test_one_unit_too_many_is_refused(client, redis_py, key, lock, stock, change):
    redis_py.set(key, stock)
    with pytest.raises(seckill.InsufficientInventory) as caught:
        client.update_inventory(lock, key, change)
    assert caught.value.available == stock
    assert caught.value.requested == -change
    assert redis_py.get(key) == str(stock).encode()


@pytest.mark.parametrize(
    ("stock", "change"), [(LARGEST, 1), (1, LARGEST), (LARGEST, LARGEST), (2**62, 2**62)]
)
def test_an_overflow_is_invalid_inventory_and_changes_nothing(
    client, redis_py, key, lock, stock, change
):
    redis_py.set(key, stock)
    for call in (
        lambda: client.update_inventory(lock, key, change),
        lambda: client.incr_inventory(key, change),
    ):
        with pytest.raises(seckill.InvalidInventory) as caught:
            call()
        assert caught.value.key == key
        assert caught.value.value == str(stock)
        assert redis_py.get(key) == str(stock).encode()


@pytest.mark.parametrize("change", [-1, SMALLEST])
def test_below_the_smallest_int64_nothing_is_written(client, redis_py, key, lock, change):
    redis_py.set(key, SMALLEST)
    with pytest.raises(seckill.InventoryError):
        client.update_inventory(lock, key, change)
    with pytest.raises(seckill.InvalidInventory):
        client.incr_inventory(key, change)
    assert redis_py.get(key) == str(SMALLEST).encode()


@pytest.mark.parametrize("change", [LARGEST, SMALLEST, -9007199254740993, 9007199254740993])
def test_incr_creates_exactly_what_it_is_told(client, redis_py, key, change):
    client.incr_inventory(key, change)
    assert redis_py.get(key) == str(change).encode()


@pytest.mark.parametrize(
    "stored",
    [
        *("007", "+5", " 5", "5 ", "-0", "1.5", "", "1e3", "0x10", "٣", "5\n", "5\0", "-", "--5"),
        *("9223372036854775808", "-9223372036854775809", "1" * 30, "x" * 10_000, "nan", "5_000"),
        b"\xff\xfe",
    ],
    ids=lambda stored: repr(stored)[:16],
)
def test_what_redis_would_not_count_with_is_invalid(client, redis_py, key, lock, stored):
    redis_py.set(key, stored)
    for call in (
        lambda: client.update_inventory(lock, key, -1),
        lambda: client.update_inventory(lock, key, 1),
        lambda: client.incr_inventory(key, 1),
    ):
        with pytest.raises(seckill.InvalidInventory) as caught:
            call()
        assert caught.value.key == key
        assert caught.value.reason
    assert redis_py.get(key) == (stored if isinstance(stored, bytes) else stored.encode())


def test_the_invalid_value_is_named_as_text_or_as_bytes(client, redis_py, key, lock):
    for stored in ("1.5", "", "五", b"\xff"):
        redis_py.set(key, stored)
        with pytest.raises(seckill.InvalidInventory) as caught:
            client.update_inventory(lock, key, -1)
        assert caught.value.value == stored
        assert repr(stored) in str(caught.value)


@pytest.mark.parametrize("fill", ["lpush", "sadd", "hset", "zadd", "xadd"])
def test_a_key_of_another_type_is_invalid_and_stays_what_it_is(client, redis_py, key, lock, fill):
    {
        "lpush": lambda: redis_py.lpush(key, 5),
        "sadd": lambda: redis_py.sadd(key, 5),
        "hset": lambda: redis_py.hset(key, "5", 5),
        "zadd": lambda: redis_py.zadd(key, {"5": 5}),
        "xadd": lambda: redis_py.xadd(key, {"5": 5}),
    }[fill]()
    dump = redis_py.dump(key)
    kind = redis_py.type(key).decode()
    for call in (
        lambda: client.update_inventory(lock, key, -1),
        lambda: client.incr_inventory(key, 1),
    ):
        with pytest.raises(seckill.InvalidInventory) as caught:
            call()
        assert caught.value.key == key
        assert kind in str(caught.value)
    assert redis_py.dump(key) == dump


@pytest.mark.parametrize("fill", ["lpush", "hset"])
def test_a_lock_key_of_another_type_is_a_lock_that_somebody_holds(
    client, redis_py, key, lock, fill
):
    """Whatever it is, it is not ours: nothing is changed, nothing is freed."""
    redis_py.set(key, 5)
    redis_py.lpush(lock, 1) if fill == "lpush" else redis_py.hset(lock, "1", 1)
    assert client.acquire_lock(lock, time_out=0) is False
    client.release_lock(lock)
    with pytest.raises(seckill.LockTimeout):
        client.update_inventory(lock, key, -1, time_out=0)
    assert redis_py.exists(lock)
    assert redis_py.get(key) == b"5"
