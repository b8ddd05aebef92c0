"""The deployments, and what can be done to each of them.

A fault is a method; FAULTS says how often each of them comes. It returns when the worst is over, so
that the next one meets a deployment that works again, or is about to.
"""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterator
from typing import Any, ClassVar

import redis
from support.clusters import Cluster, slot_of
from support.proxy import REPLY, REQUEST, Proxy, none, random_faults
from support.sentinels import Deployment
from support.servers import ANY, Server, lasting_port, version
from support.threads import wait_until

from chaos.checker import FULL, Rules

SLACK = 1.5  # seconds by which a replica may be behind when nothing is wrong with it
PLENTY, FEW = 10_000_000, 300


class World:
    """What all of them have in common: what is sold, and what befalls a server anywhere."""

    name = "?"
    FAULTS: ClassVar[dict[str, int]] = {}
    MARKS = 48
    """So many marked stocks for each process."""
    SELLERS = ("threads", "tasks", "forks")
    PAUSE = 1.0

    def __init__(self, kind: str = ANY, crew: int = 60) -> None:
        self.kind = kind
        self.options: dict[str, Any] = {"socket_timeout": 0.5, "timeout": 5}
        self.stocks = [f"{{sale}}:stock:{number}" for number in range(2)] + ["{sale}:few"]
        self.holds = [f"{{sale}}:hold:{number}" for number in range(4)]
        self.marks = [f"mark:{number}" for number in range(self.MARKS * crew)]
        self.offered = dict.fromkeys(self.stocks, PLENTY) | {self.stocks[-1]: FEW}
        self.offered |= dict.fromkeys(self.marks, FULL)
        self.windows: list[tuple[float, float]] = []
        self.url = self.plain_url = ""

    def __enter__(self) -> World:
        raise NotImplementedError

    def __exit__(self, *_: object) -> None:
        raise NotImplementedError

    def servers(self) -> list[Server]:
        """Those that may be stopped for a moment."""
        raise NotImplementedError

    def observer(self) -> Any:
        """A client that sees it all."""
        raise NotImplementedError

    def rules(self) -> Rules:
        return Rules()

    def heal(self) -> None:
        """Until everything works again."""

    def lock_for(self, number: int) -> str:
        return "{sale}:lock"

    def stock_up(self) -> None:
        observer = self.observer()
        with observer.pipeline(transaction=False) as pipeline:
            for name, units in self.offered.items():
                pipeline.set(name, units)
            pipeline.execute()

    def left(self) -> dict[str, int | None]:
        observer = self.observer()
        with observer.pipeline(transaction=False) as pipeline:
            for name in self.offered:
                pipeline.get(name)
            values = pipeline.execute()
        return {
            name: None if value is None else int(value)
            for name, value in zip(self.offered, values, strict=True)
        }

    # -- what may happen anywhere -------------------------------------------------------------

    def a_server(self, dice: random.Random) -> Server:
        return dice.choice(self.servers())

    def ask(self, dice: random.Random, *command: object) -> None:
        with contextlib.suppress(redis.RedisError):
            self.a_server(dice).ask(*command)

    def server_stopped(self, dice: random.Random) -> None:
        with self.a_server(dice).frozen():
            time.sleep(dice.uniform(0.05, 0.7))

    def client_pause(self, dice: random.Random) -> None:
        self.ask(dice, "CLIENT", "PAUSE", dice.randint(50, 600), dice.choice(["ALL", "WRITE"]))

    def client_kill(self, dice: random.Random) -> None:
        self.ask(dice, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    def script_flush(self, dice: random.Random) -> None:
        self.ask(dice, "SCRIPT", "FLUSH")


class Standalone(World):
    """One server whose disk has all that it has told, behind a network that is lossy."""

    name = "one server"
    SELLERS = ("threads", "tasks", "forks", "old")
    FAULTS = dict.fromkeys(("seller_killed", "seller_stopped", "script_flush", "client_kill"), 2)
    FAULTS |= dict.fromkeys(("server_stopped", "client_pause", "server_killed"), 2)
    FAULTS |= dict.fromkeys(("cut", "lossy", "swallow", "partition"), 3)

    def __enter__(self) -> World:
        disk = ("appendonly yes", "appendfsync always")
        self.server = Server(self.kind, *disk, port=lasting_port()).start()
        self.proxy = Proxy((self.server.host, self.server.port))
        self.url, self.plain_url = self.proxy.url, self.server.url
        if version(self.kind) >= (7, 2):
            self.options["wait_aof"] = True
        return self

    def __exit__(self, *_: object) -> None:
        self.proxy.close()
        self.server.stop()

    def servers(self) -> list[Server]:
        return [self.server]

    def observer(self) -> Any:
        return self.server.redis()

    def heal(self) -> None:
        self.proxy.faults = none
        self.proxy.swallow()

    def server_killed(self, dice: random.Random) -> None:
        self.server.kill()
        time.sleep(dice.uniform(0, 0.7))
        self.server.start()

    def cut(self, dice: random.Random) -> None:
        self.proxy.cut(reset=dice.random() < 0.5)

    def lossy(self, dice: random.Random) -> None:
        self.proxy.faults = random_faults(dice.randrange(1 << 30), mean_bytes=4000)
        self.proxy.cut()
        time.sleep(dice.uniform(0.5, 2))
        self.proxy.faults = none
        self.proxy.cut()

    def swallow(self, dice: random.Random) -> None:
        self.proxy.swallow(dice.choice([REQUEST, REPLY]))
        time.sleep(dice.uniform(0.1, 0.8))
        self.proxy.swallow()
        self.proxy.cut()

    def partition(self, dice: random.Random) -> None:
        self.proxy.refuse()
        self.proxy.cut()
        time.sleep(dice.uniform(0.1, 0.8))
        self.proxy.listen()


class Watched(World):
    """Sentinels, a primary and its replica; `careful`, a sale is told when the replica has it."""

    FAULTS = dict.fromkeys(("seller_killed", "seller_stopped", "script_flush", "client_kill"), 1)
    FAULTS |= dict.fromkeys(("client_pause", "sentinel_killed", "sentinel_stopped"), 1)
    FAULTS |= {"server_stopped": 2, "replica_lags": 2, "orderly": 2, "primary_killed": 6}
    FAULTS |= {"primary_stopped": 3}

    def __init__(self, *arguments: Any, careful: bool = True, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.careful = careful
        self.name = "Sentinel, wait_replicas=1" if careful else "Sentinel"
        if careful:
            self.options["wait_replicas"] = 1

    def __enter__(self) -> World:
        self.deployment = Deployment(self.kind, replicas=1)
        self.deployment.start()
        self.url = self.deployment.url
        return self

    def __exit__(self, *_: object) -> None:
        self.deployment.stop()

    def rules(self) -> Rules:
        return Rules(fails_over=True, loses=not self.careful, windows=tuple(self.windows))

    def servers(self) -> list[Server]:
        return [server for server in self.deployment.servers if server.is_running]

    def observer(self) -> Any:
        return self.deployment.primary.redis()

    def stock_up(self) -> None:
        super().stock_up()
        self.deployment.catch_up()

    def heal(self) -> None:
        self.deployment.catch_up()

    @contextlib.contextmanager
    def window(self) -> Iterator[None]:
        begin = time.monotonic() - SLACK
        yield
        self.windows.append((begin, time.monotonic()))

    def primary_killed(self, dice: random.Random) -> None:
        # As one who is left alone has nobody to take his place, the other one has to be there.
        self.heal()
        self.deployment.wait_until_watched()
        with self.window():
            old = self.deployment.primary
            old.kill()
            self.deployment.wait_for_new_primary(old)
            # Not before: empty, and still the primary, it would have its replica forget it all.
            time.sleep(dice.uniform(0, 0.5))
            old.start(f"replicaof {self.deployment.primary.host} {self.deployment.primary.port}")
            self.heal()

    def primary_stopped(self, dice: random.Random) -> None:
        """For so long that another takes its place; then it comes back, and knows of nothing."""
        self.heal()
        self.deployment.wait_until_watched()
        with self.window():
            old = self.deployment.primary
            old.freeze()
            self.deployment.wait_for_new_primary(old)
            old.thaw()
            self.heal()

    def orderly(self, dice: random.Random) -> None:
        self.heal()
        self.deployment.wait_until_watched()
        with self.window():
            self.deployment.failover()
            self.heal()

    def replica_lags(self, dice: random.Random) -> None:
        replicas = self.deployment.replicas
        if replicas:
            with replicas[0].frozen():
                time.sleep(dice.uniform(0.2, 1.2))

    def sentinel_killed(self, dice: random.Random) -> None:
        sentinel = dice.choice(self.deployment.sentinels)
        sentinel.kill()
        time.sleep(dice.uniform(0, 1))
        sentinel.start()
        sentinel.hurry()

    def sentinel_stopped(self, dice: random.Random) -> None:
        with dice.choice(self.deployment.sentinels).frozen():
            time.sleep(dice.uniform(0.1, 1))


class Sharded(World):
    """Three primaries with a replica each, and slots that move."""

    name = "Cluster, wait_replicas=1"
    FAULTS = dict.fromkeys(("seller_killed", "seller_stopped", "script_flush", "client_kill"), 1)
    FAULTS |= {"client_pause": 1, "server_stopped": 2, "orderly": 2, "slots_move": 4}
    FAULTS |= {"primary_killed": 4}

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.options["wait_replicas"] = 1

    def __enter__(self) -> World:
        self.cluster = Cluster(self.kind, replicas=1)
        self.cluster.start()
        self.url = self.cluster.url_of(*self.cluster.nodes)
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.stop()

    def lock_for(self, number: int) -> str:
        """Beside the stock for some, in a slot of its own for others."""
        return "{sale}:lock" if number % 2 else f"lock:{number}"

    def rules(self) -> Rules:
        return Rules(fails_over=True)

    def servers(self) -> list[Server]:
        return list(self.cluster.running)

    def observer(self) -> Any:
        return self.cluster.redis(username=None)

    def stock_up(self) -> None:
        super().stock_up()
        self.cluster.catch_up()

    def heal(self) -> None:
        self.cluster.wait_until_content()
        self.cluster.catch_up()

    def primary_killed(self, dice: random.Random) -> None:
        self.heal()
        slot = slot_of(dice.choice([self.stocks[0], dice.choice(self.marks)]))
        old = self.cluster.node_of(slot)
        old.kill()
        self.cluster.wait_for_promotion(slot)
        old.start()
        self.heal()

    def orderly(self, dice: random.Random) -> None:
        self.heal()
        replicas = [node for node in self.cluster.running if not node.is_primary]
        self.cluster.failover(dice.choice(replicas))
        self.heal()

    def slots_move(self, dice: random.Random) -> None:
        """That of the stock, and another one: slowly."""
        self.heal()
        for slot in (slot_of(self.stocks[0]), slot_of(dice.choice(self.marks))):
            source = self.cluster.node_of(slot)
            target = dice.choice([node for node in self.cluster.primaries if node is not source])
            move = self.cluster.begin_move(slot, target)
            for key in move.left()[:4]:
                time.sleep(dice.uniform(0, 0.1))
                move.keys(key)
            move.keys()
            time.sleep(dice.uniform(0, 0.2))
            move.finish(tell=dice.random() < 0.5)
        wait_until(lambda: self.cluster.node_of(slot) is target, within=60)
