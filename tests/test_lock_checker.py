"""The checker of locks finds what must not be: each wrong history is found, by its own rule.

Histories are written by hand here, in the words of `support.lock_log`: a good one, and the same one
with one thing wrong.
"""

from __future__ import annotations

import itertools
import math
import os
import random
import subprocess
import sys

import pytest
from support.lock_log import (
    Diary,
    History,
    check,
    check_steps,
    passed_over,
    read,
    read_lines,
    stride,
)
from support.programs import search_path

PATIENT = math.inf, None  # waits for ever: neither too early nor too late


class Pen:
    """Writes turns with few words; what is not said is as it should be."""

    def __init__(self) -> None:
        self.lines: list[list[object]] = []
        self._turns = itertools.count()

    def write(self, *line: object) -> None:
        self.lines.append(list(line))

    def turn(self, asked, answered, until, left=None, *, fence=1, pid=1, name="lock", how=None):
        """A holder's; without `left` he was killed."""
        number = f"{pid}.{next(self._turns)}"
        self.write("asked", number, name, asked, *PATIENT)
        self.write("held", number, answered, fence, until)
        if left is None:
            self.write("killed", pid)
        else:
            self.write("leaving", number, left)
            self.write("left", number, left + 0.01, how or "released")
        return number

    def wait(self, asked, answered, answer="refused", *, between=PATIENT, pid=1, remaining=0.0):
        number = f"{pid}.{next(self._turns)}"
        self.write("asked", number, "lock", asked, *between)
        if answered is not None:
            self.write("answered", number, answered, answer, remaining)
        return number

    def history(self) -> History:
        history = History()
        read_lines(self.lines, history)
        return history

    def found(self, **options: object) -> list[str]:
        """The rules that were broken."""
        options = {"slack": 1.0} | options
        return [rule for rule, _ in check(self.history(), **options)]


@pytest.fixture
def pen() -> Pen:
    return Pen()


def test_holders_one_after_the_other_are_right(pen):
    pen.turn(0, 1, 11, 2, fence=1)
    pen.turn(0.5, 2.1, 12, 3, fence=2, pid=2)
    pen.turn(0.6, 3.1, 13, 4, fence=7, pid=3)
    pen.turn(0, 1, 11, 4, fence=1, name="another")
    assert pen.found() == []


# -- two holders ----------------------------------------------------------------------------------


def test_two_who_hold_at_the_same_time_are_found(pen):
    pen.turn(0, 1, 11, 3, fence=1)
    pen.turn(0, 2, 12, 4, fence=2, pid=2)
    assert pen.found() == ["two holders"]


def test_one_who_holds_within_the_time_of_another_is_found(pen):
    pen.turn(0, 1, 11, 10, fence=1)
    pen.turn(0, 2, 12, 3, fence=2, pid=2)
    pen.turn(0, 4, 14, 5, fence=3, pid=2)
    assert pen.found() == ["two holders", "two holders"]


def test_the_smallest_overlap_is_found(pen):
    pen.turn(0, 1, 11, 3, fence=1)
    pen.turn(0, 2.999_999, 13, 4, fence=2, pid=2)
    assert pen.found() == ["two holders"]


def test_who_takes_over_a_lease_that_has_ended_is_right_though_the_holder_works_on(pen):
    pen.turn(0, 1, 2, 5, fence=1, how="lost")
    pen.turn(0, 2, 12, 6, fence=2, pid=2)
    assert pen.found() == []


def test_who_takes_over_a_lease_that_lasts_is_found_though_its_holder_was_killed(pen):
    pen.turn(0, 1, 4, fence=1)
    pen.turn(0, 3.9, 12, 6, fence=2, pid=2)
    assert pen.found() == ["two holders"]


def test_who_takes_over_from_the_dead_at_the_end_of_their_lease_is_right(pen):
    pen.turn(0, 1, 4, fence=1)
    pen.turn(0, 4, 12, 6, fence=2, pid=2)
    assert pen.found() == []


