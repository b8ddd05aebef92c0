"""Coroutines in the tests: a loop of each kind, crowds of tasks, and tasks for those who call.

`async def` tests that take the fixture `loop_kind` (or use it: `pytest.mark.usefixtures`) run here.
"""

from __future__ import annotations

import ast
import asyncio
import concurrent.futures
import contextlib
import doctest
import gc
import inspect
import io
import threading
import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

import pytest
import uvloop

LOOPS: dict[str, Callable[[], asyncio.AbstractEventLoop]] = {
    "asyncio": asyncio.new_event_loop,
    "uvloop": uvloop.new_event_loop,
}


def on_loop(
    main: Coroutine[Any, Any, Any],
    kind: str | Callable[[], asyncio.AbstractEventLoop] = "asyncio",
    *,
    debug: bool = False,
    within: float = 60,
) -> Any:
    """Run a coroutine on a new loop, which may have nothing to complain about, nor tasks left over.

    A loop complains of exceptions that nobody retrieved, and of callbacks that raised.
    """
    complaints: list[dict[str, Any]] = []
    loop = LOOPS[kind]() if isinstance(kind, str) else kind()
    loop.set_debug(debug)
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    try:
        value = loop.run_until_complete(asyncio.wait_for(main, within))
        left_over = asyncio.all_tasks(loop)
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
    gc.collect(1)  # what a task raised is told when the task goes; the young ones are this test's
    assert not left_over, left_over
    assert not complaints, complaints
    return value


async def gathered(calls: Iterable[Awaitable[Any]], within: float = 60) -> list[Any]:
    """Await them all at once, each in a task of its own; what they returned, in order.

    The first error is raised, and then the others are cancelled: no task outlives this.
    """
    tasks = [asyncio.ensure_future(call) for call in calls]
    try:
        return await asyncio.wait_for(asyncio.gather(*tasks), within)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def outcomes(calls: Iterable[Awaitable[Any]], within: float = 60) -> list[Any]:
    """Like `gathered`, with what each one raised in the place of what it returned."""
    return await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), within)


async def eventually(condition: Callable[[], object], within: float = 20) -> None:
    """Look every few milliseconds until it is so, while the loop runs."""
    end = time.monotonic() + within
    while not condition():
        assert time.monotonic() < end, f"it did not come about within {within} s"
        await asyncio.sleep(0.005)


async def waiting(client: Any, *calls: Coroutine[Any, Any, Any]) -> list[asyncio.Task[Any]]:
    """Start the calls, one after the other; tasks that all wait, for a lock or for the server.

    Waiting is: the client has not sent a thing for 30 ms, though the loop was free.
    """
    tasks = []
    for call in calls:
        tasks.append(asyncio.ensure_future(call))
        await asyncio.sleep(0)  # until it has asked: what is asked first comes first
    before = None
    while before != (before := client.statistics()):
        await asyncio.sleep(0.03)
    return tasks


async def every_call(shop: Any, name: Callable[[str], str]) -> int:
    """What each of the four does, once; and what is left of ten units."""
    key, lock = name("stock"), name("lock")
    await shop.incr_inventory(key, 10)
    assert await shop.acquire_lock(lock, 60_000) is True
    await shop.update_inventory(lock, key, -1)
    await shop.release_lock(lock)
    await shop.update_inventory(lock, key, -2)
    with pytest.raises(ValueError, match="库存不足") as caught:
        await shop.update_inventory(lock, key, -8)
    await shop.update_inventory(lock, key, -7)
    await shop.incr_inventory(key, 10)
    return caught.value.available


class Awaited:
    """An aio face for those who do not await: each thread that calls is one task of a loop.

    So the tests of the sync face can be held against the awaited one, word for word.
    """

    def __init__(self, face: Any, kind: str = "asyncio") -> None:
        self._face = face
        self._loop = LOOPS[kind]()
        self._mine = threading.local()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        function = getattr(self._face, name)
        if not inspect.iscoroutinefunction(function):
            return function

        def call(*arguments: object, **named: object) -> Any:
            answer: concurrent.futures.Future[Any] = concurrent.futures.Future()
            work = (lambda: function(*arguments, **named), answer)
            self._loop.call_soon_threadsafe(self._inbox().put_nowait, work)
            return answer.result(60)

        return call

    def _inbox(self) -> asyncio.Queue[Any]:
        """Of the task that belongs to the calling thread."""
        if not hasattr(self._mine, "inbox"):
            self._mine.inbox = asyncio.Queue()
            asyncio.run_coroutine_threadsafe(self._serve(self._mine.inbox), self._loop)
        return self._mine.inbox

    async def _serve(self, inbox: asyncio.Queue[Any]) -> None:
        while True:
            call, answer = await inbox.get()
            try:
                answer.set_result(await call())
            except Exception as error:
                answer.set_exception(error)

    def close(self) -> None:
        async def end_tasks() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

        asyncio.run_coroutine_threadsafe(end_tasks(), self._loop).result(60)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def run_examples(text: str, **names: object) -> None:
    """Run the examples of a docstring as `python -m asyncio` does: `await` works at the prompt."""
    loop = asyncio.new_event_loop()
    checker = doctest.OutputChecker()
    examples = doctest.DocTestParser().get_examples(text)
    assert examples, "no example"
    try:
        for example in examples:
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            code = compile(example.source, "<example>", "single", flags, dont_inherit=True)
            with contextlib.redirect_stdout(io.StringIO()) as shown:
                value = types.FunctionType(code, names)()
                if inspect.iscoroutine(value):
                    loop.run_until_complete(value)
            same = checker.check_output(example.want, shown.getvalue(), 0)
            assert same, f"{example.source}wanted {example.want!r}, got {shown.getvalue()!r}"
    finally:
        loop.close()


# What child processes run: they import it by name.


def await_in_a_loop(function: Callable[..., Coroutine[Any, Any, Any]], *arguments: object) -> Any:
    return asyncio.run(function(*arguments))


def buy(units: int) -> int:
    """For a process pool: what it raises has to find the way back."""
    import seckill.aio

    asyncio.run(seckill.aio.update_inventory("lock", "stock", -units, 5000, 30_000))
    return units
