"""The exceptions: what they say and carry, that they travel, and what redis-py's users catch."""

from __future__ import annotations

import builtins
import copy
import pickle
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
import redis
import seckill
from seckill import _exceptions

EXAMPLES = [
    seckill.SeckillError("something"),
    seckill.InventoryError("something about", "inventory"),
    seckill.NoInventory("inventory"),
    seckill.NoInventory(b"\xff\x00"),
    seckill.InsufficientInventory("inventory", 1, 2),
    seckill.InsufficientInventory("inventory", 9007199254740995, 9007199254740996),
    seckill.InvalidInventory("inventory", "ten", "not an integer"),
    seckill.InvalidInventory("inventory", b"\xff", "not an integer"),
    seckill.LockTimeout("lockname", 10000),
    seckill.LockTimeout(b"\xff", 0.5),
    seckill.LockError("not held"),
    seckill.LockError("not held", "lockname"),
    seckill.LockNotOwnedError("no longer held", b"\xff"),
    seckill.LockLostError("no longer held", "lockname"),
    seckill.ConnectionError("gone"),
    seckill.ConnectionError("gone", True),
    seckill.OutcomeUnknown("no answer"),
    seckill.AuthenticationError("WRONGPASS"),
    seckill.NotReplicated(1, 2, "1 of 2 replicas have it"),
    seckill.NotReplicated(1, 2, "1 of 2 replicas have it", given_back=True),
    seckill.ServerError("OOM", "command not allowed when used memory > 'maxmemory'."),
]
TWINS = {
    seckill.LockError: redis.exceptions.LockError,
    seckill.LockNotOwnedError: redis.exceptions.LockNotOwnedError,
    seckill.LockLostError: redis.exceptions.LockNotOwnedError,
    seckill.ConnectionError: redis.exceptions.ConnectionError,
    seckill.OutcomeUnknown: redis.exceptions.ConnectionError,
    seckill.AuthenticationError: redis.exceptions.AuthenticationError,
    seckill.ServerError: redis.exceptions.ResponseError,
}


def state(error: BaseException) -> tuple[object, ...]:
    """What a user can see of an exception."""
    names = ("key", "available", "requested", "value", "reason")
    names += ("message", "lock_name", "time_out", "sent", "code", "detail")
    names += ("acknowledged", "wanted", "given_back")
    attributes = {name: getattr(error, name) for name in names if hasattr(error, name)}
    return type(error).__name__, str(error), repr(error), error.args, attributes


@pytest.mark.parametrize("error", EXAMPLES, ids=repr)
class TestEvery:
    @pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
    def test_survives_pickle(self, error: seckill.SeckillError, protocol: int) -> None:
        arrived = pickle.loads(pickle.dumps(error, protocol))
        assert state(arrived) == state(error)
        assert isinstance(arrived, type(error))

    def test_survives_pickle_twice_over(self, error: seckill.SeckillError) -> None:
        once = pickle.loads(pickle.dumps(error))
        assert state(pickle.loads(pickle.dumps(once))) == state(error)

    @pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy])
    def test_can_be_copied(self, error: seckill.SeckillError, copied: object) -> None:
        assert state(copied(error)) == state(error)  # type: ignore[operator]

    def test_has_a_repr_that_can_be_pasted(self, error: seckill.SeckillError) -> None:
        assert state(eval(f"seckill.{error!r}")) == state(error)

    def test_is_shown_under_the_package(self, error: seckill.SeckillError) -> None:
        shown = traceback.format_exception_only(type(error), error)[0]
        assert shown == f"seckill.{type(error).__name__}: {error}\n"

    def test_has_a_docstring_of_its_own(self, error: seckill.SeckillError) -> None:
        assert "__doc__" in vars(type(error))

    def test_is_exported(self, error: seckill.SeckillError) -> None:
        assert type(error).__name__ in seckill.__all__


def test_examples_are_complete() -> None:
    assert {type(error) for error in EXAMPLES} == set(_exceptions._TREE.values())


@pytest.mark.parametrize(
    ("kind", "bases"),
    [
        (seckill.InventoryError, (seckill.SeckillError, ValueError)),
        (seckill.NoInventory, (seckill.InventoryError,)),
        (seckill.InsufficientInventory, (seckill.InventoryError,)),
        (seckill.InvalidInventory, (seckill.InventoryError,)),
        (seckill.LockTimeout, (seckill.SeckillError, TimeoutError)),
        (seckill.LockError, (seckill.SeckillError, ValueError)),
        (seckill.LockNotOwnedError, (seckill.LockError,)),
        (seckill.LockLostError, (seckill.LockNotOwnedError,)),
        (seckill.ConnectionError, (seckill.SeckillError, builtins.ConnectionError)),
        (seckill.OutcomeUnknown, (seckill.ConnectionError,)),
        (seckill.AuthenticationError, (seckill.ConnectionError,)),
        (seckill.ServerError, (seckill.SeckillError,)),
    ],
)
def test_bases(kind: type[Exception], bases: tuple[type[Exception], ...]) -> None:
    assert kind.__bases__ == bases


def test_the_tree_in_the_guarantees_is_complete() -> None:
    page = Path(__file__).resolve().parents[1] / "docs" / "guarantees.md"
    _, _, drawn = page.read_text(encoding="utf-8").partition("\nSeckillError\n")
    names = {line.split()[1] for line in drawn.partition("```")[0].replace("│", " ").splitlines()}
    assert names == _exceptions._TREE.keys() - {"SeckillError"}


