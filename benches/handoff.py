"""Lock hand-off: from the moment one lets go of a lock to the moment another has it.

`python -m benches.handoff JOB` is one of two processes. It obeys one word a line (acquire, release)
and answers each with a stamp of CLOCK_MONOTONIC in nanoseconds: release is stamped before the call,
acquire after it, so that the round trips of every library count. With `threads` in the JOB it is
both sides, two threads of one process, which do so many hand-offs on one word.
"""

from __future__ import annotations

import json
import queue
import random
import secrets
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass

from .lock_sides import MODULES, OPENERS
from .lock_worker import must
from .rates import (
    GRACE,
    Bench,
    Measure,
    NotMeasured,
    expect_ready,
    need,
    read_line,
    start_worker,
    tell,
)

HELD = (0.05, 0.15)
"""The holder lets go at a random moment of this span, as long as redis-py's default poll, 0.1 s."""


@dataclass(frozen=True)
class Job:
    side: str
    port: int
    name: str
    threads: int = 0
    """So many hand-offs between two threads; 0: between two processes."""


def obey(job: Job) -> None:
    lock = OPENERS[job.side](job.port)(job.name, False)
    print("ready", flush=True)
    for line in sys.stdin:
        if line == "acquire\n":
            must(lock.acquire())
            print(time.monotonic_ns(), flush=True)
        else:
            stamp = time.monotonic_ns()
            lock.release()
            print(stamp, flush=True)


def between_threads(job: Job) -> None:
    make = OPENERS[job.side](job.port)
    mine, theirs = make(job.name, False), make(job.name, False)
    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
    acquired: queue.SimpleQueue[int] = queue.SimpleQueue()

    def wait() -> None:
        while asked.get():
            must(theirs.acquire())
            stamp = time.monotonic_ns()
            theirs.release()
            acquired.put(stamp)

    waiter = threading.Thread(target=wait, daemon=True)
    waiter.start()
    print("ready", flush=True)
    sys.stdin.readline()
    samples = []
    for _ in range(job.threads):
        must(mine.acquire())
        asked.put(True)
        time.sleep(random.uniform(*HELD))
        released = time.monotonic_ns()
        mine.release()
        samples.append((acquired.get(timeout=GRACE) - released) / 1e6)
    asked.put(False)
    waiter.join()
    print(json.dumps(samples), flush=True)


def handoffs(side: str) -> Measure:
    """Between two processes, in milliseconds."""

    def measure(bench: Bench) -> list[float]:
        job = prepare(bench, side)
        pair = [start_worker("benches.handoff", asdict(job)) for _ in range(2)]
        try:
            for process in pair:
                expect_ready(process)
            samples = [one_handoff(*pair) for _ in range(bench.handoffs + 1)]
        finally:
            for process in pair:
                process.kill()
                process.wait()
        return checked(bench, job, samples)

    return measure


def handoffs_between_threads(side: str) -> Measure:
    """Between two threads of one process, in milliseconds."""

    def measure(bench: Bench) -> list[float]:
        job = prepare(bench, side, threads=bench.handoffs + 1)
        process = start_worker("benches.handoff", asdict(job))
        try:
            expect_ready(process)
            out, _ = process.communicate("go\n", timeout=GRACE)
        except subprocess.TimeoutExpired as error:
            raise NotMeasured("the measured process hung") from error
        finally:
            process.kill()
            process.wait()
        if process.returncode:
            raise NotMeasured("the measured process failed")
        return checked(bench, job, json.loads(out))

    return measure


def prepare(bench: Bench, side: str, threads: int = 0) -> Job:
    need(MODULES[side])
    return Job(side, bench.server.port, f"bench:{secrets.token_hex(4)}", threads)


def checked(bench: Bench, job: Job, samples: list[float]) -> list[float]:
    if min(samples) <= 0:
        raise NotMeasured("does not add up: two held the lock")
    if bench.server.client.exists(job.name, f"lock:{job.name}"):
        raise NotMeasured("does not add up: a lock that nobody holds was left behind")
    return samples[1:]  # the first one connects and loads the scripts


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
    return (acquired - released) / 1e6


def hear(process: subprocess.Popen[str]) -> int:
    line = read_line(process)
    if not line:
        raise NotMeasured("the measured process failed")
    return int(line)


if __name__ == "__main__":
    job = Job(**json.loads(sys.argv[1]))
    if job.threads:
        between_threads(job)
    else:
        obey(job)
