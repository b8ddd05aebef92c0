"""The doctor's judgement, from facts alone; and how its words are put on a page."""

from __future__ import annotations

import dataclasses

import pytest
from seckill.doctor import probes
from seckill.doctor.facts import Facts, Silent, Slots, Unknown
from seckill.doctor.finding import Finding, Gravity
from seckill.doctor.findings import judge
from seckill.doctor.reaching import slot
from seckill.doctor.report import Report, width, wrapped

FORBIDDEN = Unknown("NOPERM this user has no permissions")
HEALTHY = Facts(
    server="Valkey 9.1.2",
    role="master",
    active_replica=False,
    failover="no-failover",
    maxmemory=1 << 30,
    used_memory=1 << 20,
    policy="noeviction",
    evicted=0,
    aof=True,
    fsync="always",
    snapshots="3600 1",
    replicas=2,
    replicas_online=2,
    min_replicas=1,
    cluster=False,
    scripts=None,
    writes=None,
    tracking=None,
    wait=None,
    waitaof=None,
    skew=0.001,
    round_trip=0.0001,
    slowest=0.0002,
    open_to_all=False,
)


def results(**changes: object) -> list[Finding]:
    return judge(dataclasses.replace(HEALTHY, **changes))  # type: ignore[arg-type]


def findings(**changes: object) -> dict[str, str]:
    found = [result for result in results(**changes) if result.gravity.is_finding]
    assert all(result.what and result.remedy for result in found)
    return {result.check: result.gravity.name for result in found}


def fine(**changes: object) -> set[str]:
    return {result.check for result in results(**changes) if result.gravity is Gravity.FINE}


def test_a_healthy_server() -> None:
    assert findings() == {}
    assert {result.gravity for result in results()} == {Gravity.FINE}


@pytest.mark.parametrize(
    ("changes", "found"),
    [
        # What no server of the tests can be brought to.
        ({"active_replica": True, "role": "active-replica"}, {"active-replica": "OVERSELL"}),
        ({"remote": True}, {"encryption": "OPEN"}),
        ({"remote": True, "encrypted": True}, {}),
        ({"round_trip": 0.02, "slowest": 0.03}, {}),
        ({"slowest": 0.7}, {"round trip": "STALL"}),
        ({"slowest": 0.7, "socket_timeout": 5.0}, {}),
        ({"skew": -3.0}, {"clock": "LOSE"}),
        ({"role": "sentinel"}, {"role": "STALL"}),
        ({"policy": "eviction"}, {"eviction": "OVERSELL"}),
        ({"policy": "volatile-lru", "maxmemory": Unknown("no")}, {"eviction": "OVERSELL"}),
        ({"failover": "failover-in-progress"}, {"fail-over": "STALL"}),
        ({"failover": Unknown("INFO does not tell master_failover_state")}, {}),
        ({"scripts_are_held": False}, {"replicas": "OVERSELL"}),
        ({"writes": "NOREPLICAS Not enough good replicas"}, {"writes": "STALL"}),
        ({"writes": Silent("no answer within 1000 ms")}, {"writes": "STALL"}),
        ({"wait": "ERR unknown command 'WAIT'"}, {}),
        ({"tracking": "it is accepted, and nothing is told"}, {"tracking": "STALL"}),
        ({"used_memory": 1 << 30}, {"memory": "STALL"}),
        ({"replicas_online": 1}, {}),
    ],
    ids=str,
)
def test_what_is_found(changes: dict[str, object], found: dict[str, str]) -> None:
    assert findings(**changes) == found


@pytest.mark.parametrize(
    ("fact", "check"),
    [
        ("role", "role"),
        ("active_replica", "active-replica"),
        ("failover", "fail-over"),
        ("policy", "eviction"),
        ("aof", "persistence"),
        ("fsync", "persistence"),
        ("replicas", "replicas"),
        ("min_replicas", "replicas"),
        ("cluster", "cluster"),
        ("scripts", "scripts"),
        ("writes", "writes"),
        ("tracking", "tracking"),
        ("wait", "wait"),
        ("waitaof", "waitaof"),
        ("skew", "clock"),
        ("round_trip", "round trip"),
        ("open_to_all", "password"),
    ],
)
def test_what_is_forbidden_is_unknown_and_never_fine(fact: str, check: str) -> None:
    changes = {fact: FORBIDDEN}
    assert findings(**changes) == {check: "UNKNOWN"}
    assert check not in fine(**changes)
    [unknown] = [result for result in results(**changes) if result.gravity is Gravity.UNKNOWN]
    assert "NOPERM" in unknown.what


