"""One sale, as each library makes it: plain loops as their users write them, default settings.

An opener gets the job and returns `seller()`, which each selling thread calls once for a function
of its own that sells one unit. Libraries are imported inside: a process loads the one it runs.
"""

from __future__ import annotations

import importlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .call import NUMBER, ScriptCall

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


def seckill(job: Job) -> Seller:
    import seckill

    seckill.configure(host="127.0.0.1", port=job.port)
    lock, stock = job.lock, job.stock

    def seller() -> Sell:
        update_inventory = seckill.update_inventory
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
        call = job.call.by(secrets.token_hex(16))
        sha, keys, args = client.script_load(call.source), call.keys, list(call.args)
        place, number = args.index(NUMBER), 0

        def sell() -> object:
            nonlocal number
            number += 1
            args[place] = str(number)
            return client.evalsha(sha, len(keys), *keys, *args)

        return sell

    return seller


def glide(job: Job) -> Seller:
    glide_sync: Any = importlib.import_module("glide_sync")
    address = glide_sync.NodeAddress("127.0.0.1", job.port)
    client = glide_sync.GlideClient.create(glide_sync.GlideClientConfiguration([address]))
    # The server keeps the script as long as one Script object lives: one for all threads.
    script = glide_sync.Script(job.call.source)

    def seller() -> Sell:
        call = job.call.by(secrets.token_hex(16))
        keys, args = list(call.keys), list(call.args)
        place, number = args.index(NUMBER), 0

        def sell() -> object:
            nonlocal number
            number += 1
            args[place] = str(number)
            return client.invoke_script(script, keys=keys, args=args)

        return sell

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
