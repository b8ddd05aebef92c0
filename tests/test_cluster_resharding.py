"""Slots that move while they are sold from: every call finds its key, and counts once."""

from __future__ import annotations

import asyncio
import time

import pytest
import seckill
import seckill.aio
from support.aio import eventually, gathered
from support.clients import HOUR, Rush
from support.clusters import key_in, slot_of
from support.crowd import Crowd
from support.places import face, own_kind
from support.proxy import REPLY
from support.threads import call, wait_until

FIXTURES = (own_kind, face)
QUICK = {"socket_timeout": 0.3, "timeout": 20}
PATIENT = {"time_out": 20_000}
LOCK, STOCK = "{sale}:lock", "{sale}:stock"
SLOT = slot_of(STOCK)
SALE = 20_000  # calls, many more than are made


@pytest.fixture
def own_cluster(start_cluster, own_kind):
    """A private one, to change."""
    return start_cluster(own_kind)


@pytest.fixture
def a_cluster(start_cluster):
    return start_cluster()


def elsewhere(cluster, slot=SLOT):
    """A node that does not have the slot."""
    return next(node for node in cluster.primaries if node is not cluster.node_of(slot))


def left(cluster, stock=STOCK):
    return cluster.observer(stock).get(stock)


# -- a slot that has moved -------------------------------------------------------------------------


def test_a_slot_that_has_moved_is_followed(own_cluster, connect):
    client = connect(own_cluster.url)
    client.incr_inventory(STOCK, 10)
    for _ in range(3):
        client.update_inventory(LOCK, STOCK, -1)
        own_cluster.move_slots([SLOT], elsewhere(own_cluster))
        client.update_inventory(LOCK, STOCK, -1)
    assert left(own_cluster) == b"4"


def test_it_is_followed_though_the_other_nodes_have_not_heard_of_it(own_cluster, connect):
    """Those two alone know; the map that a third one shows is old."""
    client = connect(own_cluster.url)
    client.incr_inventory(STOCK, 10)
    target = elsewhere(own_cluster)
    move = own_cluster.begin_move(SLOT, target)
    move.keys()
    move.finish(tell=False)
    client.update_inventory(LOCK, STOCK, -1, **PATIENT)
    assert target.redis().get(STOCK) == b"9"


def test_a_call_whose_reply_was_lost_is_told_by_the_node_that_has_the_slot_now(
    own_cluster, start_proxy, connect
):
    """Its record has moved with the stock; the node that was asked first answers no more."""
    source, target = own_cluster.node_of(SLOT), elsewhere(own_cluster)
    proxy = start_proxy(source)
    own_cluster.announce(source, proxy)
    client = connect(own_cluster.url_of(target), **QUICK)
    client.incr_inventory(STOCK, 10)
    client.update_inventory(LOCK, STOCK, 0)
    proxy.swallow(REPLY)
    buying = call(client.update_inventory, LOCK, STOCK, -1, **PATIENT)
    wait_until(lambda: source.redis().get(STOCK) == b"9")
    own_cluster.move_slots([SLOT], target)
    buying.result(30)
    assert target.redis().get(STOCK) == b"9"


# -- a slot that is half moved ---------------------------------------------------------------------


STAGES = {
    "begun": lambda move: None,
    "the stock": lambda move: move.keys(STOCK),
    "the lock": lambda move: move.keys(LOCK),
    "the record": lambda move: move.keys(*records(move)),
    "all keys": lambda move: move.keys(),
}


def records(move):
    return [key for key in move.left() if key.startswith(b"seckill:") and b"stock" in key]


def finish_soon(move):
    time.sleep(0.2)  # for calls to be sent to and fro
    move.keys()
    move.finish()


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("held", [True, False], ids=["own lock", "no lock"])
def test_while_its_slot_is_on_its_way_a_call_waits_at_most(own_cluster, connect, stage, held):
    """ASK and TRYAGAIN: some of the keys are here, others there, and some are nowhere."""
    client = connect(own_cluster.url)
    client.incr_inventory(STOCK, 10)
    if held:
        assert client.acquire_lock(LOCK, HOUR)
    client.update_inventory(LOCK, STOCK, -1)
    move = own_cluster.begin_move(SLOT, elsewhere(own_cluster))
    assert records(move)
    STAGES[stage](move)
    moving = call(finish_soon, move)
    client.update_inventory(LOCK, STOCK, -1, **PATIENT)
    client.incr_inventory(STOCK, 1)
    client.release_lock(LOCK)
    moving.result()
    assert left(own_cluster) == b"9"
    assert not own_cluster.observer(LOCK).exists(LOCK)


def test_what_stays_torn_apart_is_an_error_in_the_end_and_has_no_late_effect(own_cluster, connect):
    client = connect(own_cluster.url)
    client.incr_inventory(STOCK, 10)
    assert client.acquire_lock(LOCK, HOUR)
    client.update_inventory(LOCK, STOCK, -1)
    move = own_cluster.begin_move(SLOT, elsewhere(own_cluster))
    move.keys(STOCK)
    with pytest.raises(seckill.ConnectionError) as caught:
        client.update_inventory(LOCK, STOCK, -1, time_out=500)
    assert caught.value.sent is False
    move.keys()
    move.finish()
    client.incr_inventory(STOCK, 0)
    assert left(own_cluster) == b"9"


