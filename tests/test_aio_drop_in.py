"""The awaited functions keep every promise of the plain ones: the same tests are held against them.

Each thread of those tests is a task of one loop here. What they can only say in a call without
`await` is said again at the end.
"""

from __future__ import annotations

import builtins
import inspect
import pickle

import pytest
import redis
import seckill.aio
import test_arguments
import test_drop_in
import test_int64
from support.aio import Awaited, gathered, on_loop, outcomes
from support.programs import run
from support.proxy import SilentHost
from test_drop_in import release_elsewhere  # noqa: F401  (found by its name, in the test's module)

pytestmark = pytest.mark.core


def table_of(module, face):
    """Those tests of a file that get what they test as a fixture, and none that makes its own."""
    return {
        name: test
        for name, test in vars(module).items()
        if name.startswith("test_") and face in inspect.signature(test).parameters
    }


globals().update(table_of(test_drop_in, "shop") | table_of(test_int64, "client"))


@pytest.fixture
def shop(aio_shop):
    """The coroutines on one kind of loop, the methods on the other."""
    awaited = Awaited(aio_shop, "asyncio" if aio_shop is seckill.aio else "uvloop")
    yield awaited
    awaited.close()


@pytest.fixture
def client(aio_client):
    awaited = Awaited(aio_client)
    yield awaited
    awaited.close()


def test_the_tables_are_the_whole_tables():
    """What makes its own client has a test of the same name further down."""
    for module in (test_drop_in, test_int64):
        assert {name for name in vars(module) if name.startswith("test_")} <= set(globals())


# -- bad arguments ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def silent_host():
    with SilentHost() as host:
        yield host


@pytest.fixture(params=["coroutines", "client"])
def silent_shop(request, silent_host):
    client = seckill.aio.configure(silent_host.url)
    return seckill.aio if request.param == "coroutines" else client


@pytest.mark.parametrize(
    ("function", "argument"), [(f, a) for f in test_arguments.GOOD for a in test_arguments.GOOD[f]]
)
def test_a_bad_argument_is_named_and_nothing_is_sent(silent_shop, silent_host, function, argument):
    good = test_arguments.GOOD[function]

    async def try_all():
        for values, error in test_arguments.WRONG[argument]:
            for value in values:
                arguments = good | {argument: value}
                for coroutine in (
                    # Made outside of the `raises`: it is awaiting that raises.
                    getattr(silent_shop, function)(**arguments),
                    getattr(silent_shop, function)(*arguments.values()),
                ):
                    with pytest.raises(error) as caught:
                        await coroutine
                    assert str(caught.value).startswith(f"{argument} must "), value
                    assert caught.type is error, value

    on_loop(try_all())
    assert silent_host.received() == (0, b"")


def test_too_few_and_too_many_and_unknown_arguments_are_type_errors(silent_shop):
    """As with any function, at the call: there is nothing yet to await."""
    for call in (
        lambda: silent_shop.acquire_lock(),
        lambda: silent_shop.release_lock("a", "b"),
        lambda: silent_shop.incr_inventory(),
        lambda: silent_shop.update_inventory("a"),
        lambda: silent_shop.update_inventory("a", "b", change=1),
        lambda: silent_shop.update_inventory("a", "b", 1, 1, 1, 1),
        lambda: silent_shop.acquire_lock("a", lockname="a"),
    ):
        with pytest.raises(TypeError):
            call()


@pytest.mark.usefixtures("loop_kind")
async def test_an_error_of_the_arguments_own_comes_through(silent_shop):
    with pytest.raises(ZeroDivisionError, match="of the argument's own making"):
        await silent_shop.incr_inventory("k", test_arguments.Broken())


@pytest.mark.usefixtures("loop_kind")
async def test_a_bad_argument_leaves_the_client_usable(aio_client, redis_py, key, lock):
    for bad in (None, 0.5, 2**63):
        with pytest.raises((TypeError, ValueError)):
            await aio_client.update_inventory(lock, key, bad)
    await aio_client.incr_inventory(key, 2)
    await aio_client.update_inventory(lock, key, -1)
    assert redis_py.get(key) == b"1"


# -- everything may be awaited at once, and each argument passed in either way ------------------


