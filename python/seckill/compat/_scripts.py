"""The scripts of a redis-py lock: they run where somebody has changed them, else the core does."""

from __future__ import annotations

from weakref import WeakSet

from seckill._holding import Acquisition
from seckill._lock_base import LockBase

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, ClassVar, Literal

# Name of a script's text, and of what it is registered as.
SCRIPTS = {
    "LUA_RELEASE_SCRIPT": "lua_release",
    "LUA_EXTEND_SCRIPT": "lua_extend",
    "LUA_REACQUIRE_SCRIPT": "lua_reacquire",
}


class Scripted(LockBase):
    """What both locks that have scripts share; `lua_release` and the others are redis-py's own."""

    lua_release: ClassVar[Any] = None
    lua_extend: ClassVar[Any] = None
    lua_reacquire: ClassVar[Any] = None

    # KEYS[1]: the lock
    # ARGV[1]: the token
    # returns 1 if the lock was the token's, and is free now, else 0
    LUA_RELEASE_SCRIPT = """
        if redis.call('GET', KEYS[1]) ~= ARGV[1] then
            return 0
        end
        return redis.call('DEL', KEYS[1])
    """

    # KEYS[1]: the lock
    # ARGV[1]: the token
    # ARGV[2]: milliseconds
    # ARGV[3]: "0" to add them to the time that is left, "1" to replace it
    # returns 1 if the lock is the token's and has an end, else 0
    LUA_EXTEND_SCRIPT = """
        local left = redis.call('PTTL', KEYS[1])
        if left < 0 or redis.call('GET', KEYS[1]) ~= ARGV[1] then
            return 0
        end
        if ARGV[3] == '1' then
            left = 0
        end
        return redis.call('PEXPIRE', KEYS[1], string.format('%.0f', left + tonumber(ARGV[2])))
    """

    # KEYS[1]: the lock
    # ARGV[1]: the token
    # ARGV[2]: milliseconds
    # returns 1 if the lock is the token's, and ends then, else 0
    LUA_REACQUIRE_SCRIPT = """
        if redis.call('GET', KEYS[1]) ~= ARGV[1] then
            return 0
        end
        return redis.call('PEXPIRE', KEYS[1], ARGV[2])
    """

    def _made(self) -> None:
        self.register_scripts()

    def register_scripts(self) -> None:
        """Register the scripts with the redis client, once for all locks of this class.

        Examples:
            >>> import redis
            >>> from seckill.compat.redis_lock import Lock
            >>> lock = Lock(redis.Redis(), "sku:1")
            >>> lock.lua_release.script == lock.LUA_RELEASE_SCRIPT
            True
        """
        cls, register = type(self), getattr(self.redis, "register_script", None)
        for name, registered in SCRIPTS.items():
            text, script = getattr(cls, name), getattr(cls, registered)
            # A subclass inherits what was registered, and may have a text of its own.
            if script is None or (script in _ours and script.script != text):
                if register is not None:
                    script = register(text)
                    _ours.add(script)
                    setattr(cls, registered, script)
                elif text != getattr(Scripted, name):
                    raise TypeError(f"{name} was replaced: it needs a redis client to run it")

    def _script(self, name: str) -> Any:
        """The script to run in the core's stead; None: the core's."""
        registered = getattr(self, SCRIPTS[name])
        if registered is None or (registered in _ours and registered.script == ORIGINAL[name]):
            return None
        return registered

    def _run(self, script: Any, token: object, *args: object) -> Any:
        return script(keys=[self.name], args=[self._token(token), *args], client=self.redis)

    def _holder(self, what: str) -> Acquisition:
        return self._holding(what, self._proving())


ORIGINAL = {name: getattr(Scripted, name) for name in SCRIPTS}

# What we registered ourselves; anything else was put into its place.
_ours: WeakSet[Any] = WeakSet()


def extended(mine: Acquisition) -> Literal[True]:
    """A script has changed the lease, so the core does not know when it ends any more."""
    mine.held = None
    return True
