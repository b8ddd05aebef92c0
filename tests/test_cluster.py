"""A cluster: each step goes to the node that has its key, whatever its name; the rest stays."""

from __future__ import annotations

import time

import pytest
import seckill
import seckill.aio
from support.aio import every_call, gathered
from support.clients import HOUR
from support.clusters import key_in, slot_of
from support.crowd import Crowd
from support.programs import run
from support.proxy import SilentHost
from support.servers import lasting_port
from support.threads import all_of, call, wait_until

pytestmark = pytest.mark.core

NAMES = [
    "{",
    "}",
    "{}",
    "{}x",
    "x{}",
    "a}b{c",
    "{a",
    "a}",
    "}{",
    "}{a}",
    "{{}}",
    "{}{tag}",
    "{tag}",
    "x{tag}y{z}",
    "{tag}:" * 20,
    "{" * 50,
    "}" * 50,
    " ",
    "\r\n",
    "库存{库}",
    "seckill:{a}:b",
    b"\x00",
    b"\xff\xfe{\x00}",
    b"\xff}\xfe",
    b"a" * 1000 + b"}",
]


def each_node(cluster):
    return sorted(cluster.primaries, key=lambda node: node.port)


def apart(name):
    """A lock and a stock that two nodes have."""
    return key_in(range(5000), name("lock")), key_in(range(12_000, 16_000), name("stock"))


def together(name):
    return f"{{{name('sale')}}}:lock", f"{{{name('sale')}}}:stock"


@pytest.fixture(params=[apart, together])
def lock_and_stock(request, name):
    return request.param(name)


@pytest.fixture
def url(cluster):
    return cluster.url


# -- every node, every name ------------------------------------------------------------------------


def test_many_keys_are_sold_at_the_nodes_that_have_them(cluster, connect, name):
    client = connect(cluster.url)
    keys = [f"{name('stock')}:{number}" for number in range(60)]
    for key in keys:
        client.incr_inventory(key, 10)
        client.update_inventory(f"{{{key}}}:lock", key, -3)
    assert {cluster.observer(key).get(key) for key in keys} == {b"7"}
    assert {cluster.node_of(key) for key in keys} == set(cluster.primaries)
    assert client.statistics()["connects"] == 3


async def test_all_that_a_client_does_it_does_here(cluster, name, loop_kind):
    async with seckill.aio.Client(cluster.url) as client:
        for number in range(6):
            assert await every_call(client, lambda kind, n=number: name(f"{kind}:{n}")) == 7


@pytest.mark.parametrize("stock", NAMES, ids=ascii)
def test_side_keys_are_in_the_stocks_slot_whatever_its_name(cluster, stock):
    """A node refuses a script whose keys are in several slots, and says CROSSSLOT."""
    observer = cluster.observer(stock)
    observer.delete(stock)
    with seckill.Client(cluster.url) as client:
        client.incr_inventory(stock, 10)
        client.update_inventory("lock", stock, -1)
    assert observer.get(stock) == b"9"
    ending = b":" + (stock.encode() if isinstance(stock, str) else stock)
    side_keys = {key for key in observer.scan_iter("seckill:*", 1000) if key.endswith(ending)}
    assert side_keys, "the sessions' records"
    slot = observer.execute_command("CLUSTER", "KEYSLOT", stock)
    assert slot == slot_of(stock)
    for side_key in side_keys:
        assert observer.execute_command("CLUSTER", "KEYSLOT", side_key) == slot, side_key
    observer.delete(stock, *side_keys)


@pytest.mark.parametrize("lock", NAMES, ids=ascii)
def test_a_lock_may_have_any_name(cluster, lock, key):
    observer = cluster.observer(lock)
    observer.delete(lock)
    with seckill.Client(cluster.url) as client:
        client.incr_inventory(key, 10)
        assert client.acquire_lock(lock, HOUR)
        assert observer.exists(lock)
        client.update_inventory(lock, key, -1)
        client.release_lock(lock)
        assert not observer.exists(lock)
        client.update_inventory(lock, key, -1)
        fair = seckill.Lock(client, lock, timeout=60, fair=True)
        with fair:
            assert fair.fence > 0
    assert not observer.exists(lock)
    assert cluster.observer(key).get(key) == b"8"


async def test_a_thousand_tasks_on_all_slots_share_a_connection_to_each_node(
    cluster, name, loop_kind
):
    """And the answers find the way to who asked."""
    crowd = Crowd(cluster.everywhere, name, 1000, lock_each=True)
    async with seckill.aio.Client(cluster.url) as client:
        await gathered(crowd.ask(client, number, time_out=60_000) for number in range(crowd.size))
        statistics = client.statistics()
    assert crowd.audit() == {"done": 800, "answered": 200}
    assert statistics["connects"] == 3
    assert statistics["batches"] < 200


