"""Clients of redis-py and valkey-py: what is read from them. Nothing connects here."""

from __future__ import annotations

import pickle
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import redis
import redis.asyncio
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
import seckill
import valkey
import valkey.asyncio
import valkey.asyncio.cluster
import valkey.asyncio.sentinel
import valkey.cluster
import valkey.sentinel
from seckill._settings import resolve
from seckill._sources import client_of


@pytest.mark.parametrize(
    "library",
    [redis.Redis, redis.asyncio.Redis, valkey.Valkey, valkey.asyncio.Valkey],
    ids=["redis-py", "redis-py asyncio", "valkey-py", "valkey-py asyncio"],
)
class TestInstance:
    @pytest.mark.parametrize(
        ("keywords", "settings"),
        [
            ({}, {"host": "localhost", "port": 6379, "db": 0}),
            ({"host": "h", "port": 7000, "db": 2}, {"host": "h", "port": 7000, "db": 2}),
            (
                {"username": "u", "password": "p", "client_name": "shop", "decode_responses": True},
                {
                    "host": "localhost",
                    "port": 6379,
                    "db": 0,
                    "username": "u",
                    "password": "p",
                    "client_name": "shop",
                },
            ),
            ({"unix_socket_path": "/r.sock", "db": 1}, {"unix_socket_path": "/r.sock", "db": 1}),
        ],
    )
    def test_is_read(
        self,
        library: type[redis.Redis],
        keywords: dict[str, object],
        settings: dict[str, object],
    ) -> None:
        waits = {"socket_timeout": 3, "socket_connect_timeout": 2}
        read = resolve(library(**keywords, **waits), {})
        if "unix_socket_path" in keywords:  # they keep it for TCP only
            read.pop("socket_connect_timeout", None)
            assert read == {**settings, "socket_timeout": 3.0}
        else:
            assert read == {**settings, "socket_timeout": 3.0, "socket_connect_timeout": 2.0}

    def test_with_an_empty_user_has_none(self, library: type[redis.Redis]) -> None:
        assert "username" not in resolve(library(username="", password="p"), {})
        read = resolve(library(username="u", password=""), {})
        assert (read["username"], "password" in read) == ("u", False)

    def test_without_a_time_out_gets_ours(self, library: type[redis.Redis]) -> None:
        client = library(socket_timeout=None, socket_connect_timeout=None)
        assert not {"socket_timeout", "socket_connect_timeout"} & resolve(client, {}).keys()

    def test_made_from_a_url(self, library: type[redis.Redis]) -> None:
        client = library.from_url(
            "redis://u:p@h:7000/2" if "redis" in library.__module__ else "valkey://u:p@h:7000/2"
        )
        read = resolve(client, {})
        place = {"host": "h", "port": 7000, "db": 2, "username": "u", "password": "p"}
        assert read.items() >= place.items()

    def test_may_be_joined_by_keywords(self, library: type[redis.Redis]) -> None:
        assert (
            resolve(library(), {"db": 5, "timeout": 2}).items() >= {"db": 5, "timeout": 2.0}.items()
        )

    @pytest.mark.parametrize("place", [{"host": "h"}, {"cluster": [("h", 1)]}])
    def test_is_not_joined_by_another_place(
        self, library: type[redis.Redis], place: dict[str, object]
    ) -> None:
        words = f"{next(iter(place))} cannot be given together with an existing client"
        with pytest.raises(TypeError, match=words):
            resolve(library(), place)

    def test_with_a_bare_pool(self, library: type[redis.Redis]) -> None:
        package = sys.modules[library.__module__.rpartition(".")[0]]
        pool = package.ConnectionPool()
        read = resolve(library(connection_pool=pool), {})
        assert read["host"] == "localhost"

    def test_with_tls(self, library: type[redis.Redis]) -> None:
        read = resolve(library(ssl=True, ssl_ca_certs="/ca.pem", ssl_keyfile=None), {})
        assert read.items() >= {"ssl": True, "ssl_ca_certs": "/ca.pem"}.items()
        assert "ssl_keyfile" not in read
        assert "ssl" not in resolve(library(), {})
        scheme = "rediss" if "redis" in library.__module__ else "valkeys"
        assert resolve(library.from_url(f"{scheme}://h"), {})["ssl"] is True

    def test_with_tls_of_a_kind_that_cannot_be_had(self, library: type[redis.Redis]) -> None:
        with pytest.raises(ValueError, match=r"^ssl_ciphers: .* not supported"):
            resolve(library(ssl=True, ssl_ciphers="HIGH"), {})

    def test_with_a_credential_provider(self, library: type[redis.Redis]) -> None:
        provider = redis.UsernamePasswordCredentialProvider("u", "p")
        read = resolve(library(credential_provider=provider), {})
        assert read["credential_provider"] is provider


