"""An update whose lock and stock are at different nodes, and whose lease ends before the answer.

The lease bounds when the change may be made, not for how long who has time left may ask whether it
was made.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import seckill
from support.clusters import key_in
from support.proxy import REPLY, REQUEST
from support.threads import call, wait_until

QUICK = {"socket_timeout": 0.3}
LEASE = 500
PATIENT = 40_000


@pytest.fixture
def sale(start_cluster, start_proxy):
    """A lock, a stock of 10 at another node, and what is in front of that."""
    cluster = start_cluster()
    lock, stock = key_in(range(5000), "lock"), key_in(range(12_000, 16_000), "stock")
    shop, keeper = cluster.node_of(stock), cluster.node_of(lock)
    proxy = start_proxy(shop)
    cluster.announce(shop, proxy)
    return SimpleNamespace(
        lock=lock,
        stock=stock,
        proxy=proxy,
        url=cluster.url_of(keeper),
        keeper=keeper.redis(),
        shop=shop.redis(),
    )


def connected(sale, client):
    client.incr_inventory(sale.stock, 11)
    client.update_inventory(sale.lock, sale.stock, -1)
    return client


def test_who_has_time_is_told_after_the_lease_of_what_was_done_before(sale, connect):
    client = connected(sale, connect(sale.url, **QUICK))
    sale.proxy.swallow(REPLY)
    updating = call(client.update_inventory, sale.lock, sale.stock, -1, LEASE, PATIENT)
    wait_until(lambda: sale.shop.get(sale.stock) == b"9")
    wait_until(lambda: not sale.keeper.exists(sale.lock))
    sale.proxy.swallow()
    updating.result()
    assert (sale.shop.get(sale.stock), sale.keeper.exists(sale.lock)) == (b"9", 0)


def test_who_has_time_begins_anew_when_the_lease_was_over_before_it_was_done(sale, connect):
    """With the lock, which somebody else has by then."""
    client = connected(sale, connect(sale.url, **QUICK))
    sale.proxy.swallow(REQUEST)
    updating = call(client.update_inventory, sale.lock, sale.stock, -1, LEASE, PATIENT)
    wait_until(lambda: sale.keeper.exists(sale.lock))
    wait_until(lambda: sale.keeper.set(sale.lock, "another's", nx=True))
    sale.proxy.swallow()
    wait_until(lambda: sale.keeper.keys("seckill:*:place-*"))
    assert sale.shop.get(sale.stock) == b"10"
    sale.keeper.delete(sale.lock)
    updating.result()
    assert (sale.shop.get(sale.stock), sale.keeper.exists(sale.lock)) == (b"9", 0)


def test_a_handle_that_has_lost_its_lock_meanwhile_does_not_take_it_anew(sale):
    with connected(sale, seckill.Client(sale.url, **QUICK)) as client:
        lock = seckill.Lock(client, sale.lock, timeout=LEASE / 1000, thread_local=False)
        assert lock.acquire()
        sale.proxy.swallow(REQUEST)
        updating = call(client.update_inventory, lock, sale.stock, -1, LEASE, PATIENT)
        wait_until(lambda: not sale.keeper.exists(sale.lock))
        sale.proxy.swallow()
        with pytest.raises(seckill.LockLostError):
            updating.result()
        assert sale.shop.get(sale.stock) == b"10"
