"""Several servers that sell together: each is examined, and all that is said becomes one list."""

from __future__ import annotations

from dataclasses import dataclass, replace

from seckill import AuthenticationError, Client, SeckillError, ServerError
from seckill.doctor.facts import Facts, Unknown
from seckill.doctor.finding import Finding, Gravity
from seckill.doctor.findings import judge
from seckill.doctor.probes import examine

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any

OF_A_DEPLOYMENT = ("sentinels", "service_name", "sentinel_kwargs", "cluster")
# What is said of a primary only; and of all of them together instead.
OF_PRIMARIES = frozenset(["scripts", "writes", "tracking", "replicas", "wait", "waitaof"])
OF_ALL = frozenset(["cluster", "names"])


@dataclass(frozen=True)
class Node:
    """A server of a deployment: where it is, what it is, and what was learnt of it.

    Attributes:
        address: host and port.
        primary: whether it is the one that takes writes (or one of them).
        facts: what was learnt; None if it could not be asked.
        trouble: why it could not.
    """

    address: str
    primary: bool
    facts: Facts | None = None
    trouble: str = ""


def client_of(client: Client, address: str, **who: Any) -> Client:
    """A client for one server of a deployment: with all of its settings but the place."""
    settings = {
        name: value
        for name, value in client.settings().items()
        if name not in OF_A_DEPLOYMENT and value is not None
    }
    host, _, port = address.rpartition(":")
    return Client(host=host, port=int(port), **(settings | who))  # type: ignore[arg-type]


def look_at(client: Client, address: str, *, primary: bool, names: Mapping[str, Any]) -> Node:
    """Examine one server of a deployment."""
    try:
        return Node(address, primary, examine(client_of(client, address), **names))
    except SeckillError as error:
        if primary and isinstance(error, AuthenticationError | ServerError):
            raise
        return Node(address, primary, trouble=str(error))


def judged(nodes: Iterable[Node]) -> list[Finding]:
    """The results of all checks of all servers; what is the same of several is said once."""
    where: dict[Finding, list[str]] = {}
    nodes = sorted(nodes, key=_slowness, reverse=True)
    for node in nodes:
        for finding in _of(node):
            if finding.gravity is Gravity.FINE and finding.check == "round trip":
                finding = replace(finding, what=f"{finding.what}, at the slowest server")
                if node is not nodes[0]:
                    continue
            where.setdefault(finding, []).append(node.address)
    return [
        replace(finding, where=", ".join(addresses))
        if len(addresses) < len(nodes) or len(nodes) == 1
        else replace(finding, where="all")
        for finding, addresses in where.items()
    ]


def merged(findings: Iterable[Finding]) -> list[Finding]:
    """What is the same of several is said once."""
    where: dict[Finding, list[str]] = {}
    for finding in findings:
        where.setdefault(replace(finding, where=""), []).append(finding.where)
    return [replace(finding, where=", ".join(places)) for finding, places in where.items()]


def _slowness(node: Node) -> float:
    slowest = node.facts.slowest if node.facts else 0.0
    return 0.0 if isinstance(slowest, Unknown) else slowest


def _of(node: Node) -> Iterator[Finding]:
    if node.facts is None:
        kind = "primary" if node.primary else "replica"
        yield Finding(
            "reachable",
            Gravity.STALL,
            f"a {kind} cannot be asked: {node.trouble}",
            "Who sells from this machine cannot reach it either"
            + (
                ": its sales stop."
                if node.primary
                else ", also when it has become the primary in a fail-over."
            ),
            "See whether it is up, and the network and the firewalls on the way; and that it tells"
            " an address that is good for those who sell (replica-announce-ip,"
            " cluster-announce-ip).",
        )
        return
    for finding in judge(node.facts):
        if finding.check in OF_ALL or (not node.primary and _of_a_primary(finding)):
            continue
        yield finding


def _of_a_primary(finding: Finding) -> bool:
    """Whether it says nothing of a replica that is one."""
    harmless = finding.check == "role" and finding.gravity is not Gravity.OVERSELL
    return harmless or finding.check in OF_PRIMARIES
