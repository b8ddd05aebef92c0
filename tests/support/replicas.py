"""A primary with replicas and nobody who watches them: for what replication promises by itself.

replicated.replicas              they have all that the primary has, when `start` returns
replicated.lagging(1)            within it, so many of them are frozen, and acknowledge nothing
replicated.promote(replica)      the others, the former primary included, follow it
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import seckill
import seckill.aio

from support.aio import Awaited
from support.sentinels import HOST, follows, replication
from support.servers import ANY, Server, coming_up, lasting_port
from support.threads import wait_until

QUICK = ("repl-diskless-sync yes", "repl-diskless-sync-delay 0", "repl-ping-replica-period 1")


class Replicated:
    def __init__(self, kind: str = ANY, *options: str, replicas: int = 1) -> None:
        options = (*QUICK, *options)
        port = lasting_port()
        self.primary = Server(kind, *options, port=port)
        self.replicas = [
            Server(kind, *options, f"replicaof {HOST} {port}", port=lasting_port())
            for _ in range(replicas)
        ]

    @property
    def url(self) -> str:
        return self.primary.url

    def start(self) -> Replicated:
        servers = [self.primary, *self.replicas]
        with coming_up(servers):
            for server in servers:
                server.start()
            self.catch_up()
        return self

    def stop(self) -> None:
        for server in (self.primary, *self.replicas):
            server.stop()

    def catch_up(self) -> None:
        """Until every replica has all that the primary has written, and the primary knows."""
        offset = int(replication(self.primary)["master_repl_offset"])
        wait_until(lambda: all(follows(r, self.primary, offset) for r in self.replicas), within=60)
        observer, count = self.primary.redis(), len(self.replicas)
        wait_until(lambda: observer.wait(count, 100) == count, within=60)

    @contextlib.contextmanager
    def lagging(self, count: int) -> Iterator[None]:
        with contextlib.ExitStack() as frozen:
            for replica in self.replicas[:count]:
                frozen.enter_context(replica.frozen())
            yield
        self.catch_up()

    def promote(self, replica: Server) -> None:
        """As an operator does it by hand."""
        old = self.primary
        self.primary = replica
        self.replicas = [old, *(other for other in self.replicas if other is not replica)]
        replica.ask("REPLICAOF", "NO", "ONE")
        for other in self.replicas:
            other.ask("REPLICAOF", replica.host, replica.port)


def commands(server: Server, name: str) -> int:
    """How often a server was given a command since it was started."""
    stats = server.ask("INFO", "commandstats").decode().splitlines()
    lines = [line for line in stats if line.startswith(f"cmdstat_{name}:calls=")]
    return int(lines[0].split("=")[1].split(",")[0]) if lines else 0


# -- fixtures: a test file imports them ----------------------------------------------------------


@pytest.fixture
def start_replicated() -> Iterator[Callable[..., Replicated]]:
    """Start a private one, to torment: `start_replicated(kind, replicas=...)`."""
    started: list[Replicated] = []

    def start(*arguments: Any, **settings: Any) -> Replicated:
        started.append(Replicated(*arguments, **settings))
        return started[-1].start()

    yield start
    for replicated in started:
        replicated.stop()


@pytest.fixture(scope="module")
def shared_replicated() -> Iterator[dict[str, Replicated]]:
    shared: dict[str, Replicated] = {}
    yield shared
    for replicated in shared.values():
        replicated.stop()


@pytest.fixture
def replicated(shared_replicated: dict[str, Replicated], own_kind: str) -> Replicated:
    """A primary with two replicas; a test may freeze these, and thaws them."""
    if own_kind not in shared_replicated:
        shared_replicated[own_kind] = Replicated(own_kind, replicas=2).start()
    return shared_replicated[own_kind]


@pytest.fixture(params=["sync", "asyncio"])
def face(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def connect(face: str) -> Iterator[Callable[..., Any]]:
    """Clients of either face, to be called as if they were of the sync one."""
    with contextlib.ExitStack() as cleanup:

        def connect(url: str, **options: Any) -> Any:
            options = {"socket_timeout": 0.2, "timeout": 20} | options
            if face == "sync":
                return cleanup.enter_context(seckill.Client(url, **options))
            client = Awaited(seckill.aio.Client(url, **options))
            cleanup.callback(client.close)
            cleanup.callback(client.aclose)
            return client

        yield connect
