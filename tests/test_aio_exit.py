"""The interpreter ends, whatever tasks are doing: every warning is an error, and there is none."""

from __future__ import annotations

import re
import signal
import time

import pytest
from support.clients import HOUR
from support.programs import Program
from support.proxy import SilentHost
from support.threads import wait_until

pytestmark = pytest.mark.core

# As `python -W error -X dev` does, and asyncio's debug mode.
STRICT = {"PYTHONWARNINGS": "error", "PYTHONDEVMODE": "1", "PYTHONASYNCIODEBUG": "1"}
PATIENCE = 20


@pytest.fixture
def own_server(start_server):
    """Of one kind, for it is the interpreter that ends."""
    return start_server()


def start(function, *arguments):
    return Program(function, *arguments, limit=PATIENCE, env=STRICT)


def words(stderr):
    """What was said, but for how long some step of a loop took on this machine."""
    lines = stderr.splitlines(keepends=True)
    return "".join(
        line for line in lines if not re.match(r"Executing <.* took [\d.]+ seconds", line)
    )


def ends_cleanly(program, status=0):
    ended = program.ended()
    assert words(ended.stderr) == ""
    assert ended.status == status
    assert ended.seconds < PATIENCE
    return ended


# -- with and without good-bye ----------------------------------------------------------------


def use_and_leave(url, kind, good_bye):
    import asyncio

    import seckill.aio
    import uvloop

    new_loop = {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}[kind]

    async def use(client):
        await client.incr_inventory("stock", 10)
        await asyncio.gather(*(client.update_inventory("lock", "stock", -1) for _ in range(5)))
        assert await client.acquire_lock("held", 5000, 50) is False
        assert await client.acquire_lock("lock", 60_000)
        if good_bye == "release":
            await client.release_lock("lock")

    async def main():
        if good_bye == "block":
            async with seckill.aio.Client(url) as client:
                await use(client)
        elif good_bye == "coroutines":
            seckill.aio.configure(url)
            await use(seckill.aio)
        else:
            global kept
            kept = client = seckill.aio.Client(url)
            await use(client)
            if good_bye == "aclose":
                await client.aclose()

    loop = new_loop()
    loop.run_until_complete(main())
    loop.close()


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
@pytest.mark.parametrize("good_bye", ["none", "aclose", "block", "coroutines", "release"])
def test_after_use(own_server, kind, good_bye):
    own_server.redis().set("held", "somebody", px=HOUR)
    ends_cleanly(start(use_and_leave, own_server.url, kind, good_bye))
    assert own_server.redis().get("stock") == b"5"


def never_used(url):
    import asyncio

    import seckill.aio

    async def main():
        seckill.aio.configure(url)
        async with seckill.aio.Client(url):
            pass
        await seckill.aio.Client(url).aclose()

    asyncio.run(main())


def test_with_a_client_that_was_never_used():
    with SilentHost() as host:
        ends_cleanly(start(never_used, host.url))
        assert host.received() == (0, b"")


# -- with calls in flight -----------------------------------------------------------------------


def leave_in_mid_call(url, function, count, way):
    """The main coroutine ends, and `asyncio.run` cancels what is left."""
    import asyncio
    import sys

    import seckill.aio

    global client  # still there when the interpreter ends
    client = seckill.aio.Client(url, socket_timeout=60, socket_connect_timeout=60, timeout=60)
    calls = {
        "acquire_lock": lambda: client.acquire_lock("held", 60_000, 60_000),
        "update_inventory": lambda: client.update_inventory("held", "stock", -1, 5000, 60_000),
        "incr_inventory": lambda: client.incr_inventory("stock", 1),
    }

    async def main():
        tasks = [asyncio.ensure_future(calls[function]()) for _ in range(count)]
        await asyncio.sleep(0.3)
        assert not any(task.done() for task in tasks)
        if way == "sys.exit in a task":
            await asyncio.create_task(leave())

    async def leave():
        sys.exit(3)

    asyncio.run(main())


@pytest.mark.parametrize("way", ["main returns", "sys.exit in a task"])
@pytest.mark.parametrize("count", [1, 50])
@pytest.mark.parametrize("function", ["acquire_lock", "update_inventory"])
def test_in_the_middle_of_waiting_for_a_lock(own_server, function, count, way):
    observer = own_server.redis()
    observer.set("held", "somebody", px=HOUR)
    observer.set("stock", 5)
    program = start(leave_in_mid_call, own_server.url, function, count, way)
    ends_cleanly(program, 3 if "exit" in way else 0)
    observer.delete("held")
    time.sleep(0.2)  # for a late effect, if there were one
    assert observer.get("stock") == b"5"
    assert not observer.exists("held")


@pytest.mark.parametrize("way", ["main returns", "sys.exit in a task"])
@pytest.mark.parametrize("function", ["acquire_lock", "update_inventory", "incr_inventory"])
def test_in_the_middle_of_waiting_for_an_answer(own_server, function, way):
    with own_server.frozen():
        program = start(leave_in_mid_call, own_server.url, function, 20, way)
        ends_cleanly(program, 3 if "exit" in way else 0)


@pytest.mark.parametrize("full", [False, True], ids=["handshake", "connect"])
def test_in_the_middle_of_connecting(full):
    with SilentHost(full=full) as host:
        ends_cleanly(start(leave_in_mid_call, host.url, "acquire_lock", 2, "main returns"))


