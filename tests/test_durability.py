"""wait_replicas and wait_aof: done and safe, or `NotReplicated`, which says how far it is."""

from __future__ import annotations

import contextlib
import copy
import itertools
import pickle

import pytest
import seckill
import seckill.aio
from support.aio import Awaited
from support.clusters import key_in
from support.fake_sentinels import at
from support.proxy import REPLY, Fault, in_turn
from support.replicas import (
    commands,
    connect,
    face,
    replicated,
    shared_replicated,
    start_replicated,
)
from support.servers import version
from support.threads import call, wait_until

MINUTE = 60_000
KNOWS_WAITAOF = (7, 2)
FIXTURES = (connect, face, replicated, shared_replicated, start_replicated)

# What may have to be safe, and what then stands in the stock (of ten) or at the lock.
CHANGES = {
    "update_inventory": lambda client, lock, key: client.update_inventory(lock, key, -1),
    "incr_inventory": lambda client, lock, key: client.incr_inventory(key, -1),
}


def stock(replicated, key, units=10):
    observer = replicated.primary.redis()
    observer.set(key, units)
    return observer


# -- stock ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("wanted", [0, 1, 2])
def test_a_change_that_is_where_it_is_to_be_is_told(replicated, connect, wanted, change, lock, key):
    stock(replicated, key)
    client = connect(replicated.url, wait_replicas=wanted, socket_timeout=5)
    CHANGES[change](client, lock, key)
    found = [replica.redis().get(key) for replica in replicated.replicas]
    assert found.count(b"9") >= wanted
    assert replicated.primary.redis().get(key) == b"9"


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize(("lagging", "wanted"), [(0, 3), (1, 2), (2, 1), (2, 2)])
def test_a_change_that_too_few_replicas_have_is_told_to_be_unsafe(
    replicated, connect, lagging, wanted, change, lock, key
):
    """Not "one at least", not "those that are there": it counts. And it was done, once."""
    observer = stock(replicated, key)
    client = connect(replicated.url, wait_replicas=wanted)
    with replicated.lagging(lagging), pytest.raises(seckill.NotReplicated) as caught:
        CHANGES[change](client, lock, key)
    assert (caught.value.acknowledged, caught.value.wanted) == (2 - lagging, wanted)
    assert not isinstance(caught.value, ConnectionError)
    assert observer.get(key) == b"9"


def test_a_replica_that_is_gone_does_not_count(start_replicated, own_kind, connect, lock, key):
    replicated = start_replicated(own_kind, replicas=1)
    observer = stock(replicated, key)
    client = connect(replicated.url, wait_replicas=1, socket_timeout=2)
    client.update_inventory(lock, key, -1)
    replicated.replicas[0].kill()
    with pytest.raises(seckill.NotReplicated, match="0 of 1 replicas"):
        client.update_inventory(lock, key, -1)
    assert observer.get(key) == b"8"
    replicated.replicas[0].start()
    replicated.catch_up()
    client.update_inventory(lock, key, -1)
    assert replicated.replicas[0].redis().get(key) == b"7"


def test_a_server_without_replicas_proves_nothing(server, connect, lock, key):
    server.redis().set(key, 10)
    with pytest.raises(seckill.NotReplicated) as caught:
        connect(server.url, wait_replicas=1).update_inventory(lock, key, -1)
    assert (caught.value.acknowledged, caught.value.wanted) == (0, 1)
    assert server.redis().get(key) == b"9"


def test_who_is_refused_is_told_at_once(replicated, connect, lock, key):
    """Nothing was changed, so there is nothing to be safe."""
    observer = stock(replicated, key)
    connect(replicated.url).update_inventory(lock, key, 0)  # the server knows the scripts
    connect(replicated.url).acquire_lock(key, MINUTE, 0)
    patient = {"wait_replicas": 2, "socket_timeout": 30}
    with replicated.lagging(1):
        refused = call(connect(replicated.url, **patient).update_inventory, lock, key, -11)
        with pytest.raises(seckill.InsufficientInventory):
            refused.result(within=10)
        refused = call(connect(replicated.url, **patient).update_inventory, lock, f"{key}:not", -1)
        with pytest.raises(seckill.NoInventory):
            refused.result(within=10)
        observer.set(lock, "another")
        refused = call(connect(replicated.url, **patient).acquire_lock, lock, MINUTE, 0)
        assert refused.result(within=10) is False
    observer.delete(lock)


