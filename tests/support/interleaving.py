"""Any crowd on two stocks, at once: each is told what a sequential model would have told him.

A property test draws the stocks and the crowd, has everybody `ask`, and holds what they were told
against the model and the server in `TwoStocks.audit`.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

import seckill
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from support.model import LARGEST, Done, Outcome, an_order_explains, stock_after

many_examples = settings(
    max_examples=3000 if os.environ.get("SECKILL_STRESS") else 60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

near_the_edges = st.one_of(
    st.integers(0, 8),
    st.integers(2**53 - 2, 2**53 + 4),
    st.integers(LARGEST - 4, LARGEST),
)
stocks = st.one_of(st.none(), near_the_edges)
small = st.integers(-4, 4)
large = st.one_of(near_the_edges, near_the_edges.map(lambda number: -number))
updates = st.tuples(st.just(False), st.one_of(small, small, large))
restocks = st.tuples(st.just(True), st.integers(1, 4))
# Of which stock, whether it is created if need be, and the change.
asked = st.tuples(st.integers(0, 1), st.one_of(updates, updates, updates, restocks))
crowds = st.lists(st.lists(asked, min_size=1, max_size=4), min_size=2, max_size=6)

# Crowds that are tried in any case.
LAST_UNIT = [[(0, (False, -1)), (0, (True, 1))] for _ in range(6)]
CREATED_IN_MID_BATCH = [[(0, (False, -1)), (0, (True, 2))] for _ in range(6)]


class Answer:
    """What a single call is told, and when: it is made in the block of a `with`."""

    def __init__(self, create: bool, change: int) -> None:
        self.create, self.change = create, change
        self.told: Outcome = "ok"

    def __enter__(self) -> Answer:
        self.started = time.monotonic()
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> bool:
        self.ended = time.monotonic()
        if isinstance(error, seckill.NoInventory):
            self.told = "missing"
        elif isinstance(error, seckill.InsufficientInventory):
            self.told = ("insufficient", error.available)
            if error.requested != -self.change:
                self.told = f"a refusal of {error.requested} units instead of {-self.change}"
        elif isinstance(error, seckill.InvalidInventory):
            self.told = "overflow"
        else:
            return False
        return True

    @property
    def done(self) -> Done:
        return Done(self.create, self.change, self.told, self.started, self.ended)


def ask(face: Any, lock: str, key: str, create: bool, change: int) -> Done:
    """One call, with what it was told and when."""
    with Answer(create, change) as answer:
        if create:
            face.incr_inventory(key, change)
        else:
            face.update_inventory(lock, key, change)
    return answer.done


async def ask_awaited(face: Any, lock: str, key: str, create: bool, change: int) -> Done:
    with Answer(create, change) as answer:
        if create:
            await face.incr_inventory(key, change)
        else:
            await face.update_inventory(lock, key, change)
    return answer.done


class TwoStocks:
    """Keys that no other run has, on a private server."""

    def __init__(self, server: Any, stock: tuple[int | None, int | None]) -> None:
        self._server, self._stock = server, stock
        self._observer = server.redis()
        run = uuid.uuid4().hex
        self.lock, self.keys = f"lock:{run}", [f"stock:{run}:{number}" for number in range(2)]
        for key, units in zip(self.keys, stock, strict=True):
            if units is not None:
                self._observer.set(key, units)

    @contextlib.contextmanager
    def asked_together(self, together: bool) -> Iterator[None]:
        """All that is asked for at first is waiting when the server wakes up, if so."""
        if together:
            self._server.freeze()
            thawing = threading.Timer(0.01, self._server.thaw)
            thawing.start()
        yield
        if together:
            thawing.join()

    def audit(self, told: Iterable[tuple[int, Done]]) -> None:
        told = list(told)
        for number, (key, units) in enumerate(zip(self.keys, self._stock, strict=True)):
            calls = [done for i, done in told if i == number]
            left = self._observer.get(key)
            assert (None if left is None else int(left)) == stock_after(units, calls)
            assert left is None or int(left) >= 0
            assert an_order_explains(units, calls), calls
