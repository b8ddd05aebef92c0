"""More than one server, or one that keeps what it is told: those that the tests start.

They are started for the contest that wants them and ended after it, since servers that nobody asks
anything talk to each other all the same.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis
from redis.cluster import RedisCluster

if TYPE_CHECKING:
    from support.servers import Server

# Imported where they are used: most of those who import this module start nothing.
sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

SHARE = 0.25
PERIOD = 0.1
"""Of a slow server: it runs for SHARE of each PERIOD, in seconds. The kernel's own limit on what a
group of processes uses has the same period by default, and is not everybody's to set."""


@dataclass(frozen=True)
class Deployment:
    """Clients of its primaries, one each, and one for all of its data."""

    kind: str
    url: str
    servers: tuple[Server, ...]
    primaries: tuple[redis.Redis, ...]
    data: redis.Redis | RedisCluster

    def put_on_sale(self, stocks: Iterable[str], units: int) -> None:
        """Nothing else is left there; scripts stay."""
        for primary in self.primaries:
            primary.flushall()
        values: Any = dict.fromkeys(stocks, units)
        if isinstance(self.data, RedisCluster):
            self.data.mset_nonatomic(values)
        else:
            self.data.mset(values)

    def left(self, stocks: Iterable[str]) -> int:
        names = list(stocks)
        if isinstance(self.data, RedisCluster):
            found = self.data.mget_nonatomic(names)
        else:
            found = self.data.mget(names)
        return sum(int(stock or 0) for stock in found)

    def work(self) -> list[Work]:
        """What each primary has done so far."""
        return [Work.of(primary.info("all")) for primary in self.primaries]

    @contextmanager
    def slowed(self) -> Iterator[None]:
        """Each primary has a share of a core, and no two of them at the same time.

        They are frozen in turns: it is their time that is short then, not the machine's.
        """
        over = threading.Event()
        servers = self.servers[: len(self.primaries)]

        def take_turns(server: Server, first: float) -> None:
            run, rest = SHARE * PERIOD, (1 - SHARE) * PERIOD
            server.freeze()
            begins = time.monotonic() + first
            while not over.wait(max(0, begins - time.monotonic())):
                server.thaw()
                over.wait(run)
                server.freeze()
                begins += run + rest
            server.thaw()

        turns = [
            threading.Thread(target=take_turns, args=(server, PERIOD * number / len(servers)))
            for number, server in enumerate(servers)
        ]
        for turn in turns:
            turn.start()
        try:
            yield
        finally:
            over.set()
            for turn in turns:
                turn.join()


@dataclass(frozen=True)
class Work:
    """What a server has done: seconds of its processor, and commands."""

    seconds: float
    scripts: int
    waits: int

    @classmethod
    def of(cls, info: dict[str, Any]) -> Work:
        def calls(*commands: str) -> int:
            told = (info.get(f"cmdstat_{command}") for command in commands)
            return sum(it["calls"] for it in told if it)

        seconds = info["used_cpu_user"] + info["used_cpu_sys"]
        return cls(seconds, calls("evalsha", "eval"), calls("wait", "waitaof"))

    def __sub__(self, before: Work) -> Work:
        return Work(
            self.seconds - before.seconds, self.scripts - before.scripts, self.waits - before.waits
        )


Deploy = Callable[[str], AbstractContextManager[Deployment]]
"""Starts one of servers of a kind, or of a binary's path."""


def primaries(count: int) -> Deploy:
    """A cluster of so many: one alone is the same kind of server, asked in the same way."""

    @contextmanager
    def deploy(which: str) -> Iterator[Deployment]:
        from support.clusters import HOST, Cluster

        cluster = Cluster(kind_of(which), primaries=count).start()
        with ExitStack() as cleanup:
            cleanup.callback(cluster.stop)
            first = cluster.nodes[0]
            data = cleanup.enter_context(RedisCluster(host=first.host, port=first.port))
            # As the default user, who need not be looked up in the rules of one who sells.
            url = f"redis+cluster://{HOST}:{first.port}/0"
            yield deployment(url, cluster.nodes, cluster.nodes, data)

    return deploy


@contextmanager
def with_replica(which: str) -> Iterator[Deployment]:
    from support.replicas import Replicated

    replicated = Replicated(kind_of(which)).start()
    try:
        yield alone(replicated.primary, *replicated.replicas)
    finally:
        replicated.stop()


def with_file(appendfsync: str) -> Deploy:
    """A server with an append-only file."""

    @contextmanager
    def deploy(which: str) -> Iterator[Deployment]:
        from support.servers import Server

        server = Server(kind_of(which), "appendonly yes", f"appendfsync {appendfsync}")
        try:
            yield alone(server.start())
        finally:
            server.stop()

    return deploy


def alone(primary: Server, *replicas: Server) -> Deployment:
    url = f"redis://{primary.host}:{primary.port}/0"
    return deployment(url, [primary], [primary, *replicas], primary.redis())


def deployment(
    url: str,
    primaries: Sequence[Server],
    servers: Sequence[Server],
    data: redis.Redis | RedisCluster,
) -> Deployment:
    clients = tuple(primary.redis() for primary in primaries)
    return Deployment(servers[0].kind, url, tuple(servers), clients, data)


def kind_of(which: str) -> str:
    """The tests know kinds only: a binary's path becomes one."""
    from support.servers import BINARIES

    BINARIES.setdefault(which, lambda: Path(which))
    return which


def version(kind: str) -> tuple[int, ...]:
    from support import servers

    return servers.version(kind)
