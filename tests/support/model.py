"""The sequential model: what one call after the other does, and whether a crowd's outcomes fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

LARGEST = 2**63 - 1

Outcome = str | tuple[str, int]  # "ok", "missing", "overflow", ("insufficient", units available)


@dataclass(frozen=True)
class Done:
    """A call that was made: what it asked for, what it was told, and between which moments."""

    create: bool  # incr_inventory, which creates a missing key
    change: int
    outcome: Outcome
    started: float
    ended: float


def outcome(stock: int | None, create: bool, change: int) -> Outcome:
    """What a single caller is told. `create` is only tried with changes above zero."""
    if stock is None:
        return "ok" if create else "missing"
    if stock + change < 0:
        return ("insufficient", stock)
    if stock + change > LARGEST:
        return "overflow"
    return "ok"


def stock_after(stock: int | None, calls: Sequence[Done]) -> int | None:
    """The ledger: what is left, going by what the callers were told."""
    changes = [done.change for done in calls if done.outcome == "ok"]
    return stock if not changes else (stock or 0) + sum(changes)


def an_order_explains(stock: int | None, calls: Sequence[Done]) -> bool:
    """Whether the calls, made in some order one after the other, would have had these outcomes.

    An order counts if whoever had ended before another began comes before it. What is in stock
    follows from which calls have been made, not from their order: so a set of calls that led
    nowhere once leads nowhere again, and the search stays small.
    """
    everything = (1 << len(calls)) - 1
    dead_ends: set[int] = set()

    def search(made: int) -> bool:
        if made == everything:
            return True
        if made in dead_ends:
            return False
        waiting = [i for i in range(len(calls)) if not made >> i & 1]
        now = stock_after(stock, [calls[i] for i in range(len(calls)) if made >> i & 1])
        first_end = min(calls[i].ended for i in waiting)
        for i in waiting:
            done = calls[i]
            may_be_next = done.started <= first_end
            fits = outcome(now, done.create, done.change) == done.outcome
            if may_be_next and fits and search(made | 1 << i):
                return True
        dead_ends.add(made)
        return False

    return search(0)