def busy_tasks(url):
    import asyncio

    import seckill.aio

    seckill.aio.configure(url)

    async def buyer():
        while True:
            await seckill.aio.update_inventory("lock", "stock", -1, 5000, 20_000)

    async def holder():
        while True:
            await seckill.aio.acquire_lock("held", 5000, 20_000)
            await seckill.aio.release_lock("held")

    async def main():
        await seckill.aio.incr_inventory("stock", 10_000_000)
        tasks = [asyncio.ensure_future(do()) for do in [buyer] * 50 + [holder] * 5]
        await asyncio.sleep(0.2)
        assert not any(task.done() for task in tasks)

    asyncio.run(main())


@pytest.mark.parametrize("attempt", range(3))
def test_in_the_middle_of_a_sale(own_server, attempt):
    ends_cleanly(start(busy_tasks, own_server.url))


def cancelled_in_mid_acquire(url, ticks):
    import asyncio

    import seckill.aio

    seckill.aio.configure(url)
    got = []

    async def acquire(lock):
        assert await seckill.aio.acquire_lock(lock, 600_000, 20_000)
        got.append(lock)
        await asyncio.Event().wait()

    async def main():
        await seckill.aio.incr_inventory("stock", 1)
        global tasks
        tasks = [asyncio.ensure_future(acquire(f"lock:{number}")) for number in range(100)]
        for _ in range(ticks):
            await asyncio.sleep(0)

    asyncio.run(main())
    return got


@pytest.mark.parametrize("ticks", [1, 2, 3, 5, 10, 50])
def test_locks_that_no_task_has_got_are_given_back_before_the_end(own_server, ticks):
    """`asyncio.run` cancels the tasks at its end; what they took unknowingly is undone in time."""
    ended = ends_cleanly(start(cancelled_in_mid_acquire, own_server.url, ticks))
    left = {key.decode() for key in own_server.redis().scan_iter("lock:*")}
    assert left == set(ended.value)


def loops_in_daemon_threads(url):
    import asyncio
    import threading
    import time

    import seckill.aio

    seckill.aio.configure(url)

    async def buyer():
        while True:
            await seckill.aio.update_inventory("lock", "stock", -1, 5000, 20_000)

    async def main():
        await seckill.aio.incr_inventory("stock", 10_000_000)
        await asyncio.gather(*(buyer() for _ in range(20)))

    for _ in range(4):
        threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
    time.sleep(0.5)


@pytest.mark.parametrize("mode", [{}, STRICT], ids=["plain", "debug"])
def test_with_loops_that_run_on_in_daemon_threads(own_server, mode):
    ended = Program(loops_in_daemon_threads, own_server.url, limit=PATIENCE, env=mode).ended()
    assert ended.status == 0, ended.stderr
    # asyncio's own words about a loop that nobody closed are not ours to avoid.
    assert "seckill" not in ended.stderr
    assert "panicked" not in ended.stderr


# -- Ctrl-C -------------------------------------------------------------------------------------


def wait_until_interrupted(url, kind, function):
    import asyncio

    import seckill.aio
    import uvloop

    client = seckill.aio.Client(url, socket_timeout=30, timeout=30)
    calls = {
        "acquire_lock": lambda: client.acquire_lock("held", 60_000, 60_000),
        "update_inventory": lambda: client.update_inventory("held", "stock", -1, 5000, 60_000),
        "incr_inventory": lambda: client.incr_inventory("stock", 1),
    }

    async def main():
        await client.incr_inventory("stock", 10)
        print("ready", flush=True)
        await asyncio.to_thread(input)
        loop = asyncio.get_running_loop()
        loop.call_later(0.3, lambda: print("waiting", flush=True))
        await asyncio.gather(*(calls[function]() for _ in range(5)))

    try:
        (uvloop if kind == "uvloop" else asyncio).run(main())
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        input()  # lives on, for as long as the test looks


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
@pytest.mark.parametrize("function", ["acquire_lock", "update_inventory"])
def test_ctrl_c_ends_the_wait_for_a_lock_and_leaves_none_behind(own_server, kind, function):
    observer = own_server.redis()
    observer.set("held", "somebody", px=HOUR)
    program = start(wait_until_interrupted, own_server.url, kind, function)
    program.expect("ready")
    program.say("go on")
    program.expect("waiting")
    program.process.send_signal(signal.SIGINT)
    program.expect("interrupted")
    # Nobody waits any more: a lock that frees up now stays free.
    observer.delete("held")
    time.sleep(0.3)
    assert not observer.exists("held")
    assert observer.get("stock") == b"10"
    program.say("end")
    ends_cleanly(program)


@pytest.mark.parametrize("kind", ["asyncio", "uvloop"])
@pytest.mark.parametrize("function", ["acquire_lock", "update_inventory", "incr_inventory"])
def test_ctrl_c_ends_the_wait_for_an_answer(own_server, kind, function):
    observer = own_server.redis()
    program = start(wait_until_interrupted, own_server.url, kind, function)
    program.expect("ready")
    own_server.freeze()
    program.say("go on")
    program.expect("waiting")
    program.process.send_signal(signal.SIGINT)
    program.expect("interrupted")
    own_server.thaw()
    # Whatever had been sent: it was applied or not, and no lock stays behind.
    wait_until(lambda: not observer.exists("held"), within=10)
    time.sleep(0.3)
    assert not observer.exists("held")
    assert int(observer.get("stock")) in range(5, 16)
    program.say("end")
    ends_cleanly(program)
