"""Nothing happens before it is needed: no I/O, no thread, no import that takes long."""

from __future__ import annotations

import pytest
from support.programs import run
from support.proxy import SilentHost

pytestmark = pytest.mark.core


def import_and_configure(url):
    import sys

    from support.threads import native_threads, open_files

    before = open_files(), native_threads()
    import seckill

    seckill.configure(url)
    seckill.Client(url)
    seckill.Client(host="127.0.0.1", port=1, password="secret")
    repr(seckill.Client(url))
    after = open_files(), native_threads()
    return [before, after, "redis" in sys.modules, "asyncio" in sys.modules]


def test_importing_and_configuring_do_no_io_and_start_no_thread():
    with SilentHost() as host:
        before, after, redis, asyncio = run(import_and_configure, host.url).value
        assert host.received() == (0, b"")
    assert before == after
    assert not redis
    assert not asyncio


def threads_after_calls(url):
    import seckill
    from support.threads import native_threads

    client = seckill.configure(url)
    for _ in range(10):
        seckill.incr_inventory("stock", 1)
        seckill.update_inventory("lock", "stock", -1)
        assert seckill.acquire_lock("lock")
        seckill.release_lock("lock")
    return [native_threads(), client.statistics()["connects"]]


def test_calls_that_wait_for_nobody_start_no_thread(server):
    assert run(threads_after_calls, server.url).value == [1, 1]


def default_of_the_environment():
    import seckill

    seckill.incr_inventory("from-environment", 1)


@pytest.mark.parametrize(
    "variables",
    [
        {"SECKILL_REDIS_URL": "{url}"},
        {"REDIS_URL": "{url}"},
        {"SECKILL_REDIS_URL": "{url}", "REDIS_URL": "redis://127.0.0.1:1"},
        {"SECKILL_REDIS_URL": "", "REDIS_URL": "{url}"},
    ],
)
def test_the_functions_talk_to_the_server_that_the_environment_names(start_server, variables):
    server = start_server()
    env = {name: value.format(url=server.url) for name, value in variables.items()}
    assert run(default_of_the_environment, env=env).value is None
    assert server.redis().get("from-environment") == b"1"
