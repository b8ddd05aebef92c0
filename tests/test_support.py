"""The tests' own tools do what they claim: a fault that never happens would prove nothing."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from support import old_script
from support.acl import as_observer
from support.programs import run, search_path
from support.proxy import REPLY, REQUEST, Fault, SilentHost, random_faults
from support.servers import BINARIES, KINDS


def through(proxy, retries=0, **options):
    return redis.Redis(
        host=proxy.host, port=proxy.port, retry=Retry(NoBackoff(), retries), **options
    )


def test_every_kind_of_server_is_a_binary_of_its_own():
    found = [path for path in (BINARIES[kind]() for kind in KINDS) if path is not None]
    assert len(set(found)) == len(found)


def test_a_server_answers_on_its_port_and_on_its_unix_socket(server):
    assert server.redis().ping()
    assert redis.Redis.from_url(as_observer(server.unix_url)).ping()


def test_a_frozen_server_is_silent_and_a_thawed_one_answers(start_server):
    server = start_server()
    client = server.redis(socket_timeout=0.2, retry=Retry(NoBackoff(), 0))
    with server.frozen(), pytest.raises(redis.TimeoutError):
        client.ping()
    assert server.redis().ping()


def test_a_killed_server_comes_back_on_its_port_with_its_aof(start_server):
    server = start_server("appendonly yes", "appendfsync always")
    port = server.port
    server.redis().set("a", 1)
    server.kill()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port))
    server.start()
    assert server.port == port
    assert server.redis().get("a") == b"1"


def test_a_good_proxy_changes_nothing(server, start_proxy, key):
    proxy = start_proxy(server)
    client = through(proxy)
    value = bytes(range(256)) * 4096
    client.set(key, value)
    assert client.get(key) == value
    assert proxy.connections == 1
    assert proxy.bytes_seen[REPLY] > len(value) < proxy.bytes_seen[REQUEST]


@pytest.mark.parametrize("action", ["cut", "reset"])
@pytest.mark.parametrize("direction", [REQUEST, REPLY])
def test_a_cut_in_the_request_changes_nothing_and_one_in_the_reply_comes_too_late(
    start_server, start_proxy, action, direction
):
    server = start_server()
    proxy = start_proxy(server, lambda: Fault(action, direction, after=1))
    # No handshake (RESP2, no names): the first byte belongs to INCR.
    client = through(proxy, protocol=2, driver_info=None)
    with pytest.raises(redis.ConnectionError):
        client.incr("a")
    assert server.redis().get("a") == (None if direction == REQUEST else b"1")


def test_a_held_request_arrives_when_it_is_released_though_its_sender_has_gone(
    start_server, start_proxy
):
    server = start_server()
    proxy = start_proxy(server, lambda: Fault("hold", REQUEST))
    with socket.create_connection((proxy.host, proxy.port)) as connection:
        connection.sendall(b"INCR a\r\n")
    time.sleep(0.1)
    assert server.redis().get("a") is None
    proxy.release()
    end = time.monotonic() + 5
    while server.redis().get("a") is None:
        assert time.monotonic() < end
    assert server.redis().get("a") == b"1"


def test_a_client_that_just_sends_again_miscounts_through_the_proxy(start_server, start_proxy):
    """What the ledger tests are measured by: with redis-py's re-sends they would fail."""
    server = start_server()
    proxy = start_proxy(server, random_faults(seed=1, mean_bytes=500))
    client = through(proxy, retries=10, socket_timeout=0.1)
    told = 0
    for _ in range(500):
        client.incr("a")
        told += 1
    assert proxy.faults_met > 10
    assert int(server.redis().get("a")) > told


def test_a_proxy_that_refuses_listens_again_on_its_port(start_server, start_proxy):
    proxy = start_proxy(start_server())
    assert through(proxy).ping()
    proxy.refuse()
    proxy.cut()
    with pytest.raises(redis.ConnectionError):
        through(proxy).ping()
    proxy.listen()
    assert through(proxy).ping()


@pytest.mark.parametrize("full", [False, True])
def test_a_silent_host_takes_the_connection_or_not_even_that(full):
    with SilentHost(full=full) as host, socket.socket() as connection:
        connection.settimeout(0.3)
        if full:
            with pytest.raises(TimeoutError):
                connection.connect((host.host, host.port))
        else:
            connection.connect((host.host, host.port))
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.sendall(b"hello")
            assert host.received() == (1, b"hello")


def test_the_old_script_sells_what_there_is_and_no_more(server, key, lock):
    old_script.connect(server.url)
    old_script.incr_inventory(key, 2)
    old_script.update_inventory(lock, key, -1)
    old_script.update_inventory(lock, key, -1)
    with pytest.raises(ValueError, match="库存不足"):
        old_script.update_inventory(lock, key, -1)
    with pytest.raises(ValueError, match="没有库存"):
        old_script.update_inventory(lock, key + "?", -1)
    assert old_script.acquire_lock(lock)
    assert not old_script.acquire_lock(lock, time_out=50)
    old_script.release_lock(lock)
    assert server.redis().get(key) == b"0"


@pytest.mark.parametrize("under_ci", [True, False])
def test_a_server_that_is_missing_fails_under_ci_and_is_reported_elsewhere(under_ci):
    ended = subprocess.run(
        [sys.executable, "-m", "pytest", __file__, "-k", "unix_socket", "-p", "no:cacheprovider"],
        env={"PATH": "", "PYTHONPATH": search_path()} | ({"CI": "true"} if under_ci else {}),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    told = "1 error" if under_ci else "1 skipped"
    assert "3 passed" in ended.stdout
    assert told in ended.stdout
    assert "so nothing was tried on: debian" in ended.stdout
    assert ended.returncode == (1 if under_ci else 0)


def add(a, b):
    return a + b


def hang():
    import threading

    threading.Event().wait()


def test_a_program_returns_its_value_and_a_hanging_one_shows_where_it_hangs():
    assert run(add, 1, 2).value == 3
    ended = run(hang, limit=1)
    assert ended.status != 0
    assert "in hang" in ended.stderr