# -- a batch -------------------------------------------------------------------------------------


@contextlib.contextmanager
def one_batch(replicated, client, lock, key):
    """What is asked within it travels together, when it is over."""
    client.update_inventory(lock, key, 0)
    with replicated.primary.frozen():
        first = call(client.update_inventory, lock, key, 0).until_asleep()
        yield
    first.result()


def test_a_crowd_is_proved_safe_by_one_wait(replicated, connect, lock, key):
    stock(replicated, key, 100)
    client = connect(replicated.url, wait_replicas=1, socket_timeout=20)
    before = commands(replicated.primary, "wait")
    with one_batch(replicated, client, lock, key):
        crowd = [call(client.update_inventory, lock, key, -1).until_asleep() for _ in range(30)]
    for buyer in crowd:
        buyer.result()
    assert commands(replicated.primary, "wait") - before <= 5
    assert replicated.primary.redis().get(key) == b"70"


def test_who_does_not_want_it_does_not_ask_for_it(replicated, connect, lock, key):
    stock(replicated, key)
    before = commands(replicated.primary, "wait"), commands(replicated.primary, "waitaof")
    connect(replicated.url).update_inventory(lock, key, -1)
    assert (commands(replicated.primary, "wait"), commands(replicated.primary, "waitaof")) == before


def test_who_does_not_want_it_is_told_before_those_who_do(replicated, lock, key):
    """They are in one batch, even in one script call."""
    observer = stock(replicated, key)
    client = seckill.Client(replicated.url, socket_timeout=20)
    careful = client.with_options(wait_replicas=2)
    with replicated.lagging(1):
        with one_batch(replicated, client, lock, key):
            waits = call(careful.update_inventory, lock, key, -1).until_asleep()
            does_not = call(client.update_inventory, lock, key, -1).until_asleep()
        does_not.result(within=10)
        assert waits.is_alive()
        assert observer.get(key) == b"8"
    waits.result(within=30)
    assert client.statistics()["connects"] == 1


def test_a_task_that_does_not_want_it_is_told_before_those_who_do(replicated, lock, key):
    stock(replicated, key)
    client = seckill.aio.Client(replicated.url, socket_timeout=20)
    careful = Awaited(client.with_options(wait_replicas=2))
    plain = Awaited(client)
    with replicated.lagging(1):
        with one_batch(replicated, plain, lock, key):
            waits = call(careful.update_inventory, lock, key, -1).until_asleep()
            does_not = call(plain.update_inventory, lock, key, -1).until_asleep()
        does_not.result(within=10)
        assert waits.is_alive()
    waits.result(within=30)
    for each in (careful, plain):
        each.close()


def test_each_of_a_batch_is_judged_by_what_he_wants(replicated, lock, key):
    observer = stock(replicated, key)
    client = seckill.Client(replicated.url, socket_timeout=1)
    wanting = [client.with_options(wait_replicas=count) for count in range(4)]
    with replicated.lagging(1):
        with one_batch(replicated, client, lock, key):
            asked = [call(it.update_inventory, lock, key, -1).until_asleep() for it in wanting]
        for caller in asked[:2]:
            caller.result()
        for caller, wanted in zip(asked[2:], (2, 3), strict=True):
            with pytest.raises(seckill.NotReplicated) as caught:
                caller.result()
            assert (caught.value.acknowledged, caught.value.wanted) == (1, wanted)
    assert observer.get(key) == b"6"


# -- answers that are lost -----------------------------------------------------------------------


def length_of_reply(proxy, client, lock, key):
    """Of the script's own, without what comes behind it."""
    client.update_inventory(lock, key, 0)
    before = proxy.bytes_seen[REPLY]
    client.update_inventory(lock, key, 0)
    return proxy.bytes_seen[REPLY] - before


