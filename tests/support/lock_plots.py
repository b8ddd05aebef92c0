"""What befalls locks of any make, and how one sees it: keys, threads and children, looked at.

Nothing here loads pytest: programs import it as well.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.threads import wait_until

RENEWER = "seckill-renew"  # the name of the thread that renews

# Long for a noisy machine: a third of it passes, and then there are two to renew it.
LEASE = 1.5


# -- locks that are held --------------------------------------------------------------------------


def renewed(client: Any, name: str = "name", timeout: float = LEASE, **options: Any) -> Any:
    """A lock of ours that is held and renewed."""
    import seckill

    lock = seckill.Lock(client, name, timeout=timeout, auto_renew=True, **options)
    assert lock.acquire(blocking=False)
    return lock


def until_renewed(lock: Any, times: int = 1) -> None:
    target = lock.statistics()["renewed"] + times
    wait_until(lambda: lock.statistics()["renewed"] >= target)


class Told:
    """An `on_lost` that remembers when it was called, with what, and in which thread."""

    def __init__(self) -> None:
        self.when: list[float] = []
        self.locks: list[Any] = []
        self.threads: list[threading.Thread] = []

    def __call__(self, lock: Any) -> None:
        self.locks.append(lock)
        self.threads.append(threading.current_thread())
        self.when.append(time.monotonic())


# -- watching a key -------------------------------------------------------------------------------


def values_within(observer: Any, key: str, seconds: float) -> set[bytes | None]:
    """All that the key was seen to hold in these seconds; None for nothing."""
    seen, end = set(), time.monotonic() + seconds
    while time.monotonic() < end:
        seen.add(observer.get(key))
        time.sleep(0.01)
    return seen


def until_gone(observer: Any, key: str, within: float) -> float:
    """Look until the key is gone; the moment of the last look that found it."""
    last, end = time.monotonic(), time.monotonic() + within
    while observer.exists(key):
        last = time.monotonic()
        assert last < end, f"{key} was still there after {within} s, for {observer.pttl(key)} ms"
        time.sleep(0.005)
    return last


def lost_before_it_is_gone(observer: Any, lock: Any) -> None:
    """Look until the key is gone: then the handle knows it. The other way round, two would hold."""
    until_gone(observer, lock.name, within=20)
    assert lock.lost is True
    assert lock.remaining() == 0


@contextlib.contextmanager
def passed_over(observer: Any, key: str, *signal: str, every: float) -> Iterator[None]:
    """The lock is released and taken again in one step, again and again: a waiter is always late.

    `signal` is the list that python-redis-lock's waiters listen to.
    """
    over = threading.Event()

    def release_and_take() -> None:
        number = 0
        while not over.wait(every):
            number += 1
            with observer.pipeline(transaction=True) as step:
                for name in signal:
                    step.delete(name).lpush(name, 1)
                step.delete(key).set(key, f"other:{number}", px=60_000)
                step.execute()

    thread = threading.Thread(target=release_and_take, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


# -- processes and threads ------------------------------------------------------------------------


def renewers(process: int | str = "self") -> int:
    """How many threads of a process renew locks; those of other languages are seen as well."""
    count = 0
    for task in Path(f"/proc/{process}/task").iterdir():
        with contextlib.suppress(OSError):  # it ended while we looked
            count += (task / "comm").read_text().strip() == RENEWER
    return count


def alive(process: int) -> bool:
    """Whether a process runs: it is there, and is no zombie."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    return False


def ended_well(child: int, within: float = 30) -> bool:
    """Wait for a forked child's end; one that hangs is killed, and did not end well."""
    end = time.monotonic() + within
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.001)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


def in_a_child(function: Any, *arguments: object) -> list[str]:
    """Fork, call the function there, and tell what it returned: a list of texts."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            try:
                told = [str(line) for line in function(*arguments)]
            except BaseException as error:
                told = [repr(error)]
            os.write(writing, "\n".join(told).encode())
        finally:
            os._exit(0)
    os.close(writing)
    text = b""
    while part := os.read(reading, 1 << 16):
        text += part
    os.close(reading)
    assert ended_well(child)
    return text.decode().split("\n")


def outcome(function: Any, *arguments: object) -> str:
    """What a call returns, or the name of what it raises."""
    try:
        return repr(function(*arguments))
    except Exception as error:
        return type(error).__name__
