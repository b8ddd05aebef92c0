"""The two faces side by side: the same names, signatures, words and settings, and one client."""

from __future__ import annotations

import ast
import inspect
import pickle
from pathlib import Path

import pytest
import redis
import redis.asyncio
import seckill.aio
import valkey
import valkey.asyncio
from seckill import _aio_lock, _core, _lock
from support.aio import eventually, gathered, on_loop, run_examples
from support.programs import run

pytestmark = pytest.mark.core

FUNCTIONS = ("acquire_lock", "release_lock", "incr_inventory", "update_inventory")
PLAIN = ("statistics", "settings", "remaining", "lost", "fence")  # no I/O: nothing to await


def public(thing):
    return {name for name in dir(thing) if not name.startswith("_")}


# What a user can meet in both faces, by its name.
TWINS = {name: (getattr(seckill, name), getattr(seckill.aio, name)) for name in seckill.aio.__all__}
TWINS |= {
    f"Client.{name}": (getattr(seckill.Client, name), getattr(seckill.aio.Client, name))
    for name in sorted(public(seckill.Client))
}
TWINS |= {
    f"Lock.{name}": (getattr(seckill.Lock, name), getattr(seckill.aio.Lock, name))
    for name in sorted(public(seckill.Lock))
}
AWAITED = [*FUNCTIONS, *(f"Client.{name}" for name in (*FUNCTIONS, "close"))]
# A call of a lock's is for the task that made it, whatever task awaits it: these are plain
# functions, which return a coroutine.
BEGUN = [name for name in TWINS if name.startswith("Lock.") and name.partition(".")[2] not in PLAIN]
ROUTINES = [name for name in TWINS if callable(TWINS[name][0])]


def test_the_module_has_the_functions_and_what_sets_them_up():
    assert seckill.aio.__all__ == sorted(["Client", "Lock", "configure", *FUNCTIONS])
    assert set(seckill.aio.__all__) <= set(seckill.__all__)
    for name in set(seckill.__all__) - set(seckill.aio.__all__):
        assert not hasattr(seckill.aio, name), f"{name} has one home: the package itself"


def test_the_clients_have_the_same_methods():
    assert public(seckill.aio.Client) - public(seckill.Client) == {"aclose"}
    assert public(seckill.Client) <= public(seckill.aio.Client)
    for name in ("__aenter__", "__aexit__", "__await__"):
        assert hasattr(seckill.aio.Client, name)
    for name in ("__enter__", "__exit__"):
        assert not hasattr(seckill.aio.Client, name), "a `with` would close without awaiting"


def test_the_locks_have_the_same_methods():
    assert public(seckill.aio.Lock) == public(seckill.Lock)
    plain, awaited = seckill.Lock("redis://", "lock"), seckill.aio.Lock("redis://", "lock")
    assert public(awaited) == public(plain)
    assert public(awaited.local) == public(plain.local) == {"token"}
    for name in ("__aenter__", "__aexit__"):
        assert hasattr(seckill.aio.Lock, name)
    for name in ("__enter__", "__exit__"):
        assert not hasattr(seckill.aio.Lock, name), "a `with` would release without awaiting"


@pytest.mark.parametrize("name", [name for name in TWINS if name not in BEGUN])
def test_only_what_waits_is_a_coroutine_function(name):
    plain, awaited = TWINS[name]
    assert inspect.iscoroutinefunction(awaited) == (name in AWAITED)
    assert not inspect.iscoroutinefunction(plain)


@pytest.mark.parametrize("called", BEGUN)
def test_what_a_lock_does_is_a_coroutine(server, lock, called):
    arguments = {"extend": (1,), "do_extend": (1, False)}
    arguments |= {"do_acquire": (b"token",), "do_release": (b"token",)}

    async def call():
        made = seckill.aio.Lock(server.url, lock, timeout=60)
        method = called.partition(".")[2]
        if method not in ("acquire", "do_acquire"):
            await made.acquire(token="token")
        coroutine = getattr(made, method)(*arguments.get(method, ()))
        assert inspect.iscoroutine(coroutine)
        await coroutine

    on_loop(call())


