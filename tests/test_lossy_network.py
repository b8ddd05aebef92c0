"""A network that cuts, swallows, resets and delays: a call counts once, or is known not to."""

from __future__ import annotations

import os
import socket
import threading
import time

import pytest
import seckill
from support.clients import connected
from support.ledger import Ledger
from support.proxy import REPLY, REQUEST, Fault, SilentHost, in_turn, random_faults
from support.servers import KINDS
from support.threads import all_of, call, wait_until

ROUNDS = 40 if os.environ.get("SECKILL_STRESS") else 1


@pytest.mark.stress
@pytest.mark.parametrize("round_", range(ROUNDS))
def test_thousands_of_calls_through_a_lossy_network_add_up(server, start_proxy, key, lock, round_):
    offered = 100_000
    server.redis().set(key, offered)
    proxy = start_proxy(server)
    client = connected(proxy.url)
    proxy.faults = random_faults(seed=100 * round_ + KINDS.index(server.kind), mean_bytes=3000)
    proxy.cut()
    ledger = Ledger()

    def buyer():
        for i in range(500):
            # Four out of five take, the fifth puts back.
            units = 1 + i % 3 if i % 5 else -2
            ledger.buy(client.update_inventory, lock, key, units, time_out=20_000)

    all_of([buyer] * 8)
    left = int(server.redis().get(key))
    assert ledger.calls == 4000
    assert ledger.unknown <= 20, "with so much time, nearly every outcome can be learnt"
    assert ledger.refused == 0
    assert ledger.fits(offered, left), (ledger, left)
    assert proxy.faults_met > 20
    assert client.statistics()["asked_again"] > 10


def test_impatient_calls_through_a_lossy_network_are_consistent(server, start_proxy, key, lock):
    """Short time_outs: more outcomes stay unknown, and the sum holds either way."""
    offered = 100_000
    server.redis().set(key, offered)
    proxy = start_proxy(server)
    client = connected(proxy.url, socket_timeout=0.02)
    proxy.faults = random_faults(seed=KINDS.index(server.kind), mean_bytes=2000)
    proxy.cut()
    ledger = Ledger()

    def buyer():
        for _ in range(300):
            ledger.buy(client.update_inventory, lock, key, 1, time_out=20)

    all_of([buyer] * 8)
    left = int(server.redis().get(key))
    assert ledger.sold > 100
    assert ledger.fits(offered, left), (ledger, left)
    assert proxy.faults_met > 10


def test_a_lost_reply_is_no_lock_out(server, start_proxy, lock):
    """A lease of a minute: whoever fails to know his own token again would wait for its end."""
    proxy = start_proxy(server)
    client = connected(proxy.url)
    proxy.faults = random_faults(seed=KINDS.index(server.kind), mean_bytes=3000)
    proxy.cut()
    observer = server.redis()
    for _ in range(150):
        assert client.acquire_lock(lock, 60_000, 20_000) is True
        assert observer.exists(lock)
        client.release_lock(lock)
        assert not observer.exists(lock)
    assert proxy.faults_met > 10


# -- one fault at a time ----------------------------------------------------------------------


@pytest.mark.parametrize("action", ["cut", "reset"])
@pytest.mark.parametrize("direction", [REQUEST, REPLY])
def test_a_cut_at_any_byte_of_a_call_is_repaired(server, start_proxy, key, lock, action, direction):
    observer = server.redis()
    observer.set(key, 10_000)
    proxy = start_proxy(server)
    client = connected(proxy.url)
    client.update_inventory(lock, key, -1)
    before = proxy.bytes_seen[direction]
    client.update_inventory(lock, key, -1)
    length = proxy.bytes_seen[direction] - before
    assert 0 < length < 2000
    for byte in range(length):
        proxy.strike(Fault(action, direction, byte))
        client.update_inventory(lock, key, -1)
    # Replies differ by a byte or two: one that is shorter than the first gets away.
    assert proxy.faults_met >= length - 4
    assert int(observer.get(key)) == 10_000 - 2 - length


@pytest.mark.parametrize("action", ["cut", "reset", "swallow"])
@pytest.mark.parametrize("direction", [REQUEST, REPLY])
def test_a_fault_at_any_byte_of_the_handshake_is_got_over(
    server, start_proxy, key, lock, action, direction
):
    """By a client that was connected before: a reconnect that fails is tried again."""
    observer = server.redis()
    observer.set(key, 10_000)
    proxy = start_proxy(server)
    client = connected(proxy.url, socket_timeout=0.05)
    length = proxy.bytes_seen[direction]
    places = range(0, length, 3 if action != "swallow" else 50)
    for byte in places:
        proxy.faults = in_turn(Fault(action, direction, byte))
        proxy.cut()
        client.update_inventory(lock, key, -1, time_out=20_000)
    assert int(observer.get(key)) == 10_000 - len(places)


@pytest.mark.parametrize("direction", [REQUEST, REPLY])
def test_a_connection_that_falls_silent_is_replaced(server, start_proxy, key, lock, direction):
    server.redis().set(key, 1000)
    proxy = start_proxy(server)
    client = connected(proxy.url)
    client.update_inventory(lock, key, 0)
    for byte in (0, 1, 20, 100):
        proxy.strike(Fault("swallow", direction, byte))
        for _ in range(20):
            client.update_inventory(lock, key, -1, time_out=20_000)
    assert proxy.faults_met == 4
    assert server.redis().get(key) == b"920"


