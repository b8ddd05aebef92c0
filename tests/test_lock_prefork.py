"""Processes that fork while their threads take, renew and wait for locks; and multiprocessing."""

from __future__ import annotations

import os

import pytest
from support.programs import Program, run

pytestmark = pytest.mark.core

FORKS = 2000 if os.environ.get("SECKILL_STRESS") else 200


# -- forks at any moment --------------------------------------------------------------------------


def fork_in_mid_call(url, forks, seconds):
    """Threads that take, extend and release renewed locks, while the process forks and forks."""
    import os
    import threading
    import time

    import seckill
    from support.lock_plots import ended_well

    client = seckill.Client(url)
    kept = seckill.Lock(client, "kept", timeout=5, auto_renew=True)
    assert kept.acquire()
    inherited = [seckill.Lock(client, f"lock:{n % 4}", timeout=60) for n in range(8)]
    turns, failed, over = [0] * 8, [], threading.Event()

    def take_turns(number):
        handle = inherited[number]
        renewed = seckill.Lock(client, f"renewed:{number}", timeout=2, auto_renew=True)
        while not over.is_set():
            with handle, renewed:
                handle.extend(60)
                turns[number] += 1

    def run(number):
        try:
            take_turns(number)
        except BaseException as error:
            failed.append(repr(error))

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(8)]
    for thread in threads:
        thread.start()

    def child():
        for handle in (kept, *inherited):
            assert handle.local.token is None
            try:
                handle.release()
                raise AssertionError("released its parent's lock")
            except seckill.LockError:
                pass
        own = seckill.Lock(client, f"child:{os.getpid()}", timeout=2, auto_renew=True)
        with own, inherited[0]:  # waits for a thread of its parent's
            own.ensure_held()

    made, ended, end = 0, 0, time.monotonic() + seconds
    while made < forks and time.monotonic() < end and not failed:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                child()
                status = 0
            finally:
                os._exit(status)
        made += 1
        ended += ended_well(pid, within=20)
    over.set()
    for thread in threads:
        thread.join(30)
    kept.ensure_held()
    kept.release()
    alive = sum(thread.is_alive() for thread in threads)
    return {"made": made, "ended": ended, "failed": failed, "alive": alive, "turns": min(turns)}


@pytest.mark.stress
def test_forks_with_eight_threads_in_mid_call_hang_nobody(start_server):
    server = start_server()
    limit = FORKS * 0.2
    told = run(fork_in_mid_call, server.url, FORKS, limit, limit=limit + 60).value
    assert told["failed"] == []
    assert told["alive"] == 0, "the parent's threads go on and end"
    assert told["made"] == told["ended"] == FORKS
    assert told["turns"] > 0
    left = [key for key in server.redis().scan_iter() if not key.startswith(b"seckill:")]
    assert left == [], "everybody released what was his, and nothing else"


def fork_from_a_thread(url):
    """The holder is not the thread that forks: in the child there is only the one that did."""
    import threading

    import seckill
    from support.lock_plots import in_a_child, outcome

    client = seckill.Client(url)
    lock = seckill.Lock(client, "name", timeout=2, auto_renew=True)
    shared = seckill.Lock(client, "shared", timeout=60, thread_local=False)
    assert lock.acquire()
    assert shared.acquire()
    told = []

    def child():
        own = seckill.Lock(client, "own", timeout=2, auto_renew=True)
        with own:
            own.ensure_held()
            return [shared.local.token, outcome(lock.release), outcome(shared.release)]

    def forks():
        for _ in range(20):
            told.append(in_a_child(child))

    thread = threading.Thread(target=forks)
    thread.start()
    while thread.is_alive():
        lock.ensure_held()
        shared.extend(1)
    lock.release()
    shared.release()
    return [len(told), sorted({answer for answers in told for answer in answers})]


def test_a_fork_from_another_thread_is_a_fork_like_any(start_server):
    server = start_server()
    assert run(fork_from_a_thread, server.url).value == [20, ["LockError", "None"]]
    assert not server.redis().exists("name", "shared", "own")


def waiting_at_the_fork(url):
    import os
    import threading

    import seckill
    from support.lock_plots import ended_well

    client = seckill.Client(url)
    lock = seckill.Lock(client, "held", timeout=60)
    got = []

    def wait():
        got.append(lock.acquire(blocking_timeout=60))
        lock.release()

    threads = [threading.Thread(target=wait) for _ in range(3)]
    for thread in threads:
        thread.start()
    ended = 0
    for _ in range(20):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                assert lock.acquire(blocking_timeout=0.2) is False
                status = 0
            finally:
                os._exit(status)
        ended += ended_well(pid)
    print("forked", flush=True)
    for thread in threads:
        thread.join()
    return [ended, got]


def test_threads_that_wait_get_the_lock_after_forks(start_server):
    server = start_server()
    observer = server.redis()
    observer.set("held", "other", px=600_000)
    program = Program(waiting_at_the_fork, server.url)
    program.expect("forked")
    observer.delete("held")
    assert program.ended().value == [20, [True] * 3]
    assert not observer.exists("held")


# -- multiprocessing ------------------------------------------------------------------------------


def multiprocessing_children(url):
    """A lock as an argument, and one that comes along in the module, as a worker's code has it."""
    import multiprocessing

    import seckill
    from support.lock_plots import outcome

    client = seckill.Client(url)
    held = seckill.Lock(client, "held", timeout=2, auto_renew=True)
    counter = seckill.Lock(client, "counter's", timeout=60)
    assert held.acquire()
    client.incr_inventory("counter", 0)
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()

    def work(lock):
        told = [held.local.token, held.owned(), outcome(held.release)]
        for _ in range(20):
            with lock:
                client.update_inventory(lock, "counter", 1)
        answers.put(told)

    processes = [context.Process(target=work, args=(counter,)) for _ in range(4)]
    for process in processes:
        process.start()
    told = [answers.get() for _ in processes]
    for process in processes:
        process.join()
    held.ensure_held()
    held.release()
    return [told, [process.exitcode for process in processes]]


def test_processes_of_multiprocessing_take_turns_and_leave_the_parents_lock(start_server):
    server = start_server()
    told, codes = run(multiprocessing_children, server.url).value
    assert told == [[None, False, "LockError"]] * 4
    assert codes == [0] * 4
    observer = server.redis()
    assert observer.get("counter") == b"80"
    assert not observer.exists("held", "counter's")


def pool_of_forked_workers(url):
    import multiprocessing

    import seckill
    from support.lock_plots import outcome, renewers
    from support.threads import wait_until

    client = seckill.Client(url)
    held = seckill.Lock(client, "held", timeout=1, auto_renew=True)
    assert held.acquire()

    global work

    def work(number):
        mine = seckill.Lock(client, f"worker:{number % 3}", timeout=1, auto_renew=True)
        with mine:
            wait_until(lambda: renewers() == 1)
            mine.ensure_held()
        return outcome(held.release)

    with multiprocessing.get_context("fork").Pool(4) as pool:
        told = pool.map(work, range(40), chunksize=1)
    held.ensure_held()
    held.release()
    return sorted(set(told))


def test_a_pools_workers_renew_their_own_locks(start_server):
    server = start_server()
    assert run(pool_of_forked_workers, server.url).value == ["LockError"]
    assert [key for key in server.redis().scan_iter() if not key.startswith(b"seckill:")] == []