class TestOtherSources:
    @pytest.mark.parametrize("source", [b"redis://h", 5, object(), {"host": "h"}, ("h", 1)])
    def test_anything_else(self, source: object) -> None:
        with pytest.raises(
            TypeError, match=r"^source must be a URL, redis.Redis or valkey.Valkey .*, not"
        ):
            resolve(source, {})  # type: ignore[arg-type]


SENTINELS = {
    "redis-py": redis.sentinel.Sentinel,
    "redis-py asyncio": redis.asyncio.sentinel.Sentinel,
    "valkey-py": valkey.sentinel.Sentinel,
    "valkey-py asyncio": valkey.asyncio.sentinel.Sentinel,
}


@pytest.fixture(params=SENTINELS.values(), ids=SENTINELS.keys())
def sentinel(request: pytest.FixtureRequest) -> Any:
    return request.param


class TestSentinel:
    def test_is_read(self, sentinel: Any) -> None:
        manager = sentinel([("two", 26380), ("one", 26379)], username="u", socket_timeout=2)
        assert resolve(manager.master_for("mymaster", password="p", db=3), {}) == {
            "sentinels": [("one", 26379), ("two", 26380)],
            "service_name": "mymaster",
            "sentinel_kwargs": {},
            "username": "u",
            "password": "p",
            "db": 3,
            "socket_timeout": 2.0,
        }

    def test_is_talked_to_as_it_is_there(self, sentinel: Any) -> None:
        theirs = {"username": "s", "password": "q", "ssl": True, "ssl_ca_certs": "/ca.pem"}
        manager = sentinel([("h", 1)], sentinel_kwargs=theirs)
        read = resolve(manager.master_for("m"), {})
        assert read["sentinel_kwargs"].items() >= theirs.items()  # type: ignore[attr-defined]
        assert not {"username", "password", "ssl"} & read.keys()

    def test_and_the_server_with_tls(self, sentinel: Any) -> None:
        manager = sentinel([("h", 1)])
        read = resolve(manager.master_for("m", ssl=True, ssl_ca_certs="/ca.pem"), {})
        assert read.items() >= {"ssl": True, "ssl_ca_certs": "/ca.pem"}.items()
        assert read["sentinel_kwargs"] == {}

    def test_for_replicas_is_refused(self, sentinel: Any) -> None:
        replicas = sentinel([("h", 1)]).slave_for("mymaster")
        with pytest.raises(
            ValueError, match=r"it reads from replicas of 'mymaster', and nothing can be sold there"
        ):
            resolve(replicas, {})

    def test_with_a_credential_provider(self, sentinel: Any) -> None:
        provider = redis.UsernamePasswordCredentialProvider("u", "p")
        manager = sentinel([("h", 1)])
        read = resolve(manager.master_for("m", credential_provider=provider), {})
        assert read["credential_provider"] is provider
        manager = sentinel([("h", 1)], sentinel_kwargs={"credential_provider": provider})
        with pytest.raises(ValueError, match="sentinel_kwargs: credential_provider is not supp"):
            resolve(manager.master_for("m"), {})

    def test_that_would_lead_elsewhere_is_refused(self, sentinel: Any) -> None:
        manager = sentinel([("h", 1), ("h", 2)])
        manager.sentinels[1].connection_pool.connection_kwargs["password"] = "q"
        with pytest.raises(ValueError, match="sentinels with settings of their own"):
            resolve(manager.master_for("m"), {})

    @pytest.mark.parametrize("make", [seckill.Client, seckill.aio.Client])
    def test_makes_a_client(self, sentinel: Any, make: Callable[..., seckill.Client]) -> None:
        client = make(sentinel([("h", 1), ("::1", 2)]).master_for("m", password="p"), timeout=3)
        assert repr(client) == "Client('redis+sentinel://:***@[::1]:2,h:1/m/0')"
        assert client.settings()["timeout"] == 3.0

    def test_of_one_service_is_shared_by_locks(self, sentinel: Any) -> None:
        manager = sentinel([("one", 1), ("two", 2)])
        first = client_of(manager.master_for("m"))
        manager.sentinels.reverse()  # as it does when the second one answers
        second = client_of(manager.master_for("m"))
        assert first is not None
        assert first is second
        assert client_of(manager.master_for("other")) is not first

    @pytest.mark.parametrize("kind", ["redis-py", "valkey-py"])
    def test_makes_locks(self, kind: str) -> None:
        client = SENTINELS[kind]([("h", 1)]).master_for("m")
        lock = client.lock("sku", lock_class=seckill.Lock)
        assert pickle.loads(pickle.dumps(lock)).redis.settings()["service_name"] == "m"


