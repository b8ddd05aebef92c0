"""Threads in the tests: start them together, know that one sleeps, collect what they gave."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


class Caller(threading.Thread):
    """Makes one call and keeps what came of it, with the times between which it happened."""

    def __init__(
        self, function: Callable[..., object], *arguments: object, **named: object
    ) -> None:
        super().__init__(daemon=True)
        self._call = lambda: function(*arguments, **named)
        self._calling = threading.Event()
        self.value: Any = None
        self.error: BaseException | None = None
        self.started = self.ended = 0.0

    def run(self) -> None:
        self._calling.set()
        self.started = time.monotonic()
        try:
            self.value = self._call()
        except BaseException as error:
            self.error = error
        self.ended = time.monotonic()

    def until_asleep(self) -> Caller:
        """Return when the thread sleeps inside its call (or has already ended).

        Asleep is: not once awake for 20 ms. One that waits for the GIL wakes up every 5 ms.
        """
        self._calling.wait()
        status = Path(f"/proc/self/task/{self.native_id}/status")
        before = None
        while self.is_alive():
            try:
                text = status.read_text()
            except OSError:
                break
            now = [line for line in text.splitlines() if "State:" in line or "ctxt" in line]
            if now == before and "S (" in now[0]:
                break
            before = now
            time.sleep(0.02)
        return self

    def result(self, within: float = 60) -> Any:
        """What the call returned; raises what it raised."""
        self.join(within)
        assert not self.is_alive(), f"the call did not end within {within} s"
        if self.error is not None:
            raise self.error
        return self.value


def call(function: Callable[..., object], *arguments: object, **named: object) -> Caller:
    """Make a call in a thread of its own."""
    caller = Caller(function, *arguments, **named)
    caller.start()
    return caller


def all_of(functions: Iterable[Callable[[], object]], within: float = 60) -> list[Any]:
    """Call them all at the same moment, each in its own thread; what they returned, in order."""
    functions = list(functions)
    gate = threading.Barrier(len(functions))

    def through_the_gate(function: Callable[[], object]) -> object:
        gate.wait()
        return function()

    callers = [call(through_the_gate, function) for function in functions]
    end = time.monotonic() + within
    return [caller.result(end - time.monotonic()) for caller in callers]


def wait_until(condition: Callable[[], object], within: float = 20) -> None:
    """Look every few milliseconds until it is so."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"it did not come about within {within} s"
        time.sleep(0.005)


def native_threads() -> int:
    """How many threads the process has, those that Python does not know of included."""
    return len(list(Path("/proc/self/task").iterdir()))


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))
