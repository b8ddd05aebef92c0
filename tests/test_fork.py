"""Processes that come from one that uses seckill: a child starts afresh, the parent is unharmed."""

from __future__ import annotations

import os

import pytest
from support.programs import Program, run
from support.relay import pass_on
from support.servers import lasting_port
from support.threads import wait_until

pytestmark = pytest.mark.core

FORKS = 5000 if os.environ.get("SECKILL_STRESS") else 1000


@pytest.fixture
def url(start_server):
    return start_server().url


def fork_in_mid_call(url, forks, seconds):
    import threading
    import time

    import seckill
    from support.children import ended, fork

    seckill.configure(url)
    seckill.incr_inventory("stock", 10_000_000)
    sold, failed, over = [0] * 6, [], threading.Event()

    def buyer(number):
        while not over.is_set():
            seckill.update_inventory("lock", "stock", -1, 5000, 30_000)
            sold[number] += 1

    def holder(_number):
        while not over.is_set():
            assert seckill.acquire_lock("held", 60_000, 30_000)
            seckill.release_lock("held")

    def run(function, number):
        try:
            function(number)
        except BaseException as error:
            failed.append(repr(error))

    work = [(buyer, number) for number in range(6)] + [(holder, 0), (holder, 1)]
    threads = [threading.Thread(target=run, args=each, daemon=True) for each in work]
    for thread in threads:
        thread.start()

    def child():
        seckill.update_inventory("lock", "stock", -1, 5000, 30_000)
        seckill.release_lock("held")  # the parent's, if anybody's: changes nothing

    statuses, end = {}, time.monotonic() + seconds
    made = 0
    while made < forks and time.monotonic() < end and not failed:
        made += 1
        status = ended(fork(child))
        statuses[status] = statuses.get(status, 0) + 1
    over.set()
    for thread in threads:
        thread.join(30)
    alive = sum(thread.is_alive() for thread in threads)
    return {"statuses": statuses, "sold": sum(sold), "failed": failed, "alive": alive}


@pytest.mark.stress
def test_a_thousand_forks_with_eight_threads_in_mid_call_hang_nobody(start_server):
    server = start_server()
    told = run(fork_in_mid_call, server.url, FORKS, FORKS * 0.06, limit=FORKS * 0.06 + 60).value
    observer = server.redis()
    assert told["failed"] == []
    assert told["alive"] == 0, "the parent's threads go on and end"
    assert told["statuses"] == {"0": FORKS}
    assert int(observer.get("stock")) == 10_000_000 - told["sold"] - FORKS
    assert not observer.exists("held")


def fork_in_mid_look_up(port, closed_port, forks):
    """Other threads are inside the C library's resolver most of the time."""
    import contextlib
    import threading

    import seckill
    from support.children import ended, fork

    clients = [seckill.Client(f"redis://localhost:{port}") for _ in range(4)]
    over = threading.Event()

    def find_nobody_there(client):
        while not over.is_set():
            with contextlib.suppress(seckill.ConnectionError):
                client.incr_inventory("stock", 1)

    nobody = [seckill.Client(f"redis://localhost:{closed_port}") for _ in range(4)]
    threads = [threading.Thread(target=find_nobody_there, args=(client,)) for client in nobody]
    for thread in threads:
        thread.start()

    def child():
        for client in clients:
            client.incr_inventory("children", 1)

    try:
        return [ended(fork(child)) for _ in range(forks)]
    finally:
        over.set()
        for thread in threads:
            thread.join()


def test_a_child_of_a_process_in_mid_look_up_finds_its_server_by_name(start_server):
    server = start_server("user default on nopass ~* &* +@all")
    forks = FORKS // 5
    ended = run(fork_in_mid_look_up, server.port, lasting_port(), forks, limit=120).value
    assert ended == [0] * forks
    assert server.redis().get("children") == str(4 * forks).encode()


