"""An independent look at the server, through redis-py: seckill does not audit its own books."""

from __future__ import annotations

from typing import Any

import redis

ADDRESS = ("host", "port", "unix_socket_path", "db", "username", "password")


def connect(server: dict[str, Any]) -> redis.Redis:
    """Make a redis-py client of the server that these settings of a `seckill.Client` name."""
    return redis.Redis(**{name: server[name] for name in ADDRESS if name in server})


class Witness:
    """Reads the stock and tidies up afterwards.

    Args:
        server: settings of a `seckill.Client`.
    """

    def __init__(self, server: dict[str, Any]) -> None:
        self.redis = connect(server)

    def name(self) -> str:
        """What the server calls itself, such as `Valkey 9.1.2`."""
        try:
            about = self.redis.info("server")
        except redis.ResponseError:  # some managed servers keep it to themselves
            return "the server"
        if "valkey_version" in about:
            return f"Valkey {about['valkey_version']}"
        return f"Redis {about.get('redis_version', '')}"

    def left(self, stock: str) -> int | None:
        """The stock; None when the key is gone."""
        value = self.redis.get(stock)
        return None if value is None else int(value)

    def forget_soon(self, stock: str) -> None:
        """Let the server remove the key by itself, should nobody live to do it."""
        self.redis.expire(stock, 3600)

    def tidy_up(self, *keys: str, side_keys: str) -> None:
        """Remove these keys, and all that match a pattern."""
        self.redis.delete(*keys)
        for key in self.redis.scan_iter(match=side_keys, count=1000):
            self.redis.delete(key)
