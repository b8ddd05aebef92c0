"""The tests' own sentinels and clusters do what they claim, as redis-py sees them."""

from __future__ import annotations

import pytest
import redis
from redis.sentinel import MasterNotFoundError
from support.clusters import key_in, slot_of
from support.fake_sentinels import Front, at
from support.sentinels import HOST, SERVICE, role
from support.threads import wait_until


def test_sentinels_name_the_primary_and_its_replicas(deployment):
    primary = deployment.primary
    theirs = deployment.redis_sentinel()
    assert theirs.discover_master(SERVICE) == (HOST, primary.port)
    assert theirs.discover_slaves(SERVICE) == [(r.host, r.port) for r in deployment.replicas]
    assert theirs.master_for(SERVICE).ping()


def test_what_the_primary_has_its_replicas_have_when_they_have_caught_up(deployment, key):
    deployment.redis().set(key, 1)
    deployment.catch_up()
    assert [replica.redis().get(key) for replica in deployment.replicas] == [b"1"]


@pytest.mark.parametrize("fate", ["killed", "stopped", "asked"])
def test_a_replica_takes_the_primarys_place(start_deployment, own_kind, fate):
    deployment = start_deployment(own_kind)
    old = deployment.primary
    deployment.redis().set("a", 1)
    deployment.catch_up()
    if fate == "asked":
        new = deployment.failover()
    else:
        old.kill() if fate == "killed" else old.freeze()
        new = deployment.wait_for_new_primary(old)
    assert new is not old
    assert new.redis().get("a") == b"1"
    if fate == "stopped":
        assert role(old) is None
        old.thaw()
    if fate == "killed":
        old.start()
    wait_until(lambda: role(old) == "slave", within=60)


def test_passwords_are_wanted_by_servers_and_sentinels(start_deployment):
    deployment = start_deployment(password="sesame", sentinel_password="open")
    assert deployment.redis_sentinel().master_for(SERVICE).ping()
    with pytest.raises(redis.AuthenticationError):
        deployment.primary.redis(password=None).ping()
    with pytest.raises(redis.AuthenticationError):
        deployment.sentinels[0].redis(password=None).ping()
    assert deployment.failover() in deployment.servers


def asked(*fakes, protocol=3):
    told = [(fake.host, fake.port) for fake in fakes]
    return redis.sentinel.Sentinel(told, sentinel_kwargs={"protocol": protocol})


@pytest.mark.parametrize("protocol", [2, 3])
def test_a_fake_sentinel_is_believed(start_fake, start_server, protocol):
    server = start_server()
    fake = start_fake(lambda: at(server, 7))
    assert asked(fake, protocol=protocol).discover_master(SERVICE) == (server.host, server.port)
    assert fake.asked > 0
    fake.where = lambda: None
    with pytest.raises(MasterNotFoundError):
        asked(fake, protocol=protocol).discover_master(SERVICE)


def test_a_front_shows_the_servers_through_proxies(start_fake, start_deployment, start_proxy):
    deployment = start_deployment()
    front = start_fake(deployment, start_proxy, fake=Front)
    old = deployment.primary
    proxy = front.proxy_of(old)
    assert asked(front).discover_master(SERVICE) == (proxy.host, proxy.port)
    new = deployment.failover()
    proxy = front.proxy_of(new)
    assert asked(front).discover_master(SERVICE) == (proxy.host, proxy.port)


# -- clusters ------------------------------------------------------------------------------------


def test_a_cluster_has_three_primaries_and_all_slots(cluster, name):
    theirs = cluster.redis()
    keys = [f"{name('key')}:{number}" for number in range(100)]
    for key in keys:
        theirs.set(key, key)
        assert cluster.observer(key).get(key) == key.encode()
    assert {cluster.node_of(key).port for key in keys} == {n.port for n in cluster.primaries}
    assert len(cluster.primaries) == 3


def test_a_slot_can_be_half_moved(start_cluster, own_kind):
    cluster = start_cluster(own_kind)
    one, other = "{tag}:one", "{tag}:other"
    theirs = cluster.redis()
    theirs.mset({one: 1, other: 2})
    source = cluster.node_of(one)
    target = next(node for node in cluster.primaries if node is not source)
    move = cluster.begin_move(slot_of(one), target)
    move.keys(one)
    assert move.left() == [other.encode()]
    with pytest.raises(redis.ResponseError, match=rf"^{slot_of(one)} .*:{target.port}"):
        source.redis().get(one)  # ASK
    with pytest.raises((redis.exceptions.TryAgainError, redis.exceptions.AskError)):
        source.redis().mget(one, other)  # Redis 6.2 sends on with half of the keys, too
    assert theirs.get(one) == b"1"
    assert cluster.node_of(one) is source
    move.keys()
    move.finish()
    assert cluster.node_of(one) is target
    assert theirs.mget(one, other) == [b"1", b"2"]


def test_slots_can_be_moved_to_a_node_that_was_added(start_cluster, own_kind):
    cluster = start_cluster(own_kind)
    key = key_in(range(20, 40))
    cluster.redis().set(key, 1)
    added = cluster.add()
    cluster.move_slots(range(20, 40), added)
    assert cluster.node_of(key) is added
    assert cluster.redis().get(key) == b"1"


def test_a_killed_primary_is_replaced_by_its_replica(start_cluster, own_kind):
    cluster = start_cluster(own_kind, replicas=1)
    cluster.redis().set("a", 1)
    cluster.catch_up()
    old = cluster.node_of("a")
    (replica,) = cluster.replicas_of(old)
    old.kill()
    cluster.wait_for_promotion(slot_of("a"))
    assert cluster.node_of("a") is replica
    assert cluster.redis().get("a") == b"1"
    old.start()
    wait_until(lambda: cluster.replicas_of(replica) == [old], within=60)
    cluster.catch_up()
    cluster.failover(old)
    assert cluster.node_of("a") is old