def test_who_was_killed_while_he_let_go_claims_nothing_more(pen):
    number = pen.turn(0, 1, 11, fence=1)
    pen.write("leaving", number, 2)
    pen.turn(0, 2.1, 12, 6, fence=2, pid=2)
    assert pen.found() == []


def test_a_lease_counts_as_it_was_told_of_at_the_last_look(pen):
    """Renewed: it lasts longer. Shortened: somebody else may come sooner."""
    pen.turn(0, 1, 2, fence=1)
    pen.write("sure", "1.0", 5, 1)
    pen.turn(0, 4, 12, 6, fence=2, pid=2)
    assert pen.found() == ["two holders"]
    pen.write("sure", "1.0", 3, 1)
    assert pen.found() == []


def test_one_who_was_paused_until_his_lease_was_over_claims_nothing(pen):
    """Granted first and told last: his number is the smaller one, and that is right."""
    pen.turn(0, 9, 2, 10, fence=1, how="lost")
    pen.turn(0, 3, 12, 11, fence=2, pid=2)
    assert pen.found() == []


def test_a_clock_that_was_set_forward_excuses_so_much_and_no_more(pen):
    pen.turn(0, 1, 4, fence=1)
    pen.turn(0, 3.5, 12, 6, fence=2, pid=2)
    assert pen.found(ahead=0.6) == []
    assert pen.found(ahead=0.4) == ["two holders"]


# -- fences ---------------------------------------------------------------------------------------


def test_a_fence_that_falls_is_found(pen):
    pen.turn(0, 1, 11, 2, fence=2)
    pen.turn(0, 3, 13, 4, fence=1, pid=2)
    assert pen.found() == ["fence fell"]


def test_a_fence_that_falls_long_after_is_found(pen):
    pen.turn(0, 1, 11, 2, fence=5)
    pen.turn(0, 3, 13, 4, fence=6, pid=2)
    pen.turn(5, 6, 16, 7, fence=4, pid=3)
    assert set(pen.found()) == {"fence fell"}


def test_a_fence_that_falls_is_found_with_those_too_who_never_held(pen):
    pen.turn(0, 1, 11, 2, fence=5)
    pen.turn(3, 5, 4, 6, fence=4, pid=2, how="lost")
    assert pen.found() == ["fence fell"]


def test_the_same_fence_twice_is_found(pen):
    pen.turn(0, 1, 11, 2, fence=1)
    pen.turn(0, 3, 13, 4, fence=1, pid=2)
    assert pen.found() == ["same fence"]


def test_the_same_fence_of_two_locks_is_right(pen):
    pen.turn(0, 1, 11, 2, fence=1)
    pen.turn(0, 1, 11, 2, fence=1, pid=2, name="another")
    assert pen.found() == []


@pytest.mark.parametrize("seen", [2, None])
def test_a_stale_holder_who_reads_another_fence_than_his_own_is_found(pen, seen):
    pen.turn(0, 1, 2, 4, fence=1, how="lost")
    pen.write("lost", "1.0", 3, seen, "remaining")
    assert pen.found() == ["fence changed"]


# -- waiting --------------------------------------------------------------------------------------


def test_answers_at_their_time_are_right(pen):
    pen.wait(0, 1.95, between=(1.9, 2))
    pen.wait(0, 2.5, between=(1.9, 2))
    pen.wait(0, 0.1, "ConnectionError", between=(1.9, 2))
    pen.wait(0, 500, "CancelledError")
    assert pen.found() == []


@pytest.mark.parametrize("answer", ["refused", "ConnectionError", "CancelledError"])
def test_who_waited_beyond_his_time_is_found(pen, answer):
    pen.wait(0, 3.1, answer, between=(1.9, 2))
    assert pen.found() == ["late"]


def test_who_was_served_beyond_his_time_is_found(pen):
    number = pen.turn(0, 3.1, 13, 4)
    pen.lines[0] = ["asked", number, "lock", 0, 1.9, 2]
    assert pen.found() == ["late"]


