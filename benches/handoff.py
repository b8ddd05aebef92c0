"""Lock hand-off: from the moment one process lets go of a lock to the moment another has it.

`python -m benches.handoff JOB` is one of the two processes. It obeys one word a line (acquire,
release) and answers each with a stamp of CLOCK_MONOTONIC in nanoseconds: release is stamped before
the call, acquire after it, so that both libraries' round trips count.
"""

from __future__ import annotations

import json
import random
import secrets
import subprocess
import sys
import time
from collections.abc import Callable

from .rates import (
    Bench,
    Measure,
    NotMeasured,
    expect_ready,
    need,
    read_line,
    start_worker,
    tell,
)
from .sides import MODULES

LEASE = 10.0
"""Seconds; also the longest wait. Far beyond any hand-off: one that needs it is not a hand-off."""

HELD = (0.05, 0.15)
"""The holder lets go at a random moment of this span, as long as redis-py's default poll, 0.1 s."""

Pair = tuple[Callable[[], object], Callable[[], object]]


def seckill(port: int, name: str) -> Pair:
    import seckill

    seckill.configure(host="127.0.0.1", port=port)
    lease = LEASE * 1000
    return lambda: seckill.acquire_lock(name, lease, lease), lambda: seckill.release_lock(name)


def redis_py(port: int, name: str) -> Pair:
    import redis

    lock = redis.Redis(host="127.0.0.1", port=port).lock(
        name, timeout=LEASE, blocking_timeout=LEASE
    )
    return lock.acquire, lock.release


LOCKS: dict[str, Callable[[int, str], Pair]] = {"seckill": seckill, "redis-py": redis_py}


def obey(side: str, port: int, name: str) -> None:
    acquire, release = LOCKS[side](port, name)
    print("ready", flush=True)
    for line in sys.stdin:
        if line == "acquire\n":
            if acquire() is not True:
                sys.exit("the lock was not acquired")
            print(time.monotonic_ns(), flush=True)
        else:
            stamp = time.monotonic_ns()
            release()
            print(stamp, flush=True)


def handoffs(side: str) -> Measure:
    def measure(bench: Bench) -> list[float]:
        need(MODULES[side])
        name = f"lock:{secrets.token_hex(4)}"
        job = {"side": side, "port": bench.server.port, "name": name}
        pair = [start_worker("benches.handoff", job) for _ in range(2)]
        try:
            for process in pair:
                expect_ready(process)
            samples = [one_handoff(*pair) for _ in range(bench.handoffs + 1)]
        finally:
            for process in pair:
                process.kill()
                process.wait()
        if bench.server.client.exists(name):
            raise NotMeasured("does not add up: a lock that nobody holds was left behind")
        return samples[1:]  # the first one connects and loads the scripts

    return measure


def one_handoff(holder: subprocess.Popen[str], waiter: subprocess.Popen[str]) -> float:
    """Milliseconds from release to acquired."""
    tell(holder, "acquire")
    hear(holder)
    tell(waiter, "acquire")
    time.sleep(random.uniform(*HELD))
    tell(holder, "release")
    # The waiter first: hearing the holder would wake this process in the middle of the hand-off.
    acquired = hear(waiter)
    released = hear(holder)
    tell(waiter, "release")
    hear(waiter)
    if acquired <= released:
        raise NotMeasured("does not add up: two processes held the lock")
    return (acquired - released) / 1e6


def hear(process: subprocess.Popen[str]) -> int:
    line = read_line(process)
    if not line:
        raise NotMeasured("the measured process failed")
    return int(line)


if __name__ == "__main__":
    obey(**json.loads(sys.argv[1]))
