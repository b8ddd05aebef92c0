"""Where a lock's client comes from: locks of one redis-py client share one client of ours."""

from __future__ import annotations

from weakref import WeakKeyDictionary, WeakValueDictionary

from seckill import _core
from seckill._client import Client, _restore
from seckill._settings import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from seckill import aio
    from seckill._settings import RedisLike

    Source = Client | aio.Client | RedisLike | str | None

# By connection pool, for as long as that lives; and by settings, for as long as anybody uses the
# client, because there are programs that make a redis.Redis for each request.
_by_pool: WeakKeyDictionary[object, Client] = WeakKeyDictionary()
_by_settings: WeakValueDictionary[tuple[tuple[str, object], ...], Client] = WeakValueDictionary()


def client_of(source: Source) -> _core.CoreClient | None:
    """Find the client that talks to where `source` does.

    Args:
        source: a client of ours, a redis-py or valkey-py client, or a URL. None: whatever the
            default client will be.

    Returns:
        The client; None for None.

    Raises:
        TypeError: a source of another type.
        ValueError: malformed URL, or something that this version does not support.

    Examples:
        >>> client_of("redis://localhost") is client_of("redis://localhost")
        True
    """
    if source is None or isinstance(source, _core.CoreClient):
        return source
    ours = getattr(source, "_core", None)  # of the asyncio face
    if isinstance(ours, _core.CoreClient):
        return ours
    pool = getattr(source, "connection_pool", None)
    if pool is None:
        if not isinstance(source, str) and not hasattr(source, "nodes_manager"):
            raise TypeError(
                "redis must be a seckill.Client, redis.Redis, valkey.Valkey, URL or None, "
                f"not {type(source).__name__}"
            )
        return _shared(source)
    known = _by_pool.get(pool)
    if known is None:
        known = _shared(source)
        _by_pool[pool] = known
    return known


def _shared(source: Source) -> Client:
    settings = resolve(source, {})  # type: ignore[arg-type]
    key = tuple(sorted(settings.items()))
    client = _by_settings.get(key)
    if client is None:
        client = _by_settings.setdefault(key, _restore(Client, settings))
    return client
