"""A cluster on loopback: three primaries, each with so many replicas, and slots that can move.

The nodes are not introduced to each other: each finds the finished cluster in its own nodes.conf,
as after a restart. That takes as long as a server must have been up before it takes writes: 2 s.

    cluster.node_of(key)             the server that has its slot, as the nodes say
    cluster.wait_for_promotion(slot) after its primary was killed
    cluster.begin_move(slot, node)   half moved: `move.keys()`, then `move.finish()`
    cluster.move_slots(slots, node)  all of it, for many
"""

from __future__ import annotations

import itertools
import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import redis
from redis.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot

from support.sentinels import follows, replication
from support.servers import ANY, Server, coming_up, lasting_port
from support.threads import wait_until

HOST = "127.0.0.1"
SLOTS = 16384
BUS = 10_000
NODE_TIMEOUT = 1000  # milliseconds


class Node(Server):
    """A member of a cluster, or one that is to become one."""

    def __init__(self, kind: str, *options: str, **settings: Any) -> None:
        super().__init__(
            kind,
            "cluster-enabled yes",
            f"cluster-node-timeout {NODE_TIMEOUT}",
            "cluster-replica-validity-factor 0",
            "repl-diskless-sync yes",
            "repl-diskless-sync-delay 0",
            "repl-ping-replica-period 1",
            *options,
            port=lasting_port(BUS),
            **settings,
        )
        self.id = secrets.token_hex(20)

    def view(self) -> dict[str, list[str]]:
        """Of each node what this one thinks: the words of its line of CLUSTER NODES, by id."""
        lines = (self.ask("CLUSTER", "NODES") or b"").decode().splitlines()
        return {line.split()[0]: line.split()[1:] for line in lines}

    def is_content(self, size: int) -> bool:
        """Whether it finds all slots served, and knows so many nodes."""
        info = (self.ask("CLUSTER", "INFO") or b"").decode().splitlines()
        return {"cluster_state:ok", f"cluster_known_nodes:{size}"} <= set(info)

    @property
    def is_primary(self) -> bool:
        return "master" in self.view().get(self.id, ["", "", ""])[1].split(",")


