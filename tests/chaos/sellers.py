"""What a process that sells does, until its standard input ends: `python -m chaos.sellers JOB`.

Kinds: `threads` and `tasks` share one client; `forks` are children that inherit a client which has
been used; `old` is the script that the library takes the place of, at a stock of everybody's.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from chaos import ledger
from chaos.checker import DIGITS, LEASE, PATIENCE
from chaos.ledger import Pen

WORKERS = {"threads": 4, "tasks": 24, "forks": 3, "old": 1}


@dataclass(frozen=True)
class Job:
    kind: str
    url: str
    plain_url: str
    """For the old script."""
    options: dict[str, Any]
    path: str
    seed: str
    lock: str
    stocks: list[str]
    """The last of them is small."""
    marks: list[str]
    """Marked stocks: all of them are this process's own."""
    holds: list[str]
    """Locks that are taken for their own sake."""


class Plan:
    """What one worker asks for, call after call."""

    def __init__(self, job: Job, worker: int) -> None:
        self.dice = random.Random(f"{job.seed}/{worker}")
        self.job = job
        mine = job.marks[worker :: WORKERS[job.kind]]
        self.marks = ((name, -(8**place)) for name in mine for place in range(DIGITS))

    def next(self) -> tuple[str, str, int]:
        chance = self.dice.random()
        if chance < 0.45 and (marked := next(self.marks, None)):
            return ledger.STOCK, *marked
        if chance < 0.55:
            return ledger.LOCK, self.dice.choice(self.job.holds), 0
        *large, small = self.job.stocks
        if chance < 0.8:
            return ledger.STOCK, self.dice.choice(large), -self.dice.randint(1, 3)
        return ledger.STOCK, small, self.dice.choice([-4, -3, -2, -1, 2, 3])

    def pause(self) -> float:
        return self.dice.uniform(0, 0.02)


def heard(error: Exception) -> tuple[str, int]:
    """What a caller was told by an error."""
    import seckill

    if isinstance(error, seckill.NotReplicated):
        return ledger.UNSAFE, 0
    if isinstance(error, seckill.ConnectionError):
        return (ledger.UNKNOWN if error.sent else ledger.UNSENT), 0
    if isinstance(error, seckill.InsufficientInventory):
        return ledger.SHORT, error.available
    if isinstance(error, seckill.LockTimeout):
        return ledger.REFUSED, 0
    return f"wrong:{error!r}".replace(" ", "_"), 0


def sell(job: Job, client: Any, pen: Pen, worker: int, over: Callable[[], bool]) -> None:
    plan = Plan(job, worker)
    while not over():
        what, name, change = plan.next()
        number, held = pen.ask(what, name, change), False
        try:
            if what == ledger.LOCK:
                held = client.acquire_lock(name, LEASE * 1000, 1000)
                pen.tell(number, ledger.HELD if held else ledger.BUSY)
                if held:
                    time.sleep(plan.pause())
                    pen.release(number)
                    client.release_lock(name)
            else:
                client.update_inventory(job.lock, name, change, 5000, PATIENCE * 1000)
                pen.tell(number, ledger.SOLD)
        except Exception as error:
            tell_error(pen, held, number, error)
        time.sleep(plan.pause())


async def sell_awaited(job: Job, client: Any, pen: Pen, worker: int, over: Any) -> None:
    plan = Plan(job, worker)
    while not over():
        what, name, change = plan.next()
        number, held = pen.ask(what, name, change), False
        try:
            if what == ledger.LOCK:
                held = await client.acquire_lock(name, LEASE * 1000, 1000)
                pen.tell(number, ledger.HELD if held else ledger.BUSY)
                if held:
                    await asyncio.sleep(plan.pause())
                    pen.release(number)
                    await client.release_lock(name)
            else:
                await client.update_inventory(job.lock, name, change, 5000, PATIENCE * 1000)
                pen.tell(number, ledger.SOLD)
        except Exception as error:
            tell_error(pen, held, number, error)
        await asyncio.sleep(10 * plan.pause())


def tell_error(pen: Pen, held: bool, number: int, error: Exception) -> None:
    """Whoever holds a lock has been told: giving it back may fail."""
    outcome, figure = heard(error)
    if not held or outcome.startswith("wrong"):
        pen.tell(number, outcome, figure)


def sell_as_ever(job: Job, pen: Pen, over: Callable[[], bool]) -> None:
    """It takes the lock, and trusts in it: so its lease is longer than anything that happens."""
    import redis
    from support import old_script

    old_script.connect(job.plain_url)
    plan = Plan(job, 0)
    while not over():
        number = pen.ask(ledger.STOCK, job.stocks[0], -1)
        try:
            old_script.update_inventory(job.lock, job.stocks[0], -1, 5000, 1000)
            pen.tell(number, ledger.SOLD)
        except redis.RedisError:
            pass  # done, or not: it cannot tell, and gives up at once
        time.sleep(0.05 + plan.pause())


def main(job: Job) -> None:
    import seckill

    ended = threading.Event()
    over = ended.is_set
    path = Path(job.path)

    def listen() -> None:
        sys.stdin.read()
        ended.set()

    if job.kind == "forks":
        client = seckill.Client(job.url, **job.options)
        client.incr_inventory(job.stocks[0], 0)
        parent = os.getpid()
        children = []
        for worker in range(WORKERS["forks"]):
            pid = os.fork()
            if pid == 0:
                os.set_blocking(0, False)
                pen = Pen(path.with_suffix(f".{worker}.ledger"))
                # The pipe's other end is in one hand only: when it is closed, all children see it.
                over = partial(no_more, parent)
                sell(job, client, pen, worker, over)
                os._exit(0)
            children.append(pid)
        statuses = [os.waitpid(pid, 0)[1] for pid in children]
        sys.exit(any(statuses))
    threading.Thread(target=listen, daemon=True).start()
    pen = Pen(path)
    if job.kind == "old":
        sell_as_ever(job, pen, over)
    elif job.kind == "tasks":
        asyncio.run(crowd(job, pen, over))
    else:
        client = seckill.Client(job.url, **job.options)
        workers = [
            threading.Thread(target=sell, args=(job, client, pen, worker, over))
            for worker in range(WORKERS[job.kind])
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()


def no_more(parent: int) -> bool:
    """Whether a child's parent is gone, or nobody will write to our standard input any more."""
    try:
        if os.getppid() != parent:
            return True
        return os.read(0, 1) == b""
    except BlockingIOError:
        return False


async def crowd(job: Job, pen: Pen, over: Callable[[], bool]) -> None:
    import seckill.aio

    async with seckill.aio.Client(job.url, **job.options) as client:
        tasks = range(WORKERS["tasks"])
        await asyncio.gather(*(sell_awaited(job, client, pen, task, over) for task in tasks))


if __name__ == "__main__":
    main(Job(**json.loads(sys.argv[1])))
