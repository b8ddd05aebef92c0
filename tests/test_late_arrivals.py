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


@pytest.mark.parametrize("change", [-1, 3])
def test_a_request_that_arrives_after_its_caller_gave_up_changes_nothing(
    own_server, start_proxy, change
):
    observer = own_server.redis()
    observer.set("stock", 10)
    proxy = start_proxy(own_server)
    client = connected(proxy.url)
    client.update_inventory("lock", "stock", 0)
    proxy.strike(Fault("hold", REQUEST))
    proxy.refuse()
    with pytest.raises(seckill.OutcomeUnknown):
        client.update_inventory("lock", "stock", change, time_out=300)
    late(proxy, observer)
    assert observer.get("stock") == b"10"


def test_an_increment_that_arrives_after_its_caller_gave_up_changes_nothing(
    own_server, start_proxy
):
    observer = own_server.redis()
    proxy = start_proxy(own_server)
    client = connected(proxy.url, timeout=0.3)
    proxy.strike(Fault("hold", REQUEST))
    proxy.refuse()
    with pytest.raises(seckill.OutcomeUnknown):
        client.incr_inventory("stock", 5)
    late(proxy, observer)
    assert not observer.exists("stock")


def test_an_acquire_that_arrives_after_its_caller_gave_up_takes_no_lock(own_server, start_proxy):
    observer = own_server.redis()
    proxy = start_proxy(own_server)
    client = connected(proxy.url)
    assert client.acquire_lock("lock")
    client.release_lock("lock")
    proxy.strike(Fault("hold", REQUEST))
    proxy.refuse()
    with pytest.raises(seckill.ConnectionError):
        client.acquire_lock("lock", 60_000, 300)
    late(proxy, observer)
    assert not observer.exists("lock")


def test_a_late_copy_of_a_call_that_was_asked_for_again_changes_nothing(own_server, start_proxy):
    observer = own_server.redis()
    observer.set("stock", 10)
    proxy = start_proxy(own_server)
    client = connected(proxy.url)
    client.update_inventory("lock", "stock", 0)
    proxy.strike(Fault("hold", REQUEST))
    client.update_inventory("lock", "stock", -1, time_out=20_000)
    assert client.statistics()["asked_again"] >= 1
    assert observer.get("stock") == b"9"
    late(proxy, observer)
    assert observer.get("stock") == b"9"


def test_a_late_copy_changes_nothing_either_when_later_calls_came_between(own_server, start_proxy):
    observer = own_server.redis()
    observer.set("stock", 10)
    proxy = start_proxy(own_server)
    client = connected(proxy.url)
    client.update_inventory("lock", "stock", 0)
    proxy.strike(Fault("hold", REQUEST))
    for _ in range(3):
        client.update_inventory("lock", "stock", -1, time_out=20_000)
    late(proxy, observer)
    assert observer.get("stock") == b"7"


def test_a_late_copy_does_not_turn_a_refusal_round(own_server, start_proxy):
    """Refused, restocked by somebody else, and only then the first copy arrives."""
    observer = own_server.redis()
    observer.set("stock", 0)
    proxy = start_proxy(own_server)
    client = connected(proxy.url)
    client.update_inventory("lock", "stock", 0)
    proxy.strike(Fault("hold", REQUEST))
    with pytest.raises(seckill.InsufficientInventory):
        client.update_inventory("lock", "stock", -1, time_out=20_000)
    observer.set("stock", 5)
    late(proxy, observer)
    assert observer.get("stock") == b"5"


def test_a_late_copy_of_an_acquire_takes_no_lock_that_was_released_since(own_server, start_proxy):
    observer = own_server.redis()
    proxy = start_proxy(own_server)
    client = connected(proxy.url)
    assert client.acquire_lock("other")
    proxy.strike(Fault("hold", REQUEST))
    assert client.acquire_lock("lock", 60_000, 20_000) is True
    client.release_lock("lock")
    late(proxy, observer)
    assert not observer.exists("lock")


def test_a_late_copy_of_a_release_frees_nobody_elses_lock(own_server, start_proxy):
    observer = own_server.redis()
    proxy = start_proxy(own_server)
    client = connected(proxy.url)
    assert client.acquire_lock("lock", 60_000)
    proxy.strike(Fault("hold", REQUEST))
    client.release_lock("lock")
    assert not observer.exists("lock")
    assert client.acquire_lock("lock", 60_000, 0) is True
    late(proxy, observer)
    assert observer.exists("lock")
