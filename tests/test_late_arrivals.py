"""Requests that arrive late: after their caller gave up, or as a copy of what was asked again."""

from __future__ import annotations

import pytest
import seckill
from support.clients import connected
from support.proxy import REQUEST, Fault
from support.threads import wait_until


def evaluated(observer):
    """How many scripts the server has run, refused ones included."""
    counts = observer.info("commandstats")
    return sum(counts.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


def late(proxy, observer):
    """Let what was held back arrive; returns when the server has run it."""
    before = evaluated(observer)
    proxy.release()
    wait_until(lambda: evaluated(observer) > before)


class SlowWay:
    """Between a client and its server, and an observer who sees what arrives."""

    def __init__(self, server, proxy):
        self.observer, self.proxy = server.redis(), proxy
        self.observer.set("stock", 10)
        self.client, self.impatient = connected(proxy.url), connected(proxy.url, timeout=0.3)
        # The server knows the scripts: what is held back is what is asked.
        self.client.update_inventory("lock", "stock", 0)
        assert self.client.acquire_lock("another")
        self.client.release_lock("another")

    def hold(self, *, and_refuse=False):
        """What is asked next is held back; asked again, it comes through, or not either."""
        self.proxy.strike(Fault("hold", REQUEST))
        if and_refuse:
            self.proxy.refuse()

    def let_arrive(self):
        late(self.proxy, self.observer)

    @property
    def stock(self):
        return int(self.observer.get("stock"))

    @property
    def lock_exists(self):
        return bool(self.observer.exists("lock"))


@pytest.fixture
def way(own_server, start_proxy):
    return SlowWay(own_server, start_proxy(own_server))


GIVE_UP = {
    "a sale": lambda way: way.client.update_inventory("lock", "stock", -1, time_out=300),
    "a restock": lambda way: way.client.update_inventory("lock", "stock", 3, time_out=300),
    "an increment": lambda way: way.impatient.incr_inventory("stock", 5),
    "an acquire": lambda way: way.client.acquire_lock("lock", 60_000, 300),
}


@pytest.mark.parametrize("what", GIVE_UP)
def test_a_request_that_arrives_after_its_caller_gave_up_changes_nothing(way, what):
    way.hold(and_refuse=True)
    with pytest.raises(seckill.OutcomeUnknown):
        GIVE_UP[what](way)
    way.let_arrive()
    assert way.stock == 10
    assert not way.lock_exists


@pytest.mark.parametrize("times", [1, 3])
def test_a_late_copy_of_a_call_that_was_asked_for_again_changes_nothing(way, times):
    """Nor when later calls came between."""
    way.hold()
    for _ in range(times):
        way.client.update_inventory("lock", "stock", -1, time_out=20_000)
    assert way.client.statistics()["asked_again"] >= 1
    assert way.stock == 10 - times
    way.let_arrive()
    assert way.stock == 10 - times


def test_a_late_copy_does_not_turn_a_refusal_round(way):
    """Refused, restocked by somebody else, and only then the first copy arrives."""
    way.hold()
    with pytest.raises(seckill.InsufficientInventory):
        way.client.update_inventory("lock", "stock", -11, time_out=20_000)
    way.observer.set("stock", 50)
    way.let_arrive()
    assert way.stock == 50


def test_a_late_copy_of_an_acquire_takes_no_lock_that_was_released_since(way):
    way.hold()
    assert way.client.acquire_lock("lock", 60_000, 20_000) is True
    way.client.release_lock("lock")
    way.let_arrive()
    assert not way.lock_exists


def test_a_late_copy_of_a_release_frees_nobody_elses_lock(way):
    assert way.client.acquire_lock("lock", 60_000)
    way.hold()
    way.client.release_lock("lock")
    assert not way.lock_exists
    assert way.client.acquire_lock("lock", 60_000, 0) is True
    way.let_arrive()
    assert way.lock_exists
