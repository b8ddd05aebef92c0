"""Bad arguments: refused before anything is sent, by an error that begins with their name."""

from __future__ import annotations

import datetime
import math

import pytest
import seckill
from support.proxy import SilentHost

pytestmark = pytest.mark.core

GOOD = {
    "acquire_lock": {"lockname": "l", "acquire_time": 1000, "time_out": 0},
    "release_lock": {"lockname": "l"},
    "incr_inventory": {"key": "k", "change_num": 1},
    "update_inventory": {
        "lockname": "l",
        "key": "k",
        "change_num": -1,
        "acquire_time": 1000,
        "time_out": 0,
    },
}


class Strange:
    """Of no accepted type."""

    def __repr__(self):
        return "Strange()"


NOT_A_NAME = [None, True, False, [], ["l"], (), {}, {"l"}, Strange(), 1j, range(3)]
BAD_NAME = ["", b"", bytearray(), memoryview(b""), math.nan, "\ud800", "a\udcff"]
NOT_A_TIME = [None, True, False, "100", b"100", [], {}, 1j, Strange(), datetime.time(1)]
BAD_TIME = [math.nan, math.inf, -math.inf, -1, -0.5, 2**42 + 1, 1e300, 10**30]
BAD_TIME += [datetime.timedelta(seconds=-1), datetime.timedelta.max, datetime.timedelta.min]
BAD_LEASE = [0, 0.0, 0.5, datetime.timedelta(0), datetime.timedelta(microseconds=999)]
NOT_A_CHANGE = [None, True, False, 1.0, 0.5, math.nan, "1", b"1", "", [], [1], 1j, Strange()]
BAD_CHANGE = [2**63, -(2**63) - 1, 10**30, -(10**30)]

WRONG = {
    "lockname": [(NOT_A_NAME, TypeError), (BAD_NAME, ValueError)],
    "key": [(NOT_A_NAME, TypeError), (BAD_NAME, ValueError)],
    "acquire_time": [(NOT_A_TIME, TypeError), (BAD_TIME + BAD_LEASE, ValueError)],
    "time_out": [(NOT_A_TIME, TypeError), (BAD_TIME, ValueError)],
    "change_num": [(NOT_A_CHANGE, TypeError), (BAD_CHANGE, ValueError)],
}


def label(value):
    # Every worker has to find the same names: none with an address in it.
    return "memoryview" if isinstance(value, memoryview) else f"{value!r:.40}"


CASES = [
    pytest.param(function, argument, value, error, id=f"{function}-{argument}-{label(value)}")
    for function, arguments in GOOD.items()
    for argument in arguments
    for values, error in WRONG[argument]
    for value in values
]


@pytest.fixture(scope="module")
def host():
    with SilentHost() as host:
        yield host


@pytest.fixture(params=["functions", "client"], scope="module")
def shop(request, host):
    client = seckill.configure(host.url)
    return seckill if request.param == "functions" else client


@pytest.mark.parametrize(("function", "argument", "value", "error"), CASES)
def test_a_bad_argument_is_named_and_nothing_is_sent(shop, host, function, argument, value, error):
    arguments = GOOD[function] | {argument: value}
    for call in (
        lambda: getattr(shop, function)(**arguments),
        lambda: getattr(shop, function)(*arguments.values()),
    ):
        with pytest.raises(error) as caught:
            call()
        assert str(caught.value).startswith(f"{argument} must ")
        assert caught.type is error
    assert host.received() == (0, b"")


@pytest.mark.parametrize(
    ("function", "argument", "value", "words"),
    [
        ("release_lock", "lockname", None, ["str", "bytes", "NoneType"]),
        ("release_lock", "lockname", True, ["str", "bytes", "bool"]),
        ("release_lock", "lockname", ["l"], ["str", "bytes", "list"]),
        ("release_lock", "lockname", Strange(), ["str", "bytes", "Strange"]),
        ("release_lock", "lockname", "", ["not be empty"]),
        ("release_lock", "lockname", math.nan, ["NaN"]),
        ("incr_inventory", "key", "\ud800", ["UTF-8", "ud800"]),
        ("acquire_lock", "acquire_time", -5, ["-5"]),
        ("acquire_lock", "acquire_time", 0, ["0"]),
        ("acquire_lock", "acquire_time", "5000", ["timedelta", "str"]),
        ("acquire_lock", "time_out", -0.5, ["-0.5"]),
        ("acquire_lock", "time_out", math.nan, ["NaN"]),
        ("acquire_lock", "time_out", None, ["timedelta", "NoneType"]),
        ("acquire_lock", "time_out", True, ["timedelta", "bool"]),
        ("incr_inventory", "change_num", 1.0, ["int", "float"]),
        ("incr_inventory", "change_num", True, ["int", "bool"]),
        ("incr_inventory", "change_num", "1", ["int", "str"]),
        ("incr_inventory", "change_num", 2**63, ["2**63", str(2**63)]),
        ("update_inventory", "change_num", -(2**63) - 1, ["2**63", str(-(2**63) - 1)]),
    ],
)
def test_the_message_says_what_is_wanted_and_what_came(shop, function, argument, value, words):
    with pytest.raises((TypeError, ValueError)) as caught:
        getattr(shop, function)(**(GOOD[function] | {argument: value}))
    message = str(caught.value)
    assert all(word in message for word in words), message


class Broken:
    def __index__(self):
        raise ZeroDivisionError("of the argument's own making")


def test_an_error_of_the_arguments_own_comes_through(shop):
    with pytest.raises(ZeroDivisionError, match="of the argument's own making"):
        shop.incr_inventory("k", Broken())


def test_the_first_bad_argument_is_the_one_that_is_named(shop):
    with pytest.raises(TypeError, match=r"^lockname "):
        shop.update_inventory(None, None, None, None, None)
    with pytest.raises(TypeError, match=r"^key "):
        shop.update_inventory("l", None, None, None, None)


def test_a_bad_argument_leaves_the_client_usable(client, redis_py, key, lock):
    for bad in (None, 0.5, 2**63):
        with pytest.raises((TypeError, ValueError)):
            client.update_inventory(lock, key, bad)
    client.incr_inventory(key, 2)
    client.update_inventory(lock, key, -1)
    assert redis_py.get(key) == b"1"
