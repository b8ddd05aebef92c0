"""Programs in a fresh interpreter: a function of the test file, run alone, with a hard time limit.

The function's source travels, nothing else: it imports what it needs inside its body, takes and
returns what JSON can carry, and leaves no trace of pytest in the process that is under test.
"""

from __future__ import annotations

import inspect
import json
import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
ANSWER = "answer: "


def readable(fd: int, seconds: float) -> bool:
    """Whether something comes in time, or the end. `select` knows no number above 1023."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(seconds * 1000))


def search_path() -> str:
    """Where programs find `support`, besides what they would have found anyway."""
    return os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))


@dataclass(frozen=True)
class Ended:
    """What a program left behind."""

    status: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def value(self) -> Any:
        """What the function returned; fails with the program's own words if it did not end well."""
        assert self.status == 0, f"exit status {self.status}\n{self.stdout}\n{self.stderr}"
        answers = [line for line in self.stdout.splitlines() if line.startswith(ANSWER)]
        assert answers, f"the program returned nothing\n{self.stdout}\n{self.stderr}"
        return json.loads(answers[-1][len(ANSWER) :])


class Program:
    """A running one, in a process group of its own."""

    def __init__(
        self,
        function: Callable[..., object],
        *arguments: object,
        limit: float = 30,
        env: dict[str, str] | None = None,
    ) -> None:
        source = textwrap.dedent(inspect.getsource(function))
        # At its limit a hanging program is told to abort, and shows where each thread hangs. No
        # watchdog thread in it: what is tested are threads, forks and the interpreter's end.
        text = (
            "import faulthandler, json, signal\n"
            "faulthandler.enable()\n"
            # A shell starts what runs in the background with the interrupt ignored.
            "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
            f"{source}\n"
            "if __name__ == '__main__':\n"
            f"    value = {function.__name__}(*json.loads({json.dumps(arguments)!r}))\n"
            f"    print({ANSWER!r} + json.dumps(value), flush=True)\n"
        )
        self._limit = limit
        self._started = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-c", text],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": search_path(), **(env or {})},
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """The next line that the program prints; "" if it ended."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def expect(self, line: str) -> None:
        got = self.line()
        if got != line:
            ended = self.ended()
            raise AssertionError(f"wanted {line!r}, got {got!r}\n{ended.stdout}\n{ended.stderr}")

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ended(self) -> Ended:
        """Wait for the end, within the limit."""
        try:
            stdout, stderr = self.process.communicate(timeout=self._limit)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)
            try:
                stdout, stderr = self.process.communicate(timeout=5)
            except subprocess.TimeoutExpired:
                # It does not even abort, or its children keep the pipes open: the group is there.
                os.killpg(self.process.pid, signal.SIGKILL)
                stdout, stderr = self.process.communicate()
            stderr += f"\n[ended: it was still running after {self._limit} s]"
        seconds = time.monotonic() - self._started
        return Ended(self.process.returncode, stdout, stderr, seconds)


def run(function: Callable[..., object], *arguments: object, **options: Any) -> Ended:
    """Run a function alone in a fresh interpreter, to its end."""
    return Program(function, *arguments, **options).ended()