def test_threads_on_all_slots_with_one_lock_for_all(cluster, connect, name):
    """In three steps nearly always: the lock is somewhere else."""
    crowd = Crowd(cluster.everywhere, name, 200)
    client = connect(cluster.url)

    def buyer(first):
        for number in range(first, crowd.size, 8):
            crowd.ask_plainly(client, number, time_out=60_000)

    all_of([lambda first=first: buyer(first) for first in range(8)])
    assert crowd.audit() == {"done": 160, "answered": 40}
    wait_until(lambda: not cluster.observer(crowd.lock).exists(crowd.lock))


# -- lock and stock, in one slot or in two ---------------------------------------------------------


def test_an_update_leaves_no_lock_whatever_comes_of_it(cluster, connect, lock_and_stock):
    lock, stock = lock_and_stock
    client = connect(cluster.url)
    with pytest.raises(seckill.NoInventory):
        client.update_inventory(lock, stock, -1)
    assert not cluster.observer(stock).exists(stock), "nothing is created"
    client.incr_inventory(stock, 1)
    client.update_inventory(lock, stock, -1)
    with pytest.raises(seckill.InsufficientInventory) as caught:
        client.update_inventory(lock, stock, -1)
    assert (caught.value.available, caught.value.requested) == (0, 1)
    cluster.observer(stock).set(stock, "ten")
    with pytest.raises(seckill.InvalidInventory):
        client.update_inventory(lock, stock, -1)
    wait_until(lambda: not cluster.observer(lock).exists(lock), within=1)
    assert cluster.observer(stock).get(stock) == b"ten"


def test_the_callers_own_lock_lets_it_through_and_stays(cluster, connect, lock_and_stock):
    lock, stock = lock_and_stock
    client, another = connect(cluster.url), connect(cluster.url)
    client.incr_inventory(stock, 10)
    assert client.acquire_lock(lock, HOUR)
    client.update_inventory(lock, stock, -1, time_out=0)
    assert cluster.observer(lock).exists(lock)
    with pytest.raises(seckill.LockTimeout):
        another.update_inventory(lock, stock, -1, time_out=100)
    assert cluster.observer(lock).exists(lock)
    assert cluster.observer(stock).get(stock) == b"9"
    client.release_lock(lock)
    another.update_inventory(lock, stock, -1, time_out=0)
    assert cluster.observer(stock).get(stock) == b"8"


def test_an_old_holder_is_waited_for_not_robbed(cluster, connect, lock_and_stock):
    """Its lock has the value 1, and goes by DEL or by the end of its lease."""
    lock, stock = lock_and_stock
    client = connect(cluster.url)
    client.incr_inventory(stock, 10)
    observer = cluster.observer(lock)
    observer.set(lock, 1, px=HOUR)
    with pytest.raises(seckill.LockTimeout):
        client.update_inventory(lock, stock, -1, time_out=0)
    with pytest.raises(seckill.LockTimeout):
        client.update_inventory(lock, stock, -1, time_out=150)
    assert observer.get(lock) == b"1"
    updating = call(client.update_inventory, lock, stock, -1, 5000, 60_000).until_asleep()
    assert updating.is_alive()
    assert cluster.observer(stock).get(stock) == b"10"
    observer.delete(lock)
    updating.result(10)
    observer.set(lock, 1, px=300)
    client.update_inventory(lock, stock, -1, 5000, 60_000)
    assert cluster.observer(stock).get(stock) == b"8"


def test_while_it_is_updated_the_old_script_cannot_have_the_lock(cluster, name):
    """In three steps the lock is really taken: nothing comes between GET and INCRBY of others."""
    lock, stock = apart(name)
    observer = cluster.observer(lock)
    with seckill.Client(cluster.url, socket_timeout=10) as client:
        client.incr_inventory(stock, 10)
        client.update_inventory(lock, stock, -1)
        with cluster.node_of(stock).frozen():
            updating = call(client.update_inventory, lock, stock, -1, 60_000, 60_000)
            wait_until(lambda: observer.exists(lock))
            assert not observer.set(lock, 1, nx=True)
            assert 0 < observer.pttl(lock) <= 60_000
        updating.result()
        wait_until(lambda: not observer.exists(lock))
    assert cluster.observer(stock).get(stock) == b"8"


def test_locks_of_all_nodes_are_waited_for_at_once(cluster, name):
    client = seckill.Client(cluster.url)
    locks = [key_in(range(first, first + 5000), name("lock")) for first in (0, 6000, 11_000)]
    for lock in locks:
        cluster.observer(lock).set(lock, "somebody", px=HOUR)
    waiters = {lock: call(client.acquire_lock, lock, HOUR, 60_000) for lock in locks}
    for lock in reversed(locks):
        assert waiters[lock].until_asleep().is_alive()
        cluster.observer(lock).delete(lock)
        assert waiters[lock].result(10) is True
    client.close()


