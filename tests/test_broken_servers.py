"""Servers that stop, die, forget or tell the wrong time: an error or recovery, nothing lost."""

from __future__ import annotations

import threading
import time

import pytest
import seckill
from support.clients import on_sale, sold_more
from support.clock import Clock
from support.ledger import Ledger
from support.threads import all_of, call, wait_until

# -- a server that is stopped -----------------------------------------------------------------


def stays(observer, key, value, seconds=0.5):
    """Whether a key keeps its value from now on."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if observer.get(key) != value:
            return False
    return True


def test_a_call_on_a_stopped_server_raises_in_time_and_has_no_late_effect(own_server):
    observer = own_server.redis()
    observer.set("stock", 10)
    client = seckill.Client(own_server.url, socket_timeout=0.2, timeout=0.5)
    client.update_inventory("lock", "stock", 0)
    for function in (
        lambda: client.update_inventory("lock", "stock", -1, time_out=500),
        lambda: client.update_inventory("lock", "stock", 5, time_out=500),
        lambda: client.incr_inventory("stock", 5),
    ):
        with own_server.frozen():
            start = time.monotonic()
            with pytest.raises(seckill.ConnectionError):
                function()
            assert 0.4 < time.monotonic() - start < 2.5
        assert stays(observer, "stock", b"10")


def test_an_acquire_on_a_stopped_server_takes_no_lock_later(own_server):
    observer = own_server.redis()
    client = seckill.Client(own_server.url, socket_timeout=0.2)
    client.incr_inventory("warm", 0)
    with own_server.frozen():
        start = time.monotonic()
        with pytest.raises(seckill.ConnectionError):
            client.acquire_lock("lock", 60_000, 500)
        assert 0.4 < time.monotonic() - start < 2.5
    assert stays(observer, "lock", None)
    assert client.acquire_lock("lock", 60_000, 5000) is True


def test_the_bound_is_the_larger_of_time_out_and_one_attempt(own_server):
    client = seckill.Client(own_server.url, socket_timeout=0.6)
    client.incr_inventory("stock", 10)
    with own_server.frozen():
        start = time.monotonic()
        with pytest.raises(seckill.ConnectionError):
            client.update_inventory("lock", "stock", -1, time_out=50)
        assert 0.5 < time.monotonic() - start < 2.5
    assert stays(own_server.redis(), "stock", b"10")


def test_a_whole_crowd_on_a_stopped_server_has_no_late_effect(own_server):
    observer = own_server.redis()
    observer.set("stock", 1000)
    client = seckill.Client(own_server.url, socket_timeout=0.2)
    client.update_inventory("lock", "stock", 0)
    ledger = Ledger()

    def buyer(time_out):
        return lambda: ledger.buy(client.update_inventory, "lock", "stock", 1, time_out=time_out)

    with own_server.frozen():
        all_of([buyer(300 + 10 * number) for number in range(32)])
    assert ledger.sold == ledger.refused == 0
    assert stays(observer, "stock", b"1000")


def test_a_stop_that_ends_in_time_costs_nobody_anything(own_server):
    """Longer than an attempt: a copy follows the first, and one of them counts."""
    observer = own_server.redis()
    observer.set("stock", 1000)
    client = seckill.Client(own_server.url, socket_timeout=0.1, socket_connect_timeout=0.1)
    client.update_inventory("lock", "stock", 0)
    ledger = Ledger()
    thawing = threading.Timer(1.0, own_server.thaw)
    own_server.freeze()
    thawing.start()
    all_of([lambda: ledger.buy(client.update_inventory, "lock", "stock", 1, time_out=30_000)] * 16)
    thawing.join()
    assert ledger.sold == 16
    assert stays(observer, "stock", b"984")
    assert client.statistics()["asked_again"] >= 1


def test_a_paused_server_is_waited_for(own_server):
    observer = own_server.redis()
    observer.set("stock", 10)
    client = seckill.Client(own_server.url, socket_timeout=0.1)
    client.update_inventory("lock", "stock", 0)
    observer.client_pause(500)
    client.update_inventory("lock", "stock", -1, time_out=30_000)
    assert observer.get("stock") == b"9"


# -- a server that is killed ------------------------------------------------------------------


def test_a_killed_server_that_comes_back_with_its_aof_loses_nothing(start_server, own_kind):
    server = start_server("appendonly yes", "appendfsync always", kind=own_kind)
    client = seckill.Client(server.url, socket_timeout=0.5)
    ledger, end = on_sale(server, client, 1_000_000, time_out=60_000)
    for _ in range(3):
        sold_more(ledger)
        server.kill()
        server.start()
    sold_more(ledger)
    end()
    assert ledger.sold == ledger.calls, f"everybody rode it out: {ledger}"
    assert int(server.redis().get("stock")) == 1_000_000 - ledger.sold


def test_a_killed_server_that_comes_back_empty_has_no_inventory(start_server, own_kind):
    server = start_server(kind=own_kind)
    client = seckill.Client(server.url, socket_timeout=0.5)
    client.incr_inventory("stock", 10)
    assert client.acquire_lock("lock", 60_000)
    server.kill()
    server.start()
    with pytest.raises(seckill.NoInventory):
        client.update_inventory("lock", "stock", -1, time_out=20_000)
    client.release_lock("lock")
    assert client.acquire_lock("lock", 60_000, 0) is True


def test_a_killed_server_that_stays_away_is_a_connection_error_after_time_out(own_server):
    client = seckill.Client(own_server.url, timeout=0.6)
    client.incr_inventory("stock", 10)
    own_server.kill()
    for function in (
        lambda: client.update_inventory("lock", "stock", -1, time_out=600),
        lambda: client.acquire_lock("lock", time_out=600),
        lambda: client.incr_inventory("stock", 1),
    ):
        start = time.monotonic()
        with pytest.raises(seckill.ConnectionError):
            function()
        assert 0.5 < time.monotonic() - start < 5


def test_a_call_rides_out_a_server_that_is_away_for_a_while(own_server):
    client = seckill.Client(own_server.url)
    client.incr_inventory("stock", 10)
    own_server.kill()
    waiting = call(client.incr_inventory, "stock", 5).until_asleep()
    own_server.start()
    waiting.result()
    assert own_server.redis().get("stock") == b"5"


# -- a server that forgets --------------------------------------------------------------------


def while_selling(server, hardship, times=25, **options):
    """Do something bad to the server again and again in mid-sale."""
    client = seckill.Client(server.url, **options)
    ledger, end = on_sale(server, client, 1_000_000, time_out=60_000)
    for _ in range(times):
        hardship()
        sold_more(ledger, 20)
    end()
    assert ledger.sold == ledger.calls, ledger
    assert int(server.redis().get("stock")) == 1_000_000 - ledger.sold
    return client


def test_flushed_scripts_are_loaded_again(own_server):
    observer = own_server.redis()
    while_selling(own_server, observer.script_flush)


def test_killed_connections_are_replaced_and_nothing_counts_twice(own_server):
    observer = own_server.redis()

    def kill_all():
        observer.client_kill_filter(_type="normal", skipme=True)

    client = while_selling(own_server, kill_all)
    assert client.statistics()["connects"] > 10


def test_flushed_data_are_no_inventory_until_somebody_stocks_again(own_server):
    observer = own_server.redis()
    client = seckill.Client(own_server.url)
    ledger, end = on_sale(own_server, client, 1_000_000, time_out=20_000)
    sold_more(ledger)
    observer.flushall()
    wait_until(lambda: ledger.errors["NoInventory"] > 20)
    assert not observer.exists("stock")
    end()
    client.incr_inventory("stock", 5)
    client.update_inventory("lock", "stock", -1)
    assert observer.get("stock") == b"4"


def test_a_flushed_lock_is_free_for_others_and_not_released_under_them(own_server):
    observer = own_server.redis()
    client = seckill.Client(own_server.url)
    assert client.acquire_lock("lock", 60_000)
    observer.flushall()
    observer.set("lock", "somebody else", px=60_000)
    client.release_lock("lock")
    assert observer.get("lock") == b"somebody else"


# -- a server whose clock differs --------------------------------------------------------------


@pytest.mark.parametrize("hours", [-30, 30])
def test_a_server_whose_clock_is_hours_off_sells_all_the_same(
    start_server, own_kind, tmp_path, hours
):
    clock = Clock(tmp_path, 3600 * hours)
    server = start_server(kind=own_kind, environment=clock.environment)
    observer = server.redis()
    assert abs(observer.time()[0] - time.time() - 3600 * hours) < 60, "the clock is really off"
    observer.set("stock", 10)
    client = seckill.Client(server.url, socket_timeout=0.2)
    for _ in range(3):
        client.update_inventory("lock", "stock", -1, time_out=5000)
    assert client.acquire_lock("lock", 60_000, 1000) is True
    client.release_lock("lock")
    with server.frozen(), pytest.raises(seckill.ConnectionError):
        client.update_inventory("lock", "stock", -1, time_out=300)
    assert stays(observer, "stock", b"7")


@pytest.mark.parametrize("hours", [-1, 1])
def test_a_clock_that_is_stepped_in_mid_sale_costs_nobody_anything(
    start_server, own_kind, tmp_path, hours
):
    clock = Clock(tmp_path, 0)
    server = start_server(kind=own_kind, environment=clock.environment)
    client = seckill.Client(server.url, socket_timeout=0.5)
    ledger, end = on_sale(server, client, 1_000_000, threads=3, time_out=20_000)
    for step in (hours, 0, 2 * hours):
        sold_more(ledger)
        clock.step_to(3600 * step)
    sold_more(ledger)
    end()
    assert ledger.sold == ledger.calls, ledger
    assert int(server.redis().get("stock")) == 1_000_000 - ledger.sold
