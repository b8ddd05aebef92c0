"""To be imported instead of `redis.lock`: `seckill.Lock`, which can be patched as that one.

    import redis
    from seckill.compat import redis_lock

    lock = redis.Redis().lock("sku:1", lock_class=redis_lock.Lock)

It waits by the clock `mod_time`, and polls as redis-py does, where that is another one than the
standard library's: `redis_lock.mod_time` was replaced, or `time.sleep` or `time.monotonic` was (as
by freezegun or gevent). Likewise where `do_acquire` was overridden.
"""

from __future__ import annotations

import logging
import time as mod_time
from types import BuiltinFunctionType

from seckill._exceptions import LockError, LockNotOwnedError
from seckill._lock import Lock as PlainLock
from seckill._lock_base import milliseconds, seconds
from seckill.compat._scripts import Scripted, extended

TYPE_CHECKING = False
if TYPE_CHECKING:
    from logging import Logger
    from typing import Literal

    from seckill._lock import Clock

__all__ = ["Lock", "LockError", "LockNotOwnedError", "logger", "mod_time"]

logger = logging.getLogger(__name__)

_time = mod_time


class Lock(Scripted, PlainLock):
    __doc__ = PlainLock.__doc__

    def do_release(self, expected_token: bytes) -> None:
        script = self._script("LUA_RELEASE_SCRIPT")
        if script is None:
            super().do_release(expected_token)
        elif not self._run(script, expected_token):
            raise self._gone("release", self._acquired(self._token(expected_token)))

    def do_extend(self, additional_time: float, replace_ttl: bool) -> Literal[True]:
        script = self._script("LUA_EXTEND_SCRIPT")
        if script is None:
            return super().do_extend(additional_time, replace_ttl)
        more = milliseconds("additional_time", seconds("additional_time", additional_time))
        mine = self._holder("extend")
        if not self._run(script, mine.token, more, "1" if replace_ttl else "0"):
            raise self._gone("extend", mine)
        return extended(mine)

    def do_reacquire(self) -> Literal[True]:
        script = self._script("LUA_REACQUIRE_SCRIPT")
        if script is None:
            return super().do_reacquire()
        lease = milliseconds("timeout", seconds("timeout", self.timeout))
        mine = self._holder("reacquire")
        if not self._run(script, mine.token, lease):
            raise self._gone("reacquire", mine)
        return extended(mine)

    def _clock(self) -> Clock | None:
        return None if super()._clock() is None and _usual() else mod_time

    def _logger(self) -> Logger:
        return logger


def _usual() -> bool:
    """Whether time passes here as it does everywhere."""
    return mod_time is _time and all(
        isinstance(function, BuiltinFunctionType) for function in (_time.sleep, _time.monotonic)
    )
