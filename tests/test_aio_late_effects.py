"""A cancelled call is not made later: what was not sent is not sent, what was has a short limit."""

from __future__ import annotations

import asyncio

import pytest
import seckill
import seckill.aio
from support.aio import eventually, waiting
from support.cancelling import cancelled, stays
from support.proxy import REPLY, REQUEST, Fault, in_turn
from support.relay import Relay, pass_on
from test_late_arrivals import late

pytestmark = pytest.mark.core


async def test_a_call_that_was_not_sent_to_a_stopped_server_is_not_made_later(
    start_server, name, loop_kind
):
    server = start_server()
    observer = server.redis()
    observer.mset({"stock": 10, "other": 10})
    async with seckill.aio.Client(server.url) as client:
        await client.update_inventory("lock", "stock", 0)
        server.freeze()
        (under_way,) = await waiting(client, client.update_inventory("lock", "other", -1))
        queued = await waiting(
            client,
            client.update_inventory("lock", "stock", -1),
            client.incr_inventory("stock", 1),
            client.incr_inventory("created", 1),
        )
        for task in queued:
            await cancelled(task)
        server.thaw()
        await under_way
        assert observer.get("other") == b"9"
        assert await stays(observer, "stock", b"10")
        assert not observer.exists("created")


async def test_a_call_that_was_sent_to_a_stopped_server_is_not_made_after_socket_timeout(
    start_server, name, loop_kind
):
    server = start_server()
    observer = server.redis()
    observer.set("stock", 10)
    async with seckill.aio.Client(server.url, socket_timeout=0.3) as client:
        await client.update_inventory("lock", "stock", 0)
        server.freeze()
        for call in (client.update_inventory("lock", "stock", -1), client.incr_inventory("stock")):
            (task,) = await waiting(client, call)
            await cancelled(task)
        await asyncio.sleep(0.35)
        server.thaw()
        assert await stays(observer, "stock", b"10")
        await client.update_inventory("lock", "stock", -3)
        assert observer.get("stock") == b"7"


@pytest.mark.parametrize("change", [-1, 3])
async def test_a_request_that_arrives_long_after_its_caller_was_cancelled_changes_nothing(
    start_server, start_proxy, loop_kind, change
):
    server = start_server()
    observer = server.redis()
    observer.set("stock", 10)
    proxy = start_proxy(server)
    client = seckill.aio.Client(proxy.url, socket_timeout=0.5)
    await client.update_inventory("lock", "stock", 0)
    proxy.strike(Fault("hold", REQUEST))
    task = asyncio.ensure_future(client.update_inventory("lock", "stock", change, 5000, 30_000))
    await eventually(lambda: proxy.faults_met)
    await cancelled(task)
    await asyncio.sleep(0.6)
    late(proxy, observer)
    assert observer.get("stock") == b"10"
    await client.aclose()


async def test_a_cancelled_call_is_not_carried_along_later_for_others(start_server, loop_kind):
    """Its batch was lost, and is asked for again for the sake of another, when all is long over."""
    server = start_server()
    observer = server.redis()
    observer.set("stock", 100)
    relay = Relay((server.host, server.port))
    client = seckill.aio.Client(relay.url, socket_timeout=0.5)
    await client.update_inventory("lock", "stock", 0)
    held, lost = [], []

    def hold(_connection, data, on):
        held.append(lambda: on(data))

    def lose(_connection, data, _on):
        lost.append(data)

    relay.on_request = hold
    first = asyncio.ensure_future(client.incr_inventory("other"))
    await eventually(lambda: held)
    leaver, stayer = (
        asyncio.ensure_future(client.update_inventory("lock", "stock", change, 5000, 30_000))
        for change in (-1, -10)
    )
    await asyncio.sleep(0)
    relay.on_request = lose
    held[0]()
    await first
    await eventually(lambda: lost)
    await cancelled(leaver)
    await asyncio.sleep(1.2)
    assert observer.get("stock") == b"100"
    relay.on_request = pass_on
    await asyncio.wait_for(stayer, 20)
    assert observer.get("stock") == b"90"
    await client.aclose()
    relay.close()


@pytest.mark.parametrize("direction", [REQUEST, REPLY])
async def test_a_call_whose_bytes_were_lost_counts_once_or_not_at_all_when_it_is_cancelled(
    start_server, start_proxy, name, loop_kind, direction
):
    server = start_server()
    observer = server.redis()
    observer.set("stock", 10)
    proxy = start_proxy(server)
    client = seckill.aio.Client(proxy.url, socket_timeout=5)
    await client.update_inventory("lock", "stock", 0)
    proxy.strike(Fault("swallow", direction))
    (task,) = await waiting(client, client.update_inventory("lock", "stock", -1, 5000, 30_000))
    await cancelled(task)
    left = b"10" if direction == REQUEST else b"9"
    assert await stays(observer, "stock", left, seconds=0.3)
    await client.update_inventory("lock", "stock", -2)
    assert int(observer.get("stock")) == int(left) - 2
    await client.aclose()


@pytest.mark.parametrize("connected_before", [True, False])
async def test_calls_that_are_cancelled_while_their_batch_waits_for_a_connection_are_not_made(
    start_server, start_proxy, loop_kind, connected_before
):
    """While reconnecting, or in the first handshake of all; the batch goes on for the others."""
    server = start_server()
    observer = server.redis()
    proxy = start_proxy(server)
    patience = 0.3 if connected_before else 10
    client = seckill.aio.Client(proxy.url, socket_timeout=patience, timeout=20)
    if connected_before:
        await client.incr_inventory("warm", 0)
        proxy.refuse()
        proxy.cut()
        # The first to come finds out that the connection is dead, by writing into it.
        with pytest.raises(seckill.ConnectionError):
            await client.update_inventory("lock", "stock", -1, time_out=0)
    else:
        proxy.faults = in_turn(Fault("hold", REPLY))
    keys = [f"stock:{number}" for number in range(20)]
    tasks = [asyncio.ensure_future(client.incr_inventory(key)) for key in keys]
    await asyncio.sleep(0.1)
    for task in tasks[::2]:
        await cancelled(task)
    if connected_before:
        proxy.listen()
    else:
        proxy.release()
    await asyncio.gather(*tasks[1::2])
    await asyncio.sleep(0.2)
    assert observer.mget(keys) == [None, b"1"] * 10
    await client.aclose()


@pytest.mark.parametrize("answered_before", [True, False])
async def test_a_call_that_is_cancelled_while_the_server_is_away_is_not_made_when_it_is_back(
    start_server, start_proxy, loop_kind, answered_before
):
    """While reconnecting, or in the first handshake of all."""
    server = start_server()
    proxy = start_proxy(server)
    client = seckill.aio.Client(proxy.url, socket_timeout=5)
    if answered_before:
        await client.incr_inventory("warm", 1)
        proxy.refuse()
        proxy.cut()
    else:
        proxy.swallow(REQUEST)
    task = asyncio.ensure_future(client.incr_inventory("stock", 1))
    await asyncio.sleep(0.1)
    await cancelled(task)
    if answered_before:
        proxy.listen()
    proxy.swallow()
    assert await stays(server.redis(), "stock", None)
    await asyncio.wait_for(client.incr_inventory("warm", 1), 10)
    await client.aclose()
