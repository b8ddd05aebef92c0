"""An answer so late that the lease may be over: the lock is asked for anew, with the same token.

Whoever gives up then leaves no lock, whether or not the second question has been sent. The leases
here do not end by themselves: an observer takes the time to live off the lock once it is there.
"""

from __future__ import annotations

import asyncio
import signal
import time

import pytest
import seckill
import seckill.aio
from support.aio import eventually
from support.cancelling import cancelled
from support.programs import Program
from support.relay import pass_on
from support.threads import wait_until

pytestmark = pytest.mark.core

LEASE = 1000
LATER = LEASE / 1000 + 0.1
WITHIN = 10  # seconds until an undoing has been done, generously


class Barrier:
    """In front of a server: what is asked from now on waits until it is let through."""

    def __init__(self, relay):
        self.relay = relay
        self.held = []

    def block(self):
        self.relay.on_request = lambda _connection, data, on: self.held.append(lambda: on(data))

    def let_through(self, number):
        self.held[number]()

    def open(self, number):
        """For this one and all that is asked later."""
        self.relay.on_request = pass_on
        self.let_through(number)


@pytest.fixture
def server(start_server):
    return start_server()


@pytest.fixture
def observer(server):
    return server.redis()


@pytest.fixture
def barrier(server, start_relay):
    return Barrier(start_relay(server))


def is_taken(observer, lock):
    """And from now on no lease ends it."""
    return observer.persist(lock)


def is_given_back(observer, lock):
    observer.persist(lock)
    return not observer.exists(lock)


async def told_late(client, barrier, observer, lock, time_out, *, behind_another):
    """A task that has been told so late that it asks anew; and a call whose batch is before it.

    Without such a call the second question is sent, and held up itself.
    """
    barrier.block()
    acquiring = asyncio.ensure_future(client.acquire_lock(lock, LEASE, time_out))
    await eventually(lambda: barrier.held)
    others = [asyncio.ensure_future(client.incr_inventory("warm"))] if behind_another else []
    await asyncio.sleep(LATER)
    barrier.let_through(0)
    wait_until(lambda: is_taken(observer, lock))
    if behind_another:  # it goes first: the loop does not turn, and has not heard of the answer
        wait_until(lambda: len(barrier.held) == 2)
    await eventually(lambda: len(barrier.held) == 2)
    await asyncio.sleep(0.05)  # the loop hears of it, and asks anew
    assert not acquiring.done()
    return acquiring, others


async def connected(barrier):
    """A client that is connected; the server knows the scripts."""
    client = seckill.aio.Client(barrier.relay.url, socket_timeout=2)
    await client.incr_inventory("warm")
    assert await client.acquire_lock("another", LEASE)
    await client.release_lock("another")
    return client, client.statistics()["calls"]


async def test_a_lock_that_was_told_too_late_is_asked_for_anew(barrier, observer, lock, loop_kind):
    client, _ = await connected(barrier)
    acquiring, _ = await told_late(client, barrier, observer, lock, 30_000, behind_another=False)
    token = observer.get(lock)
    barrier.open(1)
    assert await acquiring is True
    assert observer.get(lock) == token
    assert 0 < observer.pttl(lock) <= LEASE, "it has a lease again"
    await client.release_lock(lock)
    assert not observer.exists(lock)
    await client.aclose()


@pytest.mark.parametrize("sent", [True, False])
async def test_who_is_cancelled_while_asking_anew_leaves_no_lock(
    barrier, observer, lock, loop_kind, sent
):
    client, before = await connected(barrier)
    acquiring, others = await told_late(
        client, barrier, observer, lock, 30_000, behind_another=not sent
    )
    await cancelled(acquiring)
    barrier.open(1)
    await asyncio.gather(*others)
    await eventually(lambda: is_given_back(observer, lock), WITHIN)
    if not sent:
        # The first question, the other call, and the undoing.
        assert client.statistics()["calls"] == before + 3
    await client.aclose()


@pytest.mark.parametrize("sent", [True, False])
async def test_whose_time_is_over_while_asking_anew_leaves_no_lock(
    barrier, observer, lock, loop_kind, sent
):
    client, _ = await connected(barrier)
    acquiring, others = await told_late(
        client, barrier, observer, lock, 2000, behind_another=not sent
    )
    with pytest.raises(seckill.ConnectionError) as caught:
        await acquiring
    assert caught.value.sent is sent
    barrier.open(1)
    await asyncio.gather(*others, return_exceptions=True)
    await eventually(lambda: is_given_back(observer, lock), WITHIN)
    await client.aclose()


def interrupted_while_asking_anew(url, lock, lease):
    import seckill

    with seckill.Client(url, socket_timeout=2) as client:
        client.incr_inventory("warm")
        assert client.acquire_lock("another", lease)
        client.release_lock("another")
        print("ready", flush=True)
        input()
        try:
            client.acquire_lock(lock, lease, 30_000)
        except KeyboardInterrupt:
            print("interrupted", flush=True)
        input()


def test_who_is_interrupted_while_asking_anew_leaves_no_lock(barrier, observer, lock):
    program = Program(interrupted_while_asking_anew, barrier.relay.url, lock, LEASE)
    program.expect("ready")
    barrier.block()
    program.say("go on")
    wait_until(lambda: barrier.held)
    time.sleep(LATER)
    barrier.let_through(0)
    wait_until(lambda: is_taken(observer, lock))
    wait_until(lambda: len(barrier.held) == 2)
    program.process.send_signal(signal.SIGINT)
    program.expect("interrupted")
    barrier.open(1)
    wait_until(lambda: is_given_back(observer, lock), WITHIN)
    program.say("end")
    assert program.ended().value is None
