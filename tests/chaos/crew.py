"""The processes that sell: started, killed, stopped, and replaced when they are gone."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from support.programs import search_path
from support.servers import die_with_parent

from chaos.sellers import Job
from chaos.worlds import World


@dataclass
class Member:
    kind: str
    process: subprocess.Popen[bytes]
    errors: Path

    def signal(self, what: signal.Signals) -> None:
        """To its children, too."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, what)


class Crew:
    def __init__(self, world: World, directory: Path, seed: str) -> None:
        self.world = world
        self.directory = directory
        self.seed = seed
        self.members: list[Member] = []
        self.failed: list[str] = []
        self._numbers = itertools.count()

    def hire(self, kind: str) -> None:
        number = next(self._numbers)
        world = self.world
        if number * world.MARKS >= len(world.marks):
            return
        job = Job(
            kind=kind,
            url=world.url,
            plain_url=world.plain_url,
            options=world.options,
            path=str(self.directory / f"{number:03}.ledger"),
            seed=f"{self.seed}/{number}",
            lock=world.lock_for(number),
            stocks=world.stocks,
            marks=world.marks[number * world.MARKS :][: world.MARKS],
            holds=world.holds,
        )
        errors = self.directory / f"{number:03}.errors"
        with errors.open("wb") as stderr:
            process = subprocess.Popen(
                [sys.executable, "-m", "chaos.sellers", json.dumps(asdict(job))],
                stdin=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, "PYTHONPATH": search_path()},
                preexec_fn=die_with_parent(),
                start_new_session=True,
            )
        self.members.append(Member(kind, process, errors))

    # -- what befalls them --------------------------------------------------------------------

    def kill(self, dice: random.Random) -> None:
        """Another one of its kind comes in its place."""
        member = dice.choice(self.members)
        self.members.remove(member)
        member.signal(signal.SIGKILL)
        self._bury(member)
        self.hire(member.kind)

    def stop_one(self, dice: random.Random) -> None:
        # The old script may not be away for longer than its lease: that is what is wrong with it.
        member = dice.choice([it for it in self.members if it.kind != "old"])
        member.signal(signal.SIGSTOP)
        time.sleep(dice.uniform(0.1, 1.5))
        member.signal(signal.SIGCONT)

    # -- the end ------------------------------------------------------------------------------

    def go_home(self, within: float = 60) -> None:
        """Every call ends, and then every process: by itself."""
        for member in self.members:
            assert member.process.stdin is not None
            with contextlib.suppress(BrokenPipeError):
                member.process.stdin.close()
        end = time.monotonic() + within
        for member in self.members:
            try:
                status = member.process.wait(max(0.1, end - time.monotonic()))
                words = f"status {status}"
            except subprocess.TimeoutExpired:
                status, words = 1, "it hangs"
            if status:
                said = member.errors.read_text(errors="replace")[-2000:]
                self.failed.append(f"a seller ({member.kind}) did not end well: {words}\n{said}")

    def close(self) -> None:
        for member in self.members:
            member.signal(signal.SIGKILL)
            self._bury(member)

    def _bury(self, member: Member) -> None:
        if member.process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                member.process.stdin.close()
        member.process.wait()
