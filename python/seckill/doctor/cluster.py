"""A cluster: its nodes, its slots, what becomes of them when a node goes down."""

from __future__ import annotations

from dataclasses import dataclass, replace

from seckill import ConnectionError, SeckillError
from seckill.doctor.facts import Facts, Slots, Unknown
from seckill.doctor.finding import Finding, Gravity, not_known, seconds_, see
from seckill.doctor.nodes import client_of, judged, look_at, merged
from seckill.doctor.probes import Server, number_of, unknown
from seckill.doctor.reaching import SLOTS, hash_tag_advice, slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Any

    from seckill import Client

CHECK = "cluster"
FEWEST = 3
NODES = "Allow this user CLUSTER NODES, CLUSTER INFO and CLUSTER SLOTS."
# What is asked of each node's configuration: its newer name, its older one.
SETTINGS = {
    "coverage": ("cluster-require-full-coverage",),
    "validity": ("cluster-replica-validity-factor", "cluster-slave-validity-factor"),
    "no_failover": ("cluster-replica-no-failover", "cluster-slave-no-failover"),
    "timeout": ("cluster-node-timeout",),
}


@dataclass(frozen=True)
class Member:
    """A line of CLUSTER NODES.

    Attributes:
        id: the node's.
        address: host and port.
        flags: master, slave, fail, fail? ...
        primary: of a replica, whose; else "".
        slots: how many it serves.
    """

    id: str
    address: str
    flags: tuple[str, ...]
    primary: str
    slots: int

    @property
    def is_primary(self) -> bool:
        return "master" in self.flags

    @property
    def is_gone(self) -> bool:
        return bool({"fail", "fail?", "noaddr", "handshake"} & set(self.flags))


@dataclass(frozen=True)
class Sharded:
    """One examination of a cluster."""

    server: str
    patience: float
    members: tuple[Member, ...]
    settings: dict[str, dict[str, str | Unknown]]  # by address
    nodes: dict[str, Facts]
    lock: str | None = None
    key: str | None = None
    unlisted: Unknown | None = None  # why it is not known which nodes there are besides


def survey(client: Client, lock: str | None, key: str | None) -> tuple[Sharded, list[Finding]]:
    """Ask one node for the others, and then each of them.

    Args:
        client: says where to begin, and as whom to ask.
        lock: the name of a lock that will be used.
        key: the name of a stock that will be used.

    Returns:
        What was learnt, and what may come of it.

    Raises:
        ConnectionError: no node can be asked.
        AuthenticationError: it does not accept the credentials.
        ServerError: it is not in a cluster, or does not tell of the other nodes.
    """
    settings = client.settings()
    seeds = [f"{host}:{port}" for host, port in settings["cluster"]]  # type: ignore[attr-defined]
    members, unlisted = _members(client, seeds)
    found, asked = [], {}
    for member in members:
        if member.is_gone or not (member.slots or member.primary):
            continue  # the check of the members says so; or there is nothing on it
        names = {"lock": lock, "key": key}
        found.append(look_at(client, member.address, primary=member.is_primary, names=names))
        if found[-1].facts:
            asked[member.address] = _settings(client, member.address)
    facts = {node.address: node.facts for node in found if node.facts}
    versions = {str(one.server) for one in facts.values() if isinstance(one.server, str)}
    primaries = sum(member.is_primary and member.slots > 0 for member in members)
    sharded = Sharded(
        server=f"cluster of {', '.join(sorted(versions)) or 'servers'}, primaries: {primaries},"
        f" replicas: {sum(bool(member.primary) for member in members)}",
        patience=float(str(settings["timeout"])),
        members=members,
        settings=asked,
        nodes=facts,
        lock=lock,
        key=key,
        unlisted=unlisted,
    )
    return sharded, [*merged(judge(sharded)), *judged(found)]


def _members(client: Client, seeds: list[str]) -> tuple[tuple[Member, ...], Unknown | None]:
    """The nodes; and if the user may only ask for those with slots, as one who sells, why."""
    trouble: SeckillError = ConnectionError("no node can be asked", sent=False)
    for seed in seeds:
        try:
            server = Server(client_of(client, seed))
            told = server.ask("CLUSTER", "NODES")
            slots = server.ask("CLUSTER", "SLOTS")
            if isinstance(told, SeckillError) and not isinstance(slots, list):
                raise told
        except SeckillError as error:
            trouble = error
            continue
        if isinstance(told, str):
            return tuple(_read(told, seed, _endpoints(slots, seed))), None
        if isinstance(slots, list):
            return tuple(_with_slots(slots, _endpoints(slots, seed))), unknown(told)
        trouble = ConnectionError(f"CLUSTER NODES: {unknown(told).why}", sent=False)
    raise trouble