@pytest.mark.parametrize("name", [name for name in ROUTINES if name != "Lock.acquire"])
def test_the_signatures_are_the_same(name):
    plain, awaited = (
        # But for `self`: that of a native method can only be given by position.
        [(p.name, p.name == "self" or p.kind, p.default) for p in parameters(twin)]
        for twin in TWINS[name]
    )
    assert awaited == plain


def test_an_awaited_acquire_takes_no_sleep_as_redis_pys():
    plain, awaited = (list(parameters(twin)) for twin in TWINS["Lock.acquire"])
    assert [p.name for p in plain if p.name not in [p.name for p in awaited]] == ["sleep"]
    assert [(p.name, p.kind, p.default) for p in awaited] == [
        (p.name, p.kind, p.default) for p in plain if p.name != "sleep"
    ]


def parameters(function):
    return inspect.signature(function).parameters.values()


# -- what a type checker sees -----------------------------------------------------------------


def source(module):
    return ast.parse(Path(inspect.getsourcefile(module)).read_text("utf-8"))


def functions_of(tree, cls=None):
    """The public functions of a module, or methods of a class in it, in the order of definition."""
    if cls:
        [tree] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls]
    kinds = (ast.FunctionDef, ast.AsyncFunctionDef)
    return {
        node.name: (ast.unparse(node.args), ast.unparse(node.returns))
        for node in tree.body
        if isinstance(node, kinds) and not node.name.startswith("_")
    }


STUB = ast.parse(Path(_core.__file__).with_name("_core.pyi").read_text("utf-8"))
AIO = source(seckill.aio)
CLIENT = source(seckill._client)


def test_the_functions_are_annotated_the_same_in_the_same_order():
    plain = {name: hints for name, hints in functions_of(STUB).items() if name in FUNCTIONS}
    awaited = functions_of(AIO)
    awaited.pop("configure")
    assert awaited == plain
    assert list(awaited) == list(plain)


def test_the_methods_are_annotated_the_same_in_the_same_order():
    plain = functions_of(STUB, "CoreClient")
    awaited = functions_of(AIO, "Client")
    assert awaited.pop("with_options") == functions_of(CLIENT, "Client")["with_options"]
    assert awaited == plain
    assert list(awaited) == list(plain)


def test_configure_is_annotated_the_same():
    assert functions_of(AIO)["configure"] == functions_of(source(seckill._client))["configure"]


def test_the_locks_methods_are_annotated_the_same_in_the_same_order():
    plain = functions_of(source(_lock), "Lock")
    awaited = functions_of(source(_aio_lock), "Lock")
    assert [name for name in awaited if name not in PLAIN] == list(plain)
    taken = "self, sleep: float | None=None, "
    for name, (arguments, _) in plain.items():
        assert awaited[name][0] == arguments.replace(taken, "self, ")


# -- docstrings ---------------------------------------------------------------------------------


def parts(thing):
    """A docstring without its examples, and its examples."""
    told, _, examples = inspect.getdoc(thing).partition("\n\nExamples:\n")
    lines = examples.splitlines()
    inside = [line.startswith("    ") or not line for line in lines]
    end = inside.index(False) if False in inside else len(lines)
    return told + "\n\n" + "\n".join(lines[end:]), "\n".join(lines[:end]).rstrip()


@pytest.mark.parametrize("name", TWINS)
def test_the_docstrings_say_the_same(name):
    plain, awaited = map(parts, TWINS[name])
    sleep = "\n    sleep: as the constructor's, for this call." if name == "Lock.acquire" else ""
    assert sleep in plain[0]
    assert awaited[0] == plain[0].replace(sleep, "")
    assert bool(awaited[1]) == bool(plain[1])
    if name.rpartition(".")[2] not in PLAIN:
        assert "await " in awaited[1] or "async with " in awaited[1]
        assert awaited[1] != plain[1]


