"""What it costs to be told of a sale only when a replica, or the disk, has it.

Both sides sell on the same server, with its replica or its append-only file: all that differs is
what is waited for. WAIT and WAITAOF travel behind a batch, once for all who are in it, so a caller
alone pays for each sale, and a crowd together. All sell from one stock: a batch is one script, and
the server's own counts tell how many sales went with each and that none was waited for twice.
"""

from __future__ import annotations

from typing import Any

from .deployed import row, samples, sell
from .deployments import Deploy, version, with_file, with_replica
from .rates import Bench, Measure, NotMeasured
from .rows import Contest, Row

TASKS = 1_000
CROWDS = {"one process": 0, f"{TASKS:,} tasks": TASKS}

PATIENCE = 10.0
"""Seconds for one answer: with `everysec`, Redis brings a file to the disk once a second, and the
wait for it is over later than that now and then."""

KNOWS_WAITAOF = (7, 2)


def seller(where: str, tasks: int, **options: Any) -> Measure:
    def measure(bench: Bench) -> list[float]:
        deployment = bench.deployments[where]
        if "wait_aof" in options and version(deployment.kind) < KNOWS_WAITAOF:
            raise NotMeasured("the server knows no WAITAOF")
        keywords: dict[str, Any] = {"socket_timeout": PATIENCE} | options
        sold = sell(bench, where, tasks=tasks, seconds=bench.seconds, **keywords)
        if bool(sold.waits) != bool(options):
            raise NotMeasured(f"does not add up: {sold.waits} WAITs")
        return samples(sold)

    return measure


def contest(
    plain: tuple[str, Deploy], careful: dict[str, tuple[str, Deploy]], **options: Any
) -> Contest:
    """Each of the careful, on what it runs on, beside who wants no proof."""
    sides: dict[str, Measure] = {}
    rows: list[Row] = []
    for crowd, tasks in CROWDS.items():
        sides[f"{crowd}, without"] = seller(plain[0], tasks)
        for how, (where, _) in careful.items():
            sides[f"{crowd}, {how}"] = seller(where, tasks, **options)
            what = f"{how}, {crowd}, sales; without"
            rows.append(row(what, "sales", f"{crowd}, {how}", f"{crowd}, without"))
    few, many = CROWDS
    for how in careful:
        for figure in ("WAITs for 1,000 sales", "scripts for 1,000 sales"):
            what = f"{how}, {figure}: {many}; {few}"
            rows.append(row(what, figure, f"{many}, {how}", f"{few}, {how}"))
    return Contest(sides, tuple(rows), dict([plain, *careful.values()]))


REPLICA = "a primary with a replica", with_replica
EVERYSEC, ALWAYS = (
    (f"a server with appendfsync {when}", with_file(when)) for when in ("everysec", "always")
)

SAFETY: dict[str, Contest] = {
    "wait-replicas": contest(REPLICA, {"wait_replicas=1": REPLICA}, wait_replicas=1),
    "wait-aof": contest(
        EVERYSEC,
        {
            "wait_aof with everysec": EVERYSEC,
            "wait_aof with always": ALWAYS,
        },
        wait_aof=True,
    ),
}
"""Of the fourth table."""
