"""Callers that arrive together share a batch, and none of them can tell."""

from __future__ import annotations

import threading
from collections import Counter

import pytest
import seckill
from hypothesis import example, given
from hypothesis import strategies as st
from support.interleaving import (
    CREATED_IN_MID_BATCH,
    LAST_UNIT,
    TwoStocks,
    ask,
    crowds,
    many_examples,
    stocks,
)
from support.model import Done, an_order_explains
from support.threads import all_of, call

pytestmark = pytest.mark.core

# -- any interleaving gives what a sequential model gives ---------------------------------------


@pytest.mark.stress
@many_examples
@given(stock=st.tuples(stocks, stocks), crowd=crowds, together=st.booleans())
@example(  # one unit short, beside callers who change the stock by as much as there is
    stock=(9007199254740995, 9007199254740995),
    crowd=[[(0, (False, -9007199254740996))], [(0, (False, 1))], [(1, (False, -9007199254740996))]],
    together=True,
)
@example(stock=(1, 0), crowd=LAST_UNIT, together=True)
@example(stock=(None, None), crowd=CREATED_IN_MID_BATCH, together=True)
def test_any_interleaving_gives_each_caller_what_a_sequential_model_gives(
    own_server, stock, crowd, together
):
    two = TwoStocks(own_server, stock)
    client = client_of(own_server)

    def buyer(wishes):
        return lambda: [(i, ask(client, two.lock, two.keys[i], *wish)) for i, wish in wishes]

    with two.asked_together(together):
        told = all_of(map(buyer, crowd))
    two.audit(answer for answers in told for answer in answers)


clients: dict[str, seckill.Client] = {}


def client_of(server):
    """One client for all examples on a server: sessions are long-lived, as in an application."""
    return clients.setdefault(server.url, seckill.Client(server.url))


def test_the_model_itself_tells_right_from_wrong():
    def done(change, told, started=0.0, ended=1.0):
        return Done(False, change, told, started, ended)

    assert an_order_explains(1, [done(-1, "ok"), done(-1, ("insufficient", 0))])
    assert an_order_explains(1, [done(-1, ("insufficient", 0)), done(-1, "ok")])
    assert not an_order_explains(1, [done(-1, "ok"), done(-1, "ok")])
    assert not an_order_explains(1, [done(-1, ("insufficient", 1))])
    assert not an_order_explains(2, [done(-1, "ok"), done(-1, ("insufficient", 1))])
    # The refused one had ended before the one who took the unit began.
    assert not an_order_explains(
        1, [done(-1, ("insufficient", 0), 0.0, 1.0), done(-1, "ok", 2.0, 3.0)]
    )


# -- a large sale, with a ledger outside ----------------------------------------------------------


def test_a_sale_from_many_threads_adds_up_and_never_shows_less_than_zero(
    server, client, redis_py, name
):
    keys = [name(f"stock{i}") for i in range(3)]
    offered = dict.fromkeys(keys, 500)
    for key in keys:
        redis_py.set(key, offered[key])
    lowest, over = [0], threading.Event()

    def watch():
        observer = server.redis()
        while not over.is_set():
            lowest.append(min(int(units) for units in observer.mget(keys)))

    def buyer(number):
        def buy():
            sold, told = Counter(), Counter()
            for i in range(200):
                key = keys[(number + i) % 3]
                units = 1 + (number + i) % 4
                put_back = i % 10 == 9
                answer = ask(client, name("lock"), key, put_back, 2 if put_back else -units)
                told[answer.outcome if answer.outcome == "ok" else answer.outcome[0]] += 1
                if answer.outcome == "ok":
                    sold[key] -= answer.change
            return sold, told

        return buy

    watching = call(watch)
    answers = all_of([buyer(number) for number in range(24)])
    over.set()
    watching.result()

    told = sum((told for _, told in answers), Counter())
    assert set(told) == {"ok", "insufficient"}
    assert sum(told.values()) == 24 * 200
    for key in keys:
        sold = sum(sold[key] for sold, _ in answers)
        assert int(redis_py.get(key)) == offered[key] - sold
    assert min(lowest) >= 0


# -- how a crowd travels ----------------------------------------------------------------------


def waiting(server, functions):
    """Make the calls, one after the other, on a server that does not answer until all wait."""
    with server.frozen():
        return [call(function).until_asleep() for function in functions]


def buying(client, units):
    return lambda: client.update_inventory("lock", "stock", -units, 5000, 20_000)


