"""Clients at work: connected before the trouble begins, in mid-sale, waiting for a lock."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import Any

import seckill
import seckill.aio

from support.aio import Awaited, on_loop
from support.crowd import Crowd
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


# -- the same words for both faces -----------------------------------------------------------------


def connect(face: str, cleanup: contextlib.ExitStack, *source: Any, **options: Any) -> Any:
    """A client whose methods are called; those of asyncio by a task for each thread that calls."""
    if face == "threads":
        return cleanup.enter_context(seckill.Client(*source, **options))
    client = seckill.aio.Client(*source, **options)
    cleanup.callback(on_loop, client.aclose())
    awaited = Awaited(client, face)
    cleanup.callback(awaited.close)
    return awaited


class Rush:
    """A crowd whose calls are under way, by so many threads (or tasks, one for each thread).

    When half of the calls are made they go on at a tenth of the pace, so that there are some left
    whenever the servers are ready, on however busy a machine.
    """

    def __init__(
        self, crowd: Crowd, client: Any, threads: int = 8, pause: float = 0.005, **times: Any
    ) -> None:
        self.crowd = crowd
        self._over = over = threading.Event()
        numbers = iter(range(crowd.size))
        mutex = threading.Lock()

        def buyer() -> None:
            slower = pause
            while not over.wait(slower):
                with mutex:
                    number = next(numbers)
                slower = pause if number < crowd.size // 2 else 10 * pause
                crowd.ask_plainly(client, number, **times)

        self._callers = [call(buyer) for _ in range(threads)]

    def served(self, more: int, within: float = 60) -> None:
        """Wait until so many more have got what they asked for."""
        target = self.crowd.served + more

        def reached() -> bool:
            ended = [caller for caller in self._callers if not caller.is_alive()]
            assert not ended, f"the sale was over too soon: {ended[0].error!r}"
            return self.crowd.served >= target

        wait_until(reached, within)

    def end(self, *, lost: bool = False) -> None:
        """The sale is over, and everybody was told what is so. `lost` is that of `Crowd.audit`."""
        self._over.set()
        for caller in self._callers:
            caller.result(120)
        told = self.crowd.audit(lost=lost)
        assert set(told) == {"done", "answered", "not begun"}, told