class Tunnel:
    """Connects in a way of its own, as fakeredis does, too."""

    def _connect(self) -> None:
        raise NotImplementedError


class Counting:
    """Does something besides, and connects as ever."""

    def connect(self) -> Any:
        return super().connect()  # type: ignore[misc]

    def send_command(self, *words: Any) -> Any:
        return super().send_command(*words)  # type: ignore[misc]


@pytest.mark.parametrize(
    "package", [redis, redis.asyncio, valkey, valkey.asyncio], ids=lambda it: it.__name__
)
@pytest.mark.parametrize("kind", ["Connection", "SSLConnection", "UnixDomainSocketConnection"])
def test_connections_that_are_made_in_another_way_are_refused(package: Any, kind: str) -> None:
    library = package.Redis if "redis" in package.__name__ else package.Valkey
    theirs = getattr(package.connection, kind)

    def client_with(special: type) -> Any:
        connects = type("Special", (special, theirs), {})
        place = {"path": "/r.sock"} if "Unix" in kind else {"host": "h"}
        return library(connection_pool=package.ConnectionPool(connection_class=connects, **place))

    with pytest.raises(ValueError, match=r"\.Special: a connection class with a _connect of"):
        resolve(client_with(Tunnel), {})
    read = resolve(client_with(Counting), {})
    assert read.get("ssl", False) == (kind == "SSLConnection")
    assert ("unix_socket_path" in read) == ("Unix" in kind)


