"""A process that is measured: `python -m benches.worker JOB`.

It connects, sells a little to warm up, says "ready", waits for a line, and sells for the job's
seconds. Then it reports what it sold (warm-up included, for the audit), what of that was timed, and
from when to when on the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import json
import sys
import threading
import time

from .call import ScriptCall
from .sides import OPENERS, Job, Sell, Seller

WARM_UP_SALES = 200
WARM_UP_SECONDS = 0.2


class Stint:
    """What one thread sold."""

    def __init__(self, seller: Seller, seconds: float) -> None:
        self.seller = seller
        self.seconds = seconds
        self.warmed_up = self.timed = 0
        self.began = self.ended = 0.0

    def warm_up(self) -> Sell:
        sell = self.seller()
        end = time.monotonic() + WARM_UP_SECONDS
        while self.warmed_up < WARM_UP_SALES and time.monotonic() < end:
            sell()
            self.warmed_up += 1
        return sell

    def work(self, sell: Sell) -> None:
        clock = time.monotonic
        timed = 0
        self.began = now = clock()
        end = now + self.seconds
        while now < end:
            sell()
            timed += 1
            now = clock()
        self.timed, self.ended = timed, now


def wait_for_the_word(state: str = "ready") -> None:
    print(state, flush=True)
    sys.stdin.readline()


def sell_alone(stint: Stint) -> None:
    """In the main thread, where a plain script sells."""
    sell = stint.warm_up()
    wait_for_the_word()
    stint.work(sell)


def sell_together(stints: list[Stint]) -> None:
    warm = threading.Barrier(len(stints) + 1)
    word = threading.Event()

    def run(stint: Stint) -> None:
        try:
            sell = stint.warm_up()
        except BaseException:
            warm.abort()
            raise
        warm.wait()
        word.wait()
        stint.work(sell)

    threads = [threading.Thread(target=run, args=(stint,), daemon=True) for stint in stints]
    for thread in threads:
        thread.start()
    warm.wait()
    wait_for_the_word()
    word.set()
    for thread in threads:
        thread.join()
    if not all(stint.ended for stint in stints):
        sys.exit("a thread did not sell to the end")


def main() -> None:
    described = json.loads(sys.argv[1])
    job = Job(**(described | {"call": ScriptCall(**described["call"])}))
    seller = OPENERS[job.side](job)
    stints = [Stint(seller, job.seconds) for _ in range(job.threads)]
    if job.threads == 1:
        sell_alone(stints[0])
    else:
        sell_together(stints)
    report = {
        "sold": sum(stint.warmed_up + stint.timed for stint in stints),
        "timed": sum(stint.timed for stint in stints),
        "began": min(stint.began for stint in stints),
        "ended": max(stint.ended for stint in stints),
    }
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
