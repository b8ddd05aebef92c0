"""Mutual exclusion as a safety property: storms over locks, and a checker over what was written.

Processes, threads and tasks contend for a few locks while they are paused, killed and cancelled,
their leases end, their connections break, and the server stands still. Each writes down what it
believes (`support.lock_workers`), and `support.lock_log` finds what must not be. What is random
comes from a seed, which a failure tells; SECKILL_SEED=... plays with another one.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import seckill
from support.lock_log import History, check, check_steps, passed_over
from support.lock_storm import Storm, Weather
from support.lock_workers import READ_FENCED, WRITE_FENCED
from support.programs import Program
from support.proxy import REPLY, random_faults
from support.servers import KINDS
from support.threads import call

STRESS = bool(os.environ.get("SECKILL_STRESS"))
SEED = int(os.environ.get("SECKILL_SEED", "1"))
SLACK = 30.0 if STRESS else 10.0
"""Seconds by which an answer may be late on two cores with all these processes, and other tests."""

KINDS_HERE = KINDS if STRESS else KINDS[:1]


@pytest.fixture
def start_storm(start_server: Callable[..., Any], tmp_path: Path) -> Iterator[Callable[..., Storm]]:
    storms = []

    def start(*locks: str, kind: str = KINDS[0], options: tuple[str, ...] = ()) -> Storm:
        storms.append(Storm(start_server(*options, kind=kind), tmp_path, SEED, *locks))
        return storms[-1]

    yield start
    for storm in storms:
        storm.close()


def judged(storm: Storm) -> History:
    """What they wrote, after nothing was found in it that must not be."""
    history = storm.history()
    found = check(
        history, slack=SLACK, ahead=storm.clock_ran_ahead(), everybody=storm.server.pid
    ) + check_steps(history, storm.counters())
    lines = "\n".join(f"{rule}: {what}" for rule, what in found[:20])
    assert not found, f"seed {storm.seed}, {len(found)} found:\n{lines}\n{history.summary()}"
    return history


@pytest.mark.stress
@pytest.mark.parametrize("kind", KINDS_HERE)
def test_locks_stay_exclusive_in_a_storm(start_storm, start_proxy, kind):
    """Short leases that end, are renewed, and outlive who held them."""
    many, seconds = (30, 40.0) if STRESS else (2, 2.5)
    storm = start_storm("a", "b", "c", kind=kind)
    proxy = start_proxy(storm.server, random_faults(storm.seed, mean_bytes=2000 * many))
    storm.proxies.append(proxy)
    mixed = {"fair": ("c",), "overstay": 0.1}
    for url in (storm.server.url, storm.server.url, proxy.url):
        storm.start(many, url, crew=3, **mixed)
        storm.start(many, url, crew=10, tasks=True, cancel_every=0.05 * many, **mixed)
    storm.rage(seconds, Weather(pause=0.1, kill=0.3, freeze=0.7, cut=0.3 * many))
    storm.settle()
    came = judged(storm).summary()
    # That there was a storm: how much there is of what is up to the machine.
    for what in ("held", "refused", "CancelledError", "killed", "pauses", "step done"):
        assert came[what] > 0, (what, came)
    assert proxy.faults_met > 0


@pytest.mark.stress
@pytest.mark.parametrize("kind", KINDS_HERE)
def test_no_lock_is_left_behind_by_those_who_live(start_storm, start_proxy, kind):
    """Leases that nobody waits out: one lock that somebody left, and all the others wait in vain.

    Tasks are cancelled in mid-acquire and in mid-release, and answers are lost; nobody is killed.
    """
    many, seconds = (30, 30.0) if STRESS else (2, 2.0)
    storm = start_storm("a", "b", kind=kind)
    proxy = start_proxy(storm.server, random_faults(storm.seed, mean_bytes=1500 * many))
    storm.proxies.append(proxy)
    minutes = {"leases": (300.0, 600.0), "endless": 0.3, "max_hold": (None,), "overstay": 0.0}
    minutes |= {"waits": (None,)}
    for url in (storm.server.url, proxy.url):
        storm.start(many, url, crew=3, **minutes)
        storm.start(many, url, crew=10, tasks=True, cancel_every=0.01 * many, **minutes)
    storm.rage(seconds, Weather(pause=0.2, longest_pause=0.3, freeze=0.7, cut=0.3 * many))
    storm.settle()
    came = judged(storm).summary()
    assert came["held, lost"] == came["held, open"] == 0, came
    assert min(came["held"], came["CancelledError"]) > 0, came
    assert [lock for lock in storm.locks if storm.observer.exists(lock)] == []


@pytest.mark.stress
@pytest.mark.parametrize("kind", KINDS)
def test_a_lease_ends_for_its_holder_before_it_does_for_others(start_storm, kind):
    """Short leases that nobody gives back, and many who try to have the lock at the very moment."""
    storm = start_storm("a", "b", kind=kind, options=("hz 500",))
    short = {"leases": (0.02, 0.06), "waits": (0, 0, 0.3), "auto_renew": (False,), "overstay": 1.0}
    storm.start(2, crew=3, breath=0.002, **short)
    storm.start(2, crew=6, breath=0.002, tasks=True, **short)
    storm.rage(10.0 if STRESS else 1.0, Weather())
    storm.settle()
    came = judged(storm).summary()
    assert came["held, lost"] > 0, came


@pytest.mark.stress
@pytest.mark.parametrize("kind", KINDS_HERE)
def test_nobody_is_passed_over_under_fair(start_storm, kind):
    """By more than a few of those who came clearly later, in whichever process they are."""
    many, seconds = (50, 20.0) if STRESS else (4, 1.5)
    storm = start_storm("a", kind=kind)
    fair = {"fair": ("a",), "fairly": 1.0, "waits": (None,)}
    calm = {"leases": (60.0, 60.0), "overstay": 0.0, "linger": 0.02}
    storm.start(many, crew=3, **fair, **calm)
    storm.start(many, crew=10, tasks=True, **fair, **calm)
    storm.rage(seconds, Weather())
    storm.settle()
    history = judged(storm)
    assert history.summary()["held"] > 0
    assert passed_over(history, "a", since=1.0 if STRESS else 0.5) < 5


def test_a_holder_who_does_not_look_at_his_lease_is_caught_in_the_storm(start_storm):
    """What the storms are measured by: redis-py's lock, believed in until it is released."""
    storm = start_storm("a", "b")
    storm.start(4, make="careless", crew=3, auto_renew=(False,), overstay=0.5, leases=(0.05, 0.2))
    storm.rage(1.5, Weather(pause=0.1))
    storm.settle()
    assert "two holders" in {rule for rule, _ in check(storm.history(), slack=SLACK)}


