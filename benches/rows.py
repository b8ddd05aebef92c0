"""What is compared with what, and how much is wanted of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum
from statistics import median

from .deployments import Deploy
from .rates import Measure, redis_benchmark, workers
from .startup import interpreter


class Compare(Enum):
    FASTER = "ours through theirs: how many times as many"
    SOONER = "theirs through ours: how many times sooner"
    FEWER = "theirs through ours: how many times fewer"
    ADDED = "ours minus theirs: what it adds"
    BESIDE = "ours beside theirs"

    @property
    def is_ratio(self) -> bool:
        return self not in (Compare.ADDED, Compare.BESIDE)

    def of(self, ours: float, theirs: float) -> float:
        if not self.is_ratio:
            return ours - theirs
        more, less = (ours, theirs) if self is Compare.FASTER else (theirs, ours)
        return more / less if less else math.inf

    def reached(self, figure: float, wanted: float) -> bool:
        return figure <= wanted if self is Compare.ADDED else figure >= wanted


class Unit(Enum):
    """What the figures of a side are, and how they are written."""

    PER_SECOND = "{:,.0f}/s"
    MILLISECONDS = "{:,.2f} ms"
    MICROSECONDS = "{:,.2f} µs"
    BYTES = "{:,.0f} B"
    COUNT = "{:,.1f}"
    SHARE = "{:.0%}"


@dataclass(frozen=True)
class Row:
    what: str
    ours: str
    theirs: str
    compare: Compare = Compare.FASTER
    unit: Unit = Unit.PER_SECOND
    floor: float | None = None
    goal: float | None = None
    figure: Callable[[Sequence[float]], float] = median
    """Of one side in one round, from its samples."""


@dataclass(frozen=True)
class Contest:
    """Sides that take turns, and the rows that are read off them."""

    sides: dict[str, Measure]
    rows: tuple[Row, ...]
    deployments: dict[str, Deploy] = field(default_factory=dict)
    """What has to run meanwhile, beside the server: its name, and what starts it."""


def crowd_of_tasks(tasks: int, *, among_all: bool = False) -> Contest:
    """asyncio tasks in one process; `among_all` adds every side that there is."""
    sides = {
        "seckill": workers("seckill", tasks=tasks),
        "seckill on uvloop": workers("seckill", tasks=tasks, loop="uvloop"),
        "redis-py asyncio": workers("redis-py", tasks=tasks),
        "redis-py on uvloop": workers("redis-py", tasks=tasks, loop="uvloop"),
        "GLIDE async": workers("GLIDE", tasks=tasks),
        "coredis": workers("coredis", tasks=tasks),
    }
    if among_all:
        sides |= {
            "GLIDE on uvloop": workers("GLIDE", tasks=tasks, loop="uvloop"),
            "coredis on uvloop": workers("coredis", tasks=tasks, loop="uvloop"),
            C_LIMIT: redis_benchmark(50, pipeline=32),
        }
    crowd = "1 task" if tasks == 1 else f"{tasks:,} tasks"
    rows = []
    for theirs in sides:
        if theirs.endswith("on uvloop") and not theirs.startswith("seckill"):
            rows.append(Row(f"{crowd} on uvloop, {theirs}", "seckill on uvloop", theirs))
        elif not theirs.startswith("seckill"):
            floor, goal = WANTED.get((tasks, theirs), (None, None))
            rows.append(Row(f"{crowd}, {theirs}", "seckill", theirs, floor=floor, goal=goal))
    if among_all:
        rows.append(Row(f"{crowd} on uvloop, {C_LIMIT}", "seckill on uvloop", C_LIMIT))
    return Contest(sides, tuple(rows))


C_LIMIT = "redis-benchmark -c 50 -P 32"

WANTED = {(1_000, "redis-py asyncio"): (30.0, 60.0), (1_000, C_LIMIT): (1.5, 3.0)}
"""Floor and goal of the rows of asyncio tasks that have them."""


CONTESTS: dict[str, Contest] = {
    "loop": Contest(
        {
            "seckill": workers("seckill"),
            "redis-benchmark -c 1": redis_benchmark(1),
            "old script": workers("old script"),
            "redis-py": workers("redis-py"),
            "GLIDE": workers("GLIDE"),
        },
        (
            Row(
                "one process, redis-benchmark -c 1",
                "seckill",
                "redis-benchmark -c 1",
                floor=1.5,
                goal=2.5,
            ),
            Row("one process, the old script", "seckill", "old script", floor=8, goal=15),
            Row("one process, redis-py EVALSHA", "seckill", "redis-py", floor=2, goal=3),
            Row("one process, GLIDE sync", "seckill", "GLIDE"),
        ),
    ),
    "processes": Contest(
        {
            "seckill, 2": workers("seckill", processes=2),
            "old script, 2": workers("old script", processes=2),
            "seckill, 10": workers("seckill", processes=10),
            "old script, 10": workers("old script", processes=10),
        },
        (
            Row("2 processes, the old script", "seckill, 2", "old script, 2"),
            Row("10 processes, the old script", "seckill, 10", "old script, 10", floor=10, goal=20),
        ),
    ),
    "threads": Contest(
        {
            "seckill, 32": workers("seckill", threads=32),
            "redis-benchmark -c 32": redis_benchmark(32),
            "seckill, 64": workers("seckill", threads=64),
            "redis-benchmark -c 64": redis_benchmark(64),
            "redis-py, 64": workers("redis-py", threads=64),
            "GLIDE, 64": workers("GLIDE", threads=64),
        },
        (
            Row("32 threads, redis-benchmark -c 32", "seckill, 32", "redis-benchmark -c 32"),
            Row(
                "64 threads, redis-benchmark -c 64",
                "seckill, 64",
                "redis-benchmark -c 64",
                floor=1.5,
                goal=3,
            ),
            Row("64 threads, redis-py EVALSHA", "seckill, 64", "redis-py, 64"),
            Row("64 threads, GLIDE sync", "seckill, 64", "GLIDE, 64"),
        ),
    ),
    "tasks-1": crowd_of_tasks(1),
    "tasks-10": crowd_of_tasks(10),
    "tasks-100": crowd_of_tasks(100),
    "tasks-1000": crowd_of_tasks(1_000, among_all=True),
    "tasks-10000": crowd_of_tasks(10_000),
    "import": Contest(
        {
            "import seckill": interpreter("seckill"),
            "bare Python": interpreter(None),
            "import redis": interpreter("redis"),
        },
        (
            Row(
                "import seckill, bare Python",
                "import seckill",
                "bare Python",
                Compare.ADDED,
                Unit.MILLISECONDS,
                floor=40,
                goal=10,
            ),
            Row(
                "import seckill, import redis",
                "import seckill",
                "import redis",
                Compare.SOONER,
                Unit.MILLISECONDS,
            ),
        ),
    ),
}