def test_a_call_by_itself_is_one_round_trip(client, redis_py, key, lock):
    redis_py.set(key, 100)
    client.update_inventory(lock, key, -1)
    before = client.statistics()
    for _ in range(20):
        client.update_inventory(lock, key, -1)
    after = client.statistics()
    for count in ("steps", "calls", "batches"):
        assert after[count] - before[count] == 20
    assert after["connects"] == before["connects"] == 1
    assert after["asked_again"] == 0


def test_a_crowd_on_one_key_shares_one_call(own_server):
    observer = own_server.redis()
    observer.set("stock", 100)
    client = seckill.Client(own_server.url)
    client.update_inventory("lock", "stock", -1)
    before = client.statistics()
    callers = waiting(own_server, [buying(client, 1)] * 40)
    for caller in callers:
        caller.result()
    after = client.statistics()
    # The first who came was on the way alone; all others make the second batch. A frozen server
    # may cost repeats of the one in flight, which are no calls of their own.
    assert after["steps"] - before["steps"] == 40
    assert after["calls"] - before["calls"] <= 2 + after["asked_again"]
    assert observer.get("stock") == b"59"


def test_a_crowd_on_many_keys_shares_one_batch(own_server):
    observer = own_server.redis()
    client = seckill.Client(own_server.url)
    client.incr_inventory("warm", 1)
    before = client.statistics()
    callers = waiting(
        own_server, [lambda i=i: client.incr_inventory(f"stock{i}", i + 1) for i in range(20)]
    )
    for caller in callers:
        caller.result()
    after = client.statistics()
    assert after["batches"] - before["batches"] <= 2 + after["asked_again"]
    assert [int(observer.get(f"stock{i}")) for i in range(20)] == [i + 1 for i in range(20)]


def test_a_crowd_is_served_in_the_order_in_which_it_came(own_server):
    own_server.redis().set("stock", 10)
    client = seckill.Client(own_server.url)
    client.incr_inventory("warm", 1)
    callers = waiting(own_server, [buying(client, 1)] * 25)
    for caller in callers[:10]:
        caller.result()
    for caller in callers[10:]:
        with pytest.raises(seckill.InsufficientInventory) as caught:
            caller.result()
        assert caught.value.available == 0


def test_each_of_a_crowd_is_judged_by_itself(own_server):
    """One who wants too much does not spoil it for those behind."""
    own_server.redis().set("stock", 10)
    client = seckill.Client(own_server.url)
    client.incr_inventory("warm", 1)
    wishes = [4, 7, 5, 2, -3, 4, 1]
    told = ["ok", 6, "ok", 1, "ok", "ok", 0]
    callers = waiting(own_server, [buying(client, wish) for wish in wishes])
    for caller, expected in zip(callers, told, strict=True):
        if expected == "ok":
            caller.result()
        else:
            with pytest.raises(seckill.InsufficientInventory) as caught:
                caller.result()
            assert caught.value.available == expected


def test_those_who_wait_for_a_lock_do_not_hold_up_those_who_do_not(client, redis_py, name):
    held, free, key = name("held"), name("free"), name("stock")
    redis_py.set(key, 100)
    redis_py.set(held, 1, px=60_000)

    def hold_for_a_moment():
        taken = client.acquire_lock(held, 5000, 30_000)
        client.release_lock(held)
        return taken

    buyers = [call(client.update_inventory, held, key, -1, 5000, 30_000) for _ in range(8)]
    holders = [call(hold_for_a_moment) for _ in range(8)]
    for caller in buyers + holders:
        caller.until_asleep()
    for _ in range(50):
        client.update_inventory(free, key, -1, 5000, 5000)
    assert redis_py.get(key) == b"50"
    assert all(caller.is_alive() for caller in buyers + holders)
    redis_py.delete(held)
    for caller in buyers:
        caller.result()
    assert all(caller.result() is True for caller in holders)
    assert redis_py.get(key) == b"42"
    assert not redis_py.exists(held)


def test_callers_with_little_time_do_not_take_it_from_those_with_much(own_server):
    """Each has its own deadline, also in one batch: the frozen server costs only the impatient."""
    own_server.redis().set("stock", 100)
    client = seckill.Client(own_server.url, socket_timeout=0.2)
    client.update_inventory("lock", "stock", 0)
    own_server.freeze()
    patient = [
        call(client.update_inventory, "lock", "stock", -1, 5000, 30_000).until_asleep()
        for _ in range(5)
    ]
    impatient = [
        call(client.update_inventory, "lock", "stock", -10, 5000, 300).until_asleep()
        for _ in range(3)
    ]
    for caller in impatient:
        with pytest.raises(seckill.ConnectionError):
            caller.result()
    own_server.thaw()
    for caller in patient:
        caller.result()
    assert own_server.redis().get("stock") == b"95"
