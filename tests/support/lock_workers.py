"""Processes that take locks, work, and write down what they believe: `support.lock_log` judges.

`python -m support.lock_workers JOB`: says "ready", reads the moment to stop at, and contends until
then, by threads with seckill.Lock or by tasks with seckill.aio.Lock. Both live the same life, which
is a generator of calls: a thread makes them, a task awaits what they return. Whatever a lock may
not raise ends the process with a traceback.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import inspect
import json
import math
import random
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from functools import partial
from typing import Any

from support.acl import as_observer
from support.lock_log import Diary, stride

Life = Generator[Callable[[], Any], Any, None]

OWN_SLEEP = 0.1
"""The `sleep` of the locks: a wait may give up that much sooner than its time."""


@dataclass(frozen=True)
class Job:
    url: str
    """Where the locks are: a server, or a proxy that loses things."""
    server: tuple[str, int]
    """Where the counters are: always the server."""
    diary: str
    names: list[str]
    seed: str
    make: str = "seckill"
    tasks: bool = False
    crew: int = 3
    leases: tuple[float, float] = (0.1, 0.6)
    waits: tuple[float | None, ...] = (0, 0.05, 0.3, 1.0, 1.0, None)
    """None waits for ever: whom nobody wakes hangs, and is found."""
    fair: tuple[str, ...] = ()
    """Locks for which one waits in a queue: so many of those who do."""
    fairly: float = 0.7
    endless: float = 0.0
    """So many of the locks have no lease."""
    auto_renew: tuple[bool, ...] = (False, True)
    max_hold: tuple[float | None, ...] = (None, None, 0.4)
    overstay: float = 0.04
    """How often a holder works beyond the end of its lease."""
    linger: float = 0.03
    """Seconds of work, at most, of those who do not overstay; most have done much sooner."""
    breath: float = 0.01
    """Seconds between two turns, at most."""
    cancel_every: float | None = None
    """Seconds, in the mean, between two cancellations of some task."""
    socket_timeout: float = 0.3


class Seckill:
    def __init__(self, job: Job) -> None:
        import seckill

        self.module: Any = seckill
        if job.tasks:
            import seckill.aio

            self.module = seckill.aio
        # A patient client: who has lost the server for long is not what these tests are about.
        self.client = self.module.Client(
            job.url, timeout=20, socket_timeout=job.socket_timeout, socket_connect_timeout=1
        )

    def lock(self, name: str, **settings: Any) -> Any:
        return self.module.Lock(self.client, name, **settings)


class Careless:
    """redis-py's lock, in the hands of one who believes that he holds it until he releases it."""

    def __init__(self, job: Job) -> None:
        import redis

        class Lock(redis.lock.Lock):
            fence = 1
            ensure_held = redis.lock.Lock.owned

            def remaining(self) -> float:
                return 60.0 if getattr(self.local, "token", None) else 0.0

        self._client, self._class = redis.Redis.from_url(as_observer(job.url)), Lock

    def lock(self, name: str, *, fair: bool, auto_renew: bool, max_hold: Any, **settings: Any):
        return self._class(self._client, name, **settings)


MAKERS: dict[str, Callable[[Job], Any]] = {"seckill": Seckill, "careless": Careless}


class Plain:
    """A connection for the counters: commands as they are, replies as bytes or int."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._stream = socket.create_connection(address).makefile("rwb")

    def __call__(self, *words: object) -> Any:
        encoded = [str(word).encode() for word in words]
        parts = [b"*%d\r\n" % len(encoded)]
        parts += [b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded]
        self._stream.write(b"".join(parts))
        self._stream.flush()
        line = self._stream.readline()
        kind, text = line[:1], line[1:-2]
        if kind == b"$" and int(text) >= 0:
            return self._stream.read(int(text) + 2)[:-2]
        if kind == b"-" or not line:
            raise RuntimeError(line)
        return int(text) if kind == b":" else text if kind == b"+" else None


# A resource that knows the highest fence which it has seen, and refuses all who come with a lower.
# Fences are compared as text of one length: Lua's numbers are doubles.
READ_FENCED = """
local fence = redis.call('HGET', KEYS[1], 'fence') or ''
if ARGV[1] < fence then return false end
redis.call('HSET', KEYS[1], 'fence', ARGV[1])
return redis.call('HGET', KEYS[1], 'value') or '0'
"""
WRITE_FENCED = """
if redis.call('HGET', KEYS[1], 'fence') ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'value', ARGV[2])
return 1
"""


def stock_of(name: str) -> str:
    return f"{name}:stock"


def fenced_of(name: str) -> str:
    return f"{name}:fenced"


def outcome(error: BaseException) -> str:
    """What an error says of a lock: "lost", "unknown" or, of anything else, nothing."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if "LockError" in names:
        return "lost"
    return "unknown" if names & {"ConnectionError", "CancelledError"} else ""


