"""A service that sentinels watch: a primary, its replicas, three sentinels, all on loopback.

Everything is quick: a primary that is not heard of for `down_after` milliseconds is down, and then
a fail-over takes a second or two. Where none may happen by itself, `down_after` is NEVER.

    deployment.primary               the server that the sentinels name and that says so itself
    deployment.catch_up()            until the replicas have all that the primary has
    deployment.failover()            an orderly one; `wait_for_new_primary(old)` for any other
"""

from __future__ import annotations

import contextlib
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

import redis
import redis.sentinel

from support.servers import ANY, Server, coming_up, lasting_port
from support.threads import wait_until

SERVICE = "mymaster"
PEER = "peer"
HOST = "127.0.0.1"
SOON = 1500  # milliseconds; a sentinel that loses a connection waits for up to 1000 to open another
NEVER = 600_000  # milliseconds after which a primary counts as down, in a test without a fail-over

# What makes sentinels look more often, where they know it (Redis 6.2 does not).
QUICK = {"PUBLISH-PERIOD": 200, "INFO-PERIOD": 500, "ASK-PERIOD": 100}


class Sentinel(Server):
    """It keeps its own configuration file up to date, and finds it again when it is restarted."""

    def __init__(self, kind: str, *options: str, **settings: Any) -> None:
        super().__init__(kind, *options, **settings)
        self.id = secrets.token_hex(20)

    def _arguments(self, options: tuple[str, ...]) -> list[str]:
        configuration = self.directory / "sentinel.conf"
        if not configuration.exists():
            # Of a server's options those that a sentinel has a use for; the order matters in 6.2.
            plain = tuple(line for line in options if line.split()[0] in PLAIN)
            own = tuple(line for line in options if line.startswith("sentinel "))
            lines = (*plain, f"sentinel myid {self.id}", *own)
            configuration.write_text("\n".join(lines) + "\n")
        return [str(configuration), "--sentinel"]

    def hurry(self) -> None:
        with contextlib.suppress(redis.ResponseError):
            self.ask("SENTINEL", "DEBUG", *[word for pair in QUICK.items() for word in pair])

    def says(self) -> tuple[str, int] | None:
        """Where the primary is, if it answers and knows."""
        found = self.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
        return (found[0].decode(), int(found[1])) if found else None

    def place(self) -> tuple[str, int, int] | None:
        """The same, with the number of the fail-over that put the primary there."""
        master = self.ask("SENTINEL", "MASTER", SERVICE)
        if master is None:
            return None
        known = fields(master)
        return known["ip"], int(known["port"]), int(known["config-epoch"])

    def is_ready(self, sentinels: int, replicas: int) -> bool:
        """Whether it knows all the others, and could carry out a fail-over."""
        master, others, known = (
            self.ask("SENTINEL", what, SERVICE) for what in ("MASTER", "SENTINELS", "REPLICAS")
        )
        return (
            master is not None
            and fields(master)["flags"] == "master"
            and [is_heard_of(fields(other)) for other in others] == [True] * (sentinels - 1)
            and [is_eligible(fields(replica)) for replica in known] == [True] * replicas
        )


PLAIN = frozenset(["port", "bind", "dir", "daemonize", "requirepass", "protected-mode"])


