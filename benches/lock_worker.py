"""A process that takes a lock and gives it back: `python -m benches.lock_worker JOB`.

Alone, in pairs as fast as it can; or as a crowd on one lock, of forked processes or of the tasks of
one event loop. Each of a crowd holds the lock for a moment, gives it back and asks again at once,
and notes when it asked, when it had it, and when it let go, on the monotonic clock.
"""

from __future__ import annotations

import asyncio
import json
import os
import struct
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from .lock_sides import AIO_OPENERS, OPENERS, Lock
from .worker import wait_for_the_word

HOLD = 0.001
"""Seconds for which each of a crowd has the lock, asleep."""

WARM_UP_PAIRS = 200

Turn = tuple[float, float, float]
"""Asked, acquired, let go."""

MOMENT = struct.Struct("d")


@dataclass(frozen=True)
class Job:
    side: str
    port: int
    name: str
    seconds: float
    crowd: int = 1
    tasks: bool = False
    fair: bool = False


def must(acquired: object) -> None:
    if acquired is not True:
        sys.exit("the lock was not acquired")


# -- alone ----------------------------------------------------------------------------------------


def alone(job: Job) -> dict[str, float]:
    lock = OPENERS[job.side](job.port)(job.name, job.fair)
    acquire, release = lock.acquire, lock.release
    for _ in range(WARM_UP_PAIRS):
        must(acquire())
        release()
    wait_for_the_word()
    clock = time.monotonic
    pairs = 0
    began = now = clock()
    end = began + job.seconds
    while now < end:
        acquire()
        release()
        pairs += 1
        now = clock()
    return {"pairs": pairs, "began": began, "ended": now}


# -- a crowd of processes -------------------------------------------------------------------------


def processes(job: Job) -> list[list[Turn]]:
    """Forked, as servers and workers are; each makes its own connections."""
    OPENERS[job.side](job.port)  # its modules are loaded once, for all
    ready, word = os.pipe(), os.pipe()
    reports = []
    for number in range(job.crowd):
        report = os.pipe()
        if os.fork() == 0:
            try:
                turns = contend(job, number, ready[1], word[0])
                with os.fdopen(report[1], "w") as stream:
                    json.dump(turns, stream)
            finally:
                os._exit(0)  # what went wrong shows as a report that is missing
        os.close(report[1])
        reports.append(os.fdopen(report[0]))
    os.close(ready[1])
    if sum(iter(lambda: len(os.read(ready[0], job.crowd)), 0)) != job.crowd:
        sys.exit("one of the crowd failed")
    wait_for_the_word()
    till = MOMENT.pack(time.monotonic() + job.seconds)
    for _ in range(job.crowd):
        os.write(word[1], till)
    crowd = [json.load(report) for report in reports]
    for _ in range(job.crowd):
        os.wait()
    return crowd


def contend(job: Job, number: int, ready: int, word: int) -> list[Turn]:
    make = OPENERS[job.side](job.port)
    warm_up(make(f"{job.name}:{number}", job.fair))
    lock = make(job.name, job.fair)
    os.write(ready, b".")
    os.close(ready)
    (till,) = MOMENT.unpack(os.read(word, MOMENT.size))
    clock, turns = time.monotonic, []
    while (asked := clock()) < till:
        must(lock.acquire())
        acquired = clock()
        if acquired < till:
            time.sleep(HOLD)
        turns.append((asked, acquired, clock()))
        lock.release()
    return turns


def warm_up(lock: Lock) -> None:
    must(lock.acquire())
    lock.release()


# -- a crowd of tasks -----------------------------------------------------------------------------


async def tasks(job: Job) -> list[list[Turn]]:
    clock = time.monotonic
    gate = asyncio.Event()
    till = 0.0

    async def contend(
        acquire: Callable[[], Awaitable[object]], release: Callable[[], Awaitable[object]]
    ) -> list[Turn]:
        turns = []
        await gate.wait()
        while (asked := clock()) < till:
            must(await acquire())
            acquired = clock()
            if acquired < till:
                await asyncio.sleep(HOLD)
            turns.append((asked, acquired, clock()))
            await release()
        return turns

    async with AIO_OPENERS[job.side](job.port) as make:
        first = make(f"{job.name}:0", job.fair)
        must(await first.acquire())
        await first.release()
        locks = [make(job.name, job.fair) for _ in range(job.crowd)]
        crowd = [asyncio.create_task(contend(lock.acquire, lock.release)) for lock in locks]
        await asyncio.sleep(0)
        wait_for_the_word()
        till = clock() + job.seconds
        gate.set()
        return await asyncio.gather(*crowd)


def main() -> None:
    job = Job(**json.loads(sys.argv[1]))
    report: object
    if job.crowd == 1:
        report = alone(job)
    elif job.tasks:
        report = asyncio.run(tasks(job))
    else:
        report = processes(job)
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
