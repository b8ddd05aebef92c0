"""A primary of a cluster that dies: its replica is promoted, and the callers ride it out.

What may be held against the new primary is what test_sentinel_failover.py says: replication is
asynchronous. An orderly fail-over (`CLUSTER FAILOVER`) waits for the replica and loses nothing. Nor
does one before which the writes were held up (`CLIENT PAUSE`) until the replica had all of them.
"""

from __future__ import annotations

import pytest
import seckill
import seckill.aio
from support.aio import eventually, gathered
from support.clients import HOUR, Rush
from support.clusters import key_in, slot_of
from support.crowd import Crowd
from support.places import face, own_kind
from support.proxy import REPLY, REQUEST
from support.sentinels import follows, replication
from support.servers import ANY
from support.threads import all_of, call, wait_until

FIXTURES = (own_kind, face)
QUICK = {"socket_timeout": 0.3, "timeout": 40}
PATIENT = {"time_out": 40_000}
LOCK, STOCK = "{sale}:lock", "{sale}:stock"
SLOT = slot_of(STOCK)
SALE = 40_000  # calls, many more than are made


@pytest.fixture
def own_cluster(start_cluster, own_kind):
    """A private one with a replica for each primary."""
    return start_cluster(own_kind, replicas=1)


@pytest.fixture
def a_cluster(start_cluster):
    return start_cluster(replicas=1)


def hold_up_writes(cluster, primary):
    """What it has told anybody by now, its replica has; what is asked from now on, it leaves."""
    primary.ask("CLIENT", "PAUSE", HOUR, "WRITE")
    (replica,) = cluster.replicas_of(primary)
    wait_until(lambda: follows(replica, primary, int(replication(primary)["master_repl_offset"])))


# -- in mid-sale -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", ["killed", "stopped"])
def test_without_warning_no_call_counts_twice(own_cluster, name, fate):
    crowd = Crowd(own_cluster.everywhere, name, SALE, lock_each=True)
    old = own_cluster.node_of(SLOT)
    with seckill.Client(own_cluster.url, **QUICK) as client:
        rush = Rush(crowd, client, **PATIENT)
        rush.served(200)
        old.kill() if fate == "killed" else old.freeze()
        own_cluster.wait_for_promotion(SLOT, without=old)
        rush.served(200)
        if fate == "stopped":
            old.thaw()
            wait_until(lambda: not old.is_primary, within=60)
        crowd.observer = own_cluster.everywhere
        rush.end(lost=True)


def test_nobody_is_told_an_error_and_every_call_counts_once(own_cluster, connect, name):
    crowd = Crowd(own_cluster.everywhere, name, SALE, lock_each=True)
    client = connect(own_cluster.url, **QUICK)
    rush = Rush(crowd, client, **PATIENT)
    rush.served(200)
    old = own_cluster.node_of(SLOT)
    hold_up_writes(own_cluster, old)
    old.kill()
    own_cluster.wait_for_promotion(SLOT)
    rush.served(200)
    crowd.observer = own_cluster.everywhere
    rush.end()


def test_an_orderly_one_is_hardly_noticed(own_cluster, connect, name):
    crowd = Crowd(own_cluster.everywhere, name, SALE, lock_each=True)
    client = connect(own_cluster.url, **QUICK)
    rush = Rush(crowd, client, **PATIENT)
    for _ in range(2):
        rush.served(200)
        (replica,) = own_cluster.replicas_of(own_cluster.node_of(SLOT))
        own_cluster.failover(replica)
        own_cluster.wait_for_promotion(SLOT)
        own_cluster.catch_up()
    rush.served(200)
    crowd.observer = own_cluster.everywhere
    rush.end()