@pytest.mark.parametrize("lost", ["the script's", "the proof's"])
@pytest.mark.parametrize("action", ["cut", "swallow"])
def test_a_lost_answer_is_asked_for_again_and_proved_anew(
    replicated, connect, start_proxy, lost, action, lock, key
):
    observer = stock(replicated, key)
    proxy = start_proxy(replicated.primary)
    plain = connect(proxy.url)
    length = length_of_reply(proxy, plain, lock, key)
    client = connect(proxy.url, wait_replicas=2, socket_timeout=0.5)
    after = 0 if lost == "the script's" else length
    for lagging in (0, 1):
        client.update_inventory(lock, key, 0)
        proxy.strike(Fault(action, REPLY, after))
        with replicated.lagging(lagging):
            if lagging:
                with pytest.raises(seckill.NotReplicated, match="1 of 2 replicas"):
                    client.update_inventory(lock, key, -1)
            else:
                client.update_inventory(lock, key, -1)
        assert observer.get(key) == str(9 - lagging).encode()
    assert client.statistics()["asked_again"] >= 2


def test_a_primary_that_is_demoted_meanwhile_proves_nothing(
    start_replicated, own_kind, start_fake, connect, lock, key
):
    """The replica that has the sale becomes the primary, and the others get it from there."""
    replicated = start_replicated(own_kind, replicas=2)
    stock(replicated, key)
    replicated.catch_up()
    epochs = itertools.count(1)
    old, (laggard, successor) = replicated.primary, replicated.replicas
    fake = start_fake(lambda: at(replicated.primary, next(epochs)))
    url = f"redis+sentinel://{fake.host}:{fake.port}/mymaster"
    client = connect(url, wait_replicas=2, socket_timeout=10, timeout=60)
    client.update_inventory(lock, key, 0, 5000, MINUTE)
    with laggard.frozen():
        sale = call(client.update_inventory, lock, key, -1, 5000, MINUTE)
        wait_until(lambda: successor.redis().get(key) == b"9")
        assert sale.is_alive()
        replicated.promote(successor)
    laggard.ask("REPLICAOF", successor.host, successor.port)
    sale.result()
    assert [server.redis().get(key) for server in (successor, old, laggard)] == [b"9"] * 3


# -- the disk ------------------------------------------------------------------------------------


def test_a_change_is_told_when_it_is_on_the_disk(start_server, own_kind, connect, lock, key):
    server = start_server("appendonly yes", kind=own_kind)
    server.redis().set(key, 10)
    client = connect(server.url, wait_aof=True, socket_timeout=5)
    if version(own_kind) < KNOWS_WAITAOF:
        with pytest.raises(seckill.NotReplicated, match="unknown command"):
            client.update_inventory(lock, key, -1)
    else:
        client.update_inventory(lock, key, -1)
        assert client.acquire_lock(lock) is True
    assert server.redis().get(key) == b"9"
    server.kill()
    if version(own_kind) >= KNOWS_WAITAOF:
        server.start()
        assert server.redis().get(key) == b"9"


def test_without_a_file_to_append_to_nothing_is_on_the_disk(server, connect, lock, key):
    server.redis().set(key, 10)
    client = connect(server.url, wait_aof=True)
    why = "unknown command" if version(server.kind) < KNOWS_WAITAOF else "appendonly is disabled"
    with pytest.raises(seckill.NotReplicated, match=why) as caught:
        client.update_inventory(lock, key, -1)
    assert (caught.value.acknowledged, caught.value.wanted) == (0, 0)
    assert server.redis().get(key) == b"9"


def test_a_lost_answer_is_no_proof_of_the_disk(
    start_server, own_kind, connect, start_proxy, lock, key
):
    """The answer comes from the record of the call; what is on the disk is another question."""
    server = start_server("appendonly yes", "appendfsync everysec", kind=own_kind)
    server.redis().set(key, 10)
    proxy = start_proxy(server)
    connect(proxy.url).update_inventory(lock, key, 0)
    client = connect(proxy.url, wait_aof=True, socket_timeout=5)
    proxy.faults = in_turn(Fault("cut", REPLY, 400))
    try:
        for _ in range(5):
            client.update_inventory(lock, key, -1)
    except seckill.NotReplicated:
        assert version(own_kind) < KNOWS_WAITAOF
        assert server.redis().get(key) == b"9"
        return
    assert client.statistics()["asked_again"] == 1
    server.kill()
    server.start()
    assert server.redis().get(key) == b"5"


