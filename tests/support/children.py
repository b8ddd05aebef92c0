"""Forked children, for programs of the tests: what they do, and how they end."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable

PATIENCE = 20  # seconds, after which a child hangs


def fork(do: Callable[[], int | None], *, leaves: bool = False) -> int:
    """Start a child that does this and ends: with the number that comes back, or 1 if it raised.

    One that `leaves` ends itself, as a program does, with all that an interpreter does then.
    """
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = do() or 0
        finally:
            if not leaves:
                os._exit(status)
    return pid


def fork_again(do: Callable[[], int | None]) -> None:
    """For a child: to be a parent in its turn."""
    do()
    pid = fork(do)
    do()
    assert ended(pid) == 0


def ended(pid: int) -> int:
    """The status that a child ended with; one that hangs is killed."""
    look = _patience(pid)
    while (status := look()) is None:
        time.sleep(0.0005)
    return status


async def ended_meanwhile(pid: int) -> int:
    """The same, while the loop runs."""
    look = _patience(pid)
    while (status := look()) is None:
        await asyncio.sleep(0.001)
    return status


def _patience(pid: int) -> Callable[[], int | None]:
    end = time.monotonic() + PATIENCE

    def look() -> int | None:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
        ended, status = os.waitpid(pid, os.WNOHANG)
        return status if ended else None

    return look
