"""What host programs do to the library: daemons, SIGPIPE, a fork in the very first call."""

from __future__ import annotations

import pytest
from support.acl import as_observer
from support.programs import run

pytestmark = pytest.mark.core


def become_a_daemon(url, path):
    import os
    from pathlib import Path

    import seckill

    seckill.configure(url)
    seckill.incr_inventory("stock", 100)
    child = os.fork()
    if child == 0:
        os.closerange(3, 200)  # what every daemonizer does
        logs = [os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND) for _ in range(20)]
        seckill.update_inventory("lock", "stock", -1)
        wrong = [fd for fd in logs if Path(f"/proc/self/fd/{fd}").readlink() != Path(path)]
        os._exit(len(wrong))
    wrong = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seckill.update_inventory("lock", "stock", -1)
    return wrong


def test_a_daemon_keeps_the_files_that_it_opened_in_place_of_the_parents_sockets(
    start_server, tmp_path
):
    server = start_server()
    assert run(become_a_daemon, server.url, str(tmp_path / "log")).value == 0
    assert server.redis().get("stock") == b"98"


def lose_the_connection_without_sigpipe(url, observer_url):
    import signal

    import redis
    import seckill

    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # what command-line tools do
    seckill.configure(url)
    for _ in range(3):
        seckill.incr_inventory("stock", 1)
        with redis.Redis.from_url(observer_url) as observer:
            observer.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    seckill.incr_inventory("stock", 1)
    return True


@pytest.mark.parametrize("kind", ["url", "unix_url"])
def test_a_lost_connection_does_not_end_a_program_that_has_sigpipe_at_its_default(
    start_server, kind
):
    server = start_server()
    url = getattr(server, kind)
    assert run(lose_the_connection_without_sigpipe, url, as_observer(server.url)).value is True
    assert server.redis().get("stock") == b"4"


def fork_in_the_first_call(url, times):
    import os
    import random
    import signal
    import threading
    import time

    statuses = []
    for _ in range(times):
        fresh = os.fork()
        if fresh == 0:
            import seckill  # here, so that nothing of it is warm

            client = seckill.Client(url)
            gate = threading.Barrier(2)

            def first_call(gate=gate, client=client):
                gate.wait()
                client.incr_inventory("stock", 1)

            thread = threading.Thread(target=first_call)
            thread.start()
            gate.wait()
            time.sleep(random.random() * 0.0005)
            child = os.fork()
            if child == 0:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)
                signal.alarm(10)
                client.incr_inventory("stock", 1)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            thread.join()
            os._exit(1 if status else 0)
        statuses.append(os.waitpid(fresh, 0)[1])
    return sum(map(bool, statuses))


def test_a_child_of_a_fork_in_the_middle_of_the_first_call_does_not_hang(start_server):
    server = start_server()
    assert run(fork_in_the_first_call, server.unix_url, 150, limit=120).value == 0
    assert server.redis().get("stock") == b"300"
