"""Fixtures: a server of each kind per worker, private ones to torment, and names nobody else uses.

`server` runs a test on all four kinds, one shared process per kind and worker; every test keeps to
names of its own (`key`, `lock`, `name`). A test that kills, freezes, fills or flushes takes a
private process from `start_server`, or `own_server` for one of each kind.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import itertools
import os
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import pytest
import redis
from support import clusters, sentinels
from support.aio import LOOPS, on_loop
from support.clusters import Cluster
from support.fake_sentinels import FakeSentinel
from support.proxy import Faults, Proxy, none
from support.relay import Relay
from support.sentinels import Deployment
from support.servers import ANY, KINDS, Server, missing_kinds


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "core: run on the oldest and the newest Python as well")
    config.addinivalue_line("markers", "stress: has a long version, run with SECKILL_STRESS=1")
    # What the tests start inherits their environment: nobody's own server may leak into it.
    for variable in ("SECKILL_REDIS_URL", "REDIS_URL"):
        os.environ.pop(variable, None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    missing = missing_kinds()
    if missing:
        terminalreporter.section("missing servers", sep="=", red=True)
        terminalreporter.line(
            f"not installed, so nothing was tried on: {', '.join(missing)} (under CI a failure)"
        )


FACES = ("threads", *LOOPS)


def require(kind: str) -> str:
    if kind in missing_kinds():
        message = f"no server of the kind {kind!r} is installed"
        if os.environ.get("CI", "").lower() in ("true", "1"):
            pytest.fail(message)
        pytest.skip(message)  # and reported in the terminal summary
    return kind


@pytest.fixture(scope="session")
def shared_servers() -> Iterator[dict[str, Server]]:
    servers: dict[str, Server] = {}
    yield servers
    for server in servers.values():
        server.stop()


@pytest.fixture(params=KINDS)
def server(request: pytest.FixtureRequest, shared_servers: dict[str, Server]) -> Server:
    """A running server, shared by the tests of this worker: once for each kind."""
    kind = require(request.param)
    if kind not in shared_servers:
        shared_servers[kind] = Server(kind).start()
    return shared_servers[kind]


@pytest.fixture
def start_server() -> Iterator[Callable[..., Server]]:
    """Start a private server: `start_server(*configuration lines, kind=..., password=...)`."""
    servers: list[Server] = []

    def start(*options: str, kind: str = ANY, wait: bool = True, **settings: object) -> Server:
        server = Server(require(kind), *options, **settings)  # type: ignore[arg-type]
        servers.append(server)
        return server.start(wait=wait)

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(params=KINDS)
def own_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of server in turn, for tests that configure a private one."""
    return require(request.param)


@pytest.fixture
def own_server(start_server: Callable[..., Server], own_kind: str) -> Server:
    """A private server to freeze, flush or kill: once for each kind."""
    return start_server(kind=own_kind)


@pytest.fixture
def observer(own_server: Server) -> redis.Redis:
    """A plain redis-py client on the private server."""
    return own_server.redis()


# -- deployments -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def shared_deployments() -> Iterator[dict[str, Deployment]]:
    deployments: dict[str, Deployment] = {}
    yield deployments
    for deployment in deployments.values():
        deployment.stop()


@pytest.fixture(params=KINDS)
def deployment(
    request: pytest.FixtureRequest, shared_deployments: dict[str, Deployment]
) -> Deployment:
    """Sentinels and the service that they watch, shared as `server` is: nothing ever fails over."""
    kind = require(request.param)
    if kind not in shared_deployments:
        shared_deployments[kind] = Deployment(kind, down_after=sentinels.NEVER).start()
    return shared_deployments[kind]


@pytest.fixture
def start_deployment() -> Iterator[Callable[..., Deployment]]:
    """Start a private one, to torment: `start_deployment(kind=..., replicas=...)`."""
    yield from sentinels.starter()


@pytest.fixture
def start_fake() -> Iterator[Callable[..., Any]]:
    """Start a fake sentinel: `start_fake(where)`, or of another class: `fake=...`."""
    fakes: list[FakeSentinel] = []

    def start(*arguments: Any, fake: type[FakeSentinel] = FakeSentinel, **settings: Any) -> Any:
        fakes.append(fake(*arguments, **settings))
        return fakes[-1]

    yield start
    for fake in fakes:
        fake.close()


@pytest.fixture(scope="session")
def shared_clusters() -> Iterator[dict[str, Cluster]]:
    clusters: dict[str, Cluster] = {}
    yield clusters
    for cluster in clusters.values():
        cluster.stop()


