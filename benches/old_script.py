"""The plain functions over redis-py that people use today: four round trips, a poll every 10 ms.

What seckill is measured against, written the way such scripts are written. Nobody should use it:
the lock has no owner, and a lease that ends in mid-update sells the same unit twice.
"""

from __future__ import annotations

import time

import redis


class OldScript:
    def __init__(self, client: redis.Redis) -> None:
        self.client = client

    def acquire_lock(self, lockname: str, acquire_time: int = 5000, time_out: int = 10000) -> bool:
        end = time.time() + time_out / 1000
        while time.time() < end:
            if self.client.set(lockname, 1, nx=True, px=acquire_time):
                return True
            time.sleep(0.01)
        return False

    def release_lock(self, lockname: str) -> None:
        self.client.delete(lockname)

    def incr_inventory(self, key: str, change_num: int = 1) -> None:
        self.client.incrby(key, change_num)

    def update_inventory(
        self,
        lockname: str,
        key: str,
        change_num: int = 1,
        acquire_time: int = 5000,
        time_out: int = 10000,
    ) -> None:
        while not self.acquire_lock(lockname, acquire_time, time_out):
            pass
        try:
            stock = self.client.get(key)
            if stock is None:
                raise ValueError("没有库存")
            if int(stock) + change_num < 0:
                raise ValueError("库存不足")
            self.incr_inventory(key, change_num)
        finally:
            self.release_lock(lockname)
