"""TLS to sentinels, to the servers that they name, and to the nodes of a cluster."""

from __future__ import annotations

import pytest
import redis.sentinel
import seckill
import valkey.sentinel
from redis.cluster import RedisCluster
from support import acl
from support.certificates import Authority
from support.clusters import SLOTS, Node
from support.sentinels import HOST, SERVICE
from support.servers import SECURE
from support.threads import wait_until
from support.tls_front import TlsFront


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def certificate(authority):
    return authority.issue("localhost", HOST)


@pytest.fixture
def secure(start_server, certificate):
    return start_server(kind=SECURE, certificate=certificate)


@pytest.fixture
def plain(start_fake, secure):
    """A sentinel without TLS, which names the port with it."""
    return start_fake(lambda: (HOST, secure.tls_port, 1))


@pytest.fixture
def veiled(plain, certificate):
    """The same sentinel, with TLS only."""
    with TlsFront((plain.host, plain.port), certificate) as front:
        yield front


LOGIN = {"username": acl.USER, "password": acl.PASSWORD}


def sells(client, server):
    client.incr_inventory("stock", 2)
    client.update_inventory("lock", "stock", -1)
    assert server.redis().get("stock") == b"1"


def test_a_url_with_tls_means_sentinels_and_servers(secure, veiled, authority):
    place = f"{acl.USER_INFO}localhost:{veiled.port}/{SERVICE}"
    url = f"rediss+sentinel://{place}?ssl_ca_certs={authority.file}"
    sells(seckill.Client(url), secure)


@pytest.mark.parametrize("sentinels", [True, False])
@pytest.mark.parametrize("servers", [True, False])
def test_keywords_say_so_of_each(secure, plain, veiled, authority, sentinels, servers):
    port = secure.tls_port if servers else secure.port
    plain.where = lambda: (HOST, port, 1)
    tls = {"ssl": True, "ssl_ca_certs": authority.file}
    client = seckill.Client(
        sentinels=[("localhost", veiled.port if sentinels else plain.port)],
        service_name=SERVICE,
        sentinel_kwargs=tls if sentinels else {},
        **(tls if servers else {}),
        **LOGIN,
    )
    sells(client, secure)


@pytest.mark.parametrize("library", [redis.sentinel, valkey.sentinel], ids=["redis", "valkey"])
def test_an_existing_client_says_so(secure, veiled, authority, library):
    tls = {"ssl": True, "ssl_ca_certs": str(authority.file)}
    manager = library.Sentinel([("localhost", veiled.port)], sentinel_kwargs=tls, **tls, **LOGIN)
    sells(seckill.Client(manager.master_for(SERVICE)), secure)


@pytest.mark.parametrize("kind", ["nobody's", "none"])
def test_a_sentinel_that_is_not_believed_is_not_asked(plain, veiled, tmp_path, kind):
    if kind == "none":
        ca, port, words = veiled.url.rpartition("=")[2], plain.port, "cannot connect"
    else:
        ca, port, words = Authority(tmp_path).file, veiled.port, "not signed by a CA"
    url = f"rediss+sentinel://localhost:{port}/{SERVICE}?ssl_ca_certs={ca}&socket_timeout=0.5"
    with pytest.raises(seckill.ConnectionError, match=words) as caught:
        seckill.Client(url).incr_inventory("stock", 1)
    assert caught.value.sent is False
    assert plain.asked == 0


@pytest.fixture
def node(certificate):
    """A cluster of one; without the option it tells of its port without TLS."""
    node = Node(SECURE, "tls-cluster yes", certificate=certificate).start()
    node.ask("CLUSTER", "ADDSLOTSRANGE", 0, SLOTS - 1)
    wait_until(lambda: node.is_content(1), within=60)
    yield node
    node.stop()


def test_a_cluster_with_tls(node, authority):
    place = f"{acl.USER_INFO}localhost:{node.tls_port}"
    sells(seckill.Client(f"rediss+cluster://{place}?ssl_ca_certs={authority.file}"), node)


def test_an_existing_client_of_a_cluster_with_tls(node, authority):
    tls = {"ssl": True, "ssl_ca_certs": str(authority.file)}
    theirs = RedisCluster(host="localhost", port=node.tls_port, **tls)
    sells(seckill.Client(theirs), node)