@pytest.fixture(params=KINDS)
def cluster(request: pytest.FixtureRequest, shared_clusters: dict[str, Cluster]) -> Cluster:
    """Three primaries, shared as `server` is: no slot ever moves."""
    kind = require(request.param)
    if kind not in shared_clusters:
        shared_clusters[kind] = Cluster(kind).start()
    return shared_clusters[kind]


@pytest.fixture
def start_cluster() -> Iterator[Callable[..., Cluster]]:
    """Start a private one, to change: `start_cluster(kind=..., replicas=...)`."""
    yield from clusters.starter()


@pytest.fixture
def start_proxy() -> Iterator[Callable[..., Proxy]]:
    """Put a lossy proxy in front of a server: `start_proxy(server, faults)`."""
    proxies: list[Proxy] = []

    def start(server: Server, faults: Faults = none) -> Proxy:
        proxies.append(Proxy((server.host, server.port), faults))
        return proxies[-1]

    yield start
    for proxy in proxies:
        proxy.close()


@pytest.fixture
def start_relay() -> Iterator[Callable[[Server], Relay]]:
    """Put a relay in front of a server, for a test that decides on every packet."""
    relays: list[Relay] = []

    def start(server: Server) -> Relay:
        relays.append(Relay((server.host, server.port)))
        return relays[-1]

    yield start
    for relay in relays:
        relay.close()


@pytest.fixture
def redis_py(server: Server) -> redis.Redis:
    """A plain redis-py client on the same server: looks at the data as anybody else would."""
    return server.redis()


@pytest.fixture
def name() -> Callable[[str], str]:
    """Make a name that no other test uses: `name("stock")`."""
    suffix = uuid.uuid4().hex[:12]
    return lambda kind: f"{kind}:{suffix}"


@pytest.fixture
def key(name: Callable[[str], str]) -> str:
    return name("stock")


@pytest.fixture
def lock(name: Callable[[str], str]) -> str:
    return name("lock")


@pytest.fixture(params=["functions", "client"])
def shop(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    """The four functions, once at module level and once as methods of a client."""
    import seckill

    if request.param == "functions":
        seckill.configure(server.url)
        yield seckill
    else:
        with seckill.Client(server.url) as client:
            yield client


@pytest.fixture
def client(server: Server) -> Iterator[Any]:
    """A client of the shared server, with nothing sent yet."""
    import seckill

    with seckill.Client(server.url) as client:
        yield client


@pytest.fixture
def warm_client(own_server: Server) -> Any:
    """A client of the private server, connected: what it sends from now on belongs to the test."""
    import seckill

    client = seckill.Client(own_server.url)
    client.incr_inventory("warm", 1)
    return client


@pytest.fixture(params=FACES)
def face(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def connect(face: str) -> Iterator[Callable[..., Any]]:
    """Make a client of each face in turn, whose methods are called: `connect(url, **options)`."""
    from support import clients

    with contextlib.ExitStack() as cleanup:
        yield functools.partial(clients.connect, face, cleanup)


@pytest.fixture(params=zip(KINDS, itertools.cycle(FACES)), ids="-".join)
def place(request: pytest.FixtureRequest) -> tuple[str, str]:
    """Each kind of server, with one of the faces: for tests that take long."""
    require(request.param[0])
    return request.param


# -- asyncio ------------------------------------------------------------------------------------


@pytest.fixture(params=LOOPS)
def loop_kind(request: pytest.FixtureRequest) -> str:
    """Each kind of event loop; an `async def` test that has this fixture runs on it."""
    return request.param


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    if "loop_kind" not in pyfuncitem.funcargs or not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    named = inspect.signature(pyfuncitem.obj).parameters
    arguments = {name: value for name, value in pyfuncitem.funcargs.items() if name in named}
    on_loop(pyfuncitem.obj(**arguments), pyfuncitem.funcargs["loop_kind"], within=120)
    return True


@pytest.fixture(params=["coroutines", "client"])
def aio_shop(request: pytest.FixtureRequest, server: Server) -> Iterator[Any]:
    """The four coroutines, once at module level and once as methods of a client."""
    import seckill.aio

    if request.param == "coroutines":
        seckill.aio.configure(server.url)
        yield seckill.aio
    else:
        client = seckill.aio.Client(server.url)
        yield client
        on_loop(client.aclose())


@pytest.fixture
def coroutines(server: Server) -> Any:
    """The four coroutines at module level."""
    import seckill.aio

    seckill.aio.configure(server.url)
    return seckill.aio


@pytest.fixture
def aio_client(server: Server) -> Iterator[Any]:
    """An asyncio client of the shared server, with nothing sent yet."""
    import seckill.aio

    client = seckill.aio.Client(server.url)
    yield client
    on_loop(client.aclose())
