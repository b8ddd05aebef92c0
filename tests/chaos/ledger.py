"""The ledger: one file for each process that sells, a line before each call and one after it.

Lines go straight to the kernel, so whoever is killed has said all that he knew: a call that was
asked for and never told of may have been made, or not.

    a <number> <what> <name> <change> <moment>       asked
    t <number> <outcome> <figure> <moment>           told; for "short" the figure is what was left
    r <number> <moment>                              a lock is about to be given back

Moments are those of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

SOLD = "sold"
SHORT = "short"  # refused: there were fewer units than that
REFUSED = "refused"  # for another reason; nothing was changed
UNSENT = "unsent"  # the server was not reached
UNKNOWN = "unknown"  # done, or not
UNSAFE = "unsafe"  # NotReplicated: done on a primary that may be none any more
HELD, BUSY = "held", "busy"  # what came of asking for a lock
UNTOLD = "untold"  # whoever asked was killed, or ended, before he knew

STOCK, LOCK = "stock", "lock"


@dataclass
class Entry:
    """A call, and what became of it."""

    what: str
    name: str
    change: int
    asked: float
    outcome: str = UNTOLD
    figure: int = 0
    told: float = float("inf")
    known: bool = False
    """Its process had been answered before: the server is one that is ridden out."""
    released: float = float("inf")


class Pen:
    """Writes one process's file; for many threads at once."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        self._numbers = itertools.count()

    def ask(self, what: str, name: str, change: int) -> int:
        number = next(self._numbers)
        self._write("a", number, what, name, change)
        return number

    def tell(self, number: int, outcome: str, figure: int = 0) -> None:
        self._write("t", number, outcome, figure)

    def release(self, number: int) -> None:
        self._write("r", number)

    def _write(self, *words: object) -> None:
        line = " ".join(map(str, (*words, f"{time.monotonic():.6f}"))) + "\n"
        os.write(self._file, line.encode())


def read(paths: Iterable[Path]) -> list[Entry]:
    return list(itertools.chain.from_iterable(map(entries, sorted(paths))))


def entries(path: Path) -> Iterator[Entry]:
    asked: dict[str, Entry] = {}
    known = False
    for line in path.read_text().splitlines(keepends=True):
        if not line.endswith("\n"):
            break  # he was killed over it
        kind, number, *words = line.split()
        if kind == "a":
            what, name, change, moment = words
            asked[number] = Entry(what, name, int(change), float(moment), known=known)
        elif kind == "t":
            entry, (outcome, figure, moment) = asked[number], words
            entry.outcome, entry.figure, entry.told = outcome, int(figure), float(moment)
            known = known or outcome not in (UNSENT, UNKNOWN)
        else:
            asked[number].released = float(words[0])
    yield from asked.values()
