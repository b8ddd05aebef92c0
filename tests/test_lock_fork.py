"""A forked child and its parent's locks: they are not the child's, whatever it does."""

from __future__ import annotations

import os
import signal

import pytest
from support.lock_plots import alive, until_gone, values_within
from support.peers import python_redis_lock_fails, redis_py_fails
from support.programs import Program, run
from support.threads import wait_until

pytestmark = pytest.mark.core


# -- what a child may do to its parent's lock -----------------------------------------------------


def child_of_redis_py(url):
    import redis
    from support.acl import as_observer
    from support.lock_plots import in_a_child, outcome

    client = redis.Redis.from_url(as_observer(url))
    lock = client.lock("name", timeout=60)
    assert lock.acquire()
    told = in_a_child(lambda: [outcome(lock.owned), outcome(lock.extend, 600), client.ttl("name")])
    told += in_a_child(lambda: [outcome(lock.release)])
    return [told, client.exists("name"), outcome(lock.release)]


@redis_py_fails
def test_a_child_releases_and_extends_redis_pys_lock(start_server):
    told, exists, release = run(child_of_redis_py, start_server().url).value
    assert told == ["True", "True", "660", "None"]
    assert exists == 0
    assert release == "LockNotOwnedError", "the parent is told that it was somebody else's"


def child_of_python_redis_lock(url):
    import threading

    import redis
    import redis_lock
    from support.acl import as_observer
    from support.lock_plots import in_a_child, outcome

    client = redis.Redis.from_url(as_observer(url))
    lock = redis_lock.Lock(client, "name", expire=60, auto_renewal=True)
    assert lock.acquire()
    told = in_a_child(lambda: [threading.active_count(), outcome(lock.acquire)])
    told += in_a_child(lambda: [outcome(lock.release), outcome(lock.acquire)])
    return [told, outcome(lock.release)]


@python_redis_lock_fails
def test_a_child_releases_python_redis_locks_lock_and_has_no_renewer(start_server):
    """What the child takes then with the same object is not renewed by anybody, and says so."""
    told, release = run(child_of_python_redis_lock, start_server().url).value
    assert told == ["1", "AlreadyAcquired", "None", "AlreadyStarted"]
    assert release == "None", "of what the child had taken"


def child_of_ours(url, options):
    import gc

    import seckill
    from support.lock_plots import in_a_child, outcome

    client = seckill.Client(url)
    lock = seckill.Lock(client, "name", timeout=60, **options)
    assert lock.acquire()
    token, fence = lock.local.token, lock.fence

    def look():
        return [lock.local.token, lock.remaining(), lock.lost, outcome(lock.owned), lock.locked()]

    def meddle():
        names = ["release", "reacquire", "ensure_held"]
        told = [outcome(getattr(lock, name)) for name in names]
        return [*told, outcome(lock.extend, 600), outcome(lock.acquire, None, False)]

    def forget():
        nonlocal lock, client
        del lock, client
        gc.collect()
        return ["forgotten"]

    def leave_the_block():
        with lock:
            return ["never"]

    def the_drop_in():
        client.release_lock("name")
        return [client.acquire_lock("name", 1000, 0)]

    def update():
        client.incr_inventory("stock", 10)
        told = outcome(client.update_inventory, lock, "stock", -1, 5000, 50)
        return [told, outcome(client.update_inventory, "name", "stock", -1, 5000, 50)]

    told = {
        "look": in_a_child(look),
        "meddle": in_a_child(meddle),
        "drop-in": in_a_child(the_drop_in),
        "update": in_a_child(update),
        "forget": in_a_child(forget),
        "grandchild": in_a_child(lambda: in_a_child(meddle)),
    }
    assert (lock.local.token, lock.fence) == (token, fence)
    lock.ensure_held()
    told["parent"] = [lock.owned(), lock.lost, 50 < lock.remaining() <= 60, outcome(lock.release)]
    return told


@pytest.mark.parametrize(
    "options",
    [{}, {"auto_renew": True}, {"thread_local": False}, {"fair": True}],
    ids=lambda options: "".join(options) or "plain",
)
def test_a_child_neither_sees_nor_touches_its_parents_lock(start_server, options):
    server = start_server()
    told = run(child_of_ours, server.url, options).value
    assert told["look"] == ["None", "0.0", "False", "False", "True"]
    assert told["meddle"] == told["grandchild"] == ["LockError"] * 4 + ["False"]
    assert told["drop-in"] == ["False"]
    assert told["update"] == ["LockError", "LockTimeout"]
    assert told["forget"] == ["forgotten"]
    assert told["parent"] == [True, False, True, "None"]
    assert server.redis().get("stock") == b"10"
    assert not server.redis().exists("name")


