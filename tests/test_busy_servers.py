"""A server that has no time for anybody, until the callers' time is over: what it has refused has
not been done, and the callers are told so."""

from __future__ import annotations

import contextlib

import pytest
import redis
import seckill
from support.clients import connected
from support.threads import call, wait_until

pytestmark = pytest.mark.core

CALLS = {
    "update_inventory": lambda client: client.update_inventory("lock", "stock", -1, 5000, 300),
    "incr_inventory": lambda client: client.incr_inventory("stock", 1),
    "acquire_lock": lambda client: client.acquire_lock("free", 5000, 300),
    "release_lock": lambda client: client.release_lock("mine"),
}


@contextlib.contextmanager
def busy(server):
    """It runs somebody's endless script, and refuses everything else."""
    observer, endless = server.redis(), server.redis()
    observer.config_set("lua-time-limit", 1)

    def run_for_ever():
        with pytest.raises(redis.exceptions.ResponseError):
            endless.eval("while true do end", 0)

    def refuses():
        try:
            observer.ping()
        except redis.exceptions.ResponseError:
            return True

    running = call(run_for_ever)
    wait_until(refuses)
    try:
        yield
    finally:
        observer.script_kill()
        running.result()


@pytest.mark.parametrize("function", CALLS)
def test_what_a_busy_server_refused_to_the_end_is_known_not_to_be_done(
    own_server, observer, function
):
    observer.set("stock", 10)
    for _ in range(5):
        client = connected(own_server.url, socket_timeout=0.3, timeout=0.3)
        assert client.acquire_lock("mine", 60_000)
        with busy(own_server), pytest.raises(seckill.ConnectionError, match="BUSY") as caught:
            CALLS[function](client)
        assert observer.get("stock") == b"10"
        assert observer.exists("mine")
        assert not observer.exists("free")
        client.release_lock("mine")
        if not isinstance(caught.value, seckill.OutcomeUnknown):
            break  # else the last attempt was under way when the time was over
    assert not isinstance(caught.value, seckill.OutcomeUnknown)
    assert caught.value.sent is False
    client.update_inventory("mine", "stock", -1)
    assert observer.get("stock") == b"9"
