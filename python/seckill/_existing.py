"""The connection settings of an existing client of redis-py or valkey-py, sync or asyncio.

Neither package is imported: a client is told by its shape.

| it has | it talks to | the settings are in |
|---|---|---|
| `nodes_manager` | a cluster | its `startup_nodes` and `connection_kwargs` |
| `connection_pool.service_name` | the primary that sentinels name | the pool, `sentinel_manager` |
| `connection_pool` | a server | the pool's `connection_kwargs` |
"""

from __future__ import annotations

from seckill._keywords import (
    READ,
    READ_WITH_TLS,
    REFUSED,
    REFUSED_WITH_TLS,
    UNSUPPORTED,
    of_sentinels,
    read_all,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

# What redis-py knows by these names is something else, or it is for the client as a whole.
_OURS = {"timeout", "sentinels", "service_name", "sentinel_kwargs", "cluster"}
_THEIRS = (READ.keys() | READ_WITH_TLS.keys() | REFUSED.keys() | REFUSED_WITH_TLS.keys()) - _OURS
_LIBRARIES = ("redis", "valkey")
_CONNECT_FUNCS = ("redis_connect_func", "valkey_connect_func")


def read_client(client: Any) -> tuple[dict[str, object], dict[str, object]]:
    """Read a client's settings.

    Returns:
        Keyword arguments of `_core.CoreClient`; those of TLS apart, as they were given.

    Raises:
        TypeError: not a client of redis-py or valkey-py.
        ValueError: something that this version does not support.
    """
    name = f"{type(client).__module__}.{type(client).__qualname__}".removeprefix("builtins.")
    manager = getattr(client, "nodes_manager", None)
    if manager is not None:
        return _of_cluster(name, client, manager)
    pool = getattr(client, "connection_pool", None)
    if not isinstance(getattr(pool, "connection_kwargs", None), dict):
        raise TypeError(
            "source must be a URL, redis.Redis or valkey.Valkey (or a cluster's client), "
            f"not {name}"
        )
    if hasattr(pool, "service_name"):
        return _of_service(name, pool)
    given, tls = _of_pool(pool)
    return given if "unix_socket_path" in given else {"host": "localhost"} | given, tls


def _of_pool(pool: Any) -> tuple[dict[str, object], dict[str, object]]:
    settings = pool.connection_kwargs
    known = {key: value for key, value in settings.items() if key in _THEIRS}
    if "path" in settings:
        known["unix_socket_path"] = settings["path"]
    given, tls = read_all(known)
    tls["ssl"] = _speaks_tls(_heeded(getattr(pool, "connection_class", object)))
    return given, tls


def _of_service(name: str, pool: Any) -> tuple[dict[str, object], dict[str, object]]:
    service, manager = pool.service_name, pool.sentinel_manager
    if not pool.is_master:
        raise ValueError(
            f"{name}: it reads from replicas of {service!r}, and nothing can be sold there; "
            f"master_for({service!r}) makes one for the primary"
        )
    if getattr(manager, "_force_master_ip", None) is not None:
        raise ValueError(f"{name}: force_master_ip {UNSUPPORTED}")
    known = {key: value for key, value in pool.connection_kwargs.items() if key in _THEIRS}
    known.pop("connection_pool", None)  # the pool itself, so that its connections find it
    given, tls = read_all(_without_place(known))
    tls["ssl"] = _speaks_tls(_heeded(pool.connection_class))
    read = [_of_pool(sentinel.connection_pool) for sentinel in manager.sentinels]
    # It puts the one that answered last time first; which is first means nothing to us.
    given["sentinels"] = sorted((place.pop("host"), place.pop("port")) for place, _ in read)
    given["service_name"] = service
    words = [of_sentinels(place, tls) for place, tls in read]
    if any(word != words[0] for word in words):
        raise ValueError(f"{name}: sentinels with settings of their own: that {UNSUPPORTED}")
    given["sentinel_kwargs"] = words[0]
    return given, tls


def _of_cluster(
    name: str, client: Any, manager: Any
) -> tuple[dict[str, object], dict[str, object]]:
    if getattr(manager, "address_remap", None) is not None:
        raise ValueError(f"{name}: address_remap {UNSUPPORTED}")
    settings = manager.connection_kwargs
    known = {key: value for key, value in settings.items() if key in _THEIRS}
    for func in _CONNECT_FUNCS:
        # Its own, which may call one of the user's.
        if getattr(known.get(func), "__self__", None) is client:
            known[func] = getattr(client, "user_on_connect_func", None)
    given, tls = read_all(_without_place(known))
    connects = _heeded(settings.get("connection_class", object))
    tls["ssl"] = settings.get("ssl") or _speaks_tls(connects)
    nodes = list(manager.startup_nodes.values())  # as they are now: another thread may look anew
    given["cluster"] = sorted((node.host, int(node.port)) for node in nodes)
    return given, tls


def _without_place(known: Mapping[str, object]) -> dict[str, object]:
    place = ("host", "port", "unix_socket_path")
    return {key: value for key, value in known.items() if key not in place}


def _heeded(connection_class: Any) -> Any:
    """The class of the client's connections, if it connects as redis-py or valkey-py would.

    One with a `_connect` of its own goes elsewhere: through a tunnel, or nowhere at all, as those
    of fakeredis. What a subclass does besides, such as counting, is no matter.
    """
    for ancestor in getattr(connection_class, "__mro__", ()):
        if "_connect" in vars(ancestor):
            if ancestor.__module__.partition(".")[0] in _LIBRARIES:
                break
            name = f"{connection_class.__module__}.{connection_class.__qualname__}"
            raise ValueError(
                f"{name}: a connection class with a _connect of its own {UNSUPPORTED}, which would"
                " connect to the host and port of the settings instead"
            )
    return connection_class


def _speaks_tls(connection_class: Any) -> bool:
    return any(ancestor.__name__ == "SSLConnection" for ancestor in connection_class.__mro__)
