"""Tasks of one client, and a lock that is at another node of the cluster than the stock."""

from __future__ import annotations

import asyncio

import pytest
import seckill
import seckill.aio
from support.aio import eventually
from support.clusters import key_in, slot_of

pytestmark = pytest.mark.usefixtures("loop_kind")

HOUR = 3_600_000  # a lease that nobody waits out


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


async def test_who_is_cancelled_keeps_the_lock_for_as_long_as_the_change_may_be_made(
    start_cluster, loop_kind
):
    """And no longer: the next one does not wait for the end of the lease."""
    cluster = start_cluster()
    lock, stock = key_in(range(100), "lock"), key_in(range(16_000, 16_100), "stock")
    beside = cluster.observer(lock)
    async with seckill.aio.Client(cluster.url, socket_timeout=1) as client:
        await client.incr_inventory(stock, 10)
        await client.update_inventory(lock, stock, -1)
        with cluster.node_of(stock).frozen():
            updating = asyncio.ensure_future(client.update_inventory(lock, stock, -1, HOUR))
            await eventually(lambda: beside.exists(lock))
            token = beside.get(lock)
            await asyncio.sleep(0.1)  # for the change to be asked for
            given_up = asyncio.get_running_loop().time()
            updating.cancel()
            waiting = asyncio.ensure_future(client.update_inventory(lock, stock, -1, HOUR, 20_000))
            await eventually(lambda: beside.pttl(lock) < 2000)
            await eventually(lambda: beside.get(lock) not in (token, None))
            # The change might have been made until a socket_timeout after.
            assert asyncio.get_running_loop().time() - given_up >= 1
        await waiting
        assert cluster.observer(stock).get(stock) == b"8"
        await eventually(lambda: not beside.exists(lock))
