"""The kind of script that seckill replaces: redis-py, a lock, GET, compare, INCRBY, DEL.

Its functions have the names and signatures of seckill's. The lock's value is `1`, whoever holds it;
the waits are polls every 10 ms; `pause` makes the work between GET and INCRBY as slow as one likes.
"""

from __future__ import annotations

import time

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from support.acl import as_observer

connection: redis.Redis


def connect(url: str) -> None:
    global connection
    # Without redis-py's own re-sends: what goes wrong next to us shall not be redis-py's doing.
    connection = redis.Redis.from_url(as_observer(url), retry=Retry(NoBackoff(), 0))


def acquire_lock(lockname, acquire_time=5000, time_out=10000):
    end = time.monotonic() + time_out / 1000
    while time.monotonic() < end:
        if connection.set(lockname, 1, nx=True, px=acquire_time):
            return True
        time.sleep(0.01)
    return False


def release_lock(lockname):
    connection.delete(lockname)


def incr_inventory(key, change_num=1):
    connection.incrby(key, change_num)


def update_inventory(lockname, key, change_num=1, acquire_time=5000, time_out=10000, *, pause=0.0):
    while not acquire_lock(lockname, acquire_time, time_out):
        pass
    try:
        stock = connection.get(key)
        if stock is None:
            raise ValueError("没有库存")
        if int(stock) + change_num < 0:
            raise ValueError("库存不足")
        time.sleep(pause)
        incr_inventory(key, change_num)
    finally:
        release_lock(lockname)
