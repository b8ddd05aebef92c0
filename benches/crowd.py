"""A crowd of asyncio tasks that asks at once: `python -m benches.crowd CROWD`.

It reports what the crowd costs the process that it is in: memory while it waits, and how long the
event loop was blocked. The yardstick is the same crowd on plain futures, which is what asyncio
itself costs.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from .aio_worker import run
from .worker import wait_for_the_word

PATIENCE = 600_000
"""Milliseconds: nobody in a crowd gives up."""

WARM_UP_TASKS = 100


@dataclass(frozen=True)
class Crowd:
    """Task i asks for `changes[i]` of `stocks[i]`, counting round and round."""

    side: str
    tasks: int
    port: int
    lock: str
    stocks: list[str]
    changes: list[int]
    loop: str = "asyncio"
    waits: bool = False
    """Somebody makes all of them wait: say what they take meanwhile."""


class Futures:
    """What asyncio itself costs."""

    def __init__(self, crowd: Crowd) -> None:
        self.loop = asyncio.get_running_loop()
        self.futures: list[asyncio.Future[None]] = []

    async def ask(self, number: int) -> None:
        future = self.loop.create_future()
        self.futures.append(future)
        await future

    def answer(self) -> None:
        for future in self.futures:
            future.set_result(None)
        self.futures.clear()

    def counts(self) -> dict[str, int]:
        return {"sold": 0, "batches": 0}

    async def close(self) -> None:
        pass


class Seckill:
    def __init__(self, crowd: Crowd) -> None:
        import seckill.aio

        # A server that is made to wait for a while is slow, not gone.
        self.client = seckill.aio.Client(
            host="127.0.0.1", port=crowd.port, socket_timeout=PATIENCE / 1000
        )
        self.crowd = crowd
        self.sold = 0

    async def ask(self, number: int) -> None:
        crowd = self.crowd
        stock = crowd.stocks[number % len(crowd.stocks)]
        change = crowd.changes[number % len(crowd.changes)]
        await self.client.update_inventory(crowd.lock, stock, change, time_out=PATIENCE)
        self.sold -= change

    def answer(self) -> None:
        """The server does."""

    def counts(self) -> dict[str, int]:
        return {"sold": self.sold, "batches": self.client.statistics()["batches"]}

    async def close(self) -> None:
        await self.client.close()


SIDES: dict[str, Callable[[Crowd], Futures | Seckill]] = {"futures": Futures, "seckill": Seckill}


class Heart:
    """Beats each millisecond, or as soon after as the loop has time for it."""

    EACH = 0.001

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.beats: list[float] = []
        self.beat()

    def beat(self) -> None:
        self.beats.append(time.monotonic())
        self.timer = self.loop.call_later(self.EACH, self.beat)

    def stop(self) -> None:
        self.timer.cancel()
        self.beats.append(time.monotonic())

    def blocked(self, until: float) -> tuple[float, float]:
        """By how many ms a beat was late at worst: up to the first one after `until`, and later."""
        before = after = 0.0
        for beat, following in pairwise(self.beats):
            late = max(0.0, following - beat - self.EACH) * 1000
            if beat <= until:
                before = max(before, late)
            else:
                after = max(after, late)
        return before, after


async def ask_at_once(side: Futures | Seckill, tasks: int) -> dict[str, float]:
    gate = asyncio.Event()
    all_asked = asyncio.Event()
    asked, asked_at = 0, 0.0

    async def work(number: int) -> None:
        nonlocal asked, asked_at
        await gate.wait()
        asked += 1
        if asked == tasks:
            asked_at = time.monotonic()
            all_asked.set()
        await side.ask(number)

    # All that gathering them costs is paid here, before anybody looks at the clock.
    crowd = asyncio.gather(*(asyncio.create_task(work(number)) for number in range(tasks)))
    await asyncio.sleep(0)
    heart = Heart()
    await asyncio.sleep(0.05)
    gate.set()
    await all_asked.wait()
    if isinstance(side, Futures):
        await asyncio.sleep(2 * heart.EACH)  # asking and answering in two turns of the loop
    side.answer()
    await crowd
    heart.stop()
    asking, answers = heart.blocked(asked_at)
    return {"asking": asking, "answers": answers}


async def wait(side: Futures | Seckill, tasks: int) -> dict[str, float]:
    before = memory()
    crowd = [asyncio.create_task(side.ask(number)) for number in range(tasks)]
    grown = await settled() - before
    wait_for_the_word("waiting")
    side.answer()
    await asyncio.gather(*crowd)
    return {"bytes": grown / tasks}


def memory() -> int:
    """What is resident, in bytes."""
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


async def settled() -> int:
    """The memory in use when it has not moved for half a second."""
    seen: list[int] = []
    while len(seen) < 6 or max(seen[-6:]) - min(seen[-6:]) > 1 << 16:
        await asyncio.sleep(0.1)
        seen.append(memory())
    return seen[-1]


async def warm_up(side: Futures | Seckill) -> None:
    crowd = [asyncio.create_task(side.ask(number)) for number in range(WARM_UP_TASKS)]
    await asyncio.sleep(0)
    side.answer()
    await asyncio.gather(*crowd)


async def measure(crowd: Crowd) -> dict[str, float]:
    side = SIDES[crowd.side](crowd)
    await warm_up(side)
    before = side.counts()
    wait_for_the_word()
    report = await (wait if crowd.waits else ask_at_once)(side, crowd.tasks)
    counts = side.counts()
    await side.close()
    return report | {name: counts[name] - before[name] for name in counts}


if __name__ == "__main__":
    crowd = Crowd(**json.loads(sys.argv[1]))
    print(json.dumps(run(crowd.loop, measure(crowd))), flush=True)
