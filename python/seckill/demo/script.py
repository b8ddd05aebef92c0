"""What a flash sale looks like without seckill: the usual functions over redis-py.

Kept as people write them, for `--against script`. What is wrong here on purpose:

- the lock's value is 1: whoever calls `release_lock` frees it, also when somebody else holds it;
- the lease may end between the look at the stock and the change: then two of them sell one unit;
- one sale takes four round trips, and a wait asks again every 10 ms, in no order.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import redis


class Script:
    """The functions of one thread.

    Args:
        connection: to the server.
        work: how long a sale takes between the look at the stock and the change, in seconds.
    """

    def __init__(self, connection: redis.Redis, work: float) -> None:
        self.redis = connection
        self.work = work
        self.round_trips = 0

    def acquire_lock(self, lockname: str, acquire_time: int = 5000, time_out: int = 10000) -> bool:
        """Take the lock, asking every 10 ms until `time_out` ms are over."""
        end = time.monotonic() + time_out / 1000
        while time.monotonic() < end:
            self.round_trips += 1
            if self.redis.set(lockname, 1, nx=True, px=acquire_time):
                return True
            time.sleep(0.01)
        return False

    def release_lock(self, lockname: str) -> None:
        """Free the lock, whoever holds it."""
        self.round_trips += 1
        self.redis.delete(lockname)

    def update_inventory(
        self, lockname: str, key: str, change_num: int = 1, acquire_time: int = 5000
    ) -> None:
        """Look, compare, work and write, under the lock as long as its lease lasts."""
        while not self.acquire_lock(lockname, acquire_time):
            pass
        try:
            self.round_trips += 1
            stock = self.redis.get(key)
            if stock is None:
                raise ValueError("没有库存")
            if int(stock) + change_num < 0:
                raise ValueError("库存不足")
            time.sleep(self.work)
            self.round_trips += 1
            self.redis.incrby(key, change_num)
        finally:
            self.release_lock(lockname)
