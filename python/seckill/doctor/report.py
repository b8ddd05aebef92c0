"""The report: text for people, JSON for programs. Passwords never get here."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import sys
from unicodedata import east_asian_width

import seckill
from seckill.doctor.facts import Unknown
from seckill.doctor.finding import Finding, Gravity

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import TypeAlias

    from seckill.doctor.cluster import Sharded
    from seckill.doctor.facts import Facts
    from seckill.doctor.sentinels import Watched

    Examined: TypeAlias = Facts | Watched | Sharded

WIDEST = 100  # columns; longer lines are hard to read
NARROWEST = 30

HEADINGS = {
    Gravity.OVERSELL: "may oversell",
    Gravity.LOSE: "may lose",
    Gravity.STALL: "may stall",
    Gravity.OPEN: "stands open",
    Gravity.UNKNOWN: "unknown",
    Gravity.NOTE: "to know",
    Gravity.FINE: "fine",
}
RED, YELLOW, GREEN, BOLD, DIM = "31", "33", "32", "1", "2"
COLOURS = {
    Gravity.OVERSELL: RED,
    Gravity.LOSE: RED,
    Gravity.STALL: YELLOW,
    Gravity.OPEN: YELLOW,
    Gravity.UNKNOWN: YELLOW,
    Gravity.NOTE: BOLD,
    Gravity.FINE: GREEN,
}


class Report:
    """What was found.

    Args:
        server: its URL, password hidden; None where there was none to ask.
        facts: what was learnt.
        results: the results of the checks, in order of gravity.
        error: why the server could not be asked.
    """

    def __init__(
        self,
        server: str | None,
        facts: Examined | None = None,
        results: Sequence[Finding] = (),
        *,
        error: str | None = None,
    ) -> None:
        self.server = server
        self.facts = facts
        self.results = results
        self.error = None if error is None else printable(error)

    @property
    def findings(self) -> list[Finding]:
        """What is not fine; what is unknown among it."""
        return [finding for finding in self.results if finding.gravity.is_finding]

    def as_json(self) -> str:
        """One JSON object; its fields are described in docs/deployment.md."""
        status = "unreachable" if self.error is not None else "healthy"
        facts = {} if self.facts is None else dataclasses.asdict(self.facts, dict_factory=_facts)
        return json.dumps(
            {
                "seckill": seckill.__version__,
                "server": self.server,
                "status": "findings" if self.findings else status,
                "error": self.error,
                "findings": [_result(result) for result in self.findings],
                "notes": self._of(Gravity.NOTE),
                "fine": self._of(Gravity.FINE),
                "facts": facts,
            },
            indent=2,
        )

    def _of(self, gravity: Gravity) -> list[dict[str, str]]:
        return [_result(result) for result in self.results if result.gravity is gravity]

    def as_text(self) -> str:
        """Paragraphs as wide as the terminal, with colours where they are wanted."""
        columns = shutil.get_terminal_size().columns
        page = _Page(min(max(columns, NARROWEST), WIDEST), colours=_colours_wanted())
        page.write(self._title())
        for gravity in Gravity:
            results = [result for result in self.results if result.gravity is gravity]
            if not results:
                continue
            page.write("")
            page.write(HEADINGS[gravity], style=f"{BOLD};{COLOURS[gravity]}")
            if gravity is Gravity.FINE:
                page.write("; ".join(dict.fromkeys(result.what for result in results)), indent=2)
                continue
            for result in results:
                where = f" [{result.where}]" if result.where else ""
                page.write(f"* {result.what}{where}", indent=2, hang=2, style=BOLD)
                if result.why:
                    page.write(result.why, indent=4)
                page.write(result.remedy, first="-> ", indent=4, hang=3)
        page.write("")
        page.write(self._summary())
        return "\n".join(page.lines)

    def _title(self) -> str:
        about = self.facts.server if self.facts else Unknown("")
        return f"{self.server}: {'a server' if isinstance(about, Unknown) else about}"

    def _summary(self) -> str:
        unknown = sum(result.gravity is Gravity.UNKNOWN for result in self.results)
        count = len(self.findings) - unknown
        if not self.findings:
            return "Nothing found that could oversell, lose or stall."
        counted = f"{count} finding{'' if count == 1 else 's'}"
        return f"{counted}, {unknown} unknown." if unknown else f"{counted}."


def _result(result: Finding) -> dict[str, str]:
    return {
        "check": result.check,
        "gravity": result.gravity.name.lower(),
        "what": result.what,
        "why": result.why,
        "remedy": result.remedy,
        "where": result.where,
    }


def _facts(pairs: list[tuple[str, object]]) -> dict[str, object]:
    # The one field of an `Unknown`.
    return {"unknown" if name == "why" else name: value for name, value in pairs}


def _colours_wanted() -> bool:
    dumb = os.environ.get("TERM", "dumb") == "dumb"
    return sys.stdout.isatty() and not dumb and not os.environ.get("NO_COLOR")


def printable(text: str) -> str:
    """The text without what would move a terminal's cursor, or worse."""
    return "".join(
        letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )


def width(text: str) -> int:
    """How many columns a text takes."""
    return sum(2 if east_asian_width(letter) in "WF" else 1 for letter in text)


class _Page:
    """Lines that are no wider than they may be."""

    def __init__(self, columns: int, *, colours: bool) -> None:
        self.columns = columns
        self.colours = colours
        self.lines: list[str] = []

    def write(
        self, text: str, *, first: str = "", indent: int = 0, hang: int = 0, style: str = ""
    ) -> None:
        start, later = " " * indent + first, " " * (indent + hang)
        for line in wrapped(printable(text), self.columns - len(start), self.columns - len(later)):
            shown = f"\x1b[{style}m{line}\x1b[0m" if style and self.colours else line
            self.lines.append(f"{start}{shown}".rstrip())
            start = later


def wrapped(text: str, first: int, later: int) -> Iterator[str]:
    """Break a text into lines of so many columns; a word is only broken where it is longer."""
    room, line = first, ""
    for word in text.split(" "):
        space = " " if line else ""
        if width(line + space + word) <= room:
            line += space + word
            continue
        if line:
            yield line
            room, line = later, ""
        for letter in word:
            if width(line + letter) > room:
                yield line
                room, line = later, ""
            line += letter
    yield line
