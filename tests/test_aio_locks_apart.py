"""Tasks of one client, and a lock that is at another node of the cluster than the stock."""

from __future__ import annotations

import asyncio

import pytest
import seckill
import seckill.aio
from support.aio import eventually
from support.clusters import key_in, slot_of

pytestmark = pytest.mark.usefixtures("loop_kind")


async def test_what_one_update_has_locked_is_not_another_tasks_own(start_cluster, loop_kind):
    """The lock that an update takes on its way is its own, also where a task holds nothing."""
    cluster = start_cluster()
    lock = key_in(range(100), "lock")
    far, near = key_in(range(16_000, 16_100), "stock"), f"{{{lock}}}:stock"
    assert slot_of(near) == slot_of(lock)
    for stock in (far, near):
        cluster.observer(stock).set(stock, 10)
    beside = cluster.observer(lock)
    client = seckill.aio.Client(cluster.url, socket_timeout=20)
    await client.update_inventory(lock, far, -1)
    with cluster.node_of(far).frozen():
        updating = asyncio.ensure_future(client.update_inventory(lock, far, -1, 60_000, 60_000))
        await eventually(lambda: beside.exists(lock))
        with pytest.raises(seckill.LockTimeout):
            await client.update_inventory(lock, near, -1, 5000, 100)
        assert beside.get(near) == b"10"
        waiting = asyncio.ensure_future(client.update_inventory(lock, near, -1, 5000, 60_000))
    await updating
    await waiting
    assert (cluster.observer(far).get(far), beside.get(near)) == (b"8", b"9")
    assert not beside.exists(lock)
    await client.aclose()
