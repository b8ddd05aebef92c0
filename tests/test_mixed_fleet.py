"""Old script and seckill side by side, in several processes, on the same lock and the same key."""

from __future__ import annotations

import contextlib
import multiprocessing
import queue
import threading
import time

import pytest
import seckill
from support import fleet, old_script
from support.threads import call, wait_until


def side_by_side(server, *members):
    """Run them as processes, let them begin at the same moment; what each of them counted."""
    context = multiprocessing.get_context("spawn")
    begin, answers = context.Barrier(len(members)), context.Queue()
    processes = [
        context.Process(target=fleet.run, args=(member, server.url, begin, answers, *arguments))
        for member, *arguments in members
    ]
    for process in processes:
        process.start()
    counted = []
    end = time.monotonic() + 90
    try:
        while len(counted) < len(members):
            assert not any(process.exitcode for process in processes), "one of them failed"
            assert time.monotonic() < end, "they do not end"
            with contextlib.suppress(queue.Empty):
                counted.append(answers.get(timeout=0.2))
    finally:
        for process in processes:
            process.join(5 if len(counted) == len(members) else 0)
            process.kill()
    return counted


def test_a_mixed_fleet_never_oversells(server, redis_py, key, lock):
    offered = 200
    redis_py.set(key, offered)
    old = ("old_buyer", lock, key, 60, 0.002)
    new = ("new_buyer", lock, key, 100, 0.002)
    lowest, over = [offered], threading.Event()

    def watch():
        while not over.is_set():
            lowest.append(int(redis_py.get(key)))

    watching = threading.Thread(target=watch)
    watching.start()
    counted = side_by_side(server, old, old, new, new)
    over.set()
    watching.join()

    sold = sum(count["sold"] for count in counted)
    left = int(redis_py.get(key))
    assert min(lowest) >= 0
    assert left == offered - sold
    assert all(count["sold"] > 0 for count in counted), "each had its share, so they did meet"
    assert sum(count["disturbed"] for count in counted) == 0
    assert not redis_py.exists(lock)


def test_the_last_units_are_sold_once(server, redis_py, key, lock):
    """Few units, many who want them: the old ones pause between their look and their INCRBY."""
    redis_py.set(key, 7)
    old = ("old_buyer", lock, key, 10, 0.02)
    new = ("new_buyer", lock, key, 50, 0.0)
    counted = side_by_side(server, old, new, old, new)
    assert sum(count["sold"] for count in counted) == 7
    assert redis_py.get(key) == b"0"
    assert sum(count["disturbed"] for count in counted) == 0


def test_old_and_new_holders_of_a_lock_exclude_each_other(server, redis_py, name, lock):
    """Nobody holds it at the same time as another, and nobody's lock is freed under him."""
    counter = name("counter")
    redis_py.set(counter, 0)
    old = ("old_holder", lock, counter, 25)
    new = ("new_holder", lock, counter, 25)
    counted = side_by_side(server, old, new, old, new)
    assert int(redis_py.get(counter)) == 100
    assert sum(count["disturbed"] for count in counted) == 0
    assert not redis_py.exists(lock)


def test_nothing_comes_between_an_old_buyers_look_and_its_change(
    server, redis_py, client, key, lock
):
    """Both want the last unit; the old one has looked, and takes its time."""
    old_script.connect(server.url)
    redis_py.set(key, 1)
    old = call(old_script.update_inventory, lock, key, -1, 60_000, pause=0.5)
    wait_until(lambda: redis_py.exists(lock))
    with pytest.raises(seckill.InsufficientInventory):
        client.update_inventory(lock, key, -1, 5000, 20_000)
    old.result()
    assert redis_py.get(key) == b"0"


@pytest.mark.parametrize("who", ["acquire_lock", "update_inventory"])
def test_an_old_holder_is_waited_for_not_robbed(server, redis_py, client, key, lock, who):
    """Its lock has the value 1, as every old holder's has: it is no token of ours."""
    redis_py.set(key, 5)
    redis_py.set(lock, 1, px=400)
    if who == "acquire_lock":
        assert client.acquire_lock(lock, 5000, 10_000) is True
        assert redis_py.get(lock) != b"1"
        client.release_lock(lock)
    else:
        client.update_inventory(lock, key, -1, 5000, 10_000)
    assert not redis_py.exists(lock)