# -- the way in ------------------------------------------------------------------------------------


class Nobody:
    """An address where nothing listens."""

    host = "127.0.0.1"

    def __init__(self):
        self.port = lasting_port()


def error_of(client, **times):
    with pytest.raises(seckill.SeckillError) as caught:
        client.update_inventory("lock", "stock", -1, **({"time_out": 30_000} | times))
    return caught.value


def test_any_node_shows_the_way_to_all(cluster, connect, name):
    for seed in cluster.primaries:
        client = connect(cluster.url_of(seed))
        for number in range(10):
            client.incr_inventory(f"{name('stock')}:{number}", 1)


def test_dead_and_silent_nodes_are_passed_over(cluster, connect, key):
    with SilentHost() as silent, SilentHost(full=True) as deaf:
        seeds = [Nobody(), silent, deaf, cluster.primaries[2]]
        client = connect(cluster.url_of(*seeds), socket_timeout=0.3)
        started = time.monotonic()
        client.incr_inventory(key, 1)
        assert time.monotonic() - started < 5
    assert cluster.observer(key).get(key) == b"1"


def test_without_any_node_it_is_an_error_at_once_that_names_them(connect):
    nobody = [Nobody(), Nobody()]
    places = ",".join(f"{node.host}:{node.port}" for node in nobody)
    started = time.monotonic()
    error = error_of(connect(f"redis+cluster://{places}"))
    assert time.monotonic() - started < 5
    assert isinstance(error, seckill.ConnectionError)
    assert error.sent is False
    for node in nobody:
        assert str(node.port) in str(error)


def test_a_server_that_is_no_cluster_is_an_error_that_says_so(server, connect):
    url = server.url.replace("redis://", "redis+cluster://")
    started = time.monotonic()
    error = error_of(connect(url))
    assert time.monotonic() - started < 5
    assert "cluster" in str(error)


def test_a_node_that_is_taken_for_a_server_says_what_to_do(cluster, connect):
    key = key_in(range(16_000, 16_384))
    one = next(node for node in cluster.primaries if node is not cluster.node_of(key))
    client = connect(one.url)
    with pytest.raises(seckill.ServerError, match=r"redis\+cluster"):
        client.incr_inventory(key, 1)
    lock, stock = key_in(range(300), "lock"), key_in(range(300), "stock")
    client = connect(cluster.node_of(lock).url)
    with pytest.raises(seckill.SeckillError, match=r"redis\+cluster"):
        client.update_inventory(lock, stock, -1)


def test_a_wrong_password_is_an_error_that_says_so(start_cluster, connect):
    cluster = start_cluster(password="sesame")
    client = connect(cluster.url)
    client.incr_inventory("stock", 1)
    assert cluster.observer("stock").get("stock") == b"1"
    error = error_of(connect(cluster.url.replace("sesame", "thistle")))
    assert isinstance(error, seckill.AuthenticationError)
    assert "thistle" not in str(error)


# -- processes -------------------------------------------------------------------------------------


def fork_with_connections_to_all_nodes(url, names):
    import threading

    import seckill
    from support.children import ended, fork

    client = seckill.configure(url)
    for name in names:
        client.incr_inventory(name, 1000)
    assert client.acquire_lock("held", 60_000)
    over = threading.Event()
    sold = [0] * len(names)

    def buyer(number):
        while not over.is_set():
            seckill.update_inventory("lock", names[number], -1, 5000, 30_000)
            sold[number] += 1

    threads = [threading.Thread(target=buyer, args=(number,)) for number in range(len(names))]
    for thread in threads:
        thread.start()

    def child():
        for name in names:
            seckill.update_inventory("lock", name, -1, 5000, 30_000)
        seckill.release_lock("held")
        return 10 if seckill.acquire_lock("held", 1000, 0) else 0

    statuses = [ended(fork(child)) for _ in range(20)]
    over.set()
    for thread in threads:
        thread.join(30)
    seckill.release_lock("held")
    return [statuses, sold, client.statistics()["connects"]]


def test_children_of_a_process_that_is_connected_to_all_nodes_start_afresh(cluster, name):
    names = [key_in(range(first, first + 5000), name("stock")) for first in (0, 6000, 11_000)]
    statuses, sold, connects = run(
        fork_with_connections_to_all_nodes, cluster.url, names, limit=60
    ).value
    assert statuses == [0] * 20
    assert connects == 3
    for key, number in zip(names, sold, strict=True):
        assert int(cluster.observer(key).get(key)) == 1000 - number - 20