def test_those_who_are_parted_from_a_primary_follow_the_one_that_replaces_it(
    a_cluster, start_proxy, name
):
    """For the other nodes it is well, so an operator has to help.

    What it has told somebody and not yet its replica is lost, as it always is.
    """
    old = a_cluster.node_of(SLOT)
    (replica,) = a_cluster.replicas_of(old)
    front = start_proxy(old)
    a_cluster.announce(old, front)
    wait_until(lambda: follows(replica, front, 0))
    crowd = Crowd(a_cluster.everywhere, name, SALE, lock_each=True)
    with seckill.Client(a_cluster.url_of(replica), **QUICK) as client:
        rush = Rush(crowd, client, **PATIENT)
        rush.served(200)
        front.swallow(REQUEST, REPLY)
        replica.ask("CLUSTER", "FAILOVER", "FORCE")
        wait_until(lambda: replica.is_primary, within=60)
        rush.served(200)
        front.swallow()
        wait_until(lambda: not old.is_primary, within=60)
        a_cluster.wait_for_promotion(SLOT)
        crowd.observer = a_cluster.everywhere
        rush.end(lost=True)


async def test_hundreds_of_tasks_ride_it_out(a_cluster, name, loop_kind):
    crowd = Crowd(a_cluster.everywhere, name, SALE, lock_each=True)
    old = a_cluster.node_of(SLOT)
    numbers = iter(range(crowd.size))
    over = False

    async with seckill.aio.Client(a_cluster.url, **QUICK) as client:

        async def customer():
            while not over and (number := next(numbers, None)) is not None:
                await crowd.ask(client, number, **PATIENT)

        async def trouble():
            nonlocal over
            await eventually(lambda: crowd.served > 500)
            old.kill()
            served = crowd.served
            await eventually(lambda: crowd.served > served + 1000, within=40)
            over = True

        await gathered([trouble(), *(customer() for _ in range(200))], within=100)
    a_cluster.wait_for_promotion(SLOT)
    crowd.observer = a_cluster.everywhere
    assert set(crowd.audit(lost=True)) <= {"done", "answered", "not begun"}


def test_those_who_buy_elsewhere_notice_nothing(start_cluster, connect):
    """A node without a replica stops: its callers are told so in time, and nobody else waits."""
    cluster = start_cluster(ANY, "cluster-require-full-coverage no")
    client = connect(cluster.url, socket_timeout=0.2, timeout=0.5)
    stocks = [key_in(range(first, first + 5000), "stock") for first in (0, 6000, 11_000)]
    for stock in stocks:
        client.incr_inventory(stock, 100)
    stopped, *well = stocks
    with cluster.node_of(stopped).frozen():
        failing = call(client.update_inventory, f"{{{stopped}}}l", stopped, -1, time_out=3000)
        for _ in range(20):
            for stock in well:
                client.update_inventory(f"{{{stock}}}l", stock, -1, time_out=1000)
        assert failing.is_alive(), "the others have been served meanwhile"
        with pytest.raises(seckill.ConnectionError):
            failing.result()
    assert [cluster.observer(stock).get(stock) for stock in stocks] == [b"100", b"80", b"80"]


def test_who_was_told_an_error_is_never_served_later(own_cluster, connect, name):
    tagged = lambda kind: "{sale}:" + name(kind)  # noqa: E731
    old = own_cluster.node_of(SLOT)
    crowd = Crowd(old.redis(), tagged, 60)
    client = connect(own_cluster.url, socket_timeout=0.2, timeout=0.5)
    client.incr_inventory(STOCK, 1)
    hold_up_writes(own_cluster, old)
    old.freeze()
    all_of([lambda n=number: crowd.ask_plainly(client, n, time_out=500) for number in range(60)])
    assert set(crowd.told) <= {"unknown", "unsent"}
    (new,) = [node for node in own_cluster.running if node is not old and follows_slot(node, old)]
    wait_until(lambda: new.is_primary, within=60)
    old.thaw()
    old.ask("CLIENT", "UNPAUSE")
    wait_until(lambda: not old.is_primary, within=60)
    client.incr_inventory(STOCK, 1)
    crowd.observer = new.redis()
    crowd.audit()
    assert new.redis().get(STOCK) == b"2"


