"""What happens, in which order and after which pauses: all of it from one seed."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    after: float
    """Seconds since the one before was over."""
    fault: str
    dice: random.Random
    """For what is open: which server, for how long."""


def schedule(seed: str, weights: Mapping[str, int], pause: float) -> Iterator[Event]:
    """Without end. Each fault comes once before any comes twice: a short run sees them all."""
    dice = random.Random(seed)
    names = sorted(weights)
    first = dice.sample(names, len(names))
    for number in range(1 << 30):
        name = first[number] if number < len(first) else None
        name = name or dice.choices(names, [weights[it] for it in names])[0]
        yield Event(dice.uniform(0.2, 2) * pause, name, random.Random(f"{seed}/{number}"))