def _read(told: str, seed: str, endpoints: dict[str, str]) -> Iterator[Member]:
    for line in filter(None, told.splitlines()):
        name, place, flags, primary, _, _, _, _, *slots = line.split()
        address = endpoints.get(name) or place.partition("@")[0].partition(",")[0]
        if "myself" in flags and address.startswith((":", "?")):
            address = seed
        held = [words.partition("-") for words in slots if not words.startswith("[")]
        count = sum(int(last or first) - int(first) + 1 for first, _, last in held)
        primary = "" if primary == "-" else primary
        yield Member(name, address, tuple(flags.split(",")), primary, count)


def _with_slots(slots: list[Any], addresses: dict[str, str]) -> Iterator[Member]:
    """The nodes that CLUSTER SLOTS tells of."""
    counts: dict[str, int] = {}
    follows: dict[str, str] = {}
    for first, last, (_, _, primary, *_), *replicas in slots:
        counts[primary] = counts.get(primary, 0) + int(last) - int(first) + 1
        follows |= {name: primary for _, _, name, *_ in replicas}
    for name, count in counts.items():
        yield Member(name, addresses[name], ("master",), "", count)
    for name, primary in follows.items():
        yield Member(name, addresses[name], ("slave",), primary, 0)


def _endpoints(slots: object, seed: str) -> dict[str, str]:
    """Where the nodes say that they want to be asked, by id: behind TLS that may be a name."""
    found = {}
    for _, _, *nodes in slots if isinstance(slots, list) else []:
        for host, port, name, *_ in nodes:
            found[name] = f"{host or seed.rpartition(':')[0]}:{port}"
    return found


def _settings(client: Client, address: str) -> dict[str, str | Unknown]:
    try:
        server = Server(client_of(client, address))
        return {name: server.setting(*names) for name, names in SETTINGS.items()}
    except SeckillError as error:
        return dict.fromkeys(SETTINGS, Unknown(str(error)))


# -- the judgement --------------------------------------------------------------------------------


def judge(sharded: Sharded) -> list[Finding]:
    """What may come of how the cluster is made."""
    checks = (
        _stale_replicas(sharded),
        _states(sharded),
        _members_down(sharded),
        _coverage(sharded),
        _maps(sharded),
        _numbers(sharded),
        _takeover(sharded),
        _names(sharded),
        _unknown(sharded),
    )
    return [finding for check in checks for finding in check]


def _stale_replicas(sharded: Sharded) -> Iterator[Finding]:
    if any(one["validity"] == "0" for one in sharded.settings.values()):
        yield Finding(
            CHECK,
            Gravity.OVERSELL,
            "cluster-replica-validity-factor is 0",
            "A replica takes over however long ago it heard its primary last: all that was sold"
            " since is sold again.",
            "CONFIG SET cluster-replica-validity-factor 10 on each node, also in the configuration"
            " file.",
            _where(sharded, "validity", "0"),
        )


def _states(sharded: Sharded) -> Iterator[Finding]:
    states = {
        address: facts.cluster_state
        for address, facts in sharded.nodes.items()
        if isinstance(facts.cluster_state, str)
    }
    bad = {address: state for address, state in states.items() if state != "ok"}
    if bad:
        yield Finding(
            CHECK,
            Gravity.STALL,
            f"cluster_state is {', '.join(sorted(set(bad.values())))}",
            "These nodes refuse sales (CLUSTERDOWN).",
            "See CLUSTER INFO, CLUSTER SLOTS, and the log of the node that is missing.",
            ", ".join(bad),
        )
    elif states:
        yield Finding(CHECK, Gravity.FINE, "cluster_state is ok")


def _members_down(sharded: Sharded) -> Iterator[Finding]:
    for member in sharded.members:
        if member.is_gone:
            kind = "primary" if member.is_primary else "replica"
            yield Finding(
                CHECK,
                Gravity.STALL,
                f"a {kind} is {', '.join(f for f in member.flags if f not in ('master', 'slave'))}",
                "Its names can be neither sold nor locked until a replica has taken over."
                if member.is_primary and member.slots
                else "It is of no use in a fail-over.",
                "Bring it back; or CLUSTER FORGET it on the others, if it is gone for good.",
                member.address,
            )


def _coverage(sharded: Sharded) -> Iterator[Finding]:
    served = sum(member.slots for member in sharded.members if member.is_primary)
    if served < SLOTS:
        yield Finding(
            CHECK,
            Gravity.STALL,
            f"{SLOTS - served:,} of {SLOTS:,} slots are served by nobody",
            "Names in these slots can be neither sold nor locked"
            + (
                ", and by cluster-require-full-coverage no other either." if _full(sharded) else "."
            ),
            "Give them to a node: CLUSTER ADDSLOTS, or redis-cli --cluster fix.",
        )
    if _full(sharded):
        yield Finding(
            CHECK,
            Gravity.NOTE,
            "cluster-require-full-coverage is yes",
            "When the slots of one primary are served by nobody, the sale of everything stops.",
            "cluster-require-full-coverage no: then what lives elsewhere sells on.",
            _where(sharded, "coverage", "yes"),
        )


