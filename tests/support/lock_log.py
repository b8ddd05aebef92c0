"""What the users of locks wrote down while they worked, and what must be true of it.

A `Diary` is one process's file, opened with O_APPEND, a line at each moment that counts: a process
that is killed loses at most its last line. All times are CLOCK_MONOTONIC, which the processes of a
machine share. Lines are `[word, turn, ...]`; a turn is one call of `acquire` and what came of it:

    asked     name, time, no_sooner, no_later: written before the call. A refusal is due after
              `no_sooner` seconds, any answer within `no_later`; None: when it comes
    answered  time, answer, remaining: "refused", or what was raised
    held      time, fence, until: `acquire` has returned True; the lease ends at `until`, as the
              handle tells it
    sure      until, fence: the handle was looked at again, and still says that it holds
    does      time, what: asks for more; nothing is judged by it
    lost      time, fence, by: the handle says, or a call has told, that it does not hold any more
    leaving   time: written before `release` is called
    left      time, how: "released", "lost", "gone" (a release before had no answer), "never"
    stepping  key, before: about to change what it has read, as only one who is alone can
    stepped   key, how: "done", "refused", "unknown"
    paused    pid, since, until: by the one who pauses; the server's pid pauses everybody
    killed    pid

**What a holder may claim.** A handle whose `remaining()` is above zero says: nobody else holds it.
So the claim begins when `acquire` has returned, and ends when `release` is called or when the lease
is over that the handle told of at the last look, whichever is first. A claim that was over before
it began (a pause in mid-acquire) is empty. Who was killed claims until the end of the last lease he
told of: the dead do not work, but nobody may have their lock sooner. Who was killed before he could
write "held" claims nothing.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple


class Diary:
    """Written by all threads or tasks of one process: a line is one write."""

    def __init__(self, path: str | Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._turns = itertools.count()

    def write(self, *line: object) -> None:
        os.write(self._file, json.dumps(line).encode() + b"\n")

    def close(self) -> None:
        os.close(self._file)

    def asked(self, name: str, no_sooner: float, no_later: float | None) -> str:
        turn = f"{os.getpid()}.{next(self._turns)}"
        self.write("asked", turn, name, time.monotonic(), no_sooner, no_later)
        return turn


@dataclass
class Turn:
    number: str
    name: str
    asked: float
    no_sooner: float
    no_later: float | None
    answered: float | None = None
    answer: str = ""
    remaining: float = 0.0
    fences: list[int | None] = field(default_factory=list)
    until: float = -math.inf
    leaving: float = math.inf
    how: str = ""
    lost: list[tuple[float, float, str]] = field(default_factory=list)
    """When it heard that it had lost the lock, until when it had been sure by then, and by whom."""

    @property
    def pid(self) -> int:
        return int(self.number.partition(".")[0])

    @property
    def end(self) -> float:
        return min(self.until, self.leaving)

    @property
    def claims(self) -> bool:
        return self.answer == "held" and self.answered is not None and self.answered < self.end

    def __str__(self) -> str:
        answered = math.nan if self.answered is None else self.answered
        times = f"asked {self.asked:.6f}, answered {answered:.6f}, end {self.end:.6f}"
        return f"{self.number} of {self.name} ({times}, fences {self.fences}, {self.how or 'open'})"


class Step(NamedTuple):
    key: str
    before: int
    how: str


@dataclass
class History:
    turns: dict[str, Turn] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    pauses: dict[int, list[tuple[float, float]]] = field(default_factory=dict)
    killed: set[int] = field(default_factory=set)

    def held(self, name: str | None = None) -> list[Turn]:
        turns = (turn for turn in self.turns.values() if turn.answer == "held")
        return [turn for turn in turns if name in (None, turn.name)]

    def names(self) -> set[str]:
        return {turn.name for turn in self.turns.values()}

    def summary(self) -> Counter[str]:
        """How many of each: what the waits ended with, and what the holders came to."""
        counted = Counter(turn.answer or "no answer" for turn in self.turns.values())
        counted.update(f"held, {turn.how or 'open'}" for turn in self.held())
        counted.update(f"step {step.how}" for step in self.steps)
        counted["empty claims"] = sum(not turn.claims for turn in self.held())
        counted["killed"] = len(self.killed)
        counted["pauses"] = sum(map(len, self.pauses.values()))
        return counted


def read(*diaries: Path) -> History:
    history = History()
    for diary in diaries:
        text = diary.read_text()
        whole, _, _half_a_line = text.rpartition("\n")
        read_lines(map(json.loads, whole.splitlines()), history)
    return history


def read_lines(lines: Iterable[list[Any]], history: History) -> None:
    """Of one process, in the order in which they were written."""
    open_steps: dict[tuple[str, str], int] = {}
    for word, subject, *rest in lines:
        if word == "asked":
            history.turns[subject] = Turn(subject, *rest)
        elif word == "paused":
            history.pauses.setdefault(subject, []).append((rest[0], rest[1]))
        elif word == "killed":
            history.killed.add(subject)
        elif word == "stepping":
            open_steps[subject, rest[0]] = rest[1]
        elif word == "stepped":
            before = open_steps.pop((subject, rest[0]))
            history.steps.append(Step(rest[0], before, rest[1]))
        else:
            _note(history.turns[subject], word, rest)
    history.steps += [Step(key, before, "unknown") for (_, key), before in open_steps.items()]


def _note(turn: Turn, word: str, rest: list[Any]) -> None:
    if word == "answered":
        turn.answered, turn.answer, turn.remaining = rest
    elif word == "held":
        turn.answered, fence, turn.until = rest
        turn.answer, turn.fences = "held", [fence]
    elif word == "sure":
        turn.until, turn.leaving = rest[0], math.inf
        turn.fences.append(rest[1])
    elif word == "lost":
        turn.lost.append((rest[0], turn.until, rest[2]))
        turn.fences.append(rest[1])
    elif word == "does":
        pass
    elif word == "leaving":
        turn.leaving = rest[0]
    elif word == "left":
        turn.how = rest[1]
        if turn.how == "lost":
            turn.lost.append((rest[0], turn.until, "release"))
    else:
        raise ValueError(f"no such word: {word}")


# -- the checker ----------------------------------------------------------------------------------


class Violation(NamedTuple):
    rule: str
    what: str


def check(
    history: History, *, slack: float = 5.0, ahead: float = 0.0, everybody: int | None = None
) -> list[Violation]:
    """What must not be and is.

    `slack` is how late a machine with much to do may be; `ahead` how far the server's clock was set
    forward meanwhile (its leases ended sooner by that); `everybody` the pid whose pauses are all's.
    """
    found = [*_answers(history, slack, everybody), *_words_kept(history)]
    for name in sorted(history.names()):
        held = history.held(name)
        found += _overlaps(held, ahead)
        found += _fences(held)
    return found


def _overlaps(held: list[Turn], ahead: float) -> Iterator[Violation]:
    last: Turn | None = None
    for turn in sorted((turn for turn in held if turn.claims), key=_answered):
        if last is not None and last.end - ahead > _answered(turn):
            yield Violation("two holders", f"{last} and {turn}")
        if last is None or turn.end > last.end:
            last = turn


def _fences(held: list[Turn]) -> Iterator[Violation]:
    """They grow in the order of holding; and with any two turns of which one was over first.

    The second says something of empty claims, too: such a turn was served at some moment between
    its question and its answer.
    """
    by_fence: dict[int, Turn] = {}
    for turn in held:
        fence = turn.fences[0]
        if fence is None or any(seen != fence for seen in turn.fences):
            yield Violation("fence changed", str(turn))
            return
        if fence in by_fence:
            yield Violation("same fence", f"{by_fence[fence]} and {turn}")
        by_fence[fence] = turn
    in_order = sorted((turn for turn in held if turn.claims), key=_answered)
    for before, after in itertools.pairwise(in_order):
        if _fence(before) > _fence(after):
            yield Violation("fence fell", f"{before}, then {after}")
    answered = sorted(held, key=_answered)
    place, highest = 0, None
    for turn in sorted(held, key=lambda turn: turn.asked):
        while place < len(answered) and _answered(answered[place]) < turn.asked:
            if highest is None or _fence(answered[place]) > _fence(highest):
                highest = answered[place]
            place += 1
        if highest is not None and _fence(highest) > _fence(turn):
            yield Violation("fence fell", f"{highest}, and after it {turn}")


def _answers(history: History, slack: float, everybody: int | None) -> Iterator[Violation]:
    """Everybody is served, or refused at his time: not before, and not long after."""
    for turn in history.turns.values():
        if turn.answered is None:
            if turn.pid not in history.killed:
                yield Violation("no answer", str(turn))
            continue
        waited = turn.answered - turn.asked
        paused = _overlap([*history.pauses.get(turn.pid, [])], turn.asked, turn.answered)
        if everybody is not None:
            paused += _overlap(history.pauses.get(everybody, []), turn.asked, turn.answered)
        if turn.no_later is not None and waited - paused > turn.no_later + slack:
            yield Violation("late", f"{turn}: {waited:.3f} s for {turn.no_later:.3f} s")
        if turn.answer == "refused" and waited < turn.no_sooner:
            yield Violation("refused early", f"{turn}: {waited:.3f} s of {turn.no_sooner:.3f} s")
        if turn.answer != "held" and turn.remaining > 0:
            yield Violation("holds without knowing", f"{turn}: {turn.remaining} s")


def _overlap(spans: list[tuple[float, float]], since: float, until: float) -> float:
    return sum(max(0.0, min(until, end) - max(since, begin)) for begin, end in spans)


def _words_kept(history: History) -> Iterator[Violation]:
    """Nobody takes a lock from a holder, so a lease that was told of lasts."""
    for turn in history.held():
        for heard, until, by in turn.lost:
            if heard < until:
                yield Violation("lost while sure", f"{turn}: {until - heard:.6f} s, by {by}")
        if turn.how == "never" or (not turn.how and turn.pid not in history.killed):
            yield Violation("not released", str(turn))


def _answered(turn: Turn) -> float:
    assert turn.answered is not None
    return turn.answered


def _fence(turn: Turn) -> int:
    fence = turn.fences[0]
    assert fence is not None
    return fence


def passed_over(history: History, name: str, since: float = 1.0) -> int:
    """How often, at most, somebody was served before one who had asked that much sooner."""
    held = history.held(name)
    most = 0
    for turn in (turn for turn in history.turns.values() if turn.name == name):
        until = math.inf if turn.answered is None else turn.answered
        before = [
            other for other in held if turn.asked + since < other.asked and _answered(other) < until
        ]
        most = max(most, len(before))
    return most


# -- a counter that only one who is alone can count up ---------------------------------------------


def stride(value: int) -> int:
    """What is added to a value. It depends on the value: who has read an old one is found out."""
    return 1 + value % 7


def check_steps(history: History, final: dict[str, int]) -> list[Violation]:
    """Each value was left once, by one who was told so, or who was told nothing."""
    found = []
    steps: dict[str, list[Step]] = defaultdict(list)
    for step in history.steps:
        steps[step.key].append(step)
    for key, value in final.items():
        done = Counter(step.before for step in steps[key] if step.how == "done")
        unknown = {step.before for step in steps[key] if step.how == "unknown"}
        path = 0
        while path < value:
            times = done.pop(path, 0)
            if times > 1 or (times == 0 and path not in unknown):
                found.append(Violation("spoiled", f"{key}: nobody alone went on from {path}"))
            path += stride(path)
        if path != value:
            found.append(Violation("spoiled", f"{key}: {value} is not on the way"))
        found += [Violation("spoiled", f"{key}: {left} was lost") for left in sorted(done)]
    return found