# -- one holder, paused beyond his lease ----------------------------------------------------------


def read_and_write(address, url, lock, way):
    """Take the lock, read a counter, think for long, and write one more than was read."""
    import sys

    import seckill
    from support.lock_workers import READ_FENCED, WRITE_FENCED, Plain

    plain, client = Plain(tuple(address)), seckill.Client(url)
    lock = seckill.Lock(client, lock, timeout=0.2)
    assert lock.acquire()
    fence = f"{lock.fence:020d}"
    fenced = way == "fence"
    read = plain("EVAL", READ_FENCED, 1, "fenced", fence) if fenced else plain("GET", "counter")
    print("read", flush=True)
    sys.stdin.readline()
    if way == "plain":
        plain("SET", "counter", int(read) + 1)
    elif fenced:
        return plain("EVAL", WRITE_FENCED, 1, "fenced", fence, int(read) + 1)
    else:
        try:
            client.update_inventory(lock, "counter", 1)
        except seckill.LockLostError:
            return 0
    return 1


@pytest.mark.parametrize(
    ("way", "written", "value"), [("plain", 1, b"6"), ("fence", 0, b"10"), ("stock", 0, b"10")]
)
def test_a_stale_holder_cannot_spoil_what_is_fenced(request, start_server, way, written, value):
    """Paused between read and write until another has come and gone; plainly written, it spoils."""
    server = start_server()
    observer = server.redis()
    observer.set("counter", 5)
    observer.hset("fenced", mapping={"value": 5})
    address = (server.host, server.port)
    stale = Program(read_and_write, address, server.url, "lock", way)
    request.addfinalizer(stale.process.kill)  # stopped, it would outlive a failure
    stale.expect("read")
    os.kill(stale.pid, signal.SIGSTOP)
    with seckill.Client(server.url) as client:
        for _ in range(5):
            with seckill.Lock(client, "lock", timeout=10) as lock:
                client.update_inventory(lock, "counter", 1)
                fence = f"{lock.fence:020d}"
            value_before = int(observer.eval(READ_FENCED, 1, "fenced", fence))
            assert observer.eval(WRITE_FENCED, 1, "fenced", fence, value_before + 1)
    os.kill(stale.pid, signal.SIGCONT)
    stale.say("go on")
    assert stale.ended().value == written
    assert (
        observer.hget("fenced", "value") if way == "fence" else observer.get("counter")
    ) == value