def test_who_was_refused_early_is_found(pen):
    pen.wait(0, 1.8, between=(1.9, 2))
    assert pen.found() == ["refused early"]


def test_who_was_refused_though_he_waits_for_ever_is_found(pen):
    pen.wait(0, 1000)
    assert pen.found() == ["refused early"]


def test_who_never_had_an_answer_is_found_unless_he_was_killed(pen):
    pen.wait(0, None, pid=2)
    assert pen.found() == ["no answer"]
    pen.write("killed", 2)
    assert pen.found() == []


def test_a_pause_excuses_who_was_paused_for_as_long_as_he_was(pen):
    pen.wait(0, 6, between=(1.9, 2), pid=7)
    pen.write("paused", 7, 1, 3)
    assert pen.found() == ["late"]
    pen.write("paused", 7, 3.5, 5)
    assert pen.found() == []


def test_a_pause_of_another_process_is_no_excuse_but_one_of_the_server_is(pen):
    pen.wait(0, 6, between=(1.9, 2), pid=7)
    pen.write("paused", 99, 1, 5)
    assert pen.found() == ["late"]
    assert pen.found(everybody=99) == []


def test_a_pause_before_or_after_is_no_excuse(pen):
    pen.wait(10, 16, between=(1.9, 2), pid=7)
    pen.write("paused", 7, 1, 9)
    pen.write("paused", 7, 17, 30)
    assert pen.found() == ["late"]


def test_who_was_not_served_and_holds_all_the_same_is_found(pen):
    pen.wait(0, 1, "CancelledError", remaining=4.2)
    assert pen.found() == ["holds without knowing"]


# -- words that were not kept ---------------------------------------------------------------------


@pytest.mark.parametrize("how", ["lost", "released"])
def test_a_lock_that_is_lost_while_its_lease_lasts_is_found(pen, how):
    """Told by the release, or by a look before it."""
    if how == "lost":
        pen.turn(0, 1, 11, 2, how="lost")
    else:
        pen.turn(0, 1, 11, 2)
        pen.write("lost", "1.0", 1.5, 1, "remaining")
    assert pen.found() == ["lost while sure"]


def test_a_lock_that_is_lost_after_its_lease_is_no_surprise(pen):
    pen.turn(0, 1, 11, 12, how="lost")
    assert pen.found() == []


def test_a_release_that_nobody_can_tell_of_is_no_loss(pen):
    pen.turn(0, 1, 11, 2, how="gone")
    assert pen.found() == []


def test_a_lock_that_is_never_released_is_found(pen):
    pen.turn(0, 1, 11, 2, how="never")
    number = pen.turn(0, 20, 21, 22, fence=2)
    del pen.lines[-2:]
    assert number == pen.lines[-1][1]
    assert pen.found() == ["not released", "not released"]


# -- being passed over ----------------------------------------------------------------------------


def test_those_who_were_passed_over_are_counted(pen):
    pen.wait(0, 20, "CancelledError")
    for number in range(3):
        pen.turn(5 + number, 6 + number, 16, 6.5 + number, fence=number, pid=2)
    pen.turn(0.5, 10, 20, 11, fence=9, pid=3)
    history = pen.history()
    assert passed_over(history, "lock", since=1.0) == 3
    assert passed_over(history, "lock", since=0.1) == 4
    assert passed_over(history, "lock", since=6.5) == 1
    assert passed_over(history, "another") == 0


# -- the counter ----------------------------------------------------------------------------------


def counted(*steps: tuple[int, str | None], final: int) -> list[str]:
    pen = Pen()
    for number, (before, how) in enumerate(steps):
        pen.write("stepping", f"1.{number}", "counter", before)
        if how is not None:
            pen.write("stepped", f"1.{number}", "counter", how)
    return [rule for rule, _ in check_steps(pen.history(), {"counter": final})]


STEPS = [0, 1, 3, 7, 8, 10, 14]


def test_the_way_of_the_counter_is_the_one_that_is_written_here():
    assert [before + stride(before) for before in STEPS[:-1]] == STEPS[1:]


