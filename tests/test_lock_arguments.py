"""Wrong arguments of a lock: refused before anything is sent, by an error that names them.

The same tests are held against the awaited lock.
"""

from __future__ import annotations

import functools
import math

import pytest
import seckill
from support.locks import DIRECT, locks, server_of_the_place
from support.proxy import SilentHost

pytestmark = pytest.mark.core

server = server_of_the_place
make = locks(DIRECT)


class Strange:
    """Of no accepted type."""


NOT_A_NAME = [None, True, [], {}, Strange()]
BAD_NAME = ["", b"", "\ud800"]
NOT_A_TIME = ["5", b"5", True, [], Strange(), 1j]
BAD_TIME = [math.nan, -math.inf, -1, -0.5]

WRONG = {
    "name": [(NOT_A_NAME, TypeError), (BAD_NAME, ValueError)],
    "timeout": [(NOT_A_TIME, TypeError), ([*BAD_TIME, math.inf, 2**42], ValueError)],
    "sleep": [([*NOT_A_TIME, None], TypeError), (BAD_TIME, ValueError)],
    "blocking_timeout": [(NOT_A_TIME, TypeError), ([math.nan], ValueError)],
    "max_hold": [(NOT_A_TIME, TypeError), ([*BAD_TIME, 0], ValueError)],
    "on_lost": [([1, [], Strange()], TypeError)],
}
CALLS = {
    "acquire": {
        "blocking_timeout": [(NOT_A_TIME, TypeError), ([math.nan], ValueError)],
        "token": [([[], Strange(), True], TypeError)],
    },
    "extend": {
        "additional_time": [([*NOT_A_TIME, None], TypeError), (BAD_TIME, ValueError)],
    },
}


@pytest.fixture(scope="module")
def host():
    with SilentHost() as host:
        yield host


def refused(call, argument, error, value):
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(f"{argument} must "), value
    assert caught.type is error, value


@pytest.mark.parametrize("argument", WRONG)
def test_a_wrong_argument_is_named_and_nothing_is_sent(make, host, argument):
    silent = make.at(host.url)
    given = {"timeout": 5, "auto_renew": True}
    for values, error in WRONG[argument]:
        for value in values:
            named = given | {"name": "lock", argument: value}
            refused(functools.partial(silent, **named), argument, error, value)
    assert host.received() == (0, b"")


@pytest.mark.parametrize(("method", "argument"), [(m, a) for m in CALLS for a in CALLS[m]])
def test_a_wrong_argument_of_a_call_is_named_and_nothing_is_sent(make, host, method, argument):
    made = make.at(host.url)("lock", timeout=5)
    made.local.token = b"token"
    for values, error in CALLS[method][argument]:
        for value in values:
            named = functools.partial(getattr(made, method), **{argument: value})
            refused(named, argument, error, value)
    assert host.received() == (0, b"")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"auto_renew": True}, ["auto_renew", "timeout"]),
        ({"timeout": 5, "max_hold": 60}, ["max_hold", "auto_renew"]),
    ],
)
def test_what_needs_another_option_says_so(make, lock, options, words):
    with pytest.raises(ValueError, match=".*".join(words)):
        make(lock, **options)


def test_what_is_no_client_is_refused():
    for strange in (5, Strange(), b"redis://localhost", [], True):
        with pytest.raises(TypeError, match=r"^redis must "):
            seckill.Lock(strange, "lock")
    for url in ("localhost", "http://localhost"):
        with pytest.raises(ValueError, match="URL"):
            seckill.Lock(url, "lock")
