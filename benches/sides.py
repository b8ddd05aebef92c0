"""One sale, as each library makes it: plain loops as their users write them, default settings.

An opener gets the job and returns `seller()`, which each selling thread calls once for a function
of its own that sells one unit. Libraries are imported inside: a process loads the one it runs.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .call import ScriptCall

Sell = Callable[[], object]
Seller = Callable[[], Sell]


@dataclass(frozen=True)
class Job:
    side: str
    port: int
    lock: str
    stock: str
    call: ScriptCall
    seconds: float
    threads: int = 1
    tasks: int = 0
    """asyncio tasks in place of threads, as aio_sides.py has them; or 0."""
    loop: str = "asyncio"
    """Or uvloop."""
    url: str = ""
    """Of a deployment, where it is not the server at the port."""
    stocks: int = 1
    """With more than one, each who sells has one of these, with a lock in the same slot."""
    options: dict[str, Any] = field(default_factory=dict)
    """More keywords for the client."""

    @property
    def source(self) -> str:
        """Where our client finds what it sells on."""
        return self.url or f"redis://127.0.0.1:{self.port}/0"

    def pairs(self) -> Iterator[tuple[str, str]]:
        """A lock and a stock for each who sells, round and round."""
        if self.stocks == 1:
            return itertools.repeat((self.lock, self.stock))
        stocks = many(self.stock, self.stocks)
        return itertools.cycle([(f"{{{stock}}}:lock", stock) for stock in stocks])


def many(stock: str, count: int) -> list[str]:
    """The names of so many stocks, anywhere in a cluster."""
    return [f"{stock}:{number}" for number in range(count)]


def seckill(job: Job) -> Seller:
    import seckill

    seckill.configure(job.source, **job.options)
    pairs = job.pairs()

    def seller() -> Sell:
        update_inventory = seckill.update_inventory
        lock, stock = next(pairs)
        return lambda: update_inventory(lock, stock, -1)

    return seller


def old_script(job: Job) -> Seller:
    import redis

    from .old_script import OldScript

    script = OldScript(redis.Redis(host="127.0.0.1", port=job.port))
    lock, stock = job.lock, job.stock

    def seller() -> Sell:
        update_inventory = script.update_inventory
        return lambda: update_inventory(lock, stock, -1)

    return seller


def redis_py(job: Job) -> Seller:
    import redis

    client = redis.Redis(host="127.0.0.1", port=job.port)

    def seller() -> Sell:
        sha = client.script_load(job.call.source)
        keys, args = job.call.session()
        return lambda: client.evalsha(sha, len(keys), *keys, *args())

    return seller


def glide(job: Job) -> Seller:
    glide_sync: Any = importlib.import_module("glide_sync")
    address = glide_sync.NodeAddress("127.0.0.1", job.port)
    client = glide_sync.GlideClient.create(glide_sync.GlideClientConfiguration([address]))
    # The server keeps the script as long as one Script object lives: one for all threads.
    script = glide_sync.Script(job.call.source)

    def seller() -> Sell:
        keys, args = job.call.session()
        return lambda: client.invoke_script(script, keys=keys, args=args())

    return seller


MODULES = {
    "seckill": "seckill",
    "old script": "redis",
    "redis-py": "redis",
    "GLIDE": "glide_sync",
}
"""What must be installed for each."""

OPENERS: dict[str, Callable[[Job], Seller]] = {
    "seckill": seckill,
    "old script": old_script,
    "redis-py": redis_py,
    "GLIDE": glide,
}
