"""The least-privilege user of docs/connecting.md: what is listed is enough, and none too much.

All other tests come as that user, too (support/acl.py), but may use any name; here it has its own.
"""

from __future__ import annotations

import contextlib
import re

import pytest
import seckill
import seckill.aio
from support import acl
from support.aio import on_loop
from support.doctor import see
from support.programs import run
from support.servers import ANY, version
from support.threads import call, wait_until

pytestmark = pytest.mark.core

KEYS = ("lock:*", "stock:*", "seckill:*")
USUAL = acl.rules((9,), special=False)
FORBIDDEN = "no permission|can't run this command"  # the latter by older servers, of scripts


@pytest.fixture
def shop(own_server):
    """A server of each kind, whose seller may use these names only."""
    become(own_server)
    return own_server


def become(server, **what):
    rules = acl.user(version(server.kind), *KEYS, **({"special": False} | what))
    server.redis().execute_command("ACL", "SETUSER", acl.USER, *rules)


def everything(server):
    """What each call does, by each of its ways; what it takes at the most is in the list."""
    observer = server.redis(db=1)
    observer.flushall()

    def client():
        return seckill.Client(server.url.removesuffix("/0") + "/1", client_name="shop")

    # Nothing is left over of a connection that was made with other rights.
    with client() as one, client() as other:
        sells(one, other, observer)
        locks(one, other)
        waits(one, other, observer)
        third = client()
        queues(one, other, third, observer)
        third.close()


def sells(one, other, observer):
    one.incr_inventory("stock:1", 10)
    one.incr_inventory("stock:large", 2**62)
    one.update_inventory("lock:1", "stock:large", -1)
    observer.lpush("stock:list", 1)
    with pytest.raises(seckill.InvalidInventory):
        one.update_inventory("lock:1", "stock:list", -1)
    with pytest.raises(seckill.NoInventory):
        one.update_inventory("lock:1", "stock:none", -1)
    assert one.acquire_lock("lock:1", 60_000) is True
    one.update_inventory("lock:1", "stock:1", -1)
    assert other.acquire_lock("lock:1", 60_000, 0) is False
    with pytest.raises(seckill.LockTimeout):
        other.update_inventory("lock:1", "stock:1", -1, time_out=20)
    one.release_lock("lock:1")
    observer.lpush("lock:list", 1)  # a lock of another type is held, too
    with pytest.raises(seckill.LockTimeout):
        one.update_inventory("lock:list", "stock:1", -1, time_out=20)
    assert observer.get("stock:1") == b"9"


def locks(one, other):
    with seckill.Lock(one, "lock:2", timeout=60) as lock:
        one.update_inventory(lock, "stock:1", -1)
        lock.extend(5)
        lock.reacquire()
        lock.ensure_held()
        assert lock.locked()
        assert lock.owned()
        assert not seckill.Lock(other, "lock:2", timeout=60).owned()


def waits(one, other, observer):
    """Told of the release, which ends the wait long before the lease does."""
    assert one.acquire_lock("lock:3", 3_600_000)
    waiting = call(other.acquire_lock, "lock:3", 60_000, 60_000).until_asleep()
    one.release_lock("lock:3")
    assert waiting.result(20) is True
    other.release_lock("lock:3")


def queues(one, other, third, observer):
    settings = {"timeout": 60, "fair": True, "thread_local": False}
    fair = [seckill.Lock(client, "lock:4", **settings) for client in (one, other)]
    assert fair[0].acquire()
    waiting = call(fair[1].acquire)
    queue = "seckill:{lock:4}:queue:lock:4"
    wait_until(lambda: observer.zcard(queue) or not waiting.is_alive())
    # A place of one who does not come back.
    gone = seckill.Lock(third, "lock:4", **settings)
    assert gone.acquire(blocking_timeout=0.2) is False
    fair[0].release()
    assert waiting.result(20) is True
    fair[1].release()
    # A place whose time is over, but which nobody has cleared away.
    observer.zadd(queue, {"somebody": 1})
    assert fair[0].acquire(blocking_timeout=20)


def denied(server):
    """Which commands the server has refused, lately."""
    return {entry["object"] for entry in server.redis().acl_log()}


# -- enough -------------------------------------------------------------------------------------


def test_what_is_listed_is_enough(shop):
    everything(shop)
    assert denied(shop) <= ({"client", "client|setinfo"} if version(shop.kind) < (7, 2) else set())