def test_steps_that_follow_each_other_are_right():
    done = [(before, "done") for before in STEPS[:-1]]
    assert counted(*done, (3, "refused"), final=14) == []


@pytest.mark.parametrize("how", ["unknown", None])
def test_a_step_of_which_nobody_knows_may_have_been_made_or_not(how):
    assert counted((0, "done"), (1, how), final=1) == []
    assert counted((0, "done"), (1, how), final=3) == []
    assert counted((0, "done"), (1, how), (1, "done"), final=3) == []


@pytest.mark.parametrize(
    ("steps", "final"),
    [
        ([(0, "done"), (1, "done"), (1, "done")], 5),  # both read 1, both added 2
        ([(0, "done"), (1, "done"), (1, "done")], 3),  # and one wrote over the other
        ([(0, "done"), (1, "done")], 1),  # a step that was told of is gone
        ([(0, "done"), (1, "refused")], 3),  # refused, and made
        ([(0, "done")], 3),  # nobody went on from 1
        ([(0, "done"), (1, "done")], 4),  # not on the way
    ],
)
def test_a_spoiled_counter_is_found(steps, final):
    assert set(counted(*steps, final=final)) == {"spoiled"}


# -- all at once ----------------------------------------------------------------------------------


def random_history(dice: random.Random) -> Pen:
    """One holder after the other: released, lost, killed, renewed; and who waited in vain."""
    pen, now, fence = Pen(), 0.0, 0
    for pid in range(1, 40):
        asked, now, fence = now - dice.random(), now + dice.random(), fence + dice.randint(1, 3)
        until, how = now + 1 + dice.random(), dice.choice(["released", "lost", None])
        left = {"released": now + dice.random(), "lost": until + dice.random(), None: None}[how]
        pen.turn(asked, now, until, left, fence=fence, pid=pid, how=how)
        pen.wait(asked, asked + 1.95, between=(1.9, 2), pid=pid)
        now = until if how != "released" else left
    return pen


@pytest.mark.parametrize("seed", range(20))
def test_one_wrong_thing_among_many_right_ones_is_found(seed):
    dice = random.Random(seed)
    assert random_history(dice).found() == []

    pen = random_history(dice)
    held = [line for line in pen.lines if line[0] == "held"]
    line = dice.choice(held[1:])
    line[2] -= 5.0  # as if he had been served in the time of others
    assert {"two holders"} <= set(pen.found())

    pen = random_history(dice)
    line, other = dice.sample([line for line in pen.lines if line[0] == "held"], 2)
    line[3], other[3] = other[3], line[3]
    assert set(pen.found()) == {"fence fell"}

    pen = random_history(dice)
    line = dice.choice([line for line in pen.lines if line[0] == "answered"])
    line[2] += dice.choice([-0.1, 1.1])
    assert pen.found() in (["late"], ["refused early"])


# -- the diary ------------------------------------------------------------------------------------


def write_until_killed(path: str) -> None:
    diary = Diary(path)
    turn = diary.asked("lock", 0.0, None)
    print("ready", flush=True)
    while True:
        diary.write("sure", turn, 1.0, 1)


def test_who_is_killed_loses_at_most_his_last_line(tmp_path):
    path = tmp_path / "diary"
    program = f"from test_lock_checker import *; write_until_killed({str(path)!r})"
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": search_path()},
    )
    with process:
        assert process.stdout.readline() == b"ready\n"
        while path.stat().st_size < 100_000:
            pass
        process.kill()
    with path.open("a") as diary:
        diary.write('["answered", "1.0", 12')  # as if the last one had been cut off
    history = read(path)
    assert list(history.turns) == [f"{process.pid}.0"]
    assert history.turns[f"{process.pid}.0"].until == 1.0


def test_a_word_that_nobody_knows_is_an_error():
    pen = Pen()
    number = pen.wait(0, 1, "CancelledError")
    pen.write("slept", number, 1)
    with pytest.raises(ValueError, match="slept"):
        pen.history()
