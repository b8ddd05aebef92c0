"""A first connection that does not come about: the error of the sync face, and at once."""

from __future__ import annotations

import asyncio
import re
import time
from typing import Any

import pytest
import seckill
import seckill.aio
from support.programs import run
from support.proxy import SilentHost
from support.servers import free_port

pytestmark = pytest.mark.core

CALLS = {
    "acquire_lock": lambda face: face.acquire_lock("lock", 5000, 30_000),
    "release_lock": lambda face: face.release_lock("held"),
    "incr_inventory": lambda face: face.incr_inventory("stock", 1),
    "update_inventory": lambda face: face.update_inventory("lock", "stock", -1, 5000, 30_000),
}
WITHOUT_LOCK = [name for name in CALLS if name != "release_lock"]  # with no lock it sends nothing


def described(error: BaseException) -> tuple[object, ...]:
    """What a caller sees of an error, but for figures that differ from run to run."""
    return (
        type(error),
        re.sub(r"\d+", "N", str(error)),
        getattr(error, "sent", None),
        error.args[1:],
    )


def plain_error(client: seckill.Client, call: str) -> BaseException:
    with pytest.raises(seckill.SeckillError) as raised:
        CALLS[call](client)
    return raised.value


async def awaited_error(client: Any, call: str) -> BaseException:
    started = time.monotonic()
    with pytest.raises(seckill.SeckillError) as raised:
        await CALLS[call](client)
    assert time.monotonic() - started < 10, "at once, and not after its time_out of 30 s"
    return raised.value


async def both(call: str, *source: Any, **options: Any) -> BaseException:
    """The error of the asyncio face, which is that of the sync face."""
    error = await awaited_error(seckill.aio.Client(*source, **options), call)
    plain = plain_error(seckill.Client(*source, **options), call)
    assert described(error) == described(plain)
    return error


@pytest.mark.parametrize("call", WITHOUT_LOCK)
async def test_a_refused_connection(loop_kind, call):
    """server cannot be reached"""
    error = await both(call, host="127.0.0.1", port=free_port())
    assert type(error).__name__ == "ConnectionError"
    assert error.sent is False  # type: ignore[attr-defined]


@pytest.mark.parametrize("call", WITHOUT_LOCK)
async def test_an_unknown_host(loop_kind, call):
    error = await both(call, "redis://no-such-host.invalid")
    assert type(error).__name__ == "ConnectionError"
    assert error.sent is False  # type: ignore[attr-defined]


async def test_a_unix_socket_that_is_not_there(loop_kind, tmp_path):
    error = await both("incr_inventory", unix_socket_path=str(tmp_path / "socket"))
    assert error.sent is False  # type: ignore[attr-defined]


@pytest.mark.parametrize("call", WITHOUT_LOCK)
@pytest.mark.parametrize("password", [None, "wrong"])
async def test_wrong_credentials(start_server, loop_kind, call, password):
    server = start_server(password="right")
    error = await both(call, host=server.host, port=server.port, password=password)
    assert type(error).__name__ == "AuthenticationError"
    assert not server.redis().exists("stock", "lock")


async def test_a_database_that_there_is_not(start_server, loop_kind):
    server = start_server()
    error = await both("incr_inventory", host=server.host, port=server.port, db=999)
    assert isinstance(error, seckill.ServerError)


@pytest.mark.parametrize("call", WITHOUT_LOCK)
async def test_a_server_that_does_not_let_us(start_server, loop_kind, call):
    server = start_server()
    server.redis().execute_command("ACL", "SETUSER", "shop", "on", "nopass", "+@all", "~seckill:*")
    error = await both(call, host=server.host, port=server.port, username="shop")
    assert isinstance(error, seckill.ServerError)
    assert error.code == "NOPERM"


async def test_something_that_is_no_redis_server(loop_kind):
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1024)
        writer.write(b"HTTP/1.1 400 Bad Request\r\nServer: other\r\n\r\n")
        writer.close()

    listener = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    error = await awaited_error(seckill.aio.Client(host="127.0.0.1", port=port), "incr_inventory")
    assert type(error).__name__ == "ConnectionError"
    assert error.sent is False  # type: ignore[attr-defined]
    listener.close()
    await listener.wait_closed()


# -- cancelled meanwhile ---------------------------------------------------------------------------


def cancels_while_connecting(url):
    import asyncio
    import time

    import seckill.aio
    from support.threads import native_threads

    async def cancel() -> float:
        client = seckill.aio.Client(url, socket_timeout=60, socket_connect_timeout=60, timeout=60)
        tasks = [
            asyncio.ensure_future(client.acquire_lock("lock", 60_000, 60_000)),
            asyncio.ensure_future(client.update_inventory("lock", "stock", -1, 5000, 60_000)),
            asyncio.ensure_future(client.incr_inventory("stock")),
        ]
        await asyncio.sleep(0.2)
        assert native_threads() > 1
        began = time.monotonic()
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        assert all(task.cancelled() for task in tasks)
        took = time.monotonic() - began
        while native_threads() > 1 and time.monotonic() < began + 30:
            await asyncio.sleep(0.05)
        return [took, native_threads()]

    return asyncio.run(cancel())


@pytest.mark.parametrize("full", [False, True], ids=["handshake", "connect"])
def test_calls_that_are_cancelled_while_connecting_end_at_once_and_so_does_the_attempt(full):
    """Nobody wants the connection any more: the thread that is at it goes."""
    with SilentHost(full=full) as host:
        took, threads = run(cancels_while_connecting, host.url, limit=60).value
        assert took < 5
        assert threads == 1
        assert b"EVAL" not in host.received()[1]
