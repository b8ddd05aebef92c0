"""What is stored: names verbatim, a plain decimal stock, side keys that go away by themselves."""

from __future__ import annotations

import datetime
import threading

import pytest
import seckill
from support import old_script

pytestmark = pytest.mark.core

UNIQUE = "5ec1e111"  # nobody else's names; servers are shared within a worker only

NAMES = [
    f"plain-{UNIQUE}",
    f"库存-{UNIQUE}",
    f"{{tag}}-{UNIQUE}",
    f" spaces \r\n and \0 zero-{UNIQUE} ",
    f"bytes-{UNIQUE}".encode(),
    b"\xff\xfe not UTF-8 " + UNIQUE.encode(),
    bytearray(f"bytearray-{UNIQUE}".encode()),
    memoryview(f"memoryview-{UNIQUE}".encode()),
    memoryview(f"every second byte-{UNIQUE}".encode())[::2],
    int(UNIQUE, 16),
    -int(UNIQUE, 16),
    2**70 + int(UNIQUE, 16),
    int(UNIQUE, 16) + 0.5,
    int(UNIQUE, 16) * 1.0,
    int(UNIQUE, 16) * 1e-30,
    -int(UNIQUE, 16) * 1e30,
    0.1 + int(UNIQUE, 16) / 2**40,
    "n" * 10_000 + UNIQUE,
]


def label(name):
    # Every worker has to find the same names: no address, no part that is drawn anew.
    kind = type(name).__name__
    return kind if isinstance(name, memoryview) else f"{kind}-{name!r:.10}"


def as_redis_py_takes_it(name):
    # redis-py's own encoder leaves a strided memoryview to the socket, which wants a flat one.
    return bytes(name) if isinstance(name, memoryview) else name


@pytest.fixture(params=NAMES, ids=label)
def any_name(request, redis_py):
    theirs = as_redis_py_takes_it(request.param)
    redis_py.delete(theirs)
    yield request.param
    redis_py.delete(theirs)


def test_a_key_has_the_bytes_that_redis_py_gives_it(client, redis_py, lock, any_name):
    client.incr_inventory(any_name, 5)
    client.update_inventory(lock, any_name, -2)
    assert redis_py.get(as_redis_py_takes_it(any_name)) == b"3"


def test_a_lockname_has_the_bytes_that_redis_py_gives_it(client, redis_py, key, any_name):
    redis_py.set(key, 5)
    assert client.acquire_lock(any_name, 60_000)
    assert redis_py.exists(as_redis_py_takes_it(any_name))
    client.update_inventory(any_name, key, -1)
    client.release_lock(any_name)
    assert not redis_py.exists(as_redis_py_takes_it(any_name))
    redis_py.set(as_redis_py_takes_it(any_name), 1, px=60_000)
    with pytest.raises(seckill.LockTimeout):
        client.update_inventory(any_name, key, -1, time_out=0)


@pytest.mark.parametrize(
    "pair", [("a", b"a"), (b"7", 7), ("0.5", 0.5), (bytearray(b"b"), memoryview(b"b"))], ids=label
)
def test_names_that_have_the_same_bytes_are_the_same_name(client, name, pair):
    """A lock that was taken by one spelling is released by the other."""
    one, other = pair
    assert client.acquire_lock(one, 60_000)
    assert client.acquire_lock(other, time_out=0) is False
    client.release_lock(other)
    assert client.acquire_lock(one, time_out=0) is True
    client.release_lock(one)


class Text(str):
    """As from a framework: a str, and yet not exactly one."""


class Number(int):
    pass


def test_subclasses_of_the_accepted_types_are_accepted(client, redis_py, key, lock):
    client.incr_inventory(Text(key), Number(3))
    client.update_inventory(Text(lock), Text(key), Number(-1), Number(5000), Number(1000))
    assert redis_py.get(key) == b"2"


class Index:
    def __index__(self):
        return -2


def test_change_num_is_whatever_python_can_index_with(client, redis_py, key, lock):
    redis_py.set(key, 5)
    client.update_inventory(lock, key, Index())
    assert redis_py.get(key) == b"3"


@pytest.mark.parametrize(
    ("lease", "milliseconds"),
    [
        (7000, 7000),
        (7000.0, 7000),
        (6999.5, 7000),
        (datetime.timedelta(seconds=7), 7000),
        (datetime.timedelta(days=1, milliseconds=1), 86_400_001),
        (2**42, 2**42),
    ],
)
def test_times_are_milliseconds_or_timedeltas(client, redis_py, lock, lease, milliseconds):
    assert client.acquire_lock(lock, lease, datetime.timedelta(seconds=1))
    assert milliseconds - 2000 < redis_py.pttl(lock) <= milliseconds
    client.release_lock(lock)


