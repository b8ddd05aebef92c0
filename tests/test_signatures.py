"""The drop-in functions, and the lock, look exactly like what they replace."""

from __future__ import annotations

import importlib
import inspect
import pickle
import sys

import pytest
import redis.lock
import seckill

pytestmark = pytest.mark.core

FUNCTIONS = ("acquire_lock", "release_lock", "incr_inventory", "update_inventory")


class Original:
    """The plain Python originals: what a script defined itself before it changed its import."""

    @staticmethod
    def acquire_lock(lockname, acquire_time=5000, time_out=10000): ...

    @staticmethod
    def release_lock(lockname): ...

    @staticmethod
    def incr_inventory(key, change_num=1): ...

    @staticmethod
    def update_inventory(lockname, key, change_num=1, acquire_time=5000, time_out=10000): ...


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_has_the_signature_of_the_original(function):
    ours, original = getattr(seckill, function), getattr(Original, function)
    assert inspect.signature(ours) == inspect.signature(original)
    assert str(inspect.signature(ours)) == str(inspect.signature(original))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_method_of_a_client_has_the_same_signature(function):
    method = getattr(seckill.Client(), function)
    assert inspect.signature(method) == inspect.signature(getattr(Original, function))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_says_what_it_does(function):
    assert getattr(seckill, function).__name__ == function
    assert inspect.getdoc(getattr(seckill, function))
    assert inspect.getdoc(getattr(seckill.Client, function))


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_travels_to_other_processes(function):
    ours = getattr(seckill, function)
    assert pickle.loads(pickle.dumps(ours)) is ours


def test_too_few_and_too_many_and_unknown_arguments_are_type_errors():
    for call in (
        lambda: seckill.acquire_lock(),
        lambda: seckill.release_lock("a", "b"),
        lambda: seckill.incr_inventory(),
        lambda: seckill.update_inventory("a"),
        lambda: seckill.update_inventory("a", "b", change=1),
        lambda: seckill.update_inventory("a", "b", 1, 1, 1, 1),
        lambda: seckill.acquire_lock("a", lockname="a"),
    ):
        with pytest.raises(TypeError):
            call()


def test_everything_may_be_passed_by_position_or_by_name(client, key, lock):
    assert client.acquire_lock(lock, 1000, 0) is True
    client.release_lock(lockname=lock)
    assert client.acquire_lock(lockname=lock, acquire_time=1000, time_out=0) is True
    client.release_lock(lock)
    client.incr_inventory(key=key, change_num=3)
    client.incr_inventory(key, 4)
    client.update_inventory(lock, key, -1, 1000, 0)
    client.update_inventory(lockname=lock, key=key, change_num=-2, acquire_time=1000, time_out=0)


def test_change_num_is_one_unless_said_otherwise(client, key, lock, redis_py):
    client.incr_inventory(key)
    assert redis_py.get(key) == b"1"
    client.update_inventory(lock, key)
    assert redis_py.get(key) == b"2"


# -- the lock -----------------------------------------------------------------------------------

BEYOND = {"auto_renew": False, "max_hold": None, "on_lost": None, "fair": False}


def locks_of(*places):
    return [pytest.param(importlib.import_module(place).Lock, id=place) for place in places]


every_lock = pytest.mark.parametrize(
    "cls",
    locks_of(
        "seckill",
        "seckill.aio",
        "seckill.compat.redis_lock",
        "seckill.compat.redis_asyncio_lock",
    ),
)


@every_lock
def test_a_lock_begins_as_redis_pys_and_what_goes_beyond_goes_by_name(cls):
    given = list(inspect.signature(cls).parameters.values())
    theirs = [(p.name, p.kind, p.default) for p in parameters_of(redis.lock.Lock)]
    assert [(p.name, p.kind, p.default) for p in given[: len(theirs)]] == theirs
    beyond = given[len(theirs) :]
    assert {p.kind for p in beyond} == {inspect.Parameter.KEYWORD_ONLY}
    assert {p.name: p.default for p in beyond} == BEYOND


def parameters_of(function):
    return inspect.signature(function).parameters.values()


@every_lock
def test_a_lock_is_known_by_the_place_that_it_is_imported_from(cls):
    assert cls.__qualname__ == "Lock"
    assert sys.modules[cls.__module__].Lock is cls
    assert pickle.loads(pickle.dumps(cls)) is cls
    assert repr(cls(None, "sku:1")) == f"<{cls.__module__}.Lock 'sku:1': not held>"
    assert inspect.getdoc(cls)


@every_lock
def test_a_locks_settings_are_its_attributes(cls):
    settings = {name: p.default for name, p in inspect.signature(cls).parameters.items()}
    settings |= {"redis": "redis://localhost", "name": b"sku:1"}
    settings |= {"timeout": 10, "auto_renew": True, "max_hold": 60}
    made = cls(**settings)
    assert {name: getattr(made, name) for name in settings} == settings
    assert made.local.token is None
