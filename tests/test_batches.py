"""Callers that arrive together share a batch, and none of them can tell."""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections import Counter

import pytest
import seckill
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from support.model import LARGEST, Done, an_order_explains, stock_after
from support.threads import all_of, call

pytestmark = pytest.mark.core

EXAMPLES = 3000 if os.environ.get("SECKILL_STRESS") else 60

# -- any interleaving gives what a sequential model gives ---------------------------------------

near_the_edges = st.one_of(
    st.integers(0, 8),
    st.integers(2**53 - 2, 2**53 + 4),
    st.integers(LARGEST - 4, LARGEST),
)
stocks = st.one_of(st.none(), near_the_edges)
small = st.integers(-4, 4)
large = st.one_of(near_the_edges, near_the_edges.map(lambda number: -number))
updates = st.tuples(st.just(False), st.one_of(small, small, large))
restocks = st.tuples(st.just(True), st.integers(1, 4))
asked = st.tuples(st.integers(0, 1), st.one_of(updates, updates, updates, restocks))
crowds = st.lists(st.lists(asked, min_size=1, max_size=4), min_size=2, max_size=6)


def ask(client, lock, key, create, change):
    """One call, with what it was told and when."""
    started = time.monotonic()
    try:
        if create:
            client.incr_inventory(key, change)
        else:
            client.update_inventory(lock, key, change)
        told = "ok"
    except seckill.NoInventory:
        told = "missing"
    except seckill.InsufficientInventory as error:
        told = ("insufficient", error.available)
        if error.requested != -change:
            told = f"a refusal of {error.requested} units instead of {-change}"
    except seckill.InvalidInventory:
        told = "overflow"
    return Done(create, change, told, started, time.monotonic())


@pytest.mark.stress
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(stock=st.tuples(stocks, stocks), crowd=crowds, together=st.booleans())
@example(  # one unit short, beside callers who change the stock by as much as there is
    stock=(9007199254740995, 9007199254740995),
    crowd=[[(0, (False, -9007199254740996))], [(0, (False, 1))], [(1, (False, -9007199254740996))]],
    together=True,
)
@example(  # the last unit, wanted by all
    stock=(1, 0), crowd=[[(0, (False, -1)), (0, (True, 1))] for _ in range(6)], together=True
)
@example(  # created in mid-batch
    stock=(None, None), crowd=[[(0, (False, -1)), (0, (True, 2))] for _ in range(6)], together=True
)
def test_any_interleaving_gives_each_caller_what_a_sequential_model_gives(
    own_server, stock, crowd, together
):
    observer = own_server.redis()
    run = uuid.uuid4().hex
    keys = [f"stock:{run}:{i}" for i in range(2)]
    for key, units in zip(keys, stock, strict=True):
        if units is not None:
            observer.set(key, units)
    client = client_of(own_server)

    def buyer(wishes):
        return lambda: [(i, ask(client, f"lock:{run}", keys[i], *wish)) for i, wish in wishes]

    if together:  # all that the buyers ask for at first is waiting when the server wakes up
        own_server.freeze()
        thawing = threading.Timer(0.01, own_server.thaw)
        thawing.start()
    told = [answer for answers in all_of(map(buyer, crowd)) for answer in answers]
    if together:
        thawing.join()

    for number, key in enumerate(keys):
        calls = [done for i, done in told if i == number]
        left = observer.get(key)
        assert (None if left is None else int(left)) == stock_after(stock[number], calls)
        assert left is None or int(left) >= 0
        assert an_order_explains(stock[number], calls), calls


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
