"""The table, ready to be pasted as Markdown, and the JSON behind it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .rows import Compare, Row

HEAD = ("what, against what", "seckill", "theirs", "ratio (range)", "floor", "goal", "reached")


@dataclass(frozen=True)
class Side:
    """What one side did: the samples of each round, or why there are none."""

    rounds: tuple[tuple[float, ...], ...]
    failure: str | None = None

    @property
    def figures(self) -> list[float]:
        return [median(samples) for samples in self.rounds]

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
        pairs = zip(self.ours.figures, self.theirs.figures, strict=True)
        return [self.row.compare.of(ours, theirs) for ours, theirs in pairs]

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
        row, compare = self.row, self.row.compare
        return (
            row.what,
            _side(self.ours, compare),
            _side(self.theirs, compare),
            "" if self.failure else _range(self.comparisons, compare),
            _wanted(row.floor, compare),
            _wanted(row.goal, compare),
            self.reached,
        )

    def record(self) -> dict[str, object]:
        return {
            "what": self.row.what,
            "compare": self.row.compare.value,
            "ours": _record(self.row.ours, self.ours),
            "theirs": _record(self.row.theirs, self.theirs),
            "failure": self.failure,
            "comparison": None if self.failure else _spread(self.comparisons),
            "floor": self.row.floor,
            "goal": self.row.goal,
            "reached": self.reached,
            "used by others": self.company,
        }


def table(results: list[Result]) -> str:
    lines = [HEAD, *(result.cells() for result in results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEAD))]
    drawn = [_line(line, widths) for line in lines]
    rule = "|-" + "-|-".join("-" * width for width in widths) + "-|"
    return "\n".join([drawn[0], rule, *drawn[1:]])


def store(path: Path, about: dict[str, object], results: list[Result]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    document = about | {"rows": [result.record() for result in results]}
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return "| " + " | ".join(padded) + " |"


def _side(side: Side, compare: Compare) -> str:
    if side.failure:
        return side.failure
    figure = median(side.figures)
    if compare is Compare.FASTER:
        return f"{figure:,.0f}/s"
    tail = f" (p99 {side.p99:.2f})" if side.p99 is not None else ""
    return f"{figure:.2f} ms{tail}"


def _range(comparisons: list[float], compare: Compare) -> str:
    low, high = min(comparisons), max(comparisons)
    if compare is Compare.ADDED:
        return f"{median(comparisons):+.1f} ms ({low:.1f}–{high:.1f})"
    return f"{median(comparisons):.2f} ({low:.2f}–{high:.2f})"


def _wanted(figure: float | None, compare: Compare) -> str:
    if figure is None:
        return ""
    return f"{figure:g} ms" if compare is Compare.ADDED else f"{figure:g}"


def _record(name: str, side: Side) -> dict[str, object]:
    if side.failure:
        return {"name": name, "failure": side.failure}
    return {"name": name, **_spread(side.figures), "p99": side.p99}


def _spread(figures: list[float]) -> dict[str, object]:
    return {
        "median": median(figures),
        "min": min(figures),
        "max": max(figures),
        "rounds": figures,
    }
