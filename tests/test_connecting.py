"""The first connection: as whom, and for how long it is tried."""

from __future__ import annotations

import contextlib
import signal
import socket
import threading
import time

import pytest
import seckill

pytestmark = pytest.mark.core


@pytest.mark.parametrize("how", ["keyword", "url"])
def test_a_user_without_a_password_is_that_user(own_server, how):
    observer = own_server.redis()
    observer.execute_command("ACL", "SETUSER", "alice", "on", "nopass", "~shop:*", "~seckill:*")
    observer.execute_command("ACL", "SETUSER", "alice", "+@all")
    if how == "keyword":
        client = seckill.Client(host=own_server.host, port=own_server.port, username="alice")
    else:
        client = seckill.Client(f"redis://alice@{own_server.host}:{own_server.port}")
    client.incr_inventory("shop:stock", 1)
    with pytest.raises(seckill.ServerError, match="NOPERM"):
        client.incr_inventory("elsewhere", 1)
    assert not observer.exists("elsewhere")


def test_a_call_has_an_attempt_of_its_own_after_another_was_interrupted(own_server):
    """What an interrupted call has begun to connect is not what the next one fails on."""
    client = seckill.Client(own_server.url)

    def interrupt(*_):
        raise KeyboardInterrupt

    own_server.freeze()
    former = signal.signal(signal.SIGALRM, interrupt)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        with pytest.raises(KeyboardInterrupt):
            client.incr_inventory("stock", 1)
    finally:
        signal.signal(signal.SIGALRM, former)
    time.sleep(1.2)  # longer than an attempt may take
    threading.Timer(0.2, own_server.thaw).start()
    client.incr_inventory("stock", 1)


def test_a_unix_socket_with_a_full_backlog_is_waited_for(own_server):
    own_server.freeze()
    with contextlib.ExitStack() as queue:
        full = False
        while not full:
            guest = queue.enter_context(socket.socket(socket.AF_UNIX))
            guest.setblocking(False)
            try:
                guest.connect(own_server.socket_path)
            except BlockingIOError:
                full = True
        threading.Timer(0.3, own_server.thaw).start()
        seckill.Client(own_server.unix_url).incr_inventory("stock", 1)
