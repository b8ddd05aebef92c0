"""Clients at work: connected before the trouble begins, in mid-sale, waiting for a lock."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import seckill

from support.ledger import Ledger
from support.threads import Caller, call, wait_until

HOUR = 3_600_000  # a lease that nobody waits out


def connected(url: str, **options: Any) -> seckill.Client:
    """A client that has been connected before the trouble begins."""
    options = {"socket_timeout": 0.1, "timeout": 20} | options
    options.setdefault("socket_connect_timeout", options["socket_timeout"])
    client = seckill.Client(url, **options)
    client.incr_inventory("warm", 0)
    return client


def on_sale(
    server: Any, client: seckill.Client, units: int, threads: int = 6, **times: Any
) -> tuple[Ledger, Callable[[], Ledger]]:
    """Buyers who go on until told to stop: the ledger, and the way to end the sale."""
    server.redis().set("stock", units)
    client.update_inventory("lock", "stock", 0)
    ledger, over = Ledger(), threading.Event()

    def buyer() -> None:
        while not over.is_set():
            ledger.buy(client.update_inventory, "lock", "stock", 1, **times)

    buyers = [call(buyer) for _ in range(threads)]

    def end() -> Ledger:
        over.set()
        for caller in buyers:
            caller.result()
        return ledger

    return ledger, end


def sold_more(ledger: Ledger, units: int = 50) -> None:
    """Wait until the sale is going on (again)."""
    target = ledger.sold + units
    wait_until(lambda: ledger.sold >= target, within=30)


def wait_for_lock(client: seckill.Client, lease: int = HOUR, time_out: int = 60_000) -> Caller:
    """A thread that waits for the lock, already asleep."""
    return call(client.acquire_lock, "lock", lease, time_out).until_asleep()