@pytest.mark.usefixtures("loop_kind")
async def test_everything_may_be_passed_by_position_or_by_name(aio_shop, redis_py, key, lock):
    assert await aio_shop.acquire_lock(lock, 1000, 0) is True
    assert await aio_shop.release_lock(lockname=lock) is None
    assert await aio_shop.acquire_lock(lockname=lock, acquire_time=1000, time_out=0) is True
    await aio_shop.release_lock(lock)
    assert await aio_shop.incr_inventory(key=key, change_num=3) is None
    await aio_shop.incr_inventory(key, 4)
    await aio_shop.incr_inventory(key)
    assert await aio_shop.update_inventory(lock, key, -1, 1000, 0) is None
    await aio_shop.update_inventory(
        lockname=lock, key=key, change_num=-2, acquire_time=1000, time_out=0
    )
    await aio_shop.update_inventory(lock, key)
    assert redis_py.get(key) == b"6"


@pytest.mark.usefixtures("loop_kind")
async def test_a_coroutine_that_was_made_has_not_asked_yet(aio_client, redis_py, key):
    coroutine = aio_client.incr_inventory(key, 5)
    assert inspect.iscoroutine(coroutine)
    await gathered([aio_client.incr_inventory(key, 1) for _ in range(3)])
    assert redis_py.get(key) == b"3"
    await coroutine
    assert redis_py.get(key) == b"8"


# -- exceptions ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("loop_kind")
async def test_each_of_a_crowd_has_an_exception_of_its_own(aio_client, redis_py, key, lock):
    redis_py.set(key, 3)
    wishes = [4, 5, 4, 9, 9, 9]
    errors = await outcomes([aio_client.update_inventory(lock, key, -wish) for wish in wishes])
    assert len({id(error) for error in errors}) == len(wishes)
    for wish, error in zip(wishes, errors, strict=True):
        assert type(error) is seckill.InsufficientInventory
        assert (error.key, error.available, error.requested) == (key, 3, wish)
        assert (error.__cause__, error.__context__) == (None, None)
        assert pickle.loads(pickle.dumps(error)).args == error.args


@pytest.mark.usefixtures("loop_kind")
async def test_an_exception_points_to_where_it_was_awaited(aio_client, lock, key):
    async def buy():
        await aio_client.update_inventory(lock, key, -1)

    with pytest.raises(seckill.NoInventory) as caught:
        await buy()
    assert "buy" in [entry.name for entry in caught.traceback]


@pytest.mark.usefixtures("loop_kind")
async def test_a_server_that_cannot_be_reached_is_both_connection_errors(lock, key, name):
    """server cannot be reached"""
    path = f"/nowhere/{name('socket')}"
    faces = [seckill.aio.Client(unix_socket_path=path), seckill.aio]
    seckill.aio.configure(unix_socket_path=path)
    for call in (
        call
        for face in faces
        for call in (
            lambda face=face: face.acquire_lock(lock),
            lambda face=face: face.update_inventory(lock, key, -1),
            lambda face=face: face.incr_inventory(key),
        )
    ):
        with pytest.raises(seckill.ConnectionError) as caught:
            await call()
        assert isinstance(caught.value, builtins.ConnectionError)
        assert isinstance(caught.value, redis.exceptions.ConnectionError)
        assert caught.value.sent is False


def connection_error_without_redis_py(path):
    import asyncio
    import sys

    import seckill.aio

    async def main():
        try:
            await seckill.aio.Client(unix_socket_path=path).incr_inventory("stock")
        except ConnectionError as error:
            return [type(error) is seckill.ConnectionError, error.sent, "redis" in sys.modules]

    return asyncio.run(main())


def test_without_redis_py_it_is_the_plain_connection_error(name):
    """server cannot be reached"""
    ended = run(connection_error_without_redis_py, f"/nowhere/{name('socket')}")
    assert ended.value == [True, False, False]


@pytest.mark.usefixtures("loop_kind")
async def test_a_refusal_of_the_server_is_both_response_errors(start_server, key, lock):
    server = start_server("maxmemory 1")
    client = seckill.aio.Client(server.url)
    with pytest.raises(seckill.ServerError) as caught:
        await client.incr_inventory(key, 1)
    assert caught.value.code == "OOM"
    assert isinstance(caught.value, redis.exceptions.ResponseError)
    await client.aclose()


@pytest.mark.usefixtures("loop_kind")
async def test_a_wrong_password_is_both_authentication_errors(start_server, key):
    server = start_server(password="right")
    client = seckill.aio.Client(server.url.replace("right", "wrong"))
    with pytest.raises(seckill.AuthenticationError) as caught:
        await client.incr_inventory(key, 1)
    assert isinstance(caught.value, redis.exceptions.AuthenticationError)
    assert caught.value.sent is False
    await client.aclose()
