"""The exceptions: what they say and carry, that they travel, and what redis-py's users catch."""

from __future__ import annotations

import builtins
import copy
import pickle
import subprocess
import sys
import traceback

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
    seckill.ConnectionError("gone"),
    seckill.ConnectionError("gone", True),
    seckill.OutcomeUnknown("no answer"),
    seckill.AuthenticationError("WRONGPASS"),
    seckill.ServerError("OOM", "command not allowed when used memory > 'maxmemory'."),
]
TWINS = {
    seckill.ConnectionError: redis.exceptions.ConnectionError,
    seckill.OutcomeUnknown: redis.exceptions.ConnectionError,
    seckill.AuthenticationError: redis.exceptions.AuthenticationError,
    seckill.ServerError: redis.exceptions.ResponseError,
}


def state(error: BaseException) -> tuple[object, ...]:
    """What a user can see of an exception."""
    names = ("key", "available", "requested", "value", "reason")
    names += ("lock_name", "time_out", "sent", "code", "detail")
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
        (seckill.ConnectionError, (seckill.SeckillError, builtins.ConnectionError)),
        (seckill.OutcomeUnknown, (seckill.ConnectionError,)),
        (seckill.AuthenticationError, (seckill.ConnectionError,)),
        (seckill.ServerError, (seckill.SeckillError,)),
    ],
)
def test_bases(kind: type[Exception], bases: tuple[type[Exception], ...]) -> None:
    assert kind.__bases__ == bases


def test_a_lock_timeout_is_no_refusal() -> None:
    assert not issubclass(seckill.LockTimeout, ValueError)


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
from seckill import _exceptions, ConnectionError
error = _exceptions.make("ConnectionError", "gone", True)
assert type(error) is ConnectionError
arrived = pickle.load(sys.stdin.buffer)
assert type(arrived) is ConnectionError and arrived.sent, type(arrived).__mro__
assert not any(name.partition(".")[0] == "redis" for name in sys.modules)
sys.stdout.buffer.write(pickle.dumps(error))
"""


def test_a_twin_travels_between_processes_with_and_without_redis_py() -> None:
    twin = _exceptions.make("ConnectionError", "gone", True)
    assert isinstance(twin, redis.ConnectionError)
    other = subprocess.run(
        [sys.executable, "-c", WITHOUT_REDIS], input=pickle.dumps(twin), capture_output=True
    )
    assert other.returncode == 0, other.stderr.decode()
    back = pickle.loads(other.stdout)
    assert isinstance(back, redis.ConnectionError)
    assert state(back) == state(twin)


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