@pytest.mark.parametrize("name", [*ROUTINES, "Client.aclose"])
def test_the_examples_run(name, start_server):
    seckill.aio.configure(start_server().url)
    thing = TWINS[name][1] if name in TWINS else seckill.aio.Client.aclose
    run_examples(parts(thing)[1])


# -- found when it is asked for ---------------------------------------------------------------


def loaded_by_the_package():
    import sys

    import seckill

    namespace = {}
    exec("from seckill import *", namespace)
    before = [name for name in ("asyncio", "seckill.aio") if name in sys.modules]
    coroutine = seckill.aio.release_lock("lock")  # as an attribute, without an import of its own
    coroutine.close()
    from seckill import aio

    return [before, aio is sys.modules["seckill.aio"], "aio" in dir(seckill)]


def test_the_package_loads_neither_asyncio_nor_its_own_asyncio_face():
    assert run(loaded_by_the_package).value == [[], True, True]


# -- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_function_travels_to_other_processes(function):
    ours = getattr(seckill.aio, function)
    assert pickle.loads(pickle.dumps(ours)) is ours
    assert (ours.__module__, ours.__qualname__) == ("seckill.aio", function)


URL = "redis://user:secret@127.0.0.1:7000/3"
SOURCES = {
    "environment": lambda: ((), {}),
    "url": lambda: ((URL,), {}),
    "keywords": lambda: ((), {"host": "127.0.0.1", "port": 7000, "db": 2, "timeout": 3}),
    "socket": lambda: (("unix:///tmp/socket?db=1",), {"client_name": "me"}),
    "redis": lambda: ((redis.Redis(port=7000, db=4),), {}),
    "redis.asyncio": lambda: ((redis.asyncio.Redis.from_url(URL),), {"timeout": 2}),
    "valkey": lambda: ((valkey.Valkey(port=7000, db=4),), {}),
    "valkey.asyncio": lambda: ((valkey.asyncio.Valkey(port=7000, db=4),), {}),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_source_means_the_same_to_both(kind):
    arguments, options = SOURCES[kind]()
    plain, awaited = (face.Client(*arguments, **options) for face in (seckill, seckill.aio))
    assert awaited.settings() == plain.settings()
    assert repr(awaited) == repr(plain)
    assert "secret" not in repr(awaited)


@pytest.mark.parametrize("face", [seckill, seckill.aio], ids=["seckill", "seckill.aio"])
@pytest.mark.parametrize("package", [redis, valkey], ids=["redis", "valkey"])
def test_an_asyncio_client_is_a_source(server, redis_py, key, face, package):
    settings = {"host": server.host, "port": server.port}
    kind = package.asyncio.Redis if package is redis else package.asyncio.Valkey
    face.configure(kind(**settings, decode_responses=True))
    seckill.incr_inventory(key, 2)
    on_loop(seckill.aio.incr_inventory(key, 3))
    assert redis_py.get(key) == b"5"


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((), {"hots": "x"}),
        (("http://x",), {}),
        ((1,), {}),
        ((), {"port": 0}),
        ((URL,), {"host": 1}),
    ],
    ids=str,
)
def test_what_one_client_refuses_the_other_does_too(arguments, options):
    told = []
    for make in (seckill.Client, seckill.aio.Client, seckill.configure, seckill.aio.configure):
        with pytest.raises((TypeError, ValueError)) as caught:
            make(*arguments, **options)
        told.append((caught.type, str(caught.value)))
    assert len(set(told)) == 1


class Shop(seckill.aio.Client):
    """A subclass of a user's, with a method and arguments of its own."""

    def __init__(self, source=None, /, *, lock="lock", **options):
        super().__init__(source, **options)
        self.lock = lock

    async def buy(self, key, units):
        await self.update_inventory(self.lock, key, -units)


