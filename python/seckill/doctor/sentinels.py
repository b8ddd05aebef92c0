"""A service that sentinels watch: what they say, what may come of it, and the servers behind it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from seckill import ConnectionError, SeckillError, ServerError
from seckill.doctor.facts import Facts, Unknown, known
from seckill.doctor.finding import Finding, Gravity, not_known, said, seconds_
from seckill.doctor.nodes import client_of, judged, look_at, merged
from seckill.doctor.probes import Server, number_of, unknown
from seckill.doctor.reaching import names

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from seckill import Client

CHECK = "sentinels"
FEWEST = 3
DOWN = frozenset(["s_down", "o_down", "disconnected"])
ALLOW = "Allow the sentinels' user SENTINEL MASTER, REPLICAS and CKQUORUM."


@dataclass(frozen=True)
class Replica:
    """What a sentinel says of a replica."""

    address: str
    flags: tuple[str, ...]
    priority: int | Unknown
    follows: bool  # whether it hears its primary

    @property
    def may_take_over(self) -> bool:
        return self.follows and self.priority != 0 and not DOWN & set(self.flags)


@dataclass(frozen=True)
class Watcher:
    """One sentinel, and what it says.

    Attributes:
        address: where it was asked.
        trouble: why it could not be; None if it answered.
        primary: the address that it names; None if it does not know the service.
        quorum: how many have to find the primary down.
        others: how many other sentinels it knows.
        flags: of the primary.
        down_after: seconds of silence after which it finds it down.
        no_majority: why it could not carry out a fail-over now; None if it could.
        replicas: the replicas that it knows.
    """

    address: str
    trouble: str | None = None
    primary: str | Unknown | None = None
    quorum: int | Unknown = field(default_factory=lambda: Unknown("not asked"))
    others: int | Unknown = field(default_factory=lambda: Unknown("not asked"))
    flags: tuple[str, ...] = ()
    down_after: float | Unknown = field(default_factory=lambda: Unknown("not asked"))
    no_majority: str | Unknown | None = None
    replicas: tuple[Replica, ...] | Unknown = ()


@dataclass(frozen=True)
class Watched:
    """One examination of a service."""

    server: str
    service: str
    patience: float  # seconds that a caller without a time_out of its own waits
    sentinels: tuple[Watcher, ...]
    nodes: dict[str, Facts]
    lock: str | None = None
    key: str | None = None


def survey(client: Client, lock: str | None, key: str | None) -> tuple[Watched, list[Finding]]:
    """Ask all sentinels, and all servers that they name.

    Args:
        client: says which sentinels, and as whom to ask.
        lock: the name of a lock that will be used.
        key: the name of a stock that will be used.

    Returns:
        What was learnt, and what may come of it.

    Raises:
        ConnectionError: no sentinel can be asked, or none knows the service.
        AuthenticationError: the primary does not accept the credentials.
    """
    settings = client.settings()
    service = str(settings["service_name"])
    places = [f"{host}:{port}" for host, port in settings["sentinels"]]  # type: ignore[attr-defined]
    sentinels = tuple(_ask(client, place, service) for place in places)
    if all(one.trouble for one in sentinels):
        raise ConnectionError(f"no sentinel can be asked: {sentinels[0].trouble}", sent=False)
    primaries = [one.primary for one in sentinels if isinstance(one.primary, str)]
    silent = [one.primary for one in sentinels if isinstance(one.primary, Unknown)]
    if not primaries and silent:
        words = f"no sentinel tells which server is the primary of {service!r}: {silent[0].why}"
        raise ConnectionError(words, sent=False)
    if not primaries:
        raise ConnectionError(f"no sentinel knows the service {service!r}", sent=False)
    primary = max(dict.fromkeys(primaries), key=primaries.count)
    replicas = {replica.address for one in sentinels for replica in known(one.replicas, ())}
    replicas.discard(primary)
    given = {"lock": lock, "key": key}
    nodes = [look_at(client, primary, primary=True, names=given)]
    nodes += [look_at(client, address, primary=False, names=given) for address in sorted(replicas)]
    facts = {node.address: node.facts for node in nodes if node.facts}
    about = facts[primary].server if primary in facts else Unknown("")
    watched = Watched(
        server=f"primary {primary}"
        + ("" if isinstance(about, Unknown) else f" ({about})")
        + f", replicas: {len(replicas)}, sentinels: {len(sentinels)}",
        service=service,
        patience=float(str(settings["timeout"])),
        sentinels=sentinels,
        nodes=facts,
        lock=lock,
        key=key,
    )
    return watched, [*merged(judge(watched)), *judged(nodes)]


def _ask(client: Client, place: str, service: str) -> Watcher:
    who: dict[str, object] = {"username": None, "password": None, "ssl": False, "db": 0}
    who |= dict(client.settings()["sentinel_kwargs"] or {})  # type: ignore[call-overload]
    alone = client_of(client, place, **who, credential_provider=None)
    try:
        server = Server(alone, sentinel=True)
        master = _fields(server.ask("SENTINEL", "MASTER", service))
        primary: str | Unknown = master if isinstance(master, Unknown) else _place(master)
        if isinstance(master, Unknown):
            if "No such master" in master.why:
                return Watcher(place)
            # A server has no such command; and who sells may be allowed this one alone.
            named = server.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service)
            if "unknown command" in unknown(named).why.lower():
                return Watcher(place, trouble=f"{place} is a server, and no sentinel")
            if named is None:
                return Watcher(place)
            if isinstance(named, list):
                primary = ":".join(map(str, named))
        quorum = server.ask("SENTINEL", "CKQUORUM", service)
        told = server.ask("SENTINEL", "REPLICAS", service)
    except SeckillError as error:
        return Watcher(place, trouble=str(error))
    no_majority: str | Unknown | None = None
    if isinstance(quorum, ServerError):
        refused = str(quorum).startswith("NOQUORUM")
        no_majority = said(str(quorum)) if refused else Unknown(str(quorum))
    if isinstance(master, Unknown):
        return Watcher(
            place,
            primary=primary,
            quorum=master,
            others=master,
            down_after=master,
            no_majority=no_majority,
            replicas=_told(told),
        )
    down_after = number_of(master.get("down-after-milliseconds", ""))
    return Watcher(
        place,
        primary=primary,
        quorum=number_of(master.get("quorum", "")),
        others=number_of(master.get("num-other-sentinels", "")),
        flags=tuple(master.get("flags", "").split(",")),
        down_after=down_after if isinstance(down_after, Unknown) else down_after / 1000,
        no_majority=no_majority,
        replicas=_told(told),
    )


def _place(told: dict[str, str]) -> str:
    return f"{told.get('ip')}:{told.get('port')}"


def _told(replicas: object) -> tuple[Replica, ...] | Unknown:
    if not isinstance(replicas, list):
        return unknown(replicas)
    every = map(_fields, replicas)
    return tuple(_replica(one) for one in every if not isinstance(one, Unknown))


def _fields(reply: object) -> dict[str, str] | Unknown:
    if isinstance(reply, list):  # RESP2
        reply = dict(zip(reply[::2], reply[1::2], strict=False))
    if isinstance(reply, dict):
        return {str(name): str(value) for name, value in reply.items()}
    return unknown(reply)


def _replica(told: dict[str, str]) -> Replica:
    return Replica(
        _place(told),
        tuple(told.get("flags", "").split(",")),
        number_of(told.get("slave-priority", "")),
        told.get("master-link-status") == "ok",
    )


# -- the judgement --------------------------------------------------------------------------------


def judge(watched: Watched) -> list[Finding]:
    """What may come of how the service is watched."""
    answering = [one for one in watched.sentinels if not one.trouble]
    knowing = [one for one in answering if isinstance(one.primary, str)]
    checks = (
        _agreement(knowing),
        _number(watched, answering),
        _quorum(knowing),
        _state(watched, knowing),
        _replicas(knowing),
        _unknown(answering),
        names(Facts(lock=watched.lock, key=watched.key, cluster=False)),
    )
    return [finding for check in checks for finding in check]


def _agreement(knowing: list[Watcher]) -> Iterator[Finding]:
    named: dict[str, list[str]] = {}
    for one in knowing:
        named.setdefault(str(one.primary), []).append(one.address)
    if len(named) > 1:
        sides = "; ".join(f"{primary} by {', '.join(by)}" for primary, by in named.items())
        yield Finding(
            CHECK,
            Gravity.OVERSELL,
            f"the sentinels do not agree on the primary: {sides}",
            "Who believes the wrong ones sells on a server whose sales are undone when it follows"
            " the other. (seckill asks them all and takes the newest; others take the first.)",
            "A fail-over ends within seconds: ask again. Else these sentinels cannot reach one"
            " another, or watch two services of the same name: SENTINEL MASTER on each.",
        )
    elif knowing:
        yield Finding(CHECK, Gravity.FINE, "the sentinels name the same primary")


def _number(watched: Watched, answering: list[Watcher]) -> Iterator[Finding]:
    for one in watched.sentinels:
        if one.trouble:
            yield Finding(
                CHECK,
                Gravity.STALL,
                f"the sentinel {one.address} cannot be asked: {one.trouble}",
                "One more that is down, and there may be no majority for a fail-over.",
                "See whether it is up, and the network on the way; take it out of the URL if it is"
                " gone for good (and SENTINEL RESET on the others).",
            )
        elif one.primary is None:
            yield Finding(
                CHECK,
                Gravity.STALL,
                f"the sentinel {one.address} does not know the service {watched.service!r}",
                "It is of no use in a fail-over.",
                f"sentinel monitor {watched.service} ... in its configuration, or another name in"
                " the URL.",
            )
    counts = {one.others + 1 for one in answering if isinstance(one.others, int)}
    if counts and max(counts) < FEWEST:
        count = max(counts)
        yield Finding(
            CHECK,
            Gravity.STALL,
            f"{count} sentinel{'s' if count > 1 else ''} in all",
            "A fail-over takes a majority of all sentinels: when the machine of one is down, with"
            " the primary on it or not, there is none.",
            "Three sentinels on three machines.",
        )
    elif len(counts) > 1:
        shown = ", ".join(str(count) for count in sorted(counts))
        yield Finding(
            CHECK,
            Gravity.STALL,
            f"the sentinels do not agree on how many they are: {shown}",
            "Those that some remember and that are gone count in every majority.",
            f"SENTINEL RESET {watched.service} on one after the other, with 30 s in between.",
        )
    if len(watched.sentinels) == 1 and (not counts or max(counts) > 1):
        yield Finding(
            CHECK,
            Gravity.STALL,
            "the URL names one sentinel",
            "When that one is down, nobody who starts or reconnects finds the primary.",
            "Name them all: redis+sentinel://host1,host2,host3/" + watched.service,
        )


def _quorum(knowing: list[Watcher]) -> Iterator[Finding]:
    for one in knowing:
        if isinstance(one.quorum, Unknown) or isinstance(one.others, Unknown):
            continue
        count = one.others + 1
        shown = f"quorum {one.quorum} of {count} sentinels"
        if one.quorum > count:
            yield Finding(
                CHECK,
                Gravity.STALL,
                shown,
                "So many never agree that the primary is down: there will be no fail-over.",
                f"SENTINEL SET <service> quorum {count // 2 + 1} on each.",
                one.address,
            )
        elif one.quorum <= count // 2 and count >= FEWEST:
            yield Finding(
                CHECK,
                Gravity.OVERSELL,
                shown,
                "A minority that does not reach the primary, while those who sell do, replaces it;"
                " what it had sold and its replicas had not got yet is sold again.",
                f"SENTINEL SET <service> quorum {count // 2 + 1} on each.",
                one.address,
            )


def _state(watched: Watched, knowing: list[Watcher]) -> Iterator[Finding]:
    for one in knowing:
        bad = [flag for flag in one.flags if flag in DOWN or "failover" in flag]
        if bad:
            yield Finding(
                "fail-over",
                Gravity.STALL,
                f"the primary is {', '.join(bad)}",
                "Sales wait until it is back, or another has taken over.",
                "Wait for the end of the fail-over, and ask again; see the sentinels' logs.",
                one.address,
            )
        if isinstance(one.no_majority, str):
            yield Finding(
                "fail-over",
                Gravity.STALL,
                one.no_majority,
                "There can be no fail-over now.",
                "Bring the sentinels back that are down, and see that they reach one another.",
                one.address,
            )
    if knowing and all(one.no_majority is None for one in knowing):
        yield Finding("fail-over", Gravity.FINE, "there is a majority for a fail-over")
    slow = {one.down_after for one in knowing if isinstance(one.down_after, float)}
    if slow and max(slow) >= watched.patience:
        yield Finding(
            "fail-over",
            Gravity.STALL,
            f"down-after-milliseconds is {max(slow) * 1000:,.0f}",
            "Before that nobody begins to replace a primary that is gone; callers wait for"
            f" {seconds_(watched.patience)} (their time_out, else the client's timeout), and then"
            " raise.",
            f"SENTINEL SET {watched.service} down-after-milliseconds 5000 on each.",
        )


def _replicas(knowing: list[Watcher]) -> Iterator[Finding]:
    views = [known(one.replicas, ()) for one in knowing]
    best = max(views, key=lambda view: sum(one.may_take_over for one in view), default=())
    good = sum(replica.may_take_over for replica in best)
    for replica in best:  # that there is none, the primary says itself
        if not replica.may_take_over:
            why = "replica-priority 0" if replica.priority == 0 else "down, or without its primary"
            yield Finding(
                "replicas",
                Gravity.NOTE if good else Gravity.STALL,
                f"the replica {replica.address} cannot take over: {why}",
                "" if good else "Nor can another: when the primary goes down, the sale stops.",
                "See that it runs and follows the primary; replica-priority 100.",
            )


def _unknown(answering: list[Watcher]) -> Iterator[Finding]:
    for one in answering:
        for subject, fact in (
            ("what it knows", one.primary),
            ("how many must agree", one.quorum if isinstance(one.primary, str) else None),
            ("whether there is a majority", one.no_majority),
            ("the replicas", one.replicas),
        ):
            if isinstance(fact, Unknown):
                yield replace(not_known(CHECK, subject, fact, ALLOW), where=one.address)
