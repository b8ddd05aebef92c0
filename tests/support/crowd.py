"""Calls that each leave a mark of their own: "once or not at all" is seen call by call.

A stock begins as 0o777...; its caller number i takes 8**i, one octal digit. A 7 that is left there
says that the call was never applied, a 6 once, a 5 twice. Every fifth call asks for what cannot be
had, and has one right answer of its own: an answer that went to another task is seen, too.

A server that is replaced by one that had not yet heard of everything loses what was told to be
done: `audit(lost=True)` allows for that. Nothing allows for a call that was applied twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import seckill

DIGITS = 16  # 8**16 is what the server's script still counts with doubles

# How often a call may have been applied, by what its caller was told.
APPLIED = {
    "done": {1},
    "cancelled": {0, 1},
    "unknown": {0, 1},
    "unsent": {0},
    "answered": {0},  # refused with the one right answer
    "not begun": {0},  # cancelled before its first step
}


class Crowd:
    """So many calls, numbered, to be made once each; and what the callers were told."""

    def __init__(
        self, observer: Any, name: Callable[[str], str], size: int, *, lock_each: bool = False
    ) -> None:
        """With `lock_each`, each stock has a lock of its own, in its slot of a cluster."""
        self.size = size
        self.lock = name("lock")
        self._lock_each = lock_each
        self.told = ["not begun"] * size
        self.observer = observer
        self._prefix = name("crowd")
        stocks = {self._key(number): 8**DIGITS - 1 for number in range(size) if number % 10 < 8}
        poor = {self._key(number): number for number in range(size) if number % 10 == 9}
        observer.mset(stocks | poor)

    def _key(self, number: int) -> str:
        kind, place = number % 10, number // 10
        if kind < 8:
            return f"{self._prefix}:stock:{(8 * place + kind) // DIGITS}"
        return f"{self._prefix}:{'missing' if kind == 8 else 'poor'}:{number}"

    def question(self, number: int) -> tuple[str, int]:
        """The key and the change that this call asks for."""
        kind, place = number % 10, number // 10
        change = -(8 ** ((8 * place + kind) % DIGITS)) if kind < 8 else -number - 1
        return self._key(number), change

    def _lock(self, key: str) -> str:
        return f"{{{key}}}:lock" if self._lock_each else self.lock

    async def ask(self, face: Any, number: int, **times: Any) -> None:
        """Make a call through an asyncio face. A cancellation is noted, and goes on its way."""
        key, change = self.question(number)
        self.told[number] = "cancelled"  # unless it is told something
        try:
            await face.update_inventory(self._lock(key), key, change, **times)
        except seckill.SeckillError as error:
            self.told[number] = self._heard(number, error)
        else:
            self.told[number] = "done"

    def ask_plainly(self, face: Any, number: int, **times: Any) -> None:
        """Make a call through a sync face."""
        key, change = self.question(number)
        try:
            face.update_inventory(self._lock(key), key, change, **times)
        except seckill.SeckillError as error:
            self.told[number] = self._heard(number, error)
        else:
            self.told[number] = "done"

    def _heard(self, number: int, error: seckill.SeckillError) -> str:
        key, kind = self._key(number), number % 10
        if isinstance(error, seckill.ConnectionError):
            return "unknown" if error.sent else "unsent"
        if isinstance(error, seckill.NoInventory) and kind == 8 and error.key == key:
            return "answered"
        if isinstance(error, seckill.InsufficientInventory) and kind == 9:
            right = (error.key, error.available, error.requested) == (key, number, number + 1)
            return "answered" if right else repr(error)
        return repr(error)

    @property
    def served(self) -> int:
        """How many have been told something for certain."""
        return sum(told in ("done", "answered") for told in self.told)

    def audit(self, *, lost: bool = False) -> Counter[str]:
        """Hold what everybody was told against what the server has; how many were told what."""
        keys = [self._key(number) for number in range(self.size)]
        left = [None if value is None else int(value) for value in self.observer.mget(keys)]
        wrong = []
        for number, told in enumerate(self.told):
            applied = self._applied(number, left[number])
            allowed = APPLIED.get(told, set()) | ({0} if lost and told == "done" else set())
            if applied not in allowed:
                wrong.append(f"call {number} {self.question(number)}: {told}, applied {applied}")
        assert not wrong, "\n".join(wrong)
        return Counter(self.told)

    def _applied(self, number: int, left: int | None) -> int | None:
        """How often a call was applied; None if its key holds what cannot be."""
        kind, place = number % 10, number // 10
        if kind < 8 and left is not None:
            return 7 - (left >> 3 * ((8 * place + kind) % DIGITS) & 7)
        untouched = left == (None if kind == 8 else number)
        return 0 if untouched else None