def _full(sharded: Sharded) -> bool:
    return any(one["coverage"] == "yes" for one in sharded.settings.values())


def _maps(sharded: Sharded) -> Iterator[Finding]:
    """Whether the nodes agree on who serves what."""
    maps = {}
    for address, facts in sharded.nodes.items():
        if isinstance(facts.slots, Slots):
            mine = [(first, last, address) for first, last in facts.slots.here]
            maps[address] = tuple(sorted([*mine, *facts.slots.elsewhere]))
    if len(set(maps.values())) > 1:
        usual = max(set(maps.values()), key=list(maps.values()).count)
        yield Finding(
            CHECK,
            Gravity.STALL,
            "the nodes do not agree on who serves which slots",
            "Callers are sent to and fro between them, until they do.",
            "It ends by itself within seconds of a change; else redis-cli --cluster check and fix.",
            ", ".join(address for address, view in maps.items() if view != usual),
        )


def _numbers(sharded: Sharded) -> Iterator[Finding]:
    primaries = [member for member in sharded.members if member.is_primary and member.slots]
    if len(primaries) < FEWEST:
        count = len(primaries)
        yield Finding(
            CHECK,
            Gravity.STALL,
            f"{count} primar{'y' if count == 1 else 'ies'} with slots",
            "A replica takes over only if a majority of the primaries agrees: with fewer than three"
            " there is none when one is down.",
            "Three primaries on three machines, or Sentinel.",
        )
    followed = {member.primary for member in sharded.members if not member.is_gone}
    alone = [member.address for member in primaries if member.id not in followed]
    if alone:
        yield Finding(
            CHECK,
            Gravity.STALL,
            "a primary without a replica",
            "When it goes down, its names can be neither sold nor locked until it is back.",
            "A replica for each primary, on another machine: CLUSTER REPLICATE.",
            ", ".join(alone),
        )


def _takeover(sharded: Sharded) -> Iterator[Finding]:
    replicas = {member.address for member in sharded.members if member.primary}
    barred = _where(sharded, "no_failover", "yes", among=replicas)
    if barred:
        yield Finding(
            CHECK,
            Gravity.STALL,
            "cluster-replica-no-failover is yes",
            "This replica never takes over by itself.",
            "CONFIG SET cluster-replica-no-failover no, also in the configuration file.",
            barred,
        )
    limits = [number_of(one["timeout"]) for one in sharded.settings.values()]
    slowest = max((limit for limit in limits if isinstance(limit, int)), default=0)
    if slowest / 1000 >= sharded.patience:
        yield Finding(
            CHECK,
            Gravity.STALL,
            f"cluster-node-timeout is {slowest:,}",
            "For so many milliseconds nobody begins to replace a primary that is gone; callers wait"
            f" for {seconds_(sharded.patience)} (their time_out, else the client's timeout), and"
            " then raise.",
            "CONFIG SET cluster-node-timeout 5000 on each node, also in the configuration file.",
        )


def _names(sharded: Sharded) -> Iterator[Finding]:
    given = [(what, name) for what, name in (("lock", sharded.lock), ("key", sharded.key)) if name]
    if not given:
        return
    places = {}
    for what, name in given:
        at = [
            address
            for address, facts in sharded.nodes.items()
            if isinstance(facts.slots, Slots)
            and any(first <= slot(name) <= last for first, last in facts.slots.here)
        ]
        places[what] = f"{what} {name!r} in slot {slot(name):,} ({at[0] if at else 'of nobody'})"
    shown = ", ".join(places.values())
    if len({slot(name) for _, name in given}) == 2:
        yield Finding(
            "names",
            Gravity.NOTE,
            f"different slots: {shown}",
            "One step cannot reach both: an update takes the lock, changes the stock, and gives the"
            " lock back, which is three round trips instead of one.",
            hash_tag_advice(sharded.lock or "", sharded.key or ""),
        )
    else:
        yield Finding("names", Gravity.FINE, shown)


def _unknown(sharded: Sharded) -> Iterator[Finding]:
    for name, names in SETTINGS.items():
        where = [
            (address, one[name])
            for address, one in sharded.settings.items()
            if isinstance(one[name], Unknown)
        ]
        if where:
            fact = where[0][1]
            assert isinstance(fact, Unknown)
            yield not_known(CHECK, names[0], fact, see(names[0]))
    if sharded.unlisted:
        subject = "whether there are nodes that are down, or have no slots"
        yield not_known(CHECK, subject, sharded.unlisted, NODES)
    for address, facts in sharded.nodes.items():
        if isinstance(facts.cluster_state, Unknown):
            finding = not_known(CHECK, "the cluster's state", facts.cluster_state, NODES)
            yield replace(finding, where=address)


def _where(sharded: Sharded, name: str, value: str, among: set[str] | None = None) -> str:
    found = [address for address, one in sharded.settings.items() if one[name] == value]
    found = [address for address in found if among is None or address in among]
    return "all" if len(found) == len(sharded.settings) else ", ".join(found)
