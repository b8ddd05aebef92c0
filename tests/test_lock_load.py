"""What a hand-off asks of the server: a few dozen commands, however many wait for the lock.

The holder lets go when all of them wait; each has the lock once. Counted are the commands that the
server has run meanwhile, those in scripts included. Without a crowd, to acquire and to release are
twelve of them.
"""

from __future__ import annotations

from contextlib import AsyncExitStack

import pytest
import seckill.aio
from support.aio import gathered, waiting


async def commands_a_hand_off(server, clients, tasks, fair):
    """So many clients, of so many tasks each: to the server a client is a process."""
    observer = server.redis()

    def commands():
        counts = observer.info("commandstats")
        return sum(count["calls"] for name, count in counts.items() if name != "cmdstat_info")

    async def turn(client):
        async with seckill.aio.Lock(client, "lock", timeout=60, fair=fair):
            pass

    async with AsyncExitStack() as stack:
        crowd = [
            await stack.enter_async_context(seckill.aio.Client(server.url)) for _ in range(clients)
        ]
        holder = seckill.aio.Lock(crowd[0], "lock", timeout=600)
        await holder.acquire()
        waiters = []
        for client in crowd:
            waiters += await waiting(client, *(turn(client) for _ in range(tasks)))
        before = commands()
        await holder.release()
        await gathered(waiters)
        return (commands() - before) / len(waiters)


@pytest.mark.core
@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("tasks", [10, 300])
async def test_it_does_not_grow_with_those_who_wait_in_a_process(
    own_server, loop_kind, tasks, fair
):
    """If each of them asked once a hand-off, it would be a few thousand."""
    assert await commands_a_hand_off(own_server, 1, tasks, fair) < 100


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("clients", [3, 30])
async def test_it_does_not_grow_with_the_processes_that_wait(own_server, loop_kind, clients, fair):
    """Beside that, each of them asks once a second, which is most of it on a busy machine."""
    assert await commands_a_hand_off(own_server, clients, 1, fair) < 200