def fork_with_waiting_threads(url):
    """Threads that wait for a lock, tracked, and the children use seckill meanwhile."""
    import threading

    import seckill
    from support.children import ended, fork

    client = seckill.configure(url)
    client.incr_inventory("stock", 1000)
    got = []
    threads = [
        threading.Thread(target=lambda: got.append(client.acquire_lock("held", 60_000, 60_000)))
        for _ in range(2)
    ]
    threads[0].start()

    def use():
        taken = client.acquire_lock("held", 1000, 20)
        client.update_inventory("lock", "stock", -1)
        return 10 if taken else 0

    statuses = {ended(fork(use)) for _ in range(30)}
    seckill.incr_inventory("forked", 1)
    threads[0].join()
    threads[1].start()
    client.release_lock("held")
    threads[1].join()
    client.release_lock("held")
    return [got, sorted(statuses)]


def test_a_thread_that_waits_for_a_lock_gets_it_after_forks(start_server):
    server = start_server()
    observer = server.redis()
    observer.set("held", 1, px=600_000)
    program = Program(fork_with_waiting_threads, server.url)
    wait_until(lambda: observer.exists("forked"))
    observer.delete("held")
    assert program.ended().value == [[True, True], [0]]
    assert not observer.exists("held")
    assert observer.get("stock") == b"970"


def fork_while_holding(url):
    import seckill
    from support.children import ended, fork

    client = seckill.configure(url)
    client.incr_inventory("stock", 10)
    assert seckill.acquire_lock("lock", 60_000)

    def child():
        seckill.release_lock("lock")
        assert seckill.acquire_lock("lock", 60_000, 0) is False
        try:
            seckill.update_inventory("lock", "stock", -1, 5000, 50)
        except seckill.LockTimeout:
            seckill.release_lock("lock")
            return 0
        return 10

    status = ended(fork(child))
    seckill.update_inventory("lock", "stock", -3, 5000, 0)  # still ours
    held = seckill.acquire_lock("lock", 60_000, 0) is False
    seckill.release_lock("lock")
    return [status, held, seckill.acquire_lock("lock", 1000, 0)]


def test_a_child_owns_none_of_its_parents_locks(start_server):
    """release_lock in a forked child"""
    server = start_server()
    assert run(fork_while_holding, server.url).value == [0, True, True]
    assert server.redis().get("stock") == b"7"


def fork_in_mid_acquire(url):
    """A signal handler forks, and its child returns into the parent's call."""
    import os
    import signal
    import time

    import seckill
    from support.threads import native_threads

    client = seckill.Client(url, socket_timeout=20)
    client.incr_inventory("stock")
    assert client.acquire_lock("another", 1000)  # the server knows the script
    parent, statuses = os.getpid(), []

    def handler(*_):
        child = os.fork()
        if child:
            statuses.append(os.waitpid(child, 0)[1])
            print("forked", flush=True)

    signal.signal(signal.SIGALRM, handler)
    print("ready", flush=True)
    input()
    signal.setitimer(signal.ITIMER_REAL, 0.3)
    try:
        taken = client.acquire_lock("lock", 3_600_000, 20_000)
    finally:
        if os.getpid() != parent:
            time.sleep(0.3)  # for what a thread might be up to
            os._exit(native_threads() - 1)
    client.update_inventory("lock", "stock", -1)
    return [statuses, taken, client.statistics()["connects"]]


def test_a_child_that_drops_its_parents_call_leaves_it_to_the_parent(start_server, start_relay):
    server = start_server()
    relay, held = start_relay(server), []
    program = Program(fork_in_mid_acquire, relay.url)
    program.expect("ready")

    def hold(connection, data, on):
        if connection == 0:
            held.append(lambda: on(data))
        else:
            on(data)

    relay.on_reply = hold
    program.say("go on")
    program.expect("forked")
    assert server.redis().exists("lock"), "taken, and the parent is yet to be told"
    for reply in held:
        reply()
    relay.on_reply = pass_on
    assert program.ended().value == [[0], True, 1]
    assert server.redis().exists("lock")
    assert server.redis().get("stock") == b"0"