# -- what a handle may claim ----------------------------------------------------------------------


@pytest.mark.stress
@pytest.mark.parametrize("kind", KINDS)
def test_nobody_has_a_lock_of_which_another_is_sure(start_server, kind):
    """To the microsecond: some servers end a lease in the millisecond before it is over."""
    server = start_server("hz 500", kind=kind)  # how often it looks for keys that have expired
    mine, other = (seckill.Lock(seckill.Client(server.url), "lock", 0.004) for _ in range(2))
    over = time.monotonic() + (10.0 if STRESS else 1.5)
    overlaps, turns = [], 0
    while time.monotonic() < over:
        mine, other, turns = other, mine, turns + 1
        while not mine.acquire(blocking=False):
            pass
        if (left := other.remaining()) > 0:
            overlaps.append(left)
    assert overlaps == [], f"{len(overlaps)} of {turns}"


def test_a_shortened_lease_is_believed_to_be_short_when_nobody_answers(start_server, start_proxy):
    """It may have been shortened, so from then on the shorter one is all that is sure."""
    server = start_server()
    proxy = start_proxy(server)
    lock = seckill.Lock(seckill.Client(proxy.url, timeout=1, socket_timeout=0.2), "lock", 60)
    assert lock.acquire()
    lock.reacquire()  # and the server knows the script
    proxy.swallow(REPLY)
    with pytest.raises(seckill.OutcomeUnknown):
        lock.extend(0.4, replace_ttl=True)
    with seckill.Client(server.url) as client:
        assert seckill.Lock(client, "lock", 60).acquire(blocking_timeout=30)
    assert lock.remaining() == 0.0
    assert lock.lost


@pytest.mark.parametrize("auto_renew", [False, True])
def test_a_lease_that_is_added_to_does_not_end_sooner(start_server, auto_renew):
    """However late the answer comes: the server counts what is left when it gets round to it."""
    server, told = start_server(), []
    client = seckill.Client(server.url, socket_timeout=10)
    lock = seckill.Lock(
        client, "lock", 3, thread_local=False, auto_renew=auto_renew, on_lost=told.append
    )
    assert lock.acquire()
    end = time.monotonic() + lock.remaining()
    server.freeze()
    extending = call(lambda: lock.extend(0.5)).until_asleep()
    time.sleep(max(0.0, end - time.monotonic() - 1.2))
    server.thaw()
    extending.result()
    time.sleep(0.1)  # for whoever may have to be told
    assert not lock.lost
    assert lock.remaining() > end - time.monotonic()
    assert told == []
    lock.release()
