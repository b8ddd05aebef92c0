"""Modules to import instead of redis-py's, for code that patches or subclasses what is in them.

    import redis.lock                 import seckill.compat.redis_lock
    import redis.asyncio.lock         import seckill.compat.redis_asyncio_lock

Their `Lock` is `seckill.Lock` (or `seckill.aio.Lock`), with the scripts and the clock that people
reach for in redis-py's: what is replaced is used. What is not, the core does as ever.
"""
