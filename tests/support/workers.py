"""What child processes run, in a module of its own: spawn and forkserver import it by name."""

from __future__ import annotations

from typing import Any

import seckill


def sell(answers: Any, lock: str, key: str, attempts: int) -> None:
    """With the functions, as a script does."""
    answers.put(count(seckill, lock, key, attempts))


def sell_through(answers: Any, client: seckill.Client, lock: str, key: str, attempts: int) -> None:
    """With a client that came along as an argument."""
    answers.put(count(client, lock, key, attempts))


def count(shop: Any, lock: str, key: str, attempts: int) -> int:
    sold = 0
    for _ in range(attempts):
        try:
            shop.update_inventory(lock, key, -1, 5000, 30_000)
            sold += 1
        except seckill.InsufficientInventory:
            pass
    return sold


def buy(units: int) -> int:
    """For a process pool: what it raises has to find the way back."""
    seckill.update_inventory("lock", "stock", -units, 5000, 30_000)
    return units