def children_leave_the_block(url):
    import os
    import sys

    import seckill

    lock = seckill.Lock(seckill.Client(url), "name", timeout=60, raise_on_release_error=False)
    statuses = []
    for leave in (sys.exit, os._exit):
        with lock:
            child = os.fork()
            if child:
                statuses.append(os.waitpid(child, 0)[1])
                lock.ensure_held()
            elif leave is sys.exit:
                sys.exit(0)  # out of the block, and with all that an interpreter does at its end
        if child == 0:
            os._exit(0)
    return statuses


def test_a_child_that_leaves_the_block_leaves_the_lock_to_its_parent(start_server):
    server = start_server()
    assert run(children_leave_the_block, server.url).value == [0, 0]
    assert not server.redis().exists("name")


def aio_lock_in_a_child(url):
    import asyncio

    import seckill.aio
    from support.lock_plots import in_a_child

    client = seckill.aio.Client(url)
    lock = seckill.aio.Lock(client, "name", timeout=60, thread_local=False, auto_renew=True)
    assert asyncio.run(lock.acquire())

    async def meddle():
        told = [lock.local.token, lock.remaining(), await lock.owned()]
        for question in (lock.release, lock.reacquire, lock.ensure_held):
            try:
                told.append(await question())
            except Exception as error:
                told.append(type(error).__name__)
        return [*told, await lock.acquire(blocking=False)]

    told = in_a_child(lambda: asyncio.run(meddle()))

    async def end():
        assert await lock.owned()
        await lock.release()
        await client.aclose()

    asyncio.run(end())
    return told


def test_a_child_neither_sees_nor_touches_its_parents_awaited_lock(start_server):
    server = start_server()
    told = run(aio_lock_in_a_child, server.url).value
    assert told == ["None", "0.0", "False", "LockError", "LockError", "LockError", "False"]
    assert not server.redis().exists("name")


# -- the renewer ----------------------------------------------------------------------------------


def parent_and_child_renew(url):
    """Both hold a renewed lock; the child took its own one with the handle of its parent's."""
    import os
    import time

    import seckill
    from support.lock_plots import renewers
    from support.threads import wait_until

    client = seckill.Client(url)
    lock = seckill.Lock(client, "parent", timeout=1, auto_renew=True)
    other = seckill.Lock(client, "child", timeout=1, auto_renew=True)
    with other:
        assert lock.acquire()
    wait_until(lambda: renewers() == 1)  # a thread names itself when it runs
    reading, writing = os.pipe()
    child = os.fork()
    if child:
        os.close(writing)
        assert os.read(reading, 2) == b"up", "the child has ended"
        print(os.getpid(), child, flush=True)
    else:
        assert renewers() == 0
        assert other.acquire()
        wait_until(lambda: renewers() == 1)
        os.write(writing, b"up")
    while True:
        time.sleep(1)


def started(url):
    program = Program(parent_and_child_renew, url)
    line = program.line()
    assert line, program.ended()
    parent, child = map(int, line.split())
    return program, {"parent": parent, "child": child}


def test_the_renewer_works_in_parent_and_child_each_for_its_own_locks(start_server):
    server = start_server()
    observer = server.redis()
    program, processes = started(server.url)
    try:
        wait_until(lambda: observer.exists("parent", "child") == 2)
        tokens = observer.mget("parent", "child")
        assert None not in tokens
        assert tokens[0] != tokens[1]
        assert values_within(observer, "parent", 1.5) == {tokens[0]}
        assert values_within(observer, "child", 1.5) == {tokens[1]}
        # The parent dies, without a word. Nobody renews its lock any more.
        program.process.send_signal(signal.SIGKILL)
        until_gone(observer, "parent", within=10)
        assert alive(processes["child"])
        assert values_within(observer, "child", 1.5) == {tokens[1]}
    finally:
        os.killpg(program.pid, signal.SIGKILL)
        program.ended()
    until_gone(observer, "child", within=10)


def test_a_childs_death_leaves_its_parents_renewer_alone(start_server):
    server = start_server()
    observer = server.redis()
    program, processes = started(server.url)
    try:
        wait_until(lambda: observer.exists("parent", "child") == 2)
        token = observer.get("parent")
        os.kill(processes["child"], signal.SIGKILL)
        until_gone(observer, "child", within=10)
        assert values_within(observer, "parent", 1.5) == {token}
    finally:
        os.killpg(program.pid, signal.SIGKILL)
        program.ended()
