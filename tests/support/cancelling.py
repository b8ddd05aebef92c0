"""Ways to cancel a call after some seconds, whether it has ended by then or not."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any

import anyio
import pytest


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task that waits, and see that it is."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def stays(observer: Any, key: str, value: bytes | None, seconds: float = 0.5) -> bool:
    """Whether a key keeps its value from now on."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if observer.get(key) != value:
            return False
        await asyncio.sleep(0.01)
    return True


async def by_cancel(call: Coroutine[Any, Any, None], seconds: float) -> None:
    task = asyncio.ensure_future(call)
    if seconds:  # else before its first step
        await asyncio.sleep(seconds)
    task.cancel()
    await ended(task)


async def by_three_cancels(call: Coroutine[Any, Any, None], seconds: float) -> None:
    task = asyncio.ensure_future(call)
    await asyncio.sleep(seconds)
    task.cancel()
    task.cancel()
    await asyncio.sleep(0)
    task.cancel()
    await ended(task)


async def by_wait_for(call: Coroutine[Any, Any, None], seconds: float) -> None:
    with contextlib.suppress(asyncio.TimeoutError):  # one of its own in Python 3.10
        await asyncio.wait_for(call, seconds)


async def by_timeout(call: Coroutine[Any, Any, None], seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):  # type: ignore[attr-defined]
            await call


async def by_anyio(call: Coroutine[Any, Any, None], seconds: float) -> None:
    with anyio.move_on_after(seconds):
        await call


class Stop(Exception):
    """What a task group fails with, so that it cancels who is left."""


@contextlib.contextmanager
def only_stops() -> Iterator[None]:
    with pytest.raises(Exception) as failed:  # noqa: PT011  (a group of exceptions has no name yet)
        yield
    assert [type(error) for error in failed.value.exceptions] == [Stop]  # type: ignore[attr-defined]


async def by_a_group(call: Coroutine[Any, Any, None], seconds: float) -> None:
    with only_stops():
        async with asyncio.TaskGroup() as group:  # type: ignore[attr-defined]
            group.create_task(call)
            await asyncio.sleep(seconds)
            raise Stop


async def by_a_group_of_anyio(call: Coroutine[Any, Any, None], seconds: float) -> None:
    with only_stops():
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: call)
            await asyncio.sleep(seconds)
            raise Stop


async def by_close(call: Coroutine[Any, Any, None], seconds: float) -> None:
    """Of a coroutine in mid-call, which no task runs any more."""
    with contextlib.suppress(StopIteration):  # a fast server answers within its first step
        call.send(None)
    await asyncio.sleep(seconds)
    call.close()


async def ended(task: asyncio.Task[None]) -> None:
    await asyncio.wait([task])
    if not task.cancelled():
        task.result()


Way = Callable[[Coroutine[Any, Any, None], float], Awaitable[None]]
WAYS: list[Way] = [by_cancel, by_three_cancels, by_wait_for, by_anyio, by_a_group_of_anyio]
WAYS += [by_timeout, by_a_group] if hasattr(asyncio, "timeout") else []
WAYS += [by_close]
