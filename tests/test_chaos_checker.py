"""The checker of the chaos suite accepts what a correct counter can do, and nothing else."""

from __future__ import annotations

import pytest
from chaos import ledger
from chaos.checker import FULL, Rules, check
from chaos.ledger import Entry, Pen, read
from chaos.schedule import schedule

FAILS_OVER = Rules(fails_over=True)
LOSES = Rules(fails_over=True, loses=True, windows=((10.0, 12.0),))


def sale(outcome, change=-1, asked=1.0, told=None, figure=0, name="stock"):
    told = asked + 0.1 if told is None else told
    return Entry(ledger.STOCK, name, change, asked, outcome, figure, told)


def verdict(entries, left, offered=10, rules=None):
    return check(entries, {"stock": offered}, {"stock": left}, rules or Rules())


# -- the sum -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("outcome", "left", "wrong"),
    [
        ("sold", 9, None),
        ("sold", 10, "lost"),
        ("sold", 8, "double"),
        ("refused", 10, None),
        ("refused", 9, "double"),
        ("unsent", 10, None),
        ("unsent", 9, "double"),
        ("unknown", 10, None),
        ("unknown", 9, None),
        ("unknown", 8, "double"),
        ("untold", 10, None),
        ("untold", 9, None),
        ("untold", 8, "double"),
        ("unsafe", 9, None),
        ("unsafe", 10, "lost"),
        ("unsafe", 8, "double"),
    ],
)
def test_each_outcome_allows_what_it_says(outcome, left, wrong):
    found = verdict([sale(outcome)], left)
    assert bool(found.wrong) is bool(wrong), found
    if wrong:
        assert getattr(found, wrong) == 1


def test_one_who_sells_what_he_has_not_got_is_found_out():
    found = verdict([sale("sold", -6), sale("sold", -6)], -2)
    assert found.oversold == 2


def test_what_is_put_back_counts_the_other_way():
    told = [sale("sold", -3), sale("sold", 2), sale("unknown", 2), sale("unknown", -1)]
    assert [left for left in range(20) if not verdict(told, left).wrong] == [8, 9, 10, 11]


def test_what_is_not_safe_may_be_gone_where_servers_fail_over():
    assert not verdict([sale("unsafe")], 10, rules=FAILS_OVER).wrong
    assert not verdict([sale("unsafe")], 9, rules=FAILS_OVER).wrong
    assert verdict([sale("unsafe")], 8, rules=FAILS_OVER).double == 1


def test_what_was_sold_and_proved_safe_is_lost_nowhere():
    assert verdict([sale("sold")], 10, rules=FAILS_OVER).lost == 1


@pytest.mark.parametrize(
    ("asked", "told", "forgiven"),
    [(10.5, 10.6, 1), (9.9, 10.1, 1), (11.9, 12.5, 1), (9.8, 9.9, 0), (12.1, 12.2, 0)],
)
def test_a_loss_is_forgiven_in_its_window_only(asked, told, forgiven):
    found = verdict([sale("sold", asked=asked, told=told)], 10, rules=LOSES)
    assert (found.forgiven, found.lost) == (forgiven, 1 - forgiven)


def test_a_double_is_forgiven_nowhere():
    found = verdict([sale("sold", asked=10.5, told=10.6)], 8, rules=LOSES)
    assert found.double == 1


def test_what_nobody_may_be_told_is_wrong():
    assert verdict([sale("wrong:KeyError()")], 10).wrong
    assert verdict([Entry(ledger.LOCK, "lock", 0, 1.0, "wrong:KeyError()", 0, 1.1)], 10).wrong
    assert verdict([sale("held")], 10).wrong


def test_a_stock_that_is_gone_is_lost():
    assert verdict([], None).lost == 1


@pytest.mark.parametrize("outcome", ["unsent", "unknown"])
def test_nobody_gives_up_while_there_is_time_left(outcome):
    for known, seconds, fine in ((True, 4, False), (True, 5.1, True), (False, 0.1, True)):
        told = sale(outcome, told=1 + seconds)
        told.known = known
        assert (not verdict([told], 10).wrong) is fine
    assert not verdict([Entry(ledger.LOCK, "lock", 0, 1, outcome, 0, 2, True)], 10).wrong


# -- call by call --------------------------------------------------------------------------------


def marked(outcome, place, asked=1.0):
    return sale(outcome, -(8**place), asked)


