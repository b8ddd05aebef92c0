"""To be imported instead of `redis.asyncio.lock`: `seckill.aio.Lock`, which can be patched as that.

    import redis.asyncio
    from seckill.compat import redis_asyncio_lock

    lock = redis.asyncio.Redis().lock("sku:1", lock_class=redis_asyncio_lock.Lock)

It waits by `asyncio.get_running_loop().time()` and `asyncio.sleep`, and polls as redis-py does,
where these are not what they usually are: `redis_asyncio_lock.asyncio` was replaced, or a function
of asyncio, or the loop has a time of its own. Likewise where `do_acquire` was overridden.
"""

from __future__ import annotations

import asyncio
import asyncio.events
import asyncio.tasks
import logging
import time
from types import BuiltinFunctionType

from seckill._aio_lock import Lock as PlainLock
from seckill._exceptions import LockError, LockNotOwnedError
from seckill._lock_base import milliseconds, seconds
from seckill.compat._scripts import Scripted, extended

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Awaitable
    from logging import Logger
    from typing import Any, Literal

    from seckill._aio_lock import Clock
    from seckill._holding import Acquisition

__all__ = ["Lock", "LockError", "LockNotOwnedError", "asyncio", "logger"]

logger = logging.getLogger(__name__)

_asyncio = asyncio
_sleep = asyncio.tasks.sleep
_get_running_loop = asyncio.events.get_running_loop
LOOPS = ("asyncio.base_events", "uvloop.loop")  # whose time is the system's


class Lock(Scripted, PlainLock):
    __doc__ = PlainLock.__doc__

    async def do_release(self, expected_token: bytes) -> None:
        script = self._script("LUA_RELEASE_SCRIPT")
        if script is None:
            await super().do_release(expected_token)
        elif not await self._run(script, expected_token):
            raise self._gone("release", self._acquired(self._token(expected_token)))

    def do_extend(self, additional_time: float, replace_ttl: bool) -> Awaitable[Literal[True]]:
        script = self._script("LUA_EXTEND_SCRIPT")
        if script is None:
            return super().do_extend(additional_time, replace_ttl)
        more = milliseconds("additional_time", seconds("additional_time", additional_time))
        replace = "1" if replace_ttl else "0"
        return self._scripted("extend", self._holder("extend"), script, more, replace)

    def do_reacquire(self) -> Awaitable[Literal[True]]:
        script = self._script("LUA_REACQUIRE_SCRIPT")
        if script is None:
            return super().do_reacquire()
        lease = milliseconds("timeout", seconds("timeout", self.timeout))
        return self._scripted("reacquire", self._holder("reacquire"), script, lease)

    async def _scripted(
        self, what: str, mine: Acquisition, script: Any, *args: object
    ) -> Literal[True]:
        if not await self._run(script, mine.token, *args):
            raise self._gone(what, mine)
        return extended(mine)

    def _clock(self) -> Clock | None:
        return None if super()._clock() is None and _usual() else asyncio

    def _logger(self) -> Logger:
        return logger


def _usual() -> bool:
    """Whether time passes here as it does everywhere."""
    if asyncio is not _asyncio or asyncio.sleep is not _sleep:
        return False
    if asyncio.get_running_loop is not _get_running_loop:
        return False
    loop = asyncio.get_running_loop()
    if "time" in getattr(loop, "__dict__", {}):
        return False
    theirs = getattr(type(loop).time, "__module__", None)
    return theirs in LOOPS and isinstance(time.monotonic, BuiltinFunctionType)