@pytest.mark.usefixtures("loop_kind")
async def test_a_client_can_be_subclassed(server, redis_py, key, lock):
    redis_py.set(key, 5)
    async with Shop(server.url, lock=lock) as shop:
        await shop.buy(key, 2)
    assert redis_py.get(key) == b"3"


@pytest.mark.parametrize("kind", [seckill.aio.Client, Shop])
def test_a_client_travels_without_its_connection(server, redis_py, key, kind):
    client = kind(server.url, timeout=5, client_name="traveller")
    on_loop(client.incr_inventory(key, 1))
    arrived = pickle.loads(pickle.dumps(client))
    assert type(arrived) is kind
    assert arrived.settings() == client.settings()
    assert arrived.statistics()["connects"] == 0
    on_loop(arrived.incr_inventory(key, 1))
    assert redis_py.get(key) == b"2"


# -- made, awaited, closed --------------------------------------------------------------------


@pytest.mark.usefixtures("loop_kind")
async def test_a_client_may_be_awaited_and_is_itself(server, redis_py, key):
    client = seckill.aio.Client(server.url)
    assert await client is client
    assert await (await client) is client
    configured = seckill.aio.configure(server.url)
    assert type(configured) is seckill.aio.Client
    assert await configured is configured
    assert client.statistics()["connects"] == configured.statistics()["connects"] == 0
    async with await seckill.aio.configure(server.url) as entered:
        await seckill.aio.incr_inventory(key, 1)
        assert entered.statistics()["steps"] == 1


@pytest.mark.usefixtures("loop_kind")
async def test_a_block_gives_the_client_and_closes_it(server, redis_py, key, name):
    label = name("shop").replace(":", "-")
    connected = lambda: [c for c in redis_py.client_list() if c["name"] == label]  # noqa: E731
    client = seckill.aio.Client(server.url, client_name=label)
    async with client as entered:
        assert entered is client
        await client.incr_inventory(key, 1)
        assert connected()
    await eventually(lambda: not connected())  # the server has seen it

    async def fail_inside():
        async with client:
            await client.incr_inventory(key, 1)  # opened again by what needs it
            assert connected()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail_inside()
    await eventually(lambda: not connected())
    assert redis_py.get(key) == b"2"


@pytest.mark.usefixtures("loop_kind")
async def test_closing_twice_or_unused_is_nothing_special(server, key):
    client = seckill.aio.Client(server.url)
    assert await client.aclose() is None
    await client.incr_inventory(key, 1)
    await gathered([client.close(), client.aclose(), client.close()])
    assert await client.close() is None
    assert client.statistics()["connects"] == 1


# -- one default client -----------------------------------------------------------------------


@pytest.mark.parametrize("face", [seckill, seckill.aio], ids=["seckill", "seckill.aio"])
def test_either_configure_sets_the_client_of_both_faces(server, redis_py, key, lock, face):
    client = face.configure(server.url)
    assert type(client) is face.Client

    async def awaited():
        await seckill.aio.incr_inventory(key, 2)
        await seckill.aio.update_inventory(lock, key, -1)

    seckill.incr_inventory(key, 10)
    on_loop(awaited())
    seckill.update_inventory(lock, key, -1)
    on_loop(awaited(), "uvloop")
    assert redis_py.get(key) == b"11"
    assert client.statistics()["steps"] == 6
    assert client.statistics()["connects"] == 1, "one connection for both"


def default_of_the_environment():
    import asyncio

    import seckill.aio

    asyncio.run(seckill.aio.incr_inventory("from-environment", 1))


@pytest.mark.parametrize("variable", ["SECKILL_REDIS_URL", "REDIS_URL"])
def test_the_coroutines_talk_to_the_server_that_the_environment_names(start_server, variable):
    server = start_server()
    assert run(default_of_the_environment, env={variable: server.url}).value is None
    assert server.redis().get("from-environment") == b"1"
