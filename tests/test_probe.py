"""The connection that the doctor looks through: replies as they are, bounded, interruptible."""

from __future__ import annotations

import os
import signal
import threading

import pytest
import seckill
from seckill._core import Probe
from support.proxy import SilentHost
from support.servers import Server


@pytest.fixture
def probe(server: Server) -> Probe:
    return Probe(seckill.Client(server.open_url))


class TestReplies:
    def test_are_python_objects(self, probe: Probe, key: str) -> None:
        assert probe.ask("SET", key, "7", "PX", "60000") == "OK"
        assert probe.ask("GET", key) == "7"
        assert probe.ask("INCR", key) == 8
        assert probe.ask("MGET", key, f"{key}:missing") == ["8", None]
        assert str(probe.ask("INFO", "server")).startswith("# Server")
        assert probe.ask("CONFIG", "GET", "maxmemory") == {"maxmemory": "0"}

    def test_are_bytes_where_they_are_no_text(self, probe: Probe, key: str, server: Server) -> None:
        server.redis().set(key, b"\xff", px=60_000)
        assert probe.ask("GET", key) == b"\xff"

    def test_that_are_errors_are_values(self, probe: Probe) -> None:
        error = probe.ask("NONSENSE", "a")
        assert isinstance(error, seckill.ServerError)
        assert error.code == "ERR"
        inside = probe.ask("EVAL", "return {1, redis.error_reply('NO way')}", "0")
        assert isinstance(inside, list)
        assert isinstance(inside[1], seckill.ServerError)
        assert probe.ask("PING") == "PONG"

    def test_what_is_told_unasked_is_kept_apart(self, probe: Probe, key: str) -> None:
        assert probe.pushes() == []
        for words in (("CLIENT", "TRACKING", "ON"), ("GET", key), ("SET", key, "1", "PX", "9000")):
            probe.ask(*words)
        assert probe.ask("PING") == "PONG"
        assert probe.pushes() == [("invalidate", [[key]])]
        assert probe.pushes() == []


def test_it_uses_the_settings_of_a_client(server: Server, key: str) -> None:
    url = server.open_url.rpartition("/")[0] + "/5"
    Probe(seckill.Client(url)).ask("SET", key, "1", "PX", "60000")
    assert server.redis(db=5).get(key) == b"1"


def test_without_an_answer_it_closes_within_the_socket_timeout(server: Server, key: str) -> None:
    probe = Probe(seckill.Client(server.open_url, socket_timeout=0.2))
    with pytest.raises(seckill.ConnectionError, match="no answer within 200 ms"):
        probe.ask("BLPOP", key, "0")
    with pytest.raises(seckill.ConnectionError, match="closed"):
        probe.ask("PING")


def test_a_connection_is_opened_within_its_time_out() -> None:
    with SilentHost() as host, pytest.raises(seckill.ConnectionError, match="handshake"):
        Probe(seckill.Client(host.url, socket_timeout=0.2))


def test_a_signal_handler_ends_the_wait(server: Server, key: str) -> None:
    probe = Probe(seckill.Client(server.open_url, socket_timeout=100))
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        probe.ask("BLPOP", key, "0")


def test_in_a_forked_child_it_is_the_parents(probe: Probe) -> None:
    child = os.fork()
    if child == 0:
        try:
            probe.ask("PING")
        except seckill.ConnectionError:
            os._exit(7)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    assert probe.ask("PING") == "PONG"