def follows_slot(node, primary):
    return replication(node).get("master_port") == str(primary.port)


# -- the way in, and locks -------------------------------------------------------------------------


def test_a_replica_shows_the_way_and_dead_nodes_do_not_bar_it(own_cluster, connect):
    client = connect(own_cluster.url_of(*own_cluster.replicas_of(own_cluster.node_of(0))))
    client.incr_inventory(STOCK, 10)
    old = own_cluster.node_of(SLOT)
    url = own_cluster.url_of(old, own_cluster.node_of((SLOT + 6000) % 16384))
    own_cluster.catch_up()
    old.kill()
    own_cluster.wait_for_promotion(SLOT)
    connect(url, **QUICK).update_inventory(LOCK, STOCK, -1, **PATIENT)
    client.update_inventory(LOCK, STOCK, -1, **PATIENT)
    assert own_cluster.observer(STOCK).get(STOCK) == b"8"


def test_a_lock_is_held_across_it_and_waited_for(own_cluster, connect):
    client, another = connect(own_cluster.url, **QUICK), connect(own_cluster.url, **QUICK)
    client.incr_inventory(STOCK, 10)
    assert client.acquire_lock(LOCK, HOUR) is True
    waiter = call(another.acquire_lock, LOCK, HOUR, 60_000).until_asleep()
    own_cluster.catch_up()
    own_cluster.node_of(SLOT).kill()
    own_cluster.wait_for_promotion(SLOT)
    observer = own_cluster.observer(LOCK)
    client.update_inventory(LOCK, STOCK, -1, **PATIENT)
    assert observer.exists(LOCK)
    assert waiter.is_alive()
    client.release_lock(LOCK)
    assert waiter.result(20) is True
    assert observer.exists(LOCK)
    assert observer.get(STOCK) == b"9"


def test_a_lock_elsewhere_whose_node_dies_in_the_middle_of_the_three_steps(a_cluster):
    """It is held while the stock's node is silent; then its own node dies, and nothing is lost."""
    lock, stock = key_in(range(5000), "lock"), key_in(range(12_000, 16_000), "stock")
    keeper, shop = a_cluster.node_of(lock), a_cluster.node_of(stock)
    with seckill.Client(a_cluster.url, socket_timeout=20) as client:
        client.incr_inventory(stock, 10)
        client.update_inventory(lock, stock, -1)
        shop.ask("CLIENT", "PAUSE", HOUR, "WRITE")
        updating = call(client.update_inventory, lock, stock, -1, 40_000, 40_000)
        wait_until(lambda: keeper.redis().exists(lock))
        a_cluster.catch_up()
        keeper.kill()
        a_cluster.wait_for_promotion(slot_of(lock))
        shop.ask("CLIENT", "UNPAUSE")
        updating.result()
        assert a_cluster.observer(stock).get(stock) == b"8"
        wait_until(lambda: not a_cluster.observer(lock).exists(lock))


def test_a_stock_elsewhere_whose_node_falls_silent_for_longer_than_the_lease(a_cluster):
    """Neither who is in the middle of the three steps nor those behind are told of it."""
    lock, stock = key_in(range(5000), "lock"), key_in(range(12_000, 16_000), "stock")
    shop = a_cluster.node_of(stock)
    with seckill.Client(a_cluster.url, **QUICK) as client:
        client.incr_inventory(stock, 10)
        client.update_inventory(lock, stock, -1)
        a_cluster.catch_up()
        with shop.frozen():
            calls = [call(client.update_inventory, lock, stock, -1, 500, 40_000) for _ in range(3)]
            a_cluster.wait_for_promotion(slot_of(stock), without=shop)
            for updating in calls:
                updating.result()
        wait_until(lambda: not shop.is_primary, within=60)
        assert a_cluster.observer(stock).get(stock) == b"6"
        wait_until(lambda: not a_cluster.observer(lock).exists(lock))