def test_a_fraction_of_a_millisecond_is_a_time_out(client, redis_py, lock):
    redis_py.set(lock, 1, px=60_000)
    assert client.acquire_lock(lock, 5000, 0.25) is False
    assert client.acquire_lock(lock, 5000, datetime.timedelta(microseconds=1)) is False


def test_the_stock_stays_a_plain_decimal_that_others_can_count(client, redis_py, key, lock):
    client.incr_inventory(key, 1000)
    client.update_inventory(lock, key, -1)
    assert redis_py.type(key) == b"string"
    assert redis_py.object("encoding", key) == b"int"
    assert redis_py.get(key) == b"999"
    assert redis_py.incrby(key, 1) == 1000
    client.update_inventory(lock, key, -(10**2))
    assert redis_py.get(key) == b"900"


def test_a_stock_of_many_digits_is_not_written_as_a_float(client, redis_py, key, lock):
    for stock in (10**14, 10**15, 10**16, 10**17, 10**18):
        redis_py.set(key, stock)
        client.update_inventory(lock, key, -1)
        assert redis_py.get(key) == str(stock - 1).encode()


def test_the_old_script_goes_on_working_on_the_same_data(client, server, redis_py, key, lock):
    old_script.connect(server.url)
    client.incr_inventory(key, 5)
    old_script.update_inventory(lock, key, -1)
    client.update_inventory(lock, key, -1)
    assert old_script.acquire_lock(lock)
    assert client.acquire_lock(lock, time_out=0) is False
    old_script.release_lock(lock)
    assert client.acquire_lock(lock, time_out=0) is True
    assert old_script.acquire_lock(lock, time_out=50) is False
    client.release_lock(lock)
    assert redis_py.get(key) == b"3"


def test_redis_pys_lock_and_ours_exclude_each_other(client, redis_py, lock):
    theirs = redis_py.lock(lock, timeout=60)
    assert theirs.acquire(blocking=False)
    assert client.acquire_lock(lock, time_out=0) is False
    client.release_lock(lock)
    assert theirs.owned()
    theirs.release()
    assert client.acquire_lock(lock, time_out=0) is True
    assert not theirs.acquire(blocking=False)
    client.release_lock(lock)


def test_an_update_keeps_the_time_to_live_of_the_stock(client, redis_py, key, lock):
    redis_py.set(key, 10, px=60_000)
    client.update_inventory(lock, key, -1)
    client.update_inventory(lock, key, 2)
    client.incr_inventory(key, 1)
    assert redis_py.get(key) == b"12"
    assert 0 < redis_py.pttl(key) <= 60_000


def test_an_update_gives_the_stock_no_time_to_live(client, redis_py, key, lock):
    client.incr_inventory(key, 10)
    client.update_inventory(lock, key, -1)
    assert redis_py.ttl(key) == -1


def test_all_else_that_is_stored_begins_with_seckill_and_has_a_ttl(own_server):
    """A private server, so that every key in it is looked at."""
    observer = own_server.redis()
    observer.set("stock", 100)
    observer.set("held", 1, px=60_000)
    client = seckill.Client(own_server.url)
    assert client.acquire_lock("lock")
    client.incr_inventory("{tag}:stock", 5)
    client.incr_inventory(b"\xff", 5)

    def crowd():
        for _ in range(10):
            client.update_inventory("free", "stock", -1)
            with pytest.raises(seckill.NoInventory):
                client.update_inventory("free", "missing", -1)
            with pytest.raises(seckill.LockTimeout):
                client.update_inventory("held", "stock", -1, time_out=0)
            client.acquire_lock("held", time_out=0)

    threads = [threading.Thread(target=crowd) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)

    named = {b"stock", b"held", b"lock", b"{tag}:stock", b"\xff"}
    side_keys = set(observer.scan_iter()) - named
    assert side_keys, "the sessions' records are stored somewhere"
    for side_key in side_keys:
        assert side_key.startswith(b"seckill:")
        assert 0 < observer.pttl(side_key) <= 24 * 3600 * 1000


def test_deleting_all_side_keys_loses_nothing(own_server):
    observer = own_server.redis()
    client = seckill.Client(own_server.url)
    client.incr_inventory("stock", 10)
    client.update_inventory("lock", "stock", -1)
    for side_key in observer.scan_iter("seckill:*"):
        observer.delete(side_key)
    client.update_inventory("lock", "stock", -1)
    assert observer.get("stock") == b"8"


def test_a_sale_does_not_grow_the_key_space(own_server):
    """One record per session and stock key, not one per call."""
    observer = own_server.redis()
    client = seckill.Client(own_server.url)
    client.incr_inventory("stock", 1000)
    client.update_inventory("lock", "stock", -1)
    before = observer.dbsize()
    for _ in range(200):
        client.update_inventory("lock", "stock", -1)
    assert observer.dbsize() == before