def test_nor_are_those_of_sentinels_and_clusters(monkeypatch: pytest.MonkeyPatch) -> None:
    manager = redis.sentinel.Sentinel([("h", 1)])
    resolve(manager.master_for("m"), {})
    connects = type("Special", (Tunnel, redis.sentinel.SentinelManagedConnection), {})
    with pytest.raises(ValueError, match=r"\.Special: "):
        resolve(manager.master_for("m", connection_class=connects), {})
    monkeypatch.setattr(redis.cluster.NodesManager, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(redis.cluster, "CommandsParser", lambda *_: None)
    connects = type("Special", (Tunnel, redis.Connection), {})
    with pytest.raises(ValueError, match=r"\.Special: "):
        resolve(redis.cluster.RedisCluster(host="h", connection_class=connects), {})


@pytest.mark.parametrize("package", [redis, redis.asyncio])
def test_a_forced_address_is_refused(package: ModuleType) -> None:
    manager = package.sentinel.Sentinel([("h", 1)], force_master_ip="10.0.0.1")
    with pytest.raises(ValueError, match="force_master_ip is not supported"):
        resolve(manager.master_for("m"), {})


CLUSTERS = {
    "redis-py": redis.cluster,
    "redis-py asyncio": redis.asyncio.cluster,
    "valkey-py": valkey.cluster,
    "valkey-py asyncio": valkey.asyncio.cluster,
}


class Package:
    """One of the four, whose clients do not ask for the map of the cluster when they are made."""

    def __init__(self, module: Any) -> None:
        self.awaited = "asyncio" in module.__name__
        self.node = module.ClusterNode
        self.scheme = module.__name__.partition(".")[0]
        self.client = getattr(module, f"{self.scheme.title()}Cluster")


@pytest.fixture(params=CLUSTERS.values(), ids=CLUSTERS.keys())
def package(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Package:
    if "asyncio" not in request.param.__name__:
        monkeypatch.setattr(request.param.NodesManager, "initialize", lambda *_, **__: None)
        monkeypatch.setattr(request.param, "CommandsParser", lambda *_: None, raising=False)
    return Package(request.param)


class TestCluster:
    def test_is_read(self, package: Package) -> None:
        nodes = [package.node("two", 7001), package.node("one", 7000)]
        client = package.client(startup_nodes=nodes, username="u", password="p", client_name="shop")
        read = resolve(client, {})
        assert read["cluster"] == [("one", 7000), ("two", 7001)]
        place = {"username": "u", "password": "p", "client_name": "shop"}
        assert read.items() >= place.items()
        assert not {"host", "port", "ssl", "timeout"} & read.keys()

    def test_with_time_outs(self, package: Package) -> None:
        client = package.client(host="h", socket_timeout=3, socket_connect_timeout=2)
        waits = {"socket_timeout": 3.0, "socket_connect_timeout": 2.0}
        assert resolve(client, {}).items() >= waits.items()

    def test_made_from_a_url(self, package: Package) -> None:
        read = resolve(package.client.from_url(f"{package.scheme}://u:p@h:7000/0"), {})
        assert read["cluster"] == [("h", 7000)]
        assert (read["username"], read["password"]) == ("u", "p")
        read = resolve(package.client.from_url(f"{package.scheme}s://h?ssl_ca_certs=/ca.pem"), {})
        assert read.items() >= {"ssl": True, "ssl_ca_certs": "/ca.pem"}.items()

    def test_with_tls(self, package: Package) -> None:
        read = resolve(package.client(host="h", ssl=True, ssl_ca_certs="/ca.pem"), {})
        assert read.items() >= {"ssl": True, "ssl_ca_certs": "/ca.pem"}.items()

    def test_with_a_credential_provider(self, package: Package) -> None:
        provider = redis.UsernamePasswordCredentialProvider("u", "p")
        read = resolve(package.client(host="h", credential_provider=provider), {})
        assert read["credential_provider"] is provider

    @pytest.mark.filterwarnings("ignore:Call to '__init__' function with deprecated")
    def test_that_reads_from_replicas_still_sells_on_primaries(self, package: Package) -> None:
        client = package.client(host="h", read_from_replicas=True)
        assert resolve(client, {})["cluster"] == [("h", 6379)]

    def test_whose_addresses_are_translated_is_refused(self, package: Package) -> None:
        client = package.client(host="h", address_remap=lambda address: address)
        with pytest.raises(ValueError, match="address_remap is not supported"):
            resolve(client, {})

    @pytest.mark.parametrize("make", [seckill.Client, seckill.aio.Client])
    def test_makes_a_client(self, package: Package, make: Callable[..., seckill.Client]) -> None:
        client = make(package.client(host="h", port=7000, password="p"), timeout=3)
        assert repr(client) == "Client('redis+cluster://:***@h:7000/0')"

    def test_is_one_client_for_all_its_locks(self, package: Package) -> None:
        client = package.client(host="h", port=7000)
        lock_class = seckill.aio.Lock if package.awaited else seckill.Lock
        one, other = (client.lock(name, lock_class=lock_class) for name in ("one", "other"))
        assert pickle.loads(pickle.dumps(one)).redis.settings()["cluster"] == [("h", 7000)]
        assert one.redis is other.redis is client
        assert client_of(client) is client_of(package.client(host="h", port=7000))


@pytest.mark.parametrize("module", [redis.cluster, valkey.cluster])
def test_a_connect_function_of_the_users_is_refused(
    module: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.NodesManager, "initialize", lambda *_, **__: None)
    monkeypatch.setattr(module, "CommandsParser", lambda *_: None)
    package = Package(module)
    client = package.client(host="h", **{f"{package.scheme}_connect_func": print})
    with pytest.raises(ValueError, match="connect_func: a connect function is not supported"):
        resolve(client, {})