class Everywhere:
    """Sets and gets many names at once, whatever their slots are, and whoever has them by now."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def mset(self, values: dict[str, Any]) -> None:
        self._cluster.redis().mset_nonatomic(values)

    def mget(self, names: list[str]) -> list[bytes | None]:
        # Each node is asked itself: one that has not heard of a move sends others to and fro.
        found: dict[str, bytes | None] = {}

        def complete() -> bool:
            for node in self._cluster.primaries:
                asked = [name for name in names if name not in found]
                pipeline = node.redis().pipeline(transaction=False)
                for name in asked:
                    pipeline.get(name)
                said = zip(asked, pipeline.execute(raise_on_error=False), strict=True)
                found.update((name, it) for name, it in said if not isinstance(it, Exception))
            return found.keys() >= set(names)

        wait_until(complete, within=60)
        return [found[name] for name in names]


class Move:
    """A slot on its way from one node to another."""

    def __init__(self, cluster: Cluster, slot: int, source: Node, target: Node) -> None:
        self.cluster, self.slot, self.source, self.target = cluster, slot, source, target
        # In this order: who is sent on with ASK is expected there.
        assert target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id) == b"OK"
        assert source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.id) == b"OK"

    def left(self) -> list[bytes]:
        """The keys that are still where they were."""
        return self.source.ask("CLUSTER", "GETKEYSINSLOT", self.slot, 1000)

    def keys(self, *keys: bytes | str) -> None:
        """Carry these over; without any, all that there are."""
        while names := keys or self.left():
            credentials = ("AUTH", self.source.password) if self.source.password else ()
            target = (self.target.host, self.target.port)
            told = self.source.ask("MIGRATE", *target, "", 0, 20_000, *credentials, "KEYS", *names)
            assert told in (b"OK", b"NOKEY"), told
            if keys:
                return

    def finish(self, *, tell: bool = True) -> None:
        """The new node has it from now on; `tell` the others now, or leave it to their gossip."""
        nodes = [self.target, self.source]
        if tell:
            nodes += [n for n in self.cluster.primaries if n not in nodes]

        def told() -> bool:
            # What the former owner had said before, and comes later, may be believed instead.
            for node in nodes:
                assert node.ask("CLUSTER", "SETSLOT", self.slot, "NODE", self.target.id) == b"OK"
            return all(owner(node, self.slot) == self.target.port for node in nodes)

        wait_until(told)


class Cluster:
    """Three primaries, so many replicas for each."""

    def __init__(
        self,
        kind: str = ANY,
        *options: str,
        replicas: int = 0,
        primaries: int = 3,
        password: str | None = None,
    ) -> None:
        self.kind, self.password = kind, password
        self._clients: list[RedisCluster] = []
        self._options = (*options, *([f"masterauth {password}"] if password else []))
        self.nodes = [self._node() for _ in range(primaries * (1 + replicas))]
        bounds = [SLOTS * number // primaries for number in range(primaries + 1)]
        ranges = [f"{first}-{end - 1}" for first, end in itertools.pairwise(bounds)]
        for node in self.nodes:
            lines = []
            for number, other in enumerate(self.nodes):
                mine = "myself," if other is node else ""
                place = f"{other.id} {HOST}:{other.port}@{other.port + BUS} {mine}"
                group = number % primaries
                if number < primaries:
                    role = f"master - 0 0 {group + 1} connected {ranges[group]}"
                else:
                    role = f"slave {self.nodes[group].id} 0 0 {group + 1} connected"
                lines.append(place + role)
            lines.append(f"vars currentEpoch {primaries} lastVoteEpoch 0")
            (node.directory / "nodes.conf").write_text("\n".join(lines) + "\n")

    def _node(self) -> Node:
        return Node(self.kind, *self._options, password=self.password)

    def start(self) -> Cluster:
        with coming_up(self.nodes):
            for node in self.nodes:
                node.start(wait=False)
            self.wait_until_content()
            self.catch_up()
        return self

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        for node in self.nodes:
            node.stop()

    # -- where things are ---------------------------------------------------------------------

    @property
    def url(self) -> str:
        return self.url_of(*self.primaries)

    def url_of(self, *seeds: Any, **parameters: Any) -> str:
        """For a client that is given these to begin with: anything with a host and a port."""
        user = self.nodes[0].user_info
        places = ",".join(f"{seed.host}:{seed.port}" for seed in seeds)
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        return f"redis+cluster://{user}{places}/0" + (f"?{query}" if query else "")

    def redis(self, **options: Any) -> RedisCluster:
        """redis-py's own client: looks at the data as anybody else would."""
        nodes = [ClusterNode(node.host, node.port) for node in self.nodes if node.is_running]
        client = RedisCluster(startup_nodes=nodes, password=self.password, **options)
        self._clients.append(client)
        return client

    @property
    def everywhere(self) -> Everywhere:
        """For those who set and get many names at once, whatever their slots are."""
        return Everywhere(self)

    @property
    def running(self) -> list[Node]:
        return [node for node in self.nodes if node.is_running]

    @property
    def primaries(self) -> list[Node]:
        return [node for node in self.running if node.is_primary]

    def replicas_of(self, node: Node) -> list[Node]:
        return [other for other in self.running if other.view()[other.id][2] == node.id]

    def node_of(self, key: bytes | str | int) -> Node:
        """The primary that has the slot of a key, or a slot."""
        slot = key if isinstance(key, int) else slot_of(key)
        for node in self.primaries:
            for words in node.view()[node.id][7:]:
                first, _, last = words.partition("-")
                if not words.startswith("[") and int(first) <= slot <= int(last or first):
                    return node
        raise LookupError(f"nobody has the slot {slot}")

    def observer(self, key: bytes | str) -> redis.Redis:
        """A plain client of the node that has the key."""
        return self.node_of(key).redis()

    # -- what is waited for -------------------------------------------------------------------

    def wait_until_content(self) -> None:
        """Every running node finds all slots served, and everybody connected."""

        def content() -> bool:
            size = len(self.nodes)
            return all(node.is_content(size) for node in self.running)

        wait_until(content, within=60)

    def catch_up(self) -> None:
        """Until every replica has all that its primary has written so far."""
        for primary in self.primaries:
            replicas = self.replicas_of(primary)
            wanted = int(replication(primary)["master_repl_offset"])
            wait_until(
                lambda primary=primary, replicas=replicas, wanted=wanted: all(
                    follows(replica, primary, wanted) for replica in replicas
                ),
                within=60,
            )

    def wait_for_promotion(self, *slots: int, without: Node | None = None) -> None:
        """Until those who run say that somebody who runs has these slots, and are content.

        Where one was stopped and not killed, it is the one `without` which it has to be.
        """

        def served() -> bool:
            nodes = [node for node in self.running if node is not without]
            ports = {node.port for node in nodes}
            return all(node.is_content(len(self.nodes)) for node in nodes) and all(
                {owner(node, slot) for node in nodes} <= ports for slot in slots
            )

        wait_until(served, within=90)

    def announce(self, node: Node, proxy: Any) -> None:
        """Start a node anew; clients and replicas are sent to the proxy in front of it, by all they
        may ask."""
        slots = [slot for slot in range(0, SLOTS, 1000) if owner(node, slot) == node.port]
        node.kill()
        bus = node.port + BUS
        node.start(f"cluster-announce-port {proxy.port}", f"cluster-announce-bus-port {bus}")
        self.wait_until_content()
        wait_until(
            lambda: all({owner(n, slot) for n in self.running} == {proxy.port} for slot in slots),
            within=60,
        )

    # -- what changes -------------------------------------------------------------------------

    def add(self) -> Node:
        """A node more, without slots."""
        node = self._node()
        self.nodes.append(node)
        node.start()
        node.id = node.ask("CLUSTER", "MYID").decode()
        known = self.primaries[0]
        node.ask("CLUSTER", "MEET", known.host, known.port)
        wait_until(lambda: all(node.id in other.view() for other in self.running), within=60)
        self.wait_until_content()
        return node

    def begin_move(self, slot: int, target: Node) -> Move:
        return Move(self, slot, self.node_of(slot), target)

    def move_slots(self, slots: Iterable[int], target: Node) -> None:
        for slot in slots:
            move = self.begin_move(slot, target)
            move.keys()
            move.finish()

    def failover(self, replica: Node) -> None:
        """An orderly one: the replica takes the place of its primary."""
        asked = 0.0

        def done() -> bool:
            # One that is not agreed upon is given up after five seconds, without a word.
            nonlocal asked
            if time.monotonic() > asked + 6:
                asked = time.monotonic()
                replica.ask("CLUSTER", "FAILOVER")
            return replica.is_primary

        wait_until(done, within=60)


def starter() -> Iterator[Callable[..., Cluster]]:
    """What a fixture of private ones is made of."""
    started: list[Cluster] = []

    def start(*arguments: Any, **settings: Any) -> Cluster:
        started.append(Cluster(*arguments, **settings))
        return started[-1].start()

    yield start
    for cluster in started:
        cluster.stop()


def slot_of(key: bytes | str) -> int:
    return key_slot(key.encode() if isinstance(key, str) else bytes(key))


def owner(node: Node, slot: int) -> int | None:
    """The port of the primary that has a slot, as this node sees it."""
    for first, last, primary, *_ in node.ask("CLUSTER", "SLOTS") or []:
        if first <= slot <= last:
            return primary[1]
    return None


def key_in(slots: range | Iterable[int], prefix: str = "key") -> str:
    """A name whose slot is one of these."""
    wanted = slots if isinstance(slots, range) else set(slots)
    numbers = iter(range(1_000_000))
    return next(name for name in (f"{prefix}:{n}" for n in numbers) if slot_of(name) in wanted)
