"""Locks: what one costs that nobody else wants, how soon it is handed over, and what a crowd does.

Each of a crowd holds the lock for a moment and asks again at once. Its figures are read off the
turns that all have noted. A hand-off is a turn of somebody else than the turn before. Commands are
those that the server counts (INFO commandstats), what scripts call included; round trips are the
times that it read from a socket.
"""

from __future__ import annotations

import json
import secrets
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from itertools import pairwise
from operator import itemgetter
from typing import Any

from .handoff import handoffs, handoffs_between_threads
from .lock_sides import MODULES
from .lock_worker import Job
from .rates import GRACE, Bench, Measure, NotMeasured, expect_ready, need, start_worker, tell
from .rows import Compare, Contest, Row, Unit
from .server import Server

CROWD_SECONDS = 4.0
"""For each second of other rows: in a crowd it takes one until everybody has had the lock."""

Work = Mapping[str, float]
"""What the server has done: commands, round trips, and seconds of its processor."""


@dataclass(frozen=True)
class Turn:
    asked: float
    acquired: float
    let_go: float
    who: int


class Crowd:
    """What its members did, from the word to the moment when they stopped asking."""

    def __init__(self, members: list[list[tuple[float, float, float]]], seconds: float) -> None:
        self.members = len(members)
        turns = [Turn(*turn, who) for who, noted in enumerate(members) for turn in noted]
        self.all = sorted(turns, key=lambda turn: turn.acquired)
        if any(turn.let_go > later.acquired for turn, later in pairwise(self.all)):
            raise NotMeasured("does not add up: two held the lock")
        self.till = min(turn.asked for turn in turns) + seconds
        self.seconds = seconds
        self.turns = [turn for turn in self.all if turn.acquired < self.till]

    @cached_property
    def handoffs(self) -> int:
        return sum(turn.who != later.who for turn, later in pairwise(self.turns))

    @property
    def longest_wait(self) -> float:
        """Of those, too, who still waited at the end."""
        return max(min(turn.acquired, self.till) - turn.asked for turn in self.all)

    @property
    def fewest_of_a_fair_share(self) -> float:
        """Turns of who had fewest, through the turns that each would have had of a fair lot."""
        counts = [0] * self.members
        for turn in self.turns:
            counts[turn.who] += 1
        return min(counts) * self.members / max(1, len(self.turns))

    @property
    def passed_over(self) -> int:
        """How often, at worst, somebody had a turn who had asked later."""
        worst = 0
        for place, turn in enumerate(self.all):
            sooner = 0
            for other in reversed(self.all[:place]):
                if other.acquired < turn.asked:
                    break
                sooner += other.asked > turn.asked and other.acquired < self.till
            worst = max(worst, sooner)
        return worst


FIGURES_OF_A_CROWD: dict[str, tuple[Compare, Unit, Callable[[Crowd, Work], float]]] = {
    "turns": (
        Compare.FASTER,
        Unit.PER_SECOND,
        lambda crowd, work: len(crowd.turns) / crowd.seconds,
    ),
    "hand-offs": (
        Compare.FASTER,
        Unit.PER_SECOND,
        lambda crowd, work: crowd.handoffs / crowd.seconds,
    ),
    "commands a hand-off": (
        Compare.FEWER,
        Unit.COUNT,
        lambda crowd, work: work["commands"] / max(1, crowd.handoffs),
    ),
    "round trips a hand-off": (
        Compare.FEWER,
        Unit.COUNT,
        lambda crowd, work: work["round trips"] / max(1, crowd.handoffs),
    ),
    "server's time a hand-off": (
        Compare.FEWER,
        Unit.MILLISECONDS,
        lambda crowd, work: 1000 * work["seconds"] / max(1, crowd.handoffs),
    ),
    "longest wait": (
        Compare.SOONER,
        Unit.MILLISECONDS,
        lambda crowd, work: 1000 * crowd.longest_wait,
    ),
    "passed over, at most": (
        Compare.BESIDE,
        Unit.COUNT,
        lambda crowd, work: crowd.passed_over,
    ),
    "fewest turns, of a fair share": (
        Compare.BESIDE,
        Unit.SHARE,
        lambda crowd, work: crowd.fewest_of_a_fair_share,
    ),
}


def uncontended(side: str) -> Measure:
    """Pairs of acquire and release a second; round trips and commands of a pair."""

    def measure(bench: Bench) -> list[float]:
        report, work = run(bench, side, bench.seconds)
        pairs, seconds = report["pairs"], report["ended"] - report["began"]
        return [pairs / seconds, work["round trips"] / pairs, work["commands"] / pairs]

    return measure


def crowd_of(size: int, side: str, *, tasks: bool = False, fair: bool = False) -> Measure:
    """The figures of `FIGURES_OF_A_CROWD`, in their order."""

    def measure(bench: Bench) -> list[float]:
        seconds = CROWD_SECONDS * bench.seconds
        report, work = run(bench, side, seconds, crowd=size, tasks=tasks, fair=fair)
        crowd = Crowd(report, seconds)
        return [figure(crowd, work) for _, _, figure in FIGURES_OF_A_CROWD.values()]

    return measure


