"""Whether a correct counter with a floor could have told all that the ledger says.

| told | units changed |
|---|---|
| sold | once |
| short, refused, unsent | not at all |
| unknown, or nothing (who asked was killed) | once or not at all |
| unsafe (`NotReplicated`) | once; where servers fail over, once or not at all |

Where replication is asynchronous and nobody waits for it, a fail-over may lose what was sold in its
*window*, from shortly before the trouble to the end of the promotion: no sale outside of one, and
each at most once. Everywhere else nothing that was sold is lost.

Calls are judged twice. By the sum of each stock; and one by one on *marked* stocks, where caller i
takes 8**i of 0o777..., so that an octal digit says how often that very call was made. Who was told
how many units were left must have been told what could be: with no more taken than was asked for by
then, and no less than was already told. And a lock is never held by two.

Nor does a caller hear of trouble while there is time left to get over it.
"""

from __future__ import annotations

import bisect
import itertools
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

from chaos import ledger
from chaos.ledger import Entry

DIGITS = 16  # 8**16 - 1 is what a marked stock begins with
FULL = 8**DIGITS - 1
LEASE = 3.0  # seconds, of every lock that is taken for its own sake
PATIENCE = 5.0  # seconds: the time_out of each sale

NOTHING = frozenset({ledger.SHORT, ledger.REFUSED, ledger.UNSENT})
EITHER = frozenset({ledger.UNKNOWN, ledger.UNTOLD})
TROUBLE = EITHER | {ledger.UNSENT, ledger.UNSAFE}
TOLD = {
    ledger.STOCK: NOTHING | TROUBLE | {ledger.SOLD},
    ledger.LOCK: TROUBLE | {ledger.HELD, ledger.BUSY},
}


@dataclass(frozen=True)
class Rules:
    """What a deployment promises."""

    fails_over: bool = False
    loses: bool = False
    """What was sold, in a window."""
    windows: tuple[tuple[float, float], ...] = ()

    def in_window(self, entry: Entry) -> bool:
        return any(entry.asked <= end and entry.told >= begin for begin, end in self.windows)


@dataclass
class Verdict:
    """What is wrong; and what was lost in a window, which is not."""

    oversold: int = 0
    lost: int = 0
    double: int = 0
    shared: int = 0
    """Moments at which two held a lock."""
    forgiven: int = 0
    """Units that were sold and lost in a window."""
    outcomes: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, what: str, units: int, words: str) -> None:
        setattr(self, what, getattr(self, what) + units)
        self.wrong.append(f"{what}: {words}")


def check(
    entries: list[Entry], offered: dict[str, int], left: dict[str, int | None], rules: Rules
) -> Verdict:
    """`offered` and `left` are the stocks at the beginning and at the end."""
    verdict = Verdict(outcomes=Counter(entry.outcome for entry in entries))
    stocks: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.what == ledger.STOCK:
            stocks[entry.name].append(entry)
        if entry.outcome not in TOLD[entry.what]:
            verdict.wrong.append(f"nobody may be told this: {entry}")
        if gave_up_early(entry):
            verdict.wrong.append(f"there was time left: {entry}")
    for name, first in offered.items():
        last = left[name]
        if last is None:
            if not rules.loses:
                verdict.add("lost", 1, f"the stock {name} is gone")
        elif first == FULL:
            judge_marks(verdict, name, stocks[name], last, rules)
        else:
            judge_sum(verdict, name, stocks[name], first, last, rules)
            if not rules.loses:
                judge_refusals(verdict, name, stocks[name], first)
    judge_locks(verdict, [entry for entry in entries if entry.what == ledger.LOCK], rules)
    return verdict


def certain(entry: Entry, rules: Rules) -> bool:
    done = entry.outcome == ledger.SOLD
    return done or (entry.outcome == ledger.UNSAFE and not rules.fails_over)


def gave_up_early(entry: Entry) -> bool:
    trouble = entry.outcome in (ledger.UNSENT, ledger.UNKNOWN) and entry.known
    return trouble and entry.what == ledger.STOCK and entry.told < entry.asked + 0.98 * PATIENCE


def possible(entry: Entry) -> bool:
    return entry.outcome not in NOTHING


# -- sums ----------------------------------------------------------------------------------------