def tokens_after_fork(url):
    import seckill
    from support.children import ended, fork

    seckill.configure(url)
    assert seckill.acquire_lock("lock:parent", 60_000)

    def take(number):
        return 0 if seckill.acquire_lock(f"lock:{number}", 60_000, 5000) else 10

    pids = [fork(lambda number=number: take(number)) for number in range(30)]
    assert seckill.acquire_lock("lock:parent:2", 60_000)
    return [ended(pid) for pid in pids]


def test_children_and_parent_draw_different_tokens(start_server):
    server = start_server()
    assert run(tokens_after_fork, server.url).value == [0] * 30
    observer = server.redis()
    names = list(observer.scan_iter("lock:*"))
    assert len(names) == 32
    assert len(set(observer.mget(names))) == 32


def clients_in_children(url):
    """The parent's connection, after children did with theirs what children do."""
    import gc
    import sys

    import seckill
    from support.children import ended, fork, fork_again

    client = seckill.Client(url)
    client.incr_inventory("stock", 1000)
    default = seckill.configure(url)
    seckill.incr_inventory("stock", 1)

    def use():
        client.update_inventory("lock", "stock", -1)

    def close():
        client.close()

    def use_and_close():
        use()
        client.close()

    def forget():
        global nothing
        nothing = client.__class__(url)
        seckill.configure(url)
        gc.collect()

    def configure_anew():
        seckill.configure(url)
        seckill.update_inventory("lock", "stock", -1)

    def leave():
        sys.exit(0)  # with all that an interpreter does at its end

    statuses = []
    for do in (
        use,
        close,
        use_and_close,
        forget,
        configure_anew,
        lambda: fork_again(use),
        leave,
    ) * 3:
        statuses.append(ended(fork(do, leaves=do is leave)))
        client.update_inventory("lock", "stock", -1)
        seckill.update_inventory("lock", "stock", -1)
    return [statuses, client.statistics()["connects"], default.statistics()["connects"]]


def test_what_children_do_leaves_the_parents_connections_alone(start_server):
    server = start_server()
    ended = run(clients_in_children, server.url)
    # The children that left through sys.exit printed nothing: the answer is the parent's alone.
    assert ended.value == [[0] * 21, 1, 1]
    assert ended.stderr == ""
    used_by_children = 3 * (1 + 1 + 1 + 3)
    assert int(server.redis().get("stock")) == 1001 - used_by_children - 2 * 21


def fork_from_a_thread(url):
    import threading

    import seckill
    from support.children import ended, fork

    seckill.configure(url)
    seckill.incr_inventory("stock", 100)
    statuses = []

    def forks():
        for _ in range(20):
            pid = fork(lambda: seckill.update_inventory("lock", "stock", -1))
            statuses.append(ended(pid))

    thread = threading.Thread(target=forks)
    thread.start()
    while thread.is_alive():
        seckill.incr_inventory("other", 1)
    return statuses


def test_a_fork_from_another_thread_is_a_fork_like_any(start_server):
    server = start_server()
    assert run(fork_from_a_thread, server.url).value == [0] * 20
    assert server.redis().get("stock") == b"80"


def connections_of_a_started_program(url):
    import subprocess
    import sys

    import seckill

    client = seckill.configure(url)
    client.incr_inventory("stock", 1)
    client.acquire_lock("lock", 1000)
    assert client.acquire_lock("lock", 1000, 50) is False  # a wait opens what a wait needs
    look = "import os; print([os.readlink(f'/proc/self/fd/{fd}') for fd in range(3, 50) if "
    look += "os.path.exists(f'/proc/self/fd/{fd}')])"
    return subprocess.run(
        [sys.executable, "-c", look], close_fds=False, capture_output=True, text=True, check=True
    ).stdout


def test_a_started_program_inherits_no_connection(url):
    assert "socket" not in run(connections_of_a_started_program, url).value
