"""Where to connect: what a user hands to `Client` and `configure`, as settings for the core.

Three shapes come in (a URL, the keywords of `redis.Redis`, an existing redis-py or valkey-py
client), one goes out: the keyword arguments of `_core.CoreClient`. URLs are parsed in Rust.
"""

from __future__ import annotations

import os

from seckill import _core
from seckill._keywords import read_all, used

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any, Protocol, TypeAlias, TypedDict

    class Options(TypedDict, total=False):
        """The keywords that have an effect, and the idle ones that are often seen."""

        host: str | None
        port: int | str | None
        unix_socket_path: str | os.PathLike[str] | None
        sentinels: Sequence[tuple[str, int | str]] | None
        service_name: str | None
        sentinel_kwargs: dict[str, Any] | None
        cluster: Sequence[tuple[str, int | str]] | None
        db: int | str | None
        username: str | bytes | None
        password: str | bytes | None
        credential_provider: object
        client_name: str | None
        timeout: float | None
        socket_timeout: float | None
        socket_connect_timeout: float | None
        wait_replicas: int | None
        wait_aof: bool | None
        ssl: bool
        ssl_ca_certs: str | os.PathLike[str] | None
        ssl_ca_path: str | os.PathLike[str] | None
        ssl_ca_data: str | bytes | None
        ssl_certfile: str | os.PathLike[str] | None
        ssl_keyfile: str | os.PathLike[str] | None
        ssl_cert_reqs: str | int | None
        ssl_check_hostname: bool
        ssl_min_version: int | None
        decode_responses: bool
        encoding: str
        encoding_errors: str
        health_check_interval: float
        max_connections: int | None
        protocol: int | None
        retry: object
        retry_on_error: object
        retry_on_timeout: bool
        single_connection_client: bool
        socket_keepalive: bool | None
        socket_keepalive_options: object

    class ConnectionPool(Protocol):
        connection_kwargs: dict[str, object]
        connection_class: type

    class Pooled(Protocol):
        """A `redis.Redis` or `valkey.Valkey`, told by its shape: neither is imported."""

        @property
        def connection_pool(self) -> ConnectionPool: ...

    class Clustered(Protocol):
        """A `RedisCluster` or `ValkeyCluster`, likewise."""

        nodes_manager: Any

    RedisLike: TypeAlias = Pooled | Clustered


DEFAULT_URL = "redis://localhost:6379/0"
ENVIRONMENT = ("SECKILL_REDIS_URL", "REDIS_URL")

SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix")
TLS_SCHEMES = ("rediss", "valkeys")
TOPOLOGIES = ("sentinel", "cluster")  # redis+sentinel:// and so on

OF_SENTINELS = ("sentinels", "service_name", "sentinel_kwargs")
PLACE = ("host", "port", "unix_socket_path", *OF_SENTINELS, "cluster")
WHO = ("db", "username", "password", "credential_provider")


def resolve(source: str | RedisLike | None, options: Mapping[str, object]) -> dict[str, object]:
    """Turn what the user gave into keyword arguments for the native client.

    Args:
        source: a URL, a redis-py or valkey-py client, or None: then the keywords, and without any
            that says where to connect, the environment.
        options: keywords of `redis.Redis`, and `timeout` (seconds).

    Returns:
        Keyword arguments of `_core.CoreClient`; without those that were not given.

    Raises:
        TypeError: unknown keyword, or a source or value of another type.
        ValueError: something that this version does not support, or a number that cannot be one; a
            variable of the environment with a URL that cannot be read, which it names.

    Examples:
        >>> resolve("redis://localhost:7000/1", {"timeout": 2})
        {'url': 'redis://localhost:7000/1', 'timeout': 2.0}
    """
    given, tls = read_all(options)
    place = [name for name in PLACE if name in given]
    variable = None
    if source is None:
        variable = next(filter(os.environ.get, ENVIRONMENT), None)
        source = os.environ[variable] if variable else None
        who = not given.keys().isdisjoint(WHO)
        if place or who or (tls.get("ssl") and source is None):
            return _placed(given) | used(tls)
        source, place = source or DEFAULT_URL, []
    if place:
        what = "a URL" if isinstance(source, str) else "an existing client"
        raise TypeError(f"{place[0]} cannot be given together with {what}: it says where already")
    if isinstance(source, str):
        around = given | used(tls, _base(source) in TLS_SCHEMES)
        if variable:
            _probe(variable, source, around)
        return {"url": _checked(source)} | around
    from seckill._existing import read_client

    settings, read = read_client(source)
    return settings | given | used(read | tls)


def _probe(variable: str, url: str, around: dict[str, object]) -> None:
    """Of a URL that nobody handed over, an error has to say where it was found.

    What is wrong with a keyword has nothing to do with it: so the URL is tried alone, too.
    """
    words: dict[str, object]
    for words in (around, {}):
        try:
            _core.CoreClient(url=_checked(url), **words)  # type: ignore[arg-type]
        except ValueError as error:
            told = error
        else:
            return
    raise ValueError(f"{variable}: {told}") from None


def _placed(given: dict[str, object]) -> dict[str, object]:
    """What was given, if it says where in one way only; without any: on this machine."""
    ways = ("host", "port", "unix_socket_path"), OF_SENTINELS, ("cluster",)
    said = [[name for name in names if name in given] for names in ways]
    if sum(map(bool, said)) > 1:
        one, other = [names[0] for names in said if names][:2]
        raise TypeError(f"{other} cannot be given together with {one}: one of them says where")
    if said[1]:
        for name in ("sentinels", "service_name"):
            if name not in given:
                raise TypeError(f"{said[1][0]} needs {name}")
    if said[1] or said[2] or "unix_socket_path" in given:
        return given
    return {"host": "localhost"} | given


def _base(url: str) -> str:
    return url.partition("://")[0].partition("+")[0].lower()


def _checked(url: str) -> str:
    # Never quote the URL as a whole: it may hold a password.
    scheme, separator, _ = url.lower().partition("://")
    base, plus, topology = scheme.partition("+")
    if not separator or base not in SCHEMES or (plus and topology not in TOPOLOGIES):
        schemes = (*SCHEMES, *(f"redis+{topology}" for topology in TOPOLOGIES))
        raise ValueError("the URL must start with " + ", ".join(f"{one}://" for one in schemes))
    return url
