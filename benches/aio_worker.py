"""A process that is measured: `python -m benches.aio_worker JOB`, with asyncio tasks that sell.

As worker.py, with the tasks of one event loop in place of threads.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from .aio_sides import OPENERS, Sell
from .call import ScriptCall
from .sides import Job
from .worker import wait_for_the_word

WARM_UP_TASKS = 200
WARM_UP_SECONDS = 0.2

T = TypeVar("T")


async def sell_together(sells: list[Sell], seconds: float) -> dict[str, float]:
    """Each in a task of its own, until the time is over."""
    gate = asyncio.Event()
    is_open = True

    def close() -> None:
        nonlocal is_open
        is_open = False

    async def work(sell: Sell) -> int:
        await gate.wait()
        sold = 0
        while is_open:
            await sell()
            sold += 1
        return sold

    tasks = [asyncio.create_task(work(sell)) for sell in sells]
    await asyncio.sleep(0)
    began, used = time.monotonic(), time.process_time()
    asyncio.get_running_loop().call_later(seconds, close)
    gate.set()
    sold = sum(await asyncio.gather(*tasks))
    used = time.process_time() - used
    return {"sold": sold, "began": began, "ended": time.monotonic(), "used": used}


async def sell(job: Job) -> dict[str, float]:
    async with OPENERS[job.side](job) as seller:
        sells = [seller() for _ in range(job.tasks)]
        warm_up = await sell_together(sells[:WARM_UP_TASKS], WARM_UP_SECONDS)
        wait_for_the_word()
        report = await sell_together(sells, job.seconds)
    return report | {"timed": report["sold"], "sold": report["sold"] + warm_up["sold"]}


def run(loop: str, main: Coroutine[Any, Any, T]) -> T:
    if loop == "uvloop":
        import uvloop

        return uvloop.run(main)
    return asyncio.run(main)


def main() -> None:
    described = json.loads(sys.argv[1])
    job = Job(**(described | {"call": ScriptCall(**described["call"])}))
    print(json.dumps(run(job.loop, sell(job))), flush=True)


if __name__ == "__main__":
    main()
