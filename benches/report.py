"""The table, ready to be pasted as Markdown, and the JSON behind it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .rows import Compare, Row, Unit

HEAD = ("what, against what", "seckill", "theirs", "ratio (range)", "floor", "goal", "reached")
FIGURES_HEAD = ("what; compared with", "seckill", "theirs", "difference (range)")
DEPLOYED_HEAD = ("what; beside what", "the first", "the second", "ratio (range)")


@dataclass(frozen=True)
class Side:
    """What one side did: the samples of each round, or why there are none."""

    rounds: tuple[tuple[float, ...], ...]
    failure: str | None = None

    def figures(self, figure: Callable[[Sequence[float]], float]) -> list[float]:
        return [figure(samples) for samples in self.rounds]

    @property
    def p99(self) -> float | None:
        """Over all rounds; None where there are too few samples to have one."""
        samples = sorted(sample for round_ in self.rounds for sample in round_)
        return samples[int(len(samples) * 0.99)] if len(samples) >= 100 else None


@dataclass(frozen=True)
class Result:
    row: Row
    ours: Side
    theirs: Side
    company: list[float]
    """What others used of the machine, in each round."""

    @property
    def failure(self) -> str | None:
        return self.ours.failure or self.theirs.failure

    @property
    def comparisons(self) -> list[float]:
        """One for each round: both figures of a round met the same machine."""
        sides = (side.figures(self.row.figure) for side in (self.ours, self.theirs))
        return [self.row.compare.of(*pair) for pair in zip(*sides, strict=True)]

    @property
    def reached(self) -> str:
        if self.failure:
            return "not measured"
        if self.row.floor is None or self.row.goal is None:
            return ""
        figure = median(self.comparisons)
        if self.row.compare.reached(figure, self.row.goal):
            return "goal"
        return "floor" if self.row.compare.reached(figure, self.row.floor) else "NO"

    def cells(self) -> tuple[str, ...]:
        row = self.row
        return (
            row.what,
            _side(self.ours, row),
            _side(self.theirs, row),
            "" if self.failure or row.compare is Compare.BESIDE else _range(self.comparisons, row),
            _wanted(row.floor, row.compare),
            _wanted(row.goal, row.compare),
            self.reached,
        )

    def record(self) -> dict[str, object]:
        return {
            "what": self.row.what,
            "compare": self.row.compare.value,
            "unit": self.row.unit.name.lower(),
            "ours": _record(self.row.ours, self.ours, self.row),
            "theirs": _record(self.row.theirs, self.theirs, self.row),
            "failure": self.failure,
            "comparison": None if self.failure else _spread(self.comparisons),
            "floor": self.row.floor,
            "goal": self.row.goal,
            "reached": self.reached,
            "used by others": self.company,
        }


def table(results: list[Result]) -> str:
    return _drawn([HEAD, *(result.cells() for result in results)])


def table_of_figures(results: list[Result]) -> str:
    """No ratios, and nothing is wanted of them."""
    return _drawn([FIGURES_HEAD, *(result.cells()[: len(FIGURES_HEAD)] for result in results)])


def table_of_deployments(results: list[Result]) -> str:
    """Ours is on both sides of most rows: nothing is wanted of these, either."""
    return _drawn([DEPLOYED_HEAD, *(result.cells()[: len(DEPLOYED_HEAD)] for result in results)])


def _drawn(lines: list[tuple[str, ...]]) -> str:
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    drawn = [_line(line, widths) for line in lines]
    rule = "|-" + "-|-".join("-" * width for width in widths) + "-|"
    return "\n".join([drawn[0], rule, *drawn[1:]])


def store(
    path: Path,
    about: dict[str, object],
    results: list[Result],
    figures: list[Result],
    locks: list[Result],
    deployed: list[Result],
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = about | {
        "rows": [result.record() for result in results],
        "figures": [result.record() for result in figures],
        "locks": [result.record() for result in locks],
        "deployments": [result.record() for result in deployed],
    }
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "| " + " | ".join(padded) + " |"


def _side(side: Side, row: Row) -> str:
    if side.failure:
        return side.failure
    # Only where all samples are of one kind do they have one.
    p99 = side.p99 if row.figure is median else None
    tail = f" (p99 {p99:.2f})" if p99 is not None else ""
    return row.unit.value.format(median(side.figures(row.figure))) + tail


def _range(comparisons: list[float], row: Row) -> str:
    middle, low, high = median(comparisons), min(comparisons), max(comparisons)
    if row.compare.is_ratio:
        digits = 2 if middle >= 0.1 else 4
        return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"
    if row.unit is Unit.BYTES:
        return f"{middle:+,.0f} B ({low:,.0f}–{high:,.0f})"
    return f"{middle:+.1f} ms ({low:.1f}–{high:.1f})"


def _wanted(figure: float | None, compare: Compare) -> str:
    if figure is None:
        return ""
    return f"{figure:g} ms" if compare is Compare.ADDED else f"{figure:g}"


def _record(name: str, side: Side, row: Row) -> dict[str, object]:
    if side.failure:
        return {"name": name, "failure": side.failure}
    p99 = side.p99 if row.figure is median else None
    return {"name": name, **_spread(side.figures(row.figure)), "p99": p99}


def _spread(figures: list[float]) -> dict[str, object]:
    told = {"median": median(figures), "min": min(figures), "max": max(figures)}
    return {
        **{name: _finite(figure) for name, figure in told.items()},
        "rounds": [_finite(figure) for figure in figures],
    }


def _finite(figure: float) -> float | None:
    """JSON has no infinity, which is what something is through nothing."""
    return figure if math.isfinite(figure) else None