class Deployment:
    """One primary at first, so many replicas, so many sentinels."""

    def __init__(
        self,
        kind: str = ANY,
        *options: str,
        replicas: int = 1,
        down_after: int = SOON,
        password: str | None = None,
        sentinel_password: str | None = None,
    ) -> None:
        self.kind = kind
        self.password, self.sentinel_password = password, sentinel_password
        first = lasting_port()
        # The sentinels and the replicas come as a user of their own: see `partition`.
        common = (
            f"user {PEER} on >{PEER} ~* &* +@all",
            f"masteruser {PEER}",
            f"masterauth {PEER}",
            "repl-diskless-sync yes",
            "repl-diskless-sync-delay 0",
            "repl-ping-replica-period 1",
            *options,
        )
        self.servers = [
            Server(
                kind,
                *common,
                *([f"replicaof {HOST} {first}"] if number else []),
                password=password,
                port=lasting_port() if number else first,
            )
            for number in range(1 + replicas)
        ]
        watch = (
            f"sentinel monitor {SERVICE} {HOST} {first} 2",
            f"sentinel auth-user {SERVICE} {PEER}",
            f"sentinel auth-pass {SERVICE} {PEER}",
            f"sentinel down-after-milliseconds {SERVICE} {down_after}",
            f"sentinel failover-timeout {SERVICE} 4000",
            f"sentinel parallel-syncs {SERVICE} 10",
        )
        self.sentinels = [
            Sentinel(kind, *watch, password=sentinel_password, port=lasting_port())
            for _ in range(3)
        ]

    def start(self) -> Deployment:
        with coming_up([*self.servers, *self.sentinels]):
            self._start()
        return self

    def _start(self) -> None:
        for server in self.servers:
            server.start(wait=False)
        for server in self.servers:
            server.wait_until_up()
        self.catch_up(self.servers[0])
        for sentinel in self.sentinels:
            sentinel.start(wait=False)
        for sentinel in self.sentinels:
            sentinel.wait_until_up()
            sentinel.hurry()
        self.wait_until_watched()

    def stop(self) -> None:
        for process in [*self.sentinels, *self.servers]:
            process.stop()

    # -- where it is --------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return self.url_of(*self.sentinels)

    def url_of(
        self, *sentinels: Any, service: str = SERVICE, db: int = 0, **parameters: Any
    ) -> str:
        """For a client that knows these sentinels: anything that has a host and a port."""
        user = self.servers[0].user_info
        places = ",".join(f"{sentinel.host}:{sentinel.port}" for sentinel in sentinels)
        if self.sentinel_password:
            parameters = {"sentinel_password": self.sentinel_password} | parameters
        query = "&".join(f"{name}={value}" for name, value in parameters.items())
        return f"redis+sentinel://{user}{places}/{service}/{db}" + (f"?{query}" if query else "")

    def redis_sentinel(self, library: Any = redis.sentinel, **options: Any) -> Any:
        """redis-py's own object (or that of its twins) for the same sentinels."""
        return library.Sentinel(
            [(sentinel.host, sentinel.port) for sentinel in self.sentinels],
            sentinel_kwargs={"password": self.sentinel_password},
            password=self.password,
            **options,
        )

    @property
    def primary(self) -> Server:
        """That all sentinels name; waits until they agree, and until it says so itself."""
        return self._agreed(lambda server: True)

    def _agreed(self, is_meant: Callable[[Server], bool]) -> Server:
        found: list[Server] = []

        def agreed() -> bool:
            named = {sentinel.says() for sentinel in self.sentinels if sentinel.is_running}
            known = [s for s in self.servers if (s.host, s.port) in named and is_meant(s)]
            found[:] = [s for s in known if len(named) == 1 and role(s) == "master"]
            return bool(found)

        wait_until(agreed, within=90)
        return found[0]

    @property
    def replicas(self) -> list[Server]:
        return [server for server in self.servers if role(server) == "slave"]

    def redis(self, **options: Any) -> redis.Redis:
        """A redis-py client of the primary of this moment."""
        return self.primary.redis(**options)

    # -- what is waited for -------------------------------------------------------------------

    def wait_until_watched(self) -> None:
        """Every sentinel knows the others and the replicas, and could carry out a fail-over."""
        sentinels, replicas = len(self.sentinels), len(self.servers) - 1
        wait_until(lambda: all(s.is_ready(sentinels, replicas) for s in self.sentinels), within=60)

    def catch_up(self, primary: Server | None = None) -> None:
        """Until every running replica has all that the primary has written so far."""
        primary = primary or self.primary
        wanted = int(replication(primary)["master_repl_offset"])
        replicas = [s for s in self.servers if s is not primary and s.is_running]
        wait_until(lambda: all(follows(r, primary, wanted) for r in replicas), within=60)

    def wait_for_new_primary(self, old: Server) -> Server:
        """Until every sentinel names another one, that is a primary and whom the others follow."""
        return self._agreed(lambda server: server is not old)

    # -- what befalls it ----------------------------------------------------------------------

    def failover(self) -> Server:
        """An orderly one, as an operator asks for it: the new primary."""
        old = self.primary
        asked = 0.0

        def is_meant(server: Server) -> bool:
            # One that finds no good replica at the moment gives up, without a word.
            nonlocal asked
            if server is old and time.monotonic() > asked + 10:
                asked = time.monotonic()
                self.ask_for_failover()
            return server is not old

        self.wait_until_watched()
        new = self._agreed(is_meant)
        wait_until(lambda: role(old) == "slave", within=60)
        return new

    def ask_for_failover(self) -> bool:
        """Whether a sentinel goes about it: it may find no good replica at the moment."""
        with contextlib.suppress(redis.ResponseError):
            return bool(self.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE))
        return False

    def partition(self, server: Server) -> None:
        """Cut it off from sentinels and replicas. It is well, and knows nothing of the others."""
        server.ask("ACL", "SETUSER", PEER, "-@all")
        server.ask("CLIENT", "KILL", "TYPE", "replica")

    def heal(self, server: Server) -> None:
        server.ask("ACL", "SETUSER", PEER, "+@all")

    @contextlib.contextmanager
    def sentinels_asleep(self) -> Iterator[None]:
        """No fail-over begins in here."""
        with contextlib.ExitStack() as sleeping:
            for sentinel in self.sentinels:
                sleeping.enter_context(sentinel.frozen())
            yield


def starter() -> Iterator[Callable[..., Deployment]]:
    """What a fixture of private ones is made of."""
    started: list[Deployment] = []

    def start(*arguments: Any, **settings: Any) -> Deployment:
        started.append(Deployment(*arguments, **settings))
        return started[-1].start()

    yield start
    for deployment in started:
        deployment.stop()


# -- what servers and sentinels say ---------------------------------------------------------------


def fields(reply: list[bytes]) -> dict[str, str]:
    words = [word.decode() for word in reply]
    return dict(zip(words[::2], words[1::2], strict=True))


def is_heard_of(instance: dict[str, str]) -> bool:
    return not {"s_down", "o_down", "disconnected"} & set(instance["flags"].split(","))


def is_eligible(replica: dict[str, str]) -> bool:
    # One that has not been heard of says that it was heard of in the days of the Romans.
    recently = int(replica["info-refresh"]) < 60_000
    return is_heard_of(replica) and replica["master-link-status"] == "ok" and recently


def role(server: Server) -> str | None:
    """What it says itself: "master" or "slave"; None if it does not say a thing."""
    said = server.ask("ROLE")
    return said and said[0].decode()


def replication(server: Server) -> dict[str, str]:
    info = server.ask("INFO", "replication") or b""
    return dict(line.split(":", 1) for line in info.decode().splitlines() if ":" in line)


def follows(replica: Server, primary: Server, offset: int) -> bool:
    """Whether it has all that the primary had written up to there."""
    info = replication(replica)
    return (
        info.get("master_port") == str(primary.port)
        and info["master_link_status"] == "up"
        and int(info["slave_repl_offset"]) >= offset
    )
