"""The ledger outside: what the callers were told, against what the server has."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Ledger:
    """Counts units, by what became of the calls that asked for them; for many threads at once.

    sold          told that it was done
    refused       told that it was not: too few, no stock, lock held, the server said no
    unsent        told that the server was not reached, and that nothing was sent
    unknown       told that it cannot be known
    """

    sold: int = 0
    refused: int = 0
    unsent: int = 0
    unknown: int = 0
    calls: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    _mutex: Any = field(default_factory=threading.Lock, repr=False)

    def buy(
        self, function: Callable[..., object], lock: Any, key: Any, units: int = 1, **times: Any
    ):
        """Ask for some units (or, with fewer than none, put some back) and note the outcome."""
        import seckill

        column, name = "sold", ""
        try:
            function(lock, key, -units, **times)
        except seckill.OutcomeUnknown as error:
            column, name = "unknown", type(error).__name__
        except seckill.ConnectionError as error:
            column, name = "unknown" if error.sent else "unsent", type(error).__name__
        except seckill.SeckillError as error:
            column, name = "refused", getattr(error, "code", type(error).__name__)
        with self._mutex:
            self.calls += 1
            self.errors[name] += bool(name)
            setattr(self, column, getattr(self, column) + units)

    def fits(self, offered: int, left: int) -> bool:
        """Whether what is left is what was offered less what was sold, give or take the unknown."""
        return 0 <= offered - self.sold - left <= self.unknown