class Contender:
    """One thread or task: takes one of its locks, works, releases it, and so on."""

    def __init__(
        self, job: Job, seed: str, diary: Diary, maker: Any, locks: list[Any], plain: Plain
    ) -> None:
        self.job = job
        self.dice = random.Random(seed)
        self.diary = diary
        self.client = getattr(maker, "client", None)
        self.locks = locks
        self.plain = plain
        self.sleep: Callable[[float], Any] = asyncio.sleep if job.tasks else time.sleep

    def life(self, till: float) -> Life:
        while time.monotonic() < till:
            yield from self.turn(self.dice.choice(self.locks))
            yield from self.doze(self.dice.uniform(0, self.job.breath))

    def doze(self, seconds: float) -> Life:
        with contextlib.suppress(asyncio.CancelledError):
            yield partial(self.sleep, seconds)

    def turn(self, lock: Any) -> Life:
        wait = self.dice.choice(self.job.waits)
        asking = partial(lock.acquire, blocking=wait != 0, blocking_timeout=wait or None)
        if wait is None:
            number = self.diary.asked(lock.name, math.inf, None)
        else:
            # A call gets one attempt, whose bound is the larger of the two.
            no_later = max(wait, self.job.socket_timeout)
            number = self.diary.asked(lock.name, wait - OWN_SLEEP, no_later)
        try:
            held = yield asking
        except (Exception, asyncio.CancelledError) as error:
            now = time.monotonic()
            if outcome(error) != "unknown":
                raise
            self.diary.write("answered", number, now, type(error).__name__, lock.remaining())
            return
        now = time.monotonic()
        if not held:
            self.diary.write("answered", number, now, "refused", lock.remaining())
            return
        self.diary.write("held", number, now, lock.fence, self.sure_until(lock))
        with contextlib.suppress(asyncio.CancelledError):
            yield from self.work(number, lock)
        yield from self.leave(number, lock)

    def sure_until(self, lock: Any) -> float:
        """The end of the lease: what the handle says is left, from just before it was asked."""
        now = time.monotonic()
        remaining = lock.remaining()
        return now + remaining if remaining > 0 else 0.0

    def look(self, number: str, lock: Any) -> bool:
        until = self.sure_until(lock)
        now = time.monotonic()
        if until:
            self.diary.write("sure", number, until, lock.fence)
        else:
            self.diary.write("lost", number, now, lock.fence, repr(lock))
        return until > 0

    def work(self, number: str, lock: Any) -> Life:
        dice, lease = self.dice, lock.timeout or 60.0
        overstays = dice.random() < self.job.overstay
        span = (
            lease * dice.uniform(1, 2)
            if overstays
            else min(lease, self.job.linger) * dice.random() ** 4
        )
        done = time.monotonic() + span
        attentive = dice.random() < 0.7  # the others do not look up from their work
        while (left := done - time.monotonic()) > 0:
            yield partial(self.sleep, min(left, dice.uniform(0, lease / 4)))
            if attentive and not self.look(number, lock):
                return
            if dice.random() < 0.3:
                yield from self.ask_for_more(number, lock)
        if self.client is not None:
            what = dice.choice((self.count_in_stock, self.count_fenced, self.ask_for_more))
            yield from what(number, lock)

    def ask_for_more(self, number: str, lock: Any) -> Life:
        """Extend the lease or set it back, shorten it, or just ask whether the lock is held."""
        half = (lock.timeout or 0.0) / 2
        what = self.dice.randrange(4) if half else 0
        calls = [
            lock.ensure_held,
            partial(lock.extend, half, replace_ttl=True),
            partial(lock.extend, half),
            lock.reacquire,
        ]
        if what in (1, 3) and (until := self.sure_until(lock)):
            # A shorter lease may begin at any moment now; so may the usual one, after an extension.
            # It is asked for in milliseconds, of which the server may spare the last.
            shorter = time.monotonic() + (half if what == 1 else lock.timeout) - 0.002
            self.diary.write("sure", number, min(until, shorter), lock.fence)
        self.diary.write("does", number, time.monotonic(), repr(calls[what]))
        try:
            yield calls[what]
        except (Exception, asyncio.CancelledError) as error:
            yield from self.heard(number, lock, error)
        else:
            self.look(number, lock)

    def heard(self, number: str, lock: Any, error: BaseException) -> Life:
        now = time.monotonic()
        said = outcome(error)
        if not said:
            raise error
        if said == "lost":
            self.diary.write("lost", number, now, lock.fence, f"{type(error).__name__}: {error}")
        if isinstance(error, asyncio.CancelledError):
            raise error
        yield from ()

    # -- the counters -----------------------------------------------------------------------------

    def count_in_stock(self, number: str, lock: Any) -> Life:
        """Read, think, change: the library lets it through while this very turn holds the lock."""
        key = stock_of(lock.name)
        before = int(self.plain("GET", key))
        self.diary.write("stepping", number, key, before)
        how = "unknown"
        try:
            yield partial(self.sleep, self.dice.uniform(0, 0.003))
            yield partial(self.client.update_inventory, lock, key, stride(before))
            how = "done"
        except (Exception, asyncio.CancelledError) as error:
            how = "refused" if outcome(error) == "lost" else "unknown"
            yield from self.heard(number, lock, error)
        finally:
            self.diary.write("stepped", number, key, how)

    def count_fenced(self, number: str, lock: Any) -> Life:
        """The same on a resource of another kind, which is shown the fence."""
        key, fence = fenced_of(lock.name), f"{lock.fence:020d}"
        read = self.plain("EVAL", READ_FENCED, 1, key, fence)
        if read is None:
            return
        before = int(read)
        self.diary.write("stepping", number, key, before)
        yield from self.doze(self.dice.uniform(0, 0.003))
        done = self.plain("EVAL", WRITE_FENCED, 1, key, fence, before + stride(before))
        self.diary.write("stepped", number, key, "done" if done else "refused")

    # -- and out ----------------------------------------------------------------------------------

    def leave(self, number: str, lock: Any) -> Life:
        self.diary.write("leaving", number, time.monotonic())
        in_doubt, how = False, "never"
        for _ in range(20):
            try:
                yield lock.release
            except (Exception, asyncio.CancelledError) as error:
                now = time.monotonic()
                said = outcome(error)
                if not said:
                    raise
                if said == "lost":
                    # After a release of which nobody knows, to be told so is no loss.
                    how = "gone" if in_doubt else "lost"
                    break
                in_doubt = True
                yield from self.doze(0.05)
            else:
                now, how = time.monotonic(), "released"
                break
        self.diary.write("left", number, now, how)