def run(bench: Bench, side: str, seconds: float, **settings: Any) -> tuple[Any, Work]:
    """What the worker reports, and what the server did in that time."""
    need(MODULES[side])
    name = f"bench:{secrets.token_hex(4)}"
    job = Job(side, bench.server.port, name, seconds, **settings)
    process = start_worker("benches.lock_worker", asdict(job))
    try:
        expect_ready(process)
        before = work_of(bench.server)
        tell(process, "go")
        time.sleep(seconds)
        # Now, and not when the last of a crowd has had the turn that it still waited for.
        after = work_of(bench.server)
        out, _ = process.communicate(timeout=2 * GRACE)
    except subprocess.TimeoutExpired as error:
        raise NotMeasured("the measured process hung") from error
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise NotMeasured("the measured process failed")
    if bench.server.client.exists(name, f"lock:{name}"):
        raise NotMeasured("does not add up: a lock that nobody holds was left behind")
    work = {what: after[what] - before[what] for what in after}
    work["round trips"] -= 1  # that of the second question
    return json.loads(out), work


def work_of(server: Server) -> dict[str, float]:
    info = server.client.info("all")
    commands = {name: told for name, told in info.items() if name.startswith("cmdstat_")}
    commands.pop("cmdstat_info", None)  # our own
    return {
        "commands": sum(told["calls"] for told in commands.values()),
        "round trips": info["total_reads_processed"],
        "seconds": info["used_cpu_user"] + info["used_cpu_sys"],
    }


# -- the rows -------------------------------------------------------------------------------------


def contest_of_crowds(size: int, *, tasks: bool = False) -> Contest:
    def side(name: str, fair: bool = False) -> Measure:
        return crowd_of(size, name, tasks=tasks, fair=fair)

    crowd = f"{size:,} {'tasks' if tasks else 'processes'}"
    rows = [
        Row(f"{crowd}, {what}{how}", ours, THEIRS, compare, unit, figure=itemgetter(place))
        for place, (what, (compare, unit, _)) in enumerate(FIGURES_OF_A_CROWD.items())
        for ours, how in (("seckill", ""), ("seckill, fair", "; fair"))
    ]
    sides = {"seckill": side("seckill"), "seckill, fair": side("seckill", fair=True)}
    return Contest(sides | {THEIRS: side("redis-py")}, tuple(rows))


def waiters_of_one_process(few: int, many: int) -> Contest:
    """What a hand-off costs the server must not grow with those who wait in one process."""
    ours, beside = f"{many:,} tasks", f"{few:,} tasks"
    names = ("commands a hand-off", "round trips a hand-off", "server's time a hand-off")
    rows = [
        Row(
            f"seckill{how}, {what}, {ours}; {beside}",
            f"{ours}{how}",
            f"{beside}{how}",
            Compare.FEWER,
            FIGURES_OF_A_CROWD[what][1],
            figure=itemgetter(list(FIGURES_OF_A_CROWD).index(what)),
        )
        for how in ("", ", fair")
        for what in names
    ]
    sides = {
        f"{size:,} tasks{how}": crowd_of(size, "seckill", tasks=True, fair=bool(how))
        for size in (few, many)
        for how in ("", ", fair")
    }
    return Contest(sides, tuple(rows))


def contest_of_handoffs(
    between: str, measure: Callable[[str], Measure], *, functions: bool = False
) -> Contest:
    sides = {
        "seckill.Lock": measure("seckill"),
        THEIRS: measure("redis-py"),
        OTHERS: measure("python-redis-lock"),
    }
    rows = [
        (f"hand-off between {between}, {THEIRS}", "seckill.Lock", THEIRS),
        (f"hand-off between {between}, {OTHERS}", "seckill.Lock", OTHERS),
    ]
    if functions:
        sides["acquire_lock"] = measure("functions")
        rows.append((f"acquire_lock, hand-off between {between}, {THEIRS}", "acquire_lock", THEIRS))
    return Contest(
        sides,
        tuple(
            Row(
                *row,
                Compare.SOONER,
                Unit.MILLISECONDS,
                # What the design wants.
                floor=30 if row[2] == THEIRS else None,
                goal=100 if row[2] == THEIRS else None,
            )
            for row in rows
        ),
    )


THEIRS, OTHERS = "redis-py Lock", "python-redis-lock"

LOCKS: dict[str, Contest] = {
    "lock": Contest(
        {
            "seckill.Lock": uncontended("seckill"),
            THEIRS: uncontended("redis-py"),
            OTHERS: uncontended("python-redis-lock"),
        },
        tuple(
            Row(
                f"acquire and release, {what}, {theirs}",
                "seckill.Lock",
                theirs,
                compare,
                unit,
                figure=itemgetter(place),
            )
            for theirs in (THEIRS, OTHERS)
            for place, (what, compare, unit) in enumerate(
                (
                    ("pairs", Compare.FASTER, Unit.PER_SECOND),
                    ("round trips", Compare.FEWER, Unit.COUNT),
                    ("commands", Compare.FEWER, Unit.COUNT),
                )
            )
        ),
    ),
    "handoff": contest_of_handoffs("processes", handoffs, functions=True),
    "handoff-threads": contest_of_handoffs("threads", handoffs_between_threads),
    "lock-processes": contest_of_crowds(100),
    "lock-tasks": contest_of_crowds(1_000, tasks=True),
    "lock-waiters": waiters_of_one_process(10, 1_000),
}
"""The third table."""
