"""The buyers: processes full of threads, one unit for each buyer, and a ledger of who got one.

    this process                            each of the buyers' processes
        │  spawn                                connects nothing yet
        │  ◄──────────── "ready" ──────────
        │  ──────────── "open" ───────────►     threads start, each for its share of the buyers
        │  reads the ledger now and then        write the ledger, one row for each thread
        │  ◄── end of file; or what failed ─

They are spawned, not forked: a fresh interpreter shares nothing with this one, neither the pipe
that keeps the embedded server alive, nor a display in mid-update. That costs a few tenths of a
second, before the doors open, and is the same on every platform and version of Python. (A
forked process is as safe with seckill: examples/flash_sale.py forks where that is the default.)

SIGINT is blocked while they are spawned, and so stays blocked in them: Ctrl-C reaches all processes
of the terminal, and it is this one that decides what comes of it.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import signal
import threading
import time
from dataclasses import dataclass
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any

from seckill import Client, InsufficientInventory, NoInventory, OutcomeUnknown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from multiprocessing.context import SpawnProcess
    from types import TracebackType

    from typing_extensions import Self

SPAWN = multiprocessing.get_context("spawn")


@dataclass(frozen=True)
class Plan:
    """One sale: what is sold, where, how, and to how many."""

    side: str  # a key of SIDES
    server: dict[str, Any]  # keywords for `Client`
    tag: str  # in braces in every key, so that they share a slot and can be found again
    units: int
    buyers: int
    processes: int
    threads: int
    lease: int  # ms
    work: int  # ms

    @property
    def lock(self) -> str:
        """Name of the lock."""
        return f"seckill-demo:{{{self.tag}}}:lock"

    @property
    def stock(self) -> str:
        """Name of the stock key."""
        return f"seckill-demo:{{{self.tag}}}:stock"

    def share(self, row: int) -> int:
        """How many of the buyers are served by the thread that writes this row of the ledger."""
        rows = self.processes * self.threads
        return self.buyers * (row + 1) // rows - self.buyers * row // rows


class Row(ctypes.Structure):
    """What one thread has written down, in memory that the processes share."""

    sold: int
    refused: int
    unknown: int
    round_trips: int
    last_sale: int

    _fields_ = (
        ("sold", ctypes.c_int64),
        ("refused", ctypes.c_int64),
        ("unknown", ctypes.c_int64),  # the answer was lost for good
        ("round_trips", ctypes.c_int64),  # until its process met the first refusal; in one row
        ("last_sale", ctypes.c_int64),  # ns of the monotonic clock, which all processes share
    )


@dataclass(frozen=True)
class Ledger:
    """All rows together, at one moment."""

    sold: int = 0
    refused: int = 0
    unknown: int = 0
    round_trips: int = 0
    last_sale: int = 0

    @property
    def served(self) -> int:
        """Buyers who are done."""
        return self.sold + self.refused + self.unknown

    @classmethod
    def of(cls, rows: Iterable[Row]) -> Ledger:
        """Add up the rows."""
        sold = refused = unknown = round_trips = last_sale = 0
        for row in rows:
            sold += row.sold
            refused += row.refused
            unknown += row.unknown
            round_trips += row.round_trips
            last_sale = max(last_sale, row.last_sale)
        return cls(sold, refused, unknown, round_trips, last_sale)


class SaleFailed(Exception):
    """A buyers' process could not go on; the message says why, in one line."""


