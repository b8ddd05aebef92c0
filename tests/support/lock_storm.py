"""A storm: processes that contend for locks (`support.lock_workers`), and what befalls them.

What is random comes from one seed. The machine's timing does not: the same seed makes the same
processes do the same, and brings on the same events, but what meets what is different each time.
"""

from __future__ import annotations

import heapq
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from support.lock_log import Diary, History, read
from support.lock_workers import Job, fenced_of, stock_of
from support.programs import search_path
from support.proxy import Proxy, none
from support.servers import Server, die_with_parent


@dataclass(frozen=True)
class Weather:
    """What happens to some process, or to all: mean seconds between two events of a kind."""

    pause: float = math.inf
    longest_pause: float = 0.9
    kill: float = math.inf
    freeze: float = math.inf
    """Of the server, for a quarter of a pause."""
    cut: float = math.inf
    """Of all connections through the proxies, besides what these lose by themselves."""


@dataclass
class Member:
    """One of the processes; who is killed is replaced."""

    job: Job
    process: subprocess.Popen[str]
    paused: bool = False

    def end(self) -> None:
        """With no chance to say a word."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with suppress(BrokenPipeError):
                stream.close()


class Storm:
    def __init__(self, server: Server, directory: Path, seed: int, *locks: str) -> None:
        self.server = server
        self.observer = server.redis()
        self.directory = directory
        self.seed = seed
        self.locks = list(locks)
        self.dice = random.Random(seed)
        self.diary = Diary(directory / "storm.diary")
        self.crew: list[Member] = []
        self.proxies: list[Proxy] = []
        self._numbers = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._till = 0.0
        self._clocks = clocks_apart()
        for lock in locks:
            self.observer.set(stock_of(lock), 0)

    # -- the processes ----------------------------------------------------------------------------

    def start(self, count: int = 1, url: str | None = None, **settings: Any) -> None:
        for _ in range(count):
            number = next(self._numbers)
            job = Job(
                url=url or self.server.url,
                server=(self.server.host, self.server.port),
                diary=str(self.directory / f"{number}.diary"),
                names=self.locks,
                seed=f"{self.seed}/{number}",
                **settings,
            )
            self.crew.append(Member(job, self._launch(job)))

    def _launch(self, job: Job) -> subprocess.Popen[str]:
        with Path(job.diary).with_suffix(".errors").open("w") as errors:
            return subprocess.Popen(
                [sys.executable, "-m", "support.lock_workers", json.dumps(asdict(job))],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**os.environ, "PYTHONPATH": search_path()},
                preexec_fn=die_with_parent(),
            )

    def settle(self, within: float = 60.0) -> None:
        """Wait until all have ended: nobody may be left waiting for a lock that nobody holds."""
        end = time.monotonic() + within
        hanging = []
        for process in (member.process for member in self.crew):
            try:
                process.wait(max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired:
                hanging.append(process.pid)
                process.send_signal(signal.SIGABRT)  # and each thread shows where it hangs
                process.wait(10)
        failed = [member.process.pid for member in self.crew if member.process.returncode]
        assert not hanging, f"seed {self.seed}: {hanging} hang\n{self.errors()}"
        assert not failed, f"seed {self.seed}: {failed} failed\n{self.errors()}"

    def close(self) -> None:
        for member in self.crew:
            member.end()
        self.diary.close()

    def errors(self) -> str:
        """The last words of some of those who had any."""
        texts = (path.read_text() for path in sorted(self.directory.glob("*.errors")))
        return "\n".join(text[-2000:] for text in itertools.islice(filter(None, texts), 3))

    # -- the weather ------------------------------------------------------------------------------

    def rage(self, seconds: float, weather: Weather) -> None:
        """Let them all begin at the same moment, and go on until the time is over."""
        for member in self.crew:
            assert member.process.stdout is not None
            assert member.process.stdout.readline() == "ready\n", self.errors()
        self._till = time.monotonic() + seconds
        for member in self.crew:
            self._let_go(member)
        kinds = {"pause": self._pause, "kill": self._kill, "freeze": self._freeze, "cut": self._cut}
        for kind, happen in kinds.items():
            every = getattr(weather, kind)
            if every < math.inf:
                self._again(every, happen, weather)
        try:
            while self._events and self._events[0][0] < self._till:
                due, _, happen = heapq.heappop(self._events)
                time.sleep(max(0.0, due - time.monotonic()))
                happen()
            time.sleep(max(0.0, self._till - time.monotonic()))
        finally:
            for proxy in self.proxies:
                proxy.faults = none
            for _, _, happen in self._events:
                if isinstance(happen, _Resume):
                    happen()

    def _let_go(self, member: Member) -> None:
        assert member.process.stdin is not None
        with suppress(BrokenPipeError):
            member.process.stdin.write(f"{self._till}\n")
            member.process.stdin.flush()

    def _at(self, moment: float, happen: Callable[[], None]) -> None:
        heapq.heappush(self._events, (moment, next(self._numbers), happen))

    def _again(self, every: float, happen: Callable[[Weather], None], weather: Weather) -> None:
        def event() -> None:
            happen(weather)
            self._again(every, happen, weather)

        self._at(time.monotonic() + self.dice.expovariate(1 / every), event)

    def _pause(self, weather: Weather) -> None:
        member = self.dice.choice(self.crew)
        seconds = self.dice.uniform(0.02, weather.longest_pause)
        if not member.paused:
            resume = _Resume(self, member)
            self._at(resume.since + seconds, resume)

    def _kill(self, weather: Weather) -> None:
        """Another one comes in its place."""
        member = self.dice.choice(self.crew)
        member.end()
        self.diary.write("killed", member.process.pid)
        place = self.crew.index(member)
        job = replace(member.job, diary=str(self.directory / f"{next(self._numbers)}.diary"))
        self.crew[place] = Member(job, self._launch(job))
        self._let_go(self.crew[place])

    def _freeze(self, weather: Weather) -> None:
        since = time.monotonic()
        with self.server.frozen():
            time.sleep(self.dice.uniform(0.02, weather.longest_pause / 4))
        self.diary.write("paused", self.server.pid, since, time.monotonic())

    def _cut(self, weather: Weather) -> None:
        for proxy in self.proxies:
            proxy.cut(reset=self.dice.random() < 0.5)

    # -- what came of it --------------------------------------------------------------------------

    def history(self) -> History:
        return read(*sorted(self.directory.glob("*.diary")))

    def clock_ran_ahead(self) -> float:
        """By how much the clock that servers end leases by was set forward since the beginning."""
        ahead = clocks_apart() - self._clocks
        return ahead if ahead > 0.001 else 0.0

    def counters(self) -> dict[str, int]:
        values = {}
        for lock in self.locks:
            values[stock_of(lock)] = int(self.observer.get(stock_of(lock)))
            values[fenced_of(lock)] = int(self.observer.hget(fenced_of(lock), "value") or 0)
        return values


class _Resume:
    def __init__(self, storm: Storm, member: Member) -> None:
        self.storm, self.member = storm, member
        self.since = time.monotonic()
        self.member.paused = True
        member.process.send_signal(signal.SIGSTOP)

    def __call__(self) -> None:
        self.member.process.send_signal(signal.SIGCONT)
        self.member.paused = False
        self.storm.diary.write("paused", self.member.process.pid, self.since, time.monotonic())


def clocks_apart() -> float:
    """The wall clock less the monotonic one, read in between two looks at the latter."""
    while True:
        before, wall, after = time.monotonic(), time.time(), time.monotonic()
        if after - before < 0.0001:
            return wall - (before + after) / 2
