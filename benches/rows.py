"""What is compared with what, and how much is wanted of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from .handoff import handoffs
from .rates import Measure, redis_benchmark, workers
from .startup import interpreter


class Compare(Enum):
    FASTER = "sales per second, ours through theirs: how many times as many"
    SOONER = "milliseconds, theirs through ours: how many times sooner"
    ADDED = "milliseconds, ours minus theirs: what it adds"

    def of(self, ours: float, theirs: float) -> float:
        if self is Compare.FASTER:
            return ours / theirs
        return theirs / ours if self is Compare.SOONER else ours - theirs

    def reached(self, figure: float, wanted: float) -> bool:
        return figure <= wanted if self is Compare.ADDED else figure >= wanted


@dataclass(frozen=True)
class Row:
    what: str
    ours: str
    theirs: str
    compare: Compare = Compare.FASTER
    floor: float | None = None
    goal: float | None = None


@dataclass(frozen=True)
class Contest:
    """Sides that take turns, and the rows that are read off them."""

    sides: dict[str, Measure]
    rows: tuple[Row, ...]


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
    "handoff": Contest(
        {"seckill": handoffs("seckill"), "redis-py Lock": handoffs("redis-py")},
        (
            Row(
                "lock hand-off, redis-py Lock",
                "seckill",
                "redis-py Lock",
                Compare.SOONER,
                floor=30,
                goal=100,
            ),
        ),
    ),
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
                floor=40,
                goal=10,
            ),
            Row("import seckill, import redis", "import seckill", "import redis", Compare.SOONER),
        ),
    ),
}