class Crowd:
    """The processes of one sale; a context manager that leaves none behind.

    Attributes:
        opened: when the doors opened, in ns of the monotonic clock.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.opened = 0
        self._rows = SPAWN.RawArray(Row, plan.processes * plan.threads)
        self._processes: dict[Connection, SpawnProcess] = {}
        self._busy: list[Connection] = []

    def __enter__(self) -> Self:
        resource_tracker.ensure_running()  # else the first process starts it, and that unblocks
        former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for number in range(self.plan.processes):
                ours, theirs = SPAWN.Pipe()
                process = SPAWN.Process(
                    target=_serve, args=(self.plan, number, self._rows, theirs), daemon=True
                )
                process.start()
                theirs.close()  # so that the end of the process is an end of file here
                self._processes[ours] = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, former)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for process in self._processes.values():
            process.kill()
        for process in self._processes.values():
            process.join()

    def open(self) -> None:
        """Wait until all processes are there, then let the buyers in.

        Raises:
            SaleFailed: one of the processes ended instead.
        """
        for connection in self._processes:
            if self._report(connection) is None:
                raise SaleFailed("a process of the buyers ended before the sale")
        self._busy = list(self._processes)
        self.opened = time.monotonic_ns()
        for connection in self._busy:
            connection.send("open")

    def go_on(self, seconds: float) -> bool:
        """Let the sale go on for so long.

        Returns:
            Whether any buyers are left to serve.

        Raises:
            SaleFailed: one of the processes could not go on.
        """
        until = time.monotonic() + seconds
        while self._busy:
            told = wait(self._busy, max(0, until - time.monotonic()))
            if not told:
                return True
            for connection in told:
                assert isinstance(connection, Connection)
                failure = self._report(connection)
                if failure is not None:
                    raise SaleFailed(failure)
                self._busy.remove(connection)
        return False

    def ledger(self) -> Ledger:
        """What the buyers have written down so far."""
        return Ledger.of(self._rows)

    def _report(self, connection: Connection) -> str | None:
        """What a process says; None when it has ended, and as it should."""
        try:
            return str(connection.recv())
        except (EOFError, ConnectionResetError):
            process = self._processes[connection]
            process.join()
            if process.exitcode:
                raise SaleFailed(f"a process of the buyers ended with {process.exitcode}") from None
            return None


class _Seckill:
    """Buys through seckill: one client for all threads of the process."""

    refusals = (InsufficientInventory, NoInventory)

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.client = Client(**plan.server)

    def counter(self) -> Callable[[], None]:
        """Where the buyers of one thread queue: a call serves one, and raises on a refusal."""
        plan, update_inventory, work = (
            self.plan,
            self.client.update_inventory,
            self.plan.work / 1000,
        )

        def buy() -> None:
            update_inventory(plan.lock, plan.stock, -1, plan.lease)
            if work:
                time.sleep(work)

        return buy

    def round_trips(self) -> int:
        """How often this process has waited for the server."""
        return self.client.statistics()["batches"]


class _Script:
    """Buys through the usual functions over redis-py."""

    refusals = (ValueError,)

    def __init__(self, plan: Plan) -> None:
        from seckill.demo.script import Script
        from seckill.demo.witness import connect

        self.plan = plan
        work = plan.work / 1000
        self.scripts = [Script(connect(plan.server), work) for _ in range(plan.threads)]
        self.unused = iter(self.scripts)

    def counter(self) -> Callable[[], None]:
        plan, script = self.plan, next(self.unused)
        return lambda: script.update_inventory(plan.lock, plan.stock, -1, plan.lease)

    def round_trips(self) -> int:
        return sum(script.round_trips for script in self.scripts)


SIDES: dict[str, type[_Seckill | _Script]] = {"seckill": _Seckill, "script": _Script}


def _serve(plan: Plan, number: int, rows: Sequence[Row], connection: Connection) -> None:
    """The main function of a process of buyers."""
    side = SIDES[plan.side](plan)
    failures: list[str] = []
    until_sold_out: list[int] = []

    def serve(row: Row, buyers: int, buy: Callable[[], None]) -> None:
        try:
            for _ in range(buyers):
                if failures:
                    break
                try:
                    buy()
                except side.refusals:
                    if not until_sold_out:
                        until_sold_out.append(side.round_trips())
                    row.refused += 1
                except OutcomeUnknown:
                    row.unknown += 1
                else:
                    row.sold += 1
                    row.last_sale = time.monotonic_ns()
        except Exception as error:  # of any kind: the other process prints it, whatever it is
            failures.append(f"{type(error).__name__}: {error}")

    first = number * plan.threads
    threads = [
        threading.Thread(target=serve, args=(rows[row], plan.share(row), side.counter()))
        for row in range(first, first + plan.threads)
    ]
    connection.send("ready")
    try:
        connection.recv()
    except EOFError:  # nobody is left to open the doors
        return
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rows[first].round_trips = until_sold_out[0] if until_sold_out else side.round_trips()
    if failures:
        connection.send(failures[0])