def test_marks_tell_each_call_apart():
    told = [marked("sold", 0), marked("sold", 1), marked("refused", 2), marked("unknown", 3)]
    for left in (FULL - 0o11, FULL - 0o1011):
        assert not verdict(told, left, FULL).wrong
    # As much is gone as in the first case, and by nobody who was told so.
    found = verdict(told, FULL - 0o110, FULL)
    assert (found.lost, found.double) == (1, 1)
    assert verdict(told, FULL - 0o21, FULL).double == 1
    assert verdict(told, FULL - 0o2011, FULL).double == 1
    assert verdict(told, FULL - 0o10011, FULL).double == 1, "nobody asked for that"


def test_a_double_cannot_hide_behind_an_unknown():
    told = [marked("sold", 0), marked("unknown", 1)]
    assert verdict(told, FULL - 0o2, FULL).double == 1


def test_a_mark_is_lost_in_its_window_only():
    assert verdict([marked("sold", 5, asked=11)], FULL, FULL, LOSES).forgiven == 1
    assert verdict([marked("sold", 5, asked=13)], FULL, FULL, LOSES).lost == 1


# -- what those were told who were refused -------------------------------------------------------


def short(figure, change, asked, told):
    return sale("short", change, asked, told, figure)


@pytest.mark.parametrize(("figure", "fine"), [(3, False), (4, True), (7, True), (8, False)])
def test_who_is_refused_is_told_what_can_have_been_left(figure, fine):
    before = sale("sold", -3, asked=1, told=2)
    meanwhile = sale("sold", -3, asked=2.5, told=9)
    found = verdict([before, meanwhile, short(figure, -20, 3, 4)], 4)
    assert (not found.wrong) is fine, found


def test_who_could_have_had_it_is_not_refused():
    assert verdict([short(10, -10, 1, 2)], 10).wrong
    assert not verdict([short(10, -11, 1, 2)], 10).wrong


# -- locks ---------------------------------------------------------------------------------------


def held(asked, told, released=float("inf")):
    return Entry(ledger.LOCK, "lock", 0, asked, ledger.HELD, 0, told, released=released)


def test_a_lock_is_held_by_one_after_the_other():
    assert not verdict([held(1, 1.1, 2), held(1.2, 2.1, 3), held(3, 3.1)], 10).wrong
    assert not verdict([held(1, 1.1), held(4, 4.1)], 10).wrong, "its lease was over"
    assert verdict([held(1, 1.1, 2), held(1.2, 1.9, 3)], 10).shared == 1
    assert verdict([held(1, 1.1), held(2, 3.9)], 10).shared == 1
    assert verdict([held(1, 1.1, 3.5), held(1.5, 1.6, 1.7), held(3, 3.2, 3.4)], 10).shared == 2


def test_a_lock_may_be_lost_in_a_window():
    both = [held(10.5, 10.6), held(11, 11.1)]
    assert not verdict(both, 10, rules=LOSES).wrong
    assert verdict(both, 10, rules=FAILS_OVER).shared == 1


# -- ledger and schedule -------------------------------------------------------------------------


def test_a_ledger_says_what_was_asked_and_told(tmp_path):
    pen = Pen(tmp_path / "a.ledger")
    sold, killed, lock = (pen.ask(ledger.STOCK, "s", -2), pen.ask(ledger.STOCK, "s", -1), None)
    pen.tell(sold, ledger.SHORT, 1)
    lock = pen.ask(ledger.LOCK, "l", 0)
    pen.tell(lock, ledger.HELD)
    pen.release(lock)
    with (tmp_path / "a.ledger").open("a") as file:
        file.write("a 9 sto")  # he was killed over it
    one, two, three = read([tmp_path / "a.ledger"])
    assert (one.change, one.outcome, one.figure) == (-2, ledger.SHORT, 1)
    assert killed == 1
    assert (two.outcome, two.told) == (ledger.UNTOLD, float("inf"))
    assert three.told <= three.released < float("inf")


def test_a_seed_says_what_happens():
    weights = {"one": 1, "two": 3, "three": 1}

    def first(seed):
        events = schedule(seed, weights, 1.0)
        return [
            (e.after, e.fault, e.dice.random()) for e, _ in zip(events, range(30), strict=False)
        ]

    assert first("7") == first("7") != first("8")
    assert {fault for _, fault, _ in first("7")[:3]} == set(weights)
