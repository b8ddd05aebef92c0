"""What is known of a server; and of what is not known, why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Unknown:
    """A fact that could not be learnt.

    Attributes:
        why: the server's own words, or what came instead of them.
    """

    why: str


@dataclass(frozen=True)
class Silent(Unknown):
    """A question that got no answer in time, or broke the connection."""


NOT_ASKED = Unknown("not asked")


def known(fact: T | Unknown, default: T) -> T:
    """The fact, or what stands in for it."""
    return default if isinstance(fact, Unknown) else fact


@dataclass(frozen=True)
class Slots:
    """Who serves which hash slots.

    Attributes:
        here: ranges that the node at hand serves, both ends included.
        elsewhere: the others, each with the address that serves it.
    """

    here: tuple[tuple[int, int], ...] = ()
    elsewhere: tuple[tuple[int, int, str], ...] = ()

    @property
    def count(self) -> int:
        """How many slots are served here."""
        return sum(last - first + 1 for first, last in self.here)

    @property
    def nobodys(self) -> int:
        """How many slots nobody serves."""
        return 16384 - self.count - sum(last - first + 1 for first, last, _ in self.elsewhere)

    def server_of(self, slot: int) -> str | None:
        """The address of another node that serves a slot; None: this one does, or nobody."""
        found = (address for first, last, address in self.elsewhere if first <= slot <= last)
        return next(found, None)


@dataclass(frozen=True)
class Facts:
    """One examination.

    A feature (`scripts`, `writes`, `tracking`, `wait`, `waitaof`) is None where it was seen to
    work, else the error that came instead.
    """

    # what it is
    server: str | Unknown = NOT_ASKED  # "Valkey 9.1.2"
    role: str | Unknown = NOT_ASKED  # as INFO has it: master, slave, active-replica ...
    primary: str | Unknown = NOT_ASKED  # of a replica: the address that it follows
    link_up: bool | Unknown = NOT_ASKED  # of a replica: whether it hears its primary
    takes_writes: bool | Unknown = NOT_ASKED  # of a replica
    active_replica: bool | Unknown = NOT_ASKED
    failover: str | Unknown = NOT_ASKED

    # memory
    maxmemory: int | Unknown = NOT_ASKED  # bytes; 0: as much as there is
    used_memory: int | Unknown = NOT_ASKED
    policy: str | Unknown = NOT_ASKED
    evicted: int | Unknown = NOT_ASKED  # keys, since its start

    # persistence
    aof: bool | Unknown = NOT_ASKED
    fsync: str | Unknown = NOT_ASKED
    snapshots: str | Unknown = NOT_ASKED  # the `save` setting; "": none
    disk_errors: tuple[str, ...] = ()  # of INFO: the last try to write to disk has failed

    # replicas
    replicas: int | Unknown = NOT_ASKED
    replicas_online: int | Unknown = NOT_ASKED
    min_replicas: int | Unknown = NOT_ASKED
    behind: tuple[int, int] | Unknown = NOT_ASKED  # the nearest replica: seconds, bytes
    scripts_are_held: bool = True  # whether a lack of replicas stops scripts, too

    # cluster
    cluster: bool | Unknown = NOT_ASKED
    cluster_state: str | Unknown = NOT_ASKED
    slots: Slots | Unknown = NOT_ASKED
    lock: str | None = None  # the names that were given
    key: str | None = None

    # what it does
    scripts: str | Unknown | None = NOT_ASKED
    writes: str | Unknown | None = NOT_ASKED
    tracking: str | Unknown | None = NOT_ASKED
    wait: str | Unknown | None = NOT_ASKED
    waitaof: str | Unknown | None = NOT_ASKED
    barred: tuple[str, ...] = ()  # of the names that were given, those that the user may not use

    # the way there
    skew: float | Unknown = NOT_ASKED  # s that its clock is ahead of ours
    round_trip: float | Unknown = NOT_ASKED  # s, the median
    slowest: float | Unknown = NOT_ASKED
    socket_timeout: float = 1.0
    remote: bool = False
    encrypted: bool = False
    open_to_all: bool | Unknown = NOT_ASKED  # whether one is let in without a password