def test_a_lock_timeout_is_no_refusal() -> None:
    assert not issubclass(seckill.LockTimeout, ValueError)
    assert not issubclass(seckill.LockTimeout, seckill.LockError)


def test_refusals_say_what_the_old_script_said() -> None:
    assert str(seckill.NoInventory("inventory")) == "没有库存"
    assert str(seckill.InsufficientInventory("inventory", 0, 1)) == "库存不足"


def test_invalid_inventory_names_key_and_value() -> None:
    message = str(seckill.InvalidInventory("sku:1", "ten", "not an integer"))
    assert "'sku:1'" in message
    assert "'ten'" in message
    assert "not an integer" in message


@pytest.mark.parametrize(
    ("error", "sent"),
    [
        (seckill.ConnectionError("refused"), False),
        (seckill.ConnectionError("reset", sent=True), True),
        (seckill.OutcomeUnknown("no answer"), True),
        (seckill.AuthenticationError("WRONGPASS"), False),
    ],
)
def test_connection_errors_tell_whether_anything_was_sent(
    error: seckill.ConnectionError, sent: bool
) -> None:
    assert error.sent is sent


@pytest.mark.parametrize("error", EXAMPLES, ids=repr)
def test_made_as_the_core_makes_it(error: seckill.SeckillError) -> None:
    made = _exceptions.make(type(error).__name__, *error._arguments())
    assert state(made) == state(error)
    assert isinstance(made, type(error))
    foreign = TWINS.get(type(error))
    assert isinstance(made, redis.exceptions.RedisError) == (foreign is not None)
    if foreign is not None:
        assert isinstance(made, foreign)
        assert type(made) is type(_exceptions.make(type(error).__name__, *error._arguments()))
        assert type(made).__qualname__ == type(error).__qualname__
        assert type(made).__module__ == type(error).__module__
        assert type(made).__doc__ == type(error).__doc__


def test_a_twin_is_caught_by_either_clause() -> None:
    for clause in (seckill.ConnectionError, redis.ConnectionError, builtins.ConnectionError):
        with pytest.raises(clause):
            raise _exceptions.make("ConnectionError", "gone")
    for clause in (seckill.ServerError, redis.ResponseError):
        with pytest.raises(clause):
            raise _exceptions.make("ServerError", "OOM", "full")


@pytest.mark.parametrize("kind", ["LockError", "LockNotOwnedError", "LockLostError"])
def test_what_a_lock_raises_carries_what_redis_pys_does(kind: str) -> None:
    theirs = TWINS[getattr(seckill, kind)]("no longer held", "lockname")
    ours = _exceptions.make(kind, "no longer held", "lockname")
    assert str(ours) == str(theirs) == "no longer held"
    for name, value in vars(theirs).items():
        assert getattr(ours, name) == value, name
    for clause in (redis.exceptions.LockError, redis.RedisError, seckill.LockError, ValueError):
        with pytest.raises(clause):
            raise ours
    assert isinstance(ours, redis.exceptions.LockNotOwnedError) == (kind != "LockError")


def test_what_a_hook_raises_is_caught_by_the_class_of_either() -> None:
    caught = _exceptions.caught(seckill.LockNotOwnedError)
    for error in (
        redis.exceptions.LockNotOwnedError("theirs"),
        seckill.LockNotOwnedError("ours"),
        _exceptions.make("LockLostError", "both", None),
    ):
        with pytest.raises(caught):
            raise error
    assert not isinstance(redis.exceptions.LockError("theirs"), caught)
    assert not isinstance(seckill.LockError("ours"), caught)
    assert _exceptions.caught(seckill.LockTimeout) == (seckill.LockTimeout,)


def test_what_is_noted_on_an_error_travels_too() -> None:
    error = _exceptions.make("OutcomeUnknown", "no answer")
    error.order = 17  # type: ignore[attr-defined]
    assert pickle.loads(pickle.dumps(error)).order == 17


def test_a_users_own_subclass_stays_what_it_is() -> None:
    error = OfMine("gone", sent=True)
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is OfMine
    assert state(arrived) == state(error)


class OfMine(seckill.ConnectionError):
    pass


WITHOUT_REDIS = """
import pickle, sys
import seckill
arrived = pickle.load(sys.stdin.buffer)
assert [type(error) for error in arrived] == [getattr(seckill, name) for name in sys.argv[1:]]
assert not any(name.partition(".")[0] == "redis" for name in sys.modules)
sys.stdout.buffer.write(pickle.dumps(arrived))
"""


def test_twins_travel_between_processes_with_and_without_redis_py() -> None:
    errors = [error for error in EXAMPLES if type(error) in TWINS]
    names = [type(error).__name__ for error in errors]
    twins = [
        _exceptions.make(name, *error._arguments())
        for name, error in zip(names, errors, strict=True)
    ]
    other = subprocess.run(
        [sys.executable, "-c", WITHOUT_REDIS, *names],
        input=pickle.dumps(twins),
        capture_output=True,
    )
    assert other.returncode == 0, other.stderr.decode()
    for error, twin, back in zip(errors, twins, pickle.loads(other.stdout), strict=True):
        assert isinstance(back, TWINS[type(error)])
        assert state(back) == state(twin) == state(error)


def test_redis_py_loaded_later_is_noticed() -> None:
    program = """
import pickle
from seckill import _exceptions
early = _exceptions.make("ServerError", "OOM", "full")
import redis
late = _exceptions.make("ServerError", "OOM", "full")
assert not isinstance(early, redis.ResponseError)
assert isinstance(late, redis.ResponseError)
assert isinstance(pickle.loads(pickle.dumps(early)), redis.ResponseError)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
