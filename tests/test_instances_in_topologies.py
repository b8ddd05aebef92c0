"""A client of redis-py or valkey-py, for sentinels or a cluster, is enough to sell and to lock."""

from __future__ import annotations

import asyncio
import inspect
from types import ModuleType
from typing import Any

import pytest
import redis.asyncio.cluster
import redis.asyncio.sentinel
import redis.cluster
import redis.sentinel
import seckill
import valkey.asyncio.cluster
import valkey.asyncio.sentinel
import valkey.cluster
import valkey.sentinel
from support.clusters import Cluster
from support.sentinels import SERVICE, Deployment
from support.servers import ANY

SENTINEL = [redis.sentinel, redis.asyncio.sentinel, valkey.sentinel, valkey.asyncio.sentinel]
CLUSTER = [redis.cluster, redis.asyncio.cluster, valkey.cluster, valkey.asyncio.cluster]


def sell(theirs: Any, lock: str, key: str) -> None:
    """One of two units, by either face, whichever theirs is; and the lock is not in the way."""
    seckill.Client(theirs).incr_inventory(key, 2)
    with seckill.Client(theirs) as client:
        client.update_inventory(lock, key, -1)
        with pytest.raises(seckill.InsufficientInventory):
            client.update_inventory(lock, key, -2)

    async def on_a_loop() -> None:
        async with seckill.aio.Client(theirs) as client:
            await client.update_inventory(lock, key, -1)

    asyncio.run(on_a_loop())
    with pytest.raises(seckill.InsufficientInventory):
        seckill.Client(theirs).update_inventory(lock, key, -1)


def hold(theirs: Any, observer: Any, lock: str) -> None:
    """Takes a lock by their client's own method, and gives it back."""
    awaited = "asyncio" in type(theirs).__module__
    ours = theirs.lock(lock, timeout=5, lock_class=(seckill.aio if awaited else seckill).Lock)

    async def by_turns() -> None:
        for step, is_held in [(ours.acquire, 1), (ours.release, 0)]:
            done = step()
            if inspect.isawaitable(done):
                await done
            assert observer.exists(lock) == is_held

    asyncio.run(by_turns())


def name_of(module: ModuleType) -> str:
    return module.__name__.rpartition(".")[0]


@pytest.mark.parametrize("module", SENTINEL, ids=name_of)
@pytest.mark.parametrize("deployment", [ANY], indirect=True)
def test_a_client_that_sentinels_lead_to_the_primary(
    deployment: Deployment, module: ModuleType, lock: str, key: str
) -> None:
    theirs = deployment.redis_sentinel(module).master_for(SERVICE)
    sell(theirs, lock, key)
    assert deployment.redis().get(key) == b"0"
    hold(theirs, deployment.redis(), lock)


def test_sentinels_and_servers_with_passwords(start_deployment: Any) -> None:
    deployment = start_deployment(password="sesame", sentinel_password="open")
    for module in SENTINEL:
        key = name_of(module)
        sell(deployment.redis_sentinel(module).master_for(SERVICE), "lock", key)
        assert deployment.redis().get(key) == b"0"


@pytest.mark.parametrize("module", CLUSTER, ids=name_of)
@pytest.mark.parametrize("cluster", [ANY], indirect=True)
def test_a_client_of_a_cluster(cluster: Cluster, module: Any, lock: str, key: str) -> None:
    node = cluster.primaries[0]
    kind = getattr(module, "RedisCluster", None) or module.ValkeyCluster
    nodes = [module.ClusterNode(node.host, node.port)]
    theirs = kind(startup_nodes=nodes, password=cluster.password)
    sell(theirs, lock, key)
    assert cluster.observer(key).get(key) == b"0"
    hold(theirs, cluster.observer(lock), lock)
