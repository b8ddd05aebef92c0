"""The interpreter ends, whatever is going on: exit status 0, not a word on stderr, no hang."""

from __future__ import annotations

import pytest
from support.programs import run
from support.proxy import SilentHost

pytestmark = pytest.mark.core


def ends_cleanly(function, *arguments):
    ended = run(function, *arguments, limit=20)
    assert ended.stderr == ""
    assert ended.status == 0
    assert ended.seconds < 15
    return ended.value


def waiting_threads(url, function, count):
    import threading
    import time

    import seckill

    client = seckill.Client(url, socket_timeout=60, socket_connect_timeout=60, timeout=60)
    waits = {
        "acquire_lock": lambda: client.acquire_lock("held", 60_000, 60_000),
        "update_inventory": lambda: client.update_inventory("held", "stock", -1, 5000, 60_000),
        "incr_inventory": lambda: client.incr_inventory("stock", 1),
    }
    for _ in range(count):
        threading.Thread(target=waits[function], daemon=True).start()
    time.sleep(0.3)


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("function", ["acquire_lock", "update_inventory"])
def test_in_the_middle_of_waiting_for_a_lock(own_server, function, count):
    own_server.redis().set("held", 1, px=600_000)
    ends_cleanly(waiting_threads, own_server.url, function, count)


@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("function", ["acquire_lock", "update_inventory", "incr_inventory"])
def test_in_the_middle_of_waiting_for_an_answer(own_server, function, count):
    with own_server.frozen():
        ends_cleanly(waiting_threads, own_server.url, function, count)


@pytest.mark.parametrize("full", [False, True], ids=["handshake", "connect"])
def test_in_the_middle_of_connecting(full):
    with SilentHost(full=full) as host:
        ends_cleanly(waiting_threads, host.url, "acquire_lock", 2)


def busy_threads(url):
    import threading
    import time

    import seckill

    seckill.configure(url)
    seckill.incr_inventory("stock", 10_000_000)

    def buyer():
        while True:
            seckill.update_inventory("lock", "stock", -1, 5000, 20_000)

    def holder():
        while True:
            seckill.acquire_lock("held", 5000, 20_000)
            seckill.release_lock("held")

    for function in (buyer, buyer, buyer, buyer, buyer, holder, holder, holder):
        threading.Thread(target=function, daemon=True).start()
    time.sleep(0.2)


@pytest.mark.parametrize("attempt", range(5))
def test_in_the_middle_of_a_sale(own_server, attempt):
    ends_cleanly(busy_threads, own_server.url)


def with_held_locks(url):
    import seckill

    client = seckill.Client(url)
    seckill.configure(url)
    for number in range(10):
        assert client.acquire_lock(f"lock:{number}", 60_000)
        assert seckill.acquire_lock(f"default:{number}", 60_000)


def test_with_locks_held(own_server):
    ends_cleanly(with_held_locks, own_server.url)


def threads_before_and_after(url):
    """Threads that were started before seckill was imported, and ones that come after."""
    import threading

    go, told = threading.Event(), []

    def early():
        go.wait()
        import seckill

        seckill.incr_inventory("stock", 1)
        told.append(seckill.acquire_lock("early", 5000, 10_000))
        seckill.release_lock("early")

    threads = [threading.Thread(target=early) for _ in range(4)]
    for thread in threads:
        thread.start()
    import seckill

    seckill.configure(url)
    seckill.incr_inventory("stock", 1)
    go.set()
    late = [threading.Thread(target=seckill.incr_inventory, args=("stock", 1)) for _ in range(4)]
    for thread in late:
        thread.start()
    for thread in threads + late:
        thread.join()
    return told


def test_with_threads_started_before_and_after(own_server):
    assert ends_cleanly(threads_before_and_after, own_server.url) == [True] * 4
    assert own_server.redis().get("stock") == b"9"


def work_goes_on_after_main(url):
    import threading
    import time

    import seckill

    client = seckill.Client(url)

    def work():
        time.sleep(0.3)  # until the main thread has come to its end
        for _ in range(20):
            client.incr_inventory("stock", 1)
        client.acquire_lock("lock", 1000, 1000)
        client.release_lock("lock")

    threading.Thread(target=work).start()


def test_with_a_thread_that_works_on_after_the_main_thread(own_server):
    ends_cleanly(work_goes_on_after_main, own_server.url)
    assert own_server.redis().get("stock") == b"20"


def calls_at_exit(url):
    import atexit

    import seckill

    client = seckill.configure(url)
    assert seckill.acquire_lock("lock", 60_000)
    atexit.register(seckill.incr_inventory, "stock", 1)
    atexit.register(client.release_lock, "lock")


def test_with_calls_in_atexit_handlers(own_server):
    ends_cleanly(calls_at_exit, own_server.url)
    assert own_server.redis().get("stock") == b"1"
    assert not own_server.redis().exists("lock")


def calls_from_finalizers(url):
    import seckill

    class Guard:
        def __init__(self, client):
            self.client = client

        def __del__(self):
            self.client.incr_inventory("stock", 1)

    client = seckill.Client(url)
    client.incr_inventory("stock", 1)
    global guard
    guard = Guard(client)
    cycle = [Guard(client)]
    cycle.append(cycle)


def test_with_calls_in_finalizers(own_server):
    ends_cleanly(calls_from_finalizers, own_server.url)
    assert int(own_server.redis().get("stock")) >= 1


def never_used(url):
    import seckill

    seckill.configure(url)
    seckill.Client(url)


def test_with_a_client_that_was_never_used():
    with SilentHost() as host:
        ends_cleanly(never_used, host.url)
        assert host.received() == (0, b"")