# -- outcomes that cannot be learnt -----------------------------------------------------------


@pytest.mark.parametrize(("direction", "left"), [(REQUEST, b"10"), (REPLY, b"9")])
def test_an_outcome_that_cannot_be_learnt_is_unknown_and_final(
    server, start_proxy, key, lock, direction, left
):
    """reply lost, outcome cannot be learnt within time_out"""
    observer = server.redis()
    observer.set(key, 10)
    proxy = start_proxy(server)
    client = connected(proxy.url)
    proxy.strike(Fault("swallow", direction))
    proxy.refuse()
    start = time.monotonic()
    with pytest.raises(seckill.OutcomeUnknown) as caught:
        client.update_inventory(lock, key, -1, time_out=400)
    assert 0.3 < time.monotonic() - start < 5
    assert isinstance(caught.value, ConnectionError)
    assert caught.value.sent is True
    assert observer.get(key) == left
    # The way is free again, and the client goes on: what was given up stays as it was.
    proxy.listen()
    client.update_inventory(lock, key, -2, time_out=20_000)
    assert int(observer.get(key)) == int(left) - 2


def test_a_call_that_was_never_sent_says_so(server, start_proxy, key, lock):
    """server cannot be reached"""
    server.redis().set(key, 10)
    proxy = start_proxy(server)
    client = connected(proxy.url)
    proxy.refuse()
    proxy.cut()
    wait_until(lambda: not proxy.links)
    # The first to notice may find it out by writing into the dead connection.
    with pytest.raises(seckill.ConnectionError):
        client.update_inventory(lock, key, -1, time_out=200)
    with pytest.raises(seckill.ConnectionError) as caught:
        client.update_inventory(lock, key, -1, time_out=200)
    assert type(caught.value).__name__ == "ConnectionError"
    assert caught.value.sent is False
    assert server.redis().get(key) == b"10"


def test_the_outcomes_of_a_whole_batch_are_unknown_together_and_fit_the_stock(
    server, start_proxy, key, lock
):
    server.redis().set(key, 100)
    proxy = start_proxy(server)
    client = connected(proxy.url)
    ledger = Ledger()
    proxy.strike(Fault("swallow", REPLY))
    proxy.refuse()
    all_of([lambda: ledger.buy(client.update_inventory, lock, key, 1, time_out=300)] * 10)
    assert ledger.sold == 0
    assert ledger.fits(100, int(server.redis().get(key)))
    proxy.listen()
    all_of([lambda: ledger.buy(client.update_inventory, lock, key, 1, time_out=20_000)] * 10)
    assert ledger.sold == 10
    assert ledger.fits(100, int(server.redis().get(key)))


# -- no server at the other end ---------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
def test_a_host_that_never_answers_is_a_connection_error_in_time(full, key, lock):
    with SilentHost(full=full) as host:
        client = seckill.Client(host.url, socket_timeout=0.2)
        for function in (
            lambda: client.update_inventory(lock, key, -1, time_out=500),
            lambda: client.acquire_lock(lock, time_out=500),
        ):
            start = time.monotonic()
            with pytest.raises(seckill.ConnectionError) as caught:
                function()
            assert time.monotonic() - start < 5
            assert caught.value.sent is False


def test_an_answer_that_is_not_redis_is_a_connection_error(key, lock):
    """A typo in the port that leads to another service."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1024)
                    connection.sendall(b"HTTP/1.1 400 Bad Request\r\nServer: other\r\n\r\n")

        threading.Thread(target=serve, daemon=True).start()
        host, port = listener.getsockname()
        client = seckill.Client(host=host, port=port)
        start = time.monotonic()
        with pytest.raises(seckill.ConnectionError) as caught:
            client.update_inventory(lock, key, -1, time_out=30_000)
        assert time.monotonic() - start < 5
        assert caught.value.sent is False
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("junk", [b"*1000000000\r\n", b"$99999999999\r\n", b"\x00" * 100, b"+"])
def test_a_reply_of_nonsense_ends_the_connection_and_nothing_else(
    server, start_proxy, key, lock, junk
):
    """Nothing is allocated on its word, nothing hangs; the call is asked for again."""
    server.redis().set(key, 10)
    proxy = start_proxy(server)
    client = connected(proxy.url)
    proxy.strike(Fault("say", REPLY, junk=junk))
    client.update_inventory(lock, key, -1, time_out=20_000)
    assert server.redis().get(key) == b"9"
    assert client.statistics()["connects"] == 2


def test_a_slow_network_is_only_slow(server, start_proxy, key, lock):
    server.redis().set(key, 1000)
    proxy = start_proxy(server)
    client = connected(proxy.url, socket_timeout=5)
    proxy.faults = lambda: Fault("delay", REPLY, 100, seconds=0.02)
    proxy.cut()
    callers = [call(client.update_inventory, lock, key, -1) for _ in range(30)]
    for caller in callers:
        caller.result()
    assert server.redis().get(key) == b"970"