def judge_sum(
    verdict: Verdict, name: str, entries: list[Entry], first: int, last: int, rules: Rules
) -> None:
    sure = sum(entry.change for entry in entries if certain(entry, rules))
    perhaps = [e.change for e in entries if possible(e) and not certain(e, rules)]
    least = sure + sum(change for change in perhaps if change < 0)
    most = sure + sum(change for change in perhaps if change > 0)
    changed, words = last - first, f"{name}: {first} became {last}, {sure} is certain"
    if last < 0:
        verdict.add("oversold", -last, words)
    forgiven = [e.change for e in entries if certain(e, rules) and rules.in_window(e)]
    back = -sum(change for change in forgiven if change < 0) if rules.loses else 0
    gone = sum(change for change in forgiven if change > 0) if rules.loses else 0
    if changed > most + back:
        verdict.add("lost", changed - most - back, words)
    elif changed < least - gone:
        verdict.add("double", least - gone - changed, words)
    elif changed > most:
        verdict.forgiven += changed - most


def judge_refusals(verdict: Verdict, name: str, entries: list[Entry], first: int) -> None:
    """Of who was told how many units were left, more or less than there can have been."""
    # What had been done for certain by the time that somebody asked; what may have been done by the
    # time that he was told.
    done = sorted((e.told, e.change) for e in entries if e.outcome == ledger.SOLD)
    begun = sorted((e.asked, e.change) for e in entries if possible(e))
    sums = {
        (which, sign): (
            [moment for moment, change in events if change * sign > 0],
            list(itertools.accumulate((c for _, c in events if c * sign > 0), initial=0)),
        )
        for which, events in (("done", done), ("begun", begun))
        for sign in (-1, 1)
    }

    def total(which: str, sign: int, moment: float) -> int:
        moments, running = sums[which, sign]
        return running[bisect.bisect_left(moments, moment)]

    for entry in entries:
        if entry.outcome != ledger.SHORT:
            continue
        most = first + total("done", -1, entry.asked) + total("begun", 1, entry.told)
        least = first + total("done", 1, entry.asked) + total("begun", -1, entry.told)
        if not least <= entry.figure <= most or entry.figure + entry.change >= 0:
            words = f"{name}: told of {entry.figure} left, there were {least} to {most}: {entry}"
            verdict.add("oversold" if entry.figure < least else "lost", 1, words)


# -- call by call --------------------------------------------------------------------------------


def judge_marks(verdict: Verdict, name: str, entries: list[Entry], last: int, rules: Rules) -> None:
    asked: dict[int, Entry] = {}
    for entry in entries:
        place = (-entry.change).bit_length() // 3
        if place in asked or -entry.change != 8**place:
            verdict.wrong.append(f"the seller himself asked twice: {entry}")
        asked[place] = entry
    if not 0 <= last <= FULL:
        verdict.add("double", 1, f"{name} holds {last:o}")
        return
    for place in range(DIGITS):
        times = 7 - (last >> 3 * place & 7)
        entry = asked.get(place)
        if entry is None or entry.outcome in NOTHING:
            if times:
                verdict.add("double", times, f"{name}/{place}, done {times} times: {entry}")
        elif times > 1:
            verdict.add("double", times - 1, f"{name}/{place}, done {times} times: {entry}")
        elif times == 0 and certain(entry, rules):
            if rules.loses and rules.in_window(entry):
                verdict.forgiven += 1
            else:
                verdict.add("lost", 1, f"{name}/{place}: {entry}")


# -- locks ---------------------------------------------------------------------------------------


def judge_locks(verdict: Verdict, entries: Iterable[Entry], rules: Rules) -> None:
    """Who was told that a lock is his had it from then on: until he gave it back, or the lease that
    began when he asked was over."""
    held: dict[str, list[Entry]] = defaultdict(list)
    for entry in entries:
        if entry.outcome == ledger.HELD:
            held[entry.name].append(entry)
    for name, holders in held.items():
        holders.sort(key=lambda entry: entry.told)
        before: Entry | None = None
        for entry in holders:
            if before is not None and entry.told < end_of(before) and entry.told < end_of(entry):
                lossy = rules.loses and (rules.in_window(before) or rules.in_window(entry))
                if not lossy:
                    verdict.add("shared", 1, f"{name}: {before} and {entry}")
            if before is None or end_of(entry) > end_of(before):
                before = entry


def end_of(holder: Entry) -> float:
    return min(holder.released, holder.asked + LEASE)