@pytest.mark.parametrize(
    ("changes", "check"),
    [
        ({"round_trip": 0.02, "slowest": 0.03}, "round trip"),
        ({"replicas_online": 1}, "replicas"),
        ({"wait": "ERR unknown command 'WAIT'"}, "wait"),
        ({"fsync": "everysec"}, "persistence"),
        ({"policy": "allkeys-lru", "maxmemory": 0}, "eviction"),
    ],
    ids=str,
)
def test_what_is_to_be_known(changes: dict[str, object], check: str) -> None:
    notes = [result.check for result in results(**changes) if result.gravity is Gravity.NOTE]
    assert (notes, findings(**changes)) == ([check], {})


@pytest.mark.parametrize(
    ("info", "settings", "found"),
    [
        ("role:active-replica", {}, True),
        ("role:master", {"active-replica": "yes"}, True),
        ("role:master", {"active-replica": "no", "multi-master": "yes"}, True),
        ("role:master", {"active-replica": "no", "multi-master": "no"}, False),
        ("role:master\nexecutable:/usr/bin/keydb-server", FORBIDDEN, FORBIDDEN),
        ("role:master\nexecutable:/usr/bin/redis-server", FORBIDDEN, False),
    ],
)
def test_a_server_that_may_be_an_active_replica(
    info: str, settings: dict[str, str] | Unknown, found: bool | Unknown
) -> None:
    """KeyDB is in no package registry: what it answers is in its documentation."""

    class Server:
        def setting(self, name: str) -> str | Unknown:
            return settings if isinstance(settings, Unknown) else settings.get(name, "no")

    fields = probes.Info(info)
    role = fields.text("role")
    assert probes._active_replica(Server(), fields, role) == found  # type: ignore[arg-type]


def test_the_gravest_comes_first() -> None:
    found = results(open_to_all=True, replicas=0, aof=False, skew=9.0, fsync=Unknown("NOPERM"))
    gravities = [result.gravity for result in found]
    assert gravities == sorted(gravities)
    assert gravities[:4] == [Gravity.OVERSELL, Gravity.LOSE, Gravity.STALL, Gravity.OPEN]


class TestNames:
    @pytest.mark.parametrize(
        ("lock", "key"),
        [("lock", "sku:7"), ("lock", "{sale}:7"), ("锁", "库存"), ("lock", "a}b"), ("x{y", "z")],
    )
    def test_the_advice_brings_them_into_one_slot(self, lock: str, key: str) -> None:
        [advice] = [item.remedy for item in results(lock=lock, key=key) if item.check == "names"]
        if advice.startswith("Name the lock "):
            advised = advice.removeprefix("Name the lock ").partition(": only")[0]
            assert slot(advised) == slot(key)
        else:
            assert "{" in lock or "}" in key
            assert slot("{sale}:lock") == slot("{sale}:stock")

    def test_different_slots_matter_in_a_cluster(self) -> None:
        assert findings(lock="lock", key="stock") == {}
        here = Slots(here=((0, 16383),))
        in_cluster = {"cluster": True, "cluster_state": "ok", "slots": here}
        assert findings(lock="lock", key="stock", **in_cluster) == {"names": "STALL"}
        assert findings(lock="{s}lock", key="{s}stock", **in_cluster) == {}
        assert "names" in fine(lock="lock", **in_cluster)

    def test_slots_are_those_of_the_cluster_specification(self) -> None:
        assert slot("123456789") == 0x31C3
        assert slot("{user1000}.following") == slot("user1000")
        assert slot("foo{}{bar}") == slot("foo{}{bar}") != slot("bar")
        assert slot("foo{{bar}}zap") == slot("{bar")

    def test_who_serves_a_slot(self) -> None:
        slots = Slots(here=((0, 99),), elsewhere=((100, 16000, "10.0.0.2:6379"),))
        assert (slots.count, slots.nobodys) == (100, 383)
        assert slots.server_of(100) == "10.0.0.2:6379"
        assert slots.server_of(5) is slots.server_of(16001) is None


class TestPage:
    def test_lines_break_between_words(self) -> None:
        assert list(wrapped("one two three", 7, 5)) == ["one two", "three"]
        assert list(wrapped("one", 3, 3)) == ["one"]
        assert list(wrapped("", 3, 3)) == [""]

    def test_a_word_that_is_too_long_is_broken(self) -> None:
        assert list(wrapped("abcdefgh ij", 3, 4)) == ["abc", "defg", "h ij"]

    def test_chinese_is_twice_as_wide(self) -> None:
        assert width("库存:7") == 6
        assert list(wrapped("库存库存", 5, 4)) == ["库存", "库存"]

    def test_what_a_server_says_cannot_write_on_the_terminal(self) -> None:
        facts = dataclasses.replace(HEALTHY, server="\x1b[2J", writes="ERR \x1b]0;title\x07")
        assert "\x1b" not in Report("redis://h", facts, judge(facts)).as_text()
        assert "\x1b" not in str(Report(None, error="\x1b[2J").error)