# -- the two ways to live a life -------------------------------------------------------------------


def live(life: Life) -> None:
    answer, error = None, None
    while True:
        try:
            call = life.throw(error) if error else life.send(answer)
        except StopIteration:
            return
        answer, error = None, None
        try:
            answer = call()
        except Exception as raised:
            error = raised


async def live_awaited(life: Life) -> None:
    answer: Any = None
    error: BaseException | None = None
    while True:
        try:
            call = life.throw(error) if error else life.send(answer)
        except StopIteration:
            return
        answer, error = None, None
        try:
            answer = call()
            if inspect.isawaitable(answer):
                answer = await answer
        except (Exception, asyncio.CancelledError) as raised:
            error = raised
            if isinstance(raised, asyncio.CancelledError):
                task = asyncio.current_task()
                if hasattr(task, "uncancel"):
                    task.uncancel()


def contenders(job: Job) -> list[Contender]:
    """Some handles are everybody's, with a token for each thread or task; some are one's own."""
    dice = random.Random(job.seed)
    maker, diary = MAKERS[job.make](job), Diary(job.diary)

    def handle(thread_local: bool) -> Any:
        name = dice.choice(job.names)
        endless = dice.random() < job.endless
        auto_renew = not endless and dice.choice(job.auto_renew)
        return maker.lock(
            name,
            timeout=None if endless else dice.uniform(*job.leases),
            sleep=OWN_SLEEP,
            fair=name in job.fair and dice.random() < job.fairly,
            auto_renew=auto_renew,
            max_hold=dice.choice(job.max_hold) if auto_renew else None,
            thread_local=thread_local,
        )

    shared = [handle(thread_local=True) for _ in range(2)]
    plain = Plain(job.server)
    return [
        Contender(
            job,
            f"{job.seed}/{number}",
            diary,
            maker,
            [*shared, handle(dice.random() < 0.5)],
            plain if job.tasks else Plain(job.server),
        )
        for number in range(job.crew)
    ]


def until_told() -> float:
    print("ready", flush=True)
    return float(sys.stdin.readline())


def run_threads(job: Job) -> None:
    crew = contenders(job)
    till = until_told()
    failed = []

    def run(contender: Contender) -> None:
        try:
            live(contender.life(till))
        except BaseException:
            failed.append(contender)
            raise  # and the hook of threading writes it down

    threads = [threading.Thread(target=run, args=(contender,)) for contender in crew]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.exit(bool(failed))


async def run_tasks(job: Job) -> None:
    crew = contenders(job)
    till = until_told()
    tasks = [asyncio.create_task(live_awaited(contender.life(till))) for contender in crew]
    dice = random.Random(f"{job.seed}/cancel")

    async def cancel_some() -> None:
        while job.cancel_every:
            await asyncio.sleep(dice.expovariate(1 / job.cancel_every))
            dice.choice(tasks).cancel()

    cancelling = asyncio.create_task(cancel_some())
    await asyncio.gather(*tasks)
    cancelling.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await cancelling


def main() -> None:
    faulthandler.enable()
    job = Job(**json.loads(sys.argv[1]))
    if job.tasks:
        asyncio.run(run_tasks(job))
    else:
        run_threads(job)


if __name__ == "__main__":
    main()
