"""Where a lock's client comes from: locks of one redis-py client share one client of ours."""

from __future__ import annotations

from weakref import WeakKeyDictionary, WeakValueDictionary

from seckill import _core
from seckill._client import Client, _restore
from seckill._settings import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Hashable

    from seckill import aio
    from seckill._settings import RedisLike

    Source = Client | aio.Client | RedisLike | str | None

# By connection pool or cluster client, for as long as that lives; and by settings, for as long as
# anybody uses the client, because there are programs that make a redis.Redis for each request.
_by_keeper: WeakKeyDictionary[object, Client] = WeakKeyDictionary()
_by_settings: WeakValueDictionary[Hashable, Client] = WeakValueDictionary()


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
    if isinstance(source, str):
        return _shared(source)
    # A cluster's client has a pool for each node.
    keeper = getattr(source, "connection_pool", source)
    if keeper is source and getattr(source, "nodes_manager", None) is None:
        raise TypeError(
            "redis must be a seckill.Client, redis.Redis, valkey.Valkey (or a cluster's client), "
            f"URL or None, not {type(source).__name__}"
        )
    known = _by_keeper.get(keeper)
    if known is None:
        known = _shared(source)
        _by_keeper[keeper] = known
    return known


def _shared(source: Source) -> Client:
    settings = resolve(source, {})  # type: ignore[arg-type]
    key = _frozen(settings)
    client = _by_settings.get(key)
    if client is None:
        client = _by_settings.setdefault(key, _restore(Client, settings))
    return client


def _frozen(value: object) -> Hashable:
    if isinstance(value, dict):
        return tuple((name, _frozen(value[name])) for name in sorted(value))
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, str | bytes | int | float):
        return value
    return id(value)  # a credential provider, which lives as long as the client does