def test_for_tasks_as_well(shop):
    async def main():
        async with seckill.aio.Client(shop.url) as client:
            await client.incr_inventory("stock:1", 2)
            await client.update_inventory("lock:1", "stock:1", -1)
            async with seckill.aio.Lock(client, "lock:1", timeout=5, auto_renew=True) as lock:
                await client.update_inventory(lock, "stock:1", -1)

    on_loop(main())
    assert shop.redis().get("stock:1") == b"0"


def test_for_children_as_well(shop):
    def program(url):
        import os

        import seckill

        client = seckill.Client(url)
        client.incr_inventory("stock:1", 5)
        pid = os.fork()
        client.update_inventory("lock:1", "stock:1", -1)
        if pid == 0:
            os._exit(0)
        return os.waitpid(pid, 0)[1]

    assert run(program, shop.url).value == 0
    assert shop.redis().get("stock:1") == b"3"


def test_the_doctor_knows_it_all_with_what_is_listed_for_it(shop):
    become(shop, special=True, doctor=True)
    seen = see(shop.url, lock="lock:1", key="stock:1")
    assert not [result for result in seen.results if result.gravity.name == "UNKNOWN"]
    for check in ("scripts", "writes", "tracking"):
        assert seen.gravity(check).name == "FINE"


def test_the_example_is_the_list():
    """For a shop like any other, on a server like any other."""
    page = acl.PAGE.read_text(encoding="utf-8")
    example = re.search(
        r"^ACL SETUSER seller on >secret (.*?)\n```", page, re.MULTILINE | re.DOTALL
    )
    assert example
    assert sorted(example[1].split()) == sorted([f"~{key}" for key in KEYS] + USUAL)


# -- and none too much --------------------------------------------------------------------------


@pytest.mark.parametrize("rule", USUAL)
def test_each_that_is_listed_is_asked_for(start_server, rule):
    server = start_server(kind=ANY)
    become(server, without=[rule])
    with contextlib.suppress(seckill.SeckillError, AssertionError):
        everything(server)
    assert denied(server) == {rule.removeprefix("+")}


@pytest.mark.parametrize("function", ["incr_inventory", "update_inventory", "acquire_lock"])
def test_another_name_is_not_its_own(shop, function):
    client = seckill.Client(shop.url)
    names = ("lock:1", "elsewhere", -1) if function == "update_inventory" else ("elsewhere",)
    with pytest.raises(seckill.ServerError, match="NOPERM"):
        getattr(client, function)(*names)
    assert shop.redis().keys("elsewhere") == []


# -- without some of it, as the table says ------------------------------------------------------


def row(words):
    found = [row.rules for row in acl.tables()[0] if words in row.purpose]
    assert found, words
    return found[0]


@pytest.mark.parametrize("command", [*row("every call"), *row("`extend`"), *row("`db`")])
def test_what_is_needed_is_a_server_error_and_no_stock_was_changed(start_server, command):
    server = start_server()
    become(server, without=[command])
    with pytest.raises(seckill.ServerError, match=FORBIDDEN):
        everything(server)
    observer = server.redis()
    observer.set("stock:1", 10)
    try:
        seckill.Client(server.url).update_inventory("lock:1", "stock:1", -1)
    except seckill.ServerError:
        assert observer.get("stock:1") == b"10"
    else:
        assert observer.get("stock:1") == b"9"


@pytest.mark.parametrize("rule", [*row("`client_name`"), *row("names the library")])
def test_what_only_names_the_connection_is_not_missed(start_server, rule):
    server = start_server()
    become(server, without=[rule])
    everything(server)


def test_without_tracking_a_waiter_asks_from_time_to_time(shop):
    become(shop, without=["+client|tracking"])
    everything(shop)


def test_without_the_queue_all_wait_for_the_lock_unless_they_are_fair(shop):
    become(shop, without=row("queue"))
    one, other, third = (seckill.Client(shop.url) for _ in range(3))
    assert one.acquire_lock("lock:1", 60_000)
    waiting = [call(client.acquire_lock, "lock:1", 500, 60_000) for client in (other, third)]
    for caller in waiting:
        caller.until_asleep()
    one.release_lock("lock:1")
    assert [caller.result(20) for caller in waiting] == [True, True]
    with pytest.raises(seckill.ServerError, match=FORBIDDEN):
        seckill.Lock(one, "lock:2", timeout=60, fair=True).acquire()
