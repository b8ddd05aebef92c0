"""Many stocks on three primaries and on one: how much more they sell, and what it is that limits.

1,000 tasks of one process sell, each from a stock of its own, so no two of their sales share a
script call: the server has the most to do for each, as it has of redis-benchmark, which sends the
same call. On a machine of two cores three servers and a client cannot have a core each. So what a
sale takes the client and the servers is measured, too, and how much more servers sell that have a
quarter of a core each, in turns: those lack nothing of the machine but what they are denied.
"""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Iterable
from typing import Any

from . import machine
from .call import ScriptCall, one_sale
from .deployed import Sold, audit, row, samples, sell
from .deployments import PERIOD, Deployment, Work, primaries
from .rates import GRACE, UNITS, Bench, Measure, NotMeasured, one_session_a_call
from .rows import Contest, Row

ONE, THREE = "one primary", "three primaries"

TASKS = 1_000
MANY, FEW = 1_000, 30
"""Stocks. Of the few, 33 tasks have one: their sales travel together."""

TURNS = 10

CONNECTIONS, PIPELINE = 50, 32
WARM_UP_SALES = 10_000
C = f"redis-benchmark -c {CONNECTIONS} -P {PIPELINE}"

CLIENT, BUSIEST = "client, of a core", "busiest server, of a core"
OF_A_LOAD = (
    *("sales", "client's time of a sale", "servers' time of a sale"),
    *("servers' time for one of the client's", CLIENT, BUSIEST, "both, of the machine"),
)
"""Of FIGURES: what tells who it is that limits."""


def tasks(where: str, stocks: int, *, slowed: bool = False) -> Measure:
    def measure(bench: Bench) -> list[float]:
        # Servers that take turns have to have had some.
        seconds = max(bench.seconds, TURNS * PERIOD) if slowed else bench.seconds
        sold = sell(bench, where, tasks=TASKS, stocks=stocks, slowed=slowed, seconds=seconds)
        return samples(sold)

    return measure


def redis_benchmark(where: str) -> Measure:
    """The same script with the same arguments, from C, see rates.redis_benchmark.

    Of a cluster each of its connections talks to one node, and of each node it takes one slot, so
    there is a stock in each of these. It has a thread for each node then, and sees only every
    250 ms that it is done: so the servers are asked in the midst of it how much they sell. A
    cluster of one node is none to it; it is not told of that.
    """

    def measure(bench: Bench) -> list[float]:
        path = shutil.which("redis-benchmark")
        if path is None:
            raise NotMeasured("not installed")
        deployment = bench.deployments[where]
        command, tags = [path, "-p", str(deployment.servers[0].port)], ["tag"]
        if len(deployment.primaries) > 1:
            command.append("--cluster")
            tags = tags_of(command, deployment)
        stocks = [f"{{{tag}}}:stock" for tag in tags]
        deployment.put_on_sale(stocks, UNITS)
        call = one_sale("{tag}:lock", "{tag}:stock")
        for primary in deployment.primaries:
            primary.script_load(call.source)
        at_first = deployment.work()
        sold = run([*command, *load(call)], deployment, bench.seconds)
        settle(deployment)
        audit(deployment, stocks, scripts(deployment.work()) - scripts(at_first))
        return samples(sold)

    return measure


def load(call: ScriptCall) -> list[str]:
    return [
        *("-c", str(CONNECTIONS), "-P", str(PIPELINE), "-n", str(UNITS)),
        *("-r", str(2**31 - 1), "EVALSHA", *one_session_a_call(call)),
    ]


def run(command: list[str], deployment: Deployment, seconds: float) -> Sold:
    """What it sells in so many seconds; then it is ended."""
    before = deployment.work()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        end = time.monotonic() + GRACE
        while scripts(deployment.work()) - scripts(before) < WARM_UP_SALES:
            if process.poll() is not None or time.monotonic() > end:
                raise NotMeasured("redis-benchmark failed")
            time.sleep(0.01)
        before, used, began = deployment.work(), machine.used(process.pid), time.monotonic()
        time.sleep(seconds)
        after, ended = deployment.work(), time.monotonic()
        used = machine.used(process.pid) - used
        if process.poll() is not None:
            raise NotMeasured("redis-benchmark failed")
    finally:
        process.kill()
        process.wait()
    work = [now - then for now, then in zip(after, before, strict=True)]
    return Sold(scripts(work), ended - began, used, work)


def scripts(work: list[Work]) -> int:
    """Each of its calls is one, and sells one unit."""
    return sum(it.scripts for it in work)


def settle(deployment: Deployment) -> None:
    """Until the servers have done what was on its way to them when it was ended."""
    seen = -1
    while (now := scripts(deployment.work())) != seen:
        seen = now
        time.sleep(0.05)


def tags_of(command: list[str], deployment: Deployment) -> list[str]:
    """The hash tags that it takes, one for each node: found where it has written."""
    probe = ["-n", "5000", "--csv", "SET", "{tag}", "1"]
    for primary in deployment.primaries:
        primary.flushall()
    for _ in range(10):  # connections that come late find all requests done by others
        subprocess.run([*command, *probe], check=False, capture_output=True, timeout=GRACE)
        found: list[Any] = [primary.keys() for primary in deployment.primaries]
        if [len(keys) for keys in found] == [1] * len(found):
            return [key[1:-1].decode() for (key,) in found]
    raise NotMeasured("redis-benchmark does not write to one slot of each node")


# -- the rows -------------------------------------------------------------------------------------


def contest() -> Contest:
    sides: dict[str, Measure] = {}
    for where in (THREE, ONE):
        sides[where] = tasks(where, MANY)
        sides[f"{where}, {C}"] = redis_benchmark(where)
        sides[f"{where}, slowed"] = tasks(where, MANY, slowed=True)
        sides[f"{where}, few"] = tasks(where, FEW)

    def rows_of(load: str, how: str, figures: Iterable[str]) -> list[Row]:
        three, one = f"{THREE}{how}", f"{ONE}{how}"
        return [row(f"{load}, {what}: {THREE}; one", what, three, one) for what in figures]

    many, few = (f"{stocks:,} stocks" for stocks in (MANY, FEW))
    rows = [
        *rows_of(many, "", OF_A_LOAD),
        *rows_of(f"{many}, a quarter of a core each", ", slowed", ("sales", BUSIEST)),
        *rows_of(few, ", few", ("sales", CLIENT, BUSIEST)),
        *rows_of(C, f", {C}", OF_A_LOAD),
        *(
            row(f"{many}, sales of 1,000 tasks on {where}; {C}", "sales", where, f"{where}, {C}")
            for where in (THREE, ONE)
        ),
    ]
    return Contest(sides, tuple(rows), {THREE: primaries(3), ONE: primaries(1)})


PRIMARIES: dict[str, Contest] = {"primaries": contest()}
"""Of the fourth table."""
