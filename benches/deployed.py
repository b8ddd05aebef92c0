"""A process that sells on a deployment, and what that took the process and the servers."""

from __future__ import annotations

import json
import math
import os
import secrets
import subprocess
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from operator import itemgetter
from typing import Any

from .call import one_sale
from .deployments import Deployment, Work
from .rates import GRACE, UNITS, Bench, NotMeasured, expect_ready, need, start_worker, tell
from .rows import Compare, Row, Unit
from .sides import Job, many


@dataclass(frozen=True)
class Sold:
    """What one side sold in the time that counts, and what that took."""

    sales: int
    seconds: float
    client: float
    """Seconds of the processor; 0 where nobody looked."""
    servers: list[Work]

    @property
    def rate(self) -> float:
        return self.sales / self.seconds

    @property
    def servers_seconds(self) -> float:
        return sum(work.seconds for work in self.servers)

    @property
    def scripts(self) -> int:
        return sum(work.scripts for work in self.servers)

    @property
    def waits(self) -> int:
        return sum(work.waits for work in self.servers)


FIGURES: dict[str, tuple[Compare, Unit, Callable[[Sold], float]]] = {
    "sales": (Compare.FASTER, Unit.PER_SECOND, lambda sold: sold.rate),
    "client's time of a sale": (
        Compare.BESIDE,
        Unit.MICROSECONDS,
        lambda sold: 1e6 * sold.client / sold.sales,
    ),
    "servers' time of a sale": (
        Compare.BESIDE,
        Unit.MICROSECONDS,
        lambda sold: 1e6 * sold.servers_seconds / sold.sales,
    ),
    "servers' time for one of the client's": (
        Compare.BESIDE,
        Unit.COUNT,
        lambda sold: sold.servers_seconds / sold.client if sold.client else math.inf,
    ),
    "client, of a core": (Compare.BESIDE, Unit.SHARE, lambda sold: sold.client / sold.seconds),
    "busiest server, of a core": (
        Compare.BESIDE,
        Unit.SHARE,
        lambda sold: max(work.seconds for work in sold.servers) / sold.seconds,
    ),
    "both, of the machine": (
        Compare.BESIDE,
        Unit.SHARE,
        lambda sold: (sold.client + sold.servers_seconds) / sold.seconds / (os.cpu_count() or 1),
    ),
    "WAITs for 1,000 sales": (
        Compare.BESIDE,
        Unit.COUNT,
        lambda sold: 1_000 * sold.waits / sold.sales,
    ),
    "scripts for 1,000 sales": (
        Compare.BESIDE,
        Unit.COUNT,
        lambda sold: 1_000 * sold.scripts / sold.sales,
    ),
}
"""What is told of a side; its samples are these, in this order."""


def samples(sold: Sold) -> list[float]:
    return [figure(sold) for _, _, figure in FIGURES.values()]


def row(what: str, figure: str, ours: str, theirs: str) -> Row:
    compare, unit, _ = FIGURES[figure]
    place = list(FIGURES).index(figure)
    return Row(what, ours, theirs, compare, unit, figure=itemgetter(place))


def sell(
    bench: Bench,
    where: str,
    *,
    tasks: int = 0,
    stocks: int = 1,
    slowed: bool = False,
    seconds: float,
    **options: Any,
) -> Sold:
    """By one process, with tasks or in a plain loop; `options` are our client's."""
    need("seckill")
    deployment = bench.deployments[where]
    tag = secrets.token_hex(4)
    lock, stock = f"lock:{tag}", f"stock:{tag}"
    names = [stock] if stocks == 1 else many(stock, stocks)
    deployment.put_on_sale(names, UNITS)
    call = one_sale(lock, stock)
    job = Job(
        *("seckill", 0, lock, stock, call, seconds),
        tasks=tasks,
        url=deployment.url,
        stocks=stocks,
        options=options,
    )
    module = "benches.aio_worker" if tasks else "benches.worker"
    process = start_worker(module, asdict(job))
    try:
        expect_ready(process)
        before = deployment.work()
        with deployment.slowed() if slowed else nullcontext():
            tell(process, "go")
            out, _ = process.communicate(timeout=seconds + GRACE)
        after = deployment.work()
    except subprocess.TimeoutExpired as error:
        raise NotMeasured("the measured process hung") from error
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise NotMeasured("the measured process failed")
    report = json.loads(out)
    audit(deployment, names, report["sold"])
    return Sold(
        report["timed"],
        report["ended"] - report["began"],
        report.get("used", 0.0),
        [now - then for now, then in zip(after, before, strict=True)],
    )


def audit(deployment: Deployment, stocks: list[str], sold: int) -> None:
    put, left = UNITS * len(stocks), deployment.left(stocks)
    if left + sold != put:
        raise NotMeasured(f"does not add up: {put} put on sale, {sold} sold, {left} left")