def test_a_lock_that_is_elsewhere_and_half_moved(own_cluster, connect):
    """The three steps, of which the first and the last meet a slot that is on its way."""
    lock = key_in(range(5000), "lock")
    stock = key_in(range(12_000, 16_000), "stock")
    client = connect(own_cluster.url)
    client.incr_inventory(stock, 10)
    for number in range(3):
        move = own_cluster.begin_move(slot_of(lock), elsewhere(own_cluster, slot_of(lock)))
        if number == 1:
            move.keys()
        moving = call(finish_soon, move)
        client.update_inventory(lock, stock, -1, **PATIENT)
        assert client.acquire_lock(lock, HOUR, 20_000) is True
        moving.result()
        client.update_inventory(lock, stock, -1, **PATIENT)
        client.release_lock(lock)
    assert left(own_cluster, stock) == b"4"
    wait_until(lambda: not own_cluster.observer(lock).exists(lock))


# -- in mid-sale -----------------------------------------------------------------------------------


def prepared(cluster, name):
    """A sale whose slots are known: those that are worth moving."""
    crowd = Crowd(cluster.everywhere, name, SALE, lock_each=True)
    slots = sorted({slot_of(crowd.question(number)[0]) for number in range(0, SALE, 7)})
    return crowd, slots


def test_a_sale_goes_on_while_its_slots_move(own_cluster, connect, name):
    crowd, slots = prepared(own_cluster, name)
    client = connect(own_cluster.url)
    rush = Rush(crowd, client, **PATIENT)
    rush.served(100)
    nodes = own_cluster.primaries
    for number, slot in enumerate(slots[:100]):
        target = nodes[number % 3]
        if own_cluster.node_of(slot) is not target:
            own_cluster.move_slots([slot], target)
    rush.served(100)
    crowd.observer = own_cluster.everywhere
    rush.end()


def test_a_hot_slot_that_moves_again_and_again_is_sold_from_all_the_time(
    own_cluster, connect, name
):
    """All of the sale is in one slot, and its keys go one by one."""
    tagged = lambda kind: "{hot}:" + name(kind)  # noqa: E731
    crowd = Crowd(own_cluster.observer("{hot}"), tagged, 12_000)
    client = connect(own_cluster.url)
    rush = Rush(crowd, client, **PATIENT)
    for _ in range(3):
        rush.served(50)
        move = own_cluster.begin_move(slot_of("{hot}"), elsewhere(own_cluster, slot_of("{hot}")))
        while names := move.left():
            move.keys(*names[:100])
        move.finish()
    rush.served(50)
    crowd.observer = own_cluster.observer("{hot}")
    rush.end()


def test_a_node_that_is_added_gets_its_share(own_cluster, connect, name):
    crowd, slots = prepared(own_cluster, name)
    client = connect(own_cluster.url)
    rush = Rush(crowd, client, **PATIENT)
    rush.served(100)
    added = own_cluster.add()
    own_cluster.move_slots(slots[:100], added)
    rush.served(200)
    wait_until(lambda: client.statistics()["connects"] >= 4)
    crowd.observer = own_cluster.everywhere
    rush.end()


async def test_hundreds_of_tasks_sell_while_slots_move(a_cluster, name, loop_kind):
    crowd, slots = prepared(a_cluster, name)
    over = False
    numbers = iter(range(crowd.size))
    async with seckill.aio.Client(a_cluster.url) as client:

        async def customer():
            while not over:
                await crowd.ask(client, next(numbers), **PATIENT)
                await asyncio.sleep(0.05)

        async def moving():
            nonlocal over
            target = a_cluster.primaries[0]
            for slot in [slot for slot in slots if a_cluster.node_of(slot) is not target][:100]:
                served = crowd.served
                a_cluster.move_slots([slot], target)
                await eventually(lambda served=served: crowd.served > served)
            over = True

        await gathered([moving(), *(customer() for _ in range(100))])
    crowd.observer = a_cluster.everywhere
    assert set(crowd.audit()) == {"done", "answered", "not begun"}


# -- waiting for a lock ----------------------------------------------------------------------------


@pytest.mark.parametrize("finished", [True, False], ids=["moved", "half moved"])
@pytest.mark.parametrize("who", ["acquire_lock", "update_inventory"])
def test_who_waits_for_a_lock_gets_it_where_it_is_now(own_cluster, connect, who, finished):
    client = connect(own_cluster.url)
    client.incr_inventory(STOCK, 10)
    own_cluster.observer(LOCK).set(LOCK, 1, px=HOUR)
    if who == "acquire_lock":
        waiter = call(client.acquire_lock, LOCK, HOUR, 60_000).until_asleep()
    else:
        waiter = call(client.update_inventory, LOCK, STOCK, -1, **PATIENT).until_asleep()
    target = elsewhere(own_cluster)
    move = own_cluster.begin_move(SLOT, target)
    move.keys()
    if finished:
        move.finish()
    waiter.until_asleep()
    assert waiter.is_alive(), "it is held, wherever it is"
    with target.redis(single_connection_client=True) as observer:
        observer.execute_command("ASKING")
        assert observer.delete(LOCK) == 1
    if not finished:
        finish_soon(move)
    assert waiter.result(20) is (True if who == "acquire_lock" else None)


def test_a_lock_that_renews_itself_follows_its_slot(a_cluster):
    with seckill.Client(a_cluster.url) as client:
        lock = seckill.Lock(client, LOCK, timeout=3, auto_renew=True)
        assert lock.acquire()
        a_cluster.move_slots([SLOT], elsewhere(a_cluster))
        observer = a_cluster.observer(LOCK)
        observer.pexpire(LOCK, 2500)
        wait_until(lambda: observer.pttl(LOCK) > 2600)
        assert lock.owned()
        lock.release()
        assert not observer.exists(LOCK)