# -- lock and stock at different nodes of a cluster ----------------------------------------------


@pytest.mark.parametrize("laggard", ["the stock's", "the lock's"])
def test_it_is_the_stock_that_has_to_be_safe(start_cluster, own_kind, connect, laggard):
    """NotReplicated says that the stock was changed: it is not said of the lock alone."""
    cluster = start_cluster(own_kind, replicas=1)
    lock, key = key_in(range(100), "lock"), key_in(range(16_000, 16_100), "stock")
    observer = cluster.observer(key)
    observer.set(key, 10)
    cluster.catch_up()
    client = connect(cluster.url, wait_replicas=1, socket_timeout=2)
    client.update_inventory(lock, key, -1)
    (frozen,) = cluster.replicas_of(cluster.node_of(key if laggard == "the stock's" else lock))
    with frozen.frozen():
        if laggard == "the lock's":
            client.update_inventory(lock, key, -1)
        else:
            with pytest.raises(seckill.NotReplicated):
                client.update_inventory(lock, key, -1)
        assert observer.get(key) == b"8"
        assert not cluster.observer(lock).exists(lock)


# -- how it is said ------------------------------------------------------------------------------


def test_one_call_can_want_more_than_the_others(replicated, lock, key):
    stock(replicated, key)
    client = seckill.Client(replicated.url, socket_timeout=0.2)
    careful = client.with_options(wait_replicas=3)
    client.update_inventory(lock, key, -1)
    for call_ in (careful, careful.with_options(wait_aof=False)):
        with pytest.raises(seckill.NotReplicated):
            call_.update_inventory(lock, key, -1)
    careful.with_options(wait_replicas=0).update_inventory(lock, key, -1)
    assert client.statistics()["connects"] == 1
    # What one of them has acquired is the other's, too.
    assert client.with_options(wait_replicas=1).acquire_lock(lock, MINUTE) is True
    client.release_lock(lock)
    assert not replicated.primary.redis().exists(lock)


@pytest.mark.parametrize("twin", [seckill.Client, seckill.aio.Client])
def test_it_can_be_said_in_a_url_by_a_keyword_and_travels(twin):
    for client in (
        twin("redis://h/0?wait_replicas=2&wait_aof=yes"),
        twin("redis://h/0", wait_replicas=2, wait_aof=True),
        twin("redis://h/0").with_options(wait_replicas=2, wait_aof=True),
    ):
        for same in (client, pickle.loads(pickle.dumps(client)), client.with_options()):
            settings = same.settings()
            assert (settings["wait_replicas"], settings["wait_aof"]) == (2, True)


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("wait_replicas", -1, ValueError),
        ("wait_replicas", 1001, ValueError),
        ("wait_replicas", True, TypeError),
        ("wait_replicas", 1.0, TypeError),
        ("wait_replicas", [1], TypeError),
        ("wait_aof", "yes", TypeError),
        ("wait_aof", 1.0, TypeError),
    ],
)
@pytest.mark.parametrize("twin", [seckill.Client, seckill.aio.Client])
def test_a_bad_value_is_named(twin, name, value, error):
    with pytest.raises(error, match=name):
        twin("redis://h/0", **{name: value})
    with pytest.raises(error, match=name):
        twin("redis://h/0").with_options(**{name: value})


@pytest.mark.parametrize("said", ["wait_replicas=x", "wait_replicas=-1", "wait_aof=perhaps"])
def test_a_bad_value_is_named_in_a_url_too(said):
    with pytest.raises(ValueError, match=said.partition("=")[0]):
        seckill.Client(f"redis://h/0?{said}")


def test_not_replicated_crosses_processes():
    told = seckill.NotReplicated(1, 2, "1 of 2 replicas have it")
    for again in (pickle.loads(pickle.dumps(told)), copy.copy(told)):
        assert (again.acknowledged, again.wanted, again.reason) == (1, 2, told.reason)
        assert (str(again), repr(again)) == (str(told), repr(told))
    assert isinstance(told, seckill.SeckillError)
    assert not isinstance(told, ConnectionError)
