"""Where to connect: what a user hands to `Client` and `configure`, as settings for the core.

Three shapes come in (a URL, the keywords of `redis.Redis`, an existing redis-py or valkey-py
client), one goes out: the keyword arguments of `_core.CoreClient`. URLs are parsed in Rust.

Every keyword of `redis.Redis` is known here, so that a call moves over as it is, and is one of

- read: it says where and as whom to connect, or how long to wait;
- idle: it tunes how redis-py works inside, which seckill does in its own way; no effect;
- refused, unless None or False: without it we would be elsewhere, someone else, or in the clear.

An unknown one is a TypeError, as with any Python call.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Protocol, TypedDict

    class Options(TypedDict, total=False):
        """The keywords that have an effect, and the idle ones that are often seen."""

        host: str | None
        port: int | str | None
        unix_socket_path: str | os.PathLike[str] | None
        db: int | str | None
        username: str | bytes | None
        password: str | bytes | None
        credential_provider: object
        client_name: str | None
        timeout: float | None
        socket_timeout: float | None
        socket_connect_timeout: float | None
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

    class RedisLike(Protocol):
        """A `redis.Redis` or `valkey.Valkey`, told by its shape: neither is imported."""

        @property
        def connection_pool(self) -> ConnectionPool: ...


DEFAULT_URL = "redis://localhost:6379/0"
ENVIRONMENT = ("SECKILL_REDIS_URL", "REDIS_URL")

SCHEMES = ("redis", "rediss", "valkey", "valkeys", "unix")
TLS_SCHEMES = ("rediss", "valkeys")
LATER_SCHEMES = ("redis+sentinel", "redis+cluster")

UNSUPPORTED = "is not supported by this version of seckill"

PLACE = ("host", "port", "unix_socket_path")
WHO = ("db", "username", "password", "credential_provider")

IDLE = frozenset(
    """
    cache cache_allow_list cache_config cache_deny_list cache_enabled cache_max_size cache_policy
    cache_ttl charset client_cache decode_responses driver_info encoding encoding_errors errors
    event_dispatcher health_check_interval legacy_responses lib_name lib_version
    maint_notifications_config max_connections oss_cluster_maint_notifications_handler protocol
    retry retry_on_error retry_on_timeout single_connection_client
    socket_keepalive socket_keepalive_options socket_read_size
    """.split()  # noqa: SIM905
)
REFUSED = {
    "connection_pool": "a connection pool as a keyword (pass the redis.Redis that uses it)",
    "redis_connect_func": "a connect function",
    "valkey_connect_func": "a connect function",
}
# The same, where TLS is used; where it is not, what is said of it has no effect.
REFUSED_WITH_TLS = {
    "ssl_ciphers": "a choice of ciphers",
    "ssl_exclude_verify_flags": "a choice of verify flags",
    "ssl_include_verify_flags": "a choice of verify flags",
    "ssl_ocsp_context": "OCSP",
    "ssl_ocsp_expected_cert": "OCSP",
    "ssl_password": "an encrypted key",
    "ssl_validate_ocsp": "OCSP",
    "ssl_validate_ocsp_stapled": "OCSP",
}


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
        ValueError: something that this version does not support, or a number that cannot be one.

    Examples:
        >>> resolve("redis://localhost:7000/1", {"timeout": 2})
        {'url': 'redis://localhost:7000/1', 'timeout': 2.0}
    """
    given, tls = _read(options)
    place = [name for name in PLACE if name in given]
    if source is None:
        source = next(filter(None, map(os.environ.get, ENVIRONMENT)), None)
        who = not given.keys().isdisjoint(WHO)
        if place or who or (tls.get("ssl") and source is None):
            given = given if "unix_socket_path" in given else {"host": "localhost"} | given
            return given | _used(tls)
        source, place = source or DEFAULT_URL, []
    if isinstance(source, str):
        if place:
            raise TypeError(
                f"{place[0]} cannot be given together with a URL: it says where already"
            )
        return {"url": _checked(source)} | given | _used(tls, source)
    settings, read = _of_client(source)
    return settings | given | _used(read | tls)


def _checked(url: str) -> str:
    # Never quote the URL as a whole: it may hold a password.
    scheme, separator, _ = url.partition("://")
    if separator and scheme.lower() in LATER_SCHEMES:
        raise ValueError(f"{scheme}:// {UNSUPPORTED}")
    if not separator or scheme.lower() not in SCHEMES:
        raise ValueError("the URL must start with " + ", ".join(f"{known}://" for known in SCHEMES))
    return url


def _read(options: Mapping[str, object]) -> tuple[dict[str, object], dict[str, object]]:
    """The settings among the keywords, in the types that the core takes; None means not given.

    Those of TLS are apart, as they were given: whether they mean anything is not yet known.
    """
    given: dict[str, object] = {}
    tls: dict[str, object] = {}
    for name, value in options.items():
        if name in READ:
            if value is not None:
                given[name] = READ[name](name, value)
        elif name in READ_WITH_TLS or name in REFUSED_WITH_TLS:
            tls[name] = value
        elif name in REFUSED:
            if value:
                raise ValueError(f"{name}: {REFUSED[name]} {UNSUPPORTED}")
        elif name not in IDLE:
            raise TypeError(f"Client() got an unexpected keyword argument {name!r}")
    return given, tls


def _used(tls: dict[str, object], url: str | None = None) -> dict[str, object]:
    """What was said of TLS, if it is used: where there is a URL, that says so."""
    scheme = url and url.partition("://")[0].lower()
    if scheme in TLS_SCHEMES or tls.get("ssl"):
        for name, words in REFUSED_WITH_TLS.items():
            if tls.get(name):
                raise ValueError(f"{name}: {words} {UNSUPPORTED}")
        # As in redis-py, None asks for no proof; of the others it means not given.
        return {
            name: read(name, tls[name])
            for name, read in READ_WITH_TLS.items()
            if name in tls and (tls[name] is not None or name == "ssl_cert_reqs")
        }
    return {}


def _of_client(client: RedisLike) -> tuple[dict[str, object], dict[str, object]]:
    """The connection settings of a redis-py or valkey-py client; those of TLS apart."""
    name = f"{type(client).__module__}.{type(client).__qualname__}".removeprefix("builtins.")
    if hasattr(client, "nodes_manager"):
        raise TypeError(f"{name}: a cluster {UNSUPPORTED}")
    pool = getattr(client, "connection_pool", None)
    settings = getattr(pool, "connection_kwargs", None)
    if pool is None or not isinstance(settings, dict):
        raise TypeError(f"source must be a URL, redis.Redis or valkey.Valkey, not {name}")
    if hasattr(pool, "service_name"):
        raise TypeError(f"{name}: following Sentinel {UNSUPPORTED}")
    read = READ.keys() | READ_WITH_TLS.keys() | REFUSED.keys() | REFUSED_WITH_TLS.keys()
    known = {key: value for key, value in settings.items() if key in read}
    if "path" in settings:
        known["unix_socket_path"] = settings["path"]
    given, tls = _read(known)
    ancestors = getattr(pool, "connection_class", object).__mro__
    tls["ssl"] = any(ancestor.__name__ == "SSLConnection" for ancestor in ancestors)
    return given if "unix_socket_path" in given else {"host": "localhost"} | given, tls


def _text(name: str, value: object) -> str:
    if isinstance(value, bytes):
        return value.decode()
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a str, not {type(value).__name__}")
    return value


def _provider(name: str, value: object) -> object:
    if not (callable(value) or hasattr(value, "get_credentials")):
        raise TypeError(
            f"{name} must have get_credentials(), or be callable, not {type(value).__name__}"
        )
    return value


def _path(name: str, value: object) -> str:
    if not isinstance(value, str | bytes | os.PathLike):
        raise TypeError(f"{name} must be a path, not {type(value).__name__}")
    return os.fsdecode(value)


def _whole(name: str, value: object) -> int:
    # Like redis-py, take "6379" too: it often comes from the environment.
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise TypeError(f"{name} must be an int, not {type(value).__name__}")
    try:
        return int(value)
    except ValueError:
        raise ValueError(f"{name} must be an int, not {value!r}") from None


def _port(name: str, value: object) -> int:
    return _within(name, _whole(name, value), 1, 65535)


def _db(name: str, value: object) -> int:
    return _within(name, _whole(name, value), 0, 2**31 - 1)


def _within(name: str, value: int, least: int, most: int) -> int:
    if not least <= value <= most:
        raise ValueError(f"{name} must be from {least} to {most}, not {value}")
    return value


def _seconds(name: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {type(value).__name__}")
    if not 0 < value < float("inf"):
        raise ValueError(f"{name} must be more than 0 s, not {value}")
    return float(value)


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool | int):
        raise TypeError(f"{name} must be a bool, not {type(value).__name__}")
    return bool(value)


def _certificates(name: str, value: object) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError(f"{name} must be a str (PEM) or bytes (DER), not {type(value).__name__}")
    return bytes(value)


def _proof(name: str, value: object) -> str:
    """`ssl_cert_reqs`: a word, or an `ssl.VerifyMode`, which is an int."""
    words = ("none", "optional", "required")
    number = 0 if value is None else value
    if isinstance(number, int) and 0 <= number < len(words):
        return words[number]
    if value not in words:
        raise ValueError(f"{name} must be 'required', 'optional' or 'none', not {value!r}")
    return str(value)


def _version(name: str, value: object) -> int:
    """An `ssl.TLSVersion`, which is an int."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an ssl.TLSVersion, not {type(value).__name__}")
    return int(value)


READ: dict[str, Callable[[str, object], object]] = {
    "host": _text,
    "port": _port,
    "unix_socket_path": _path,
    "db": _db,
    "username": _text,
    "password": _text,
    "credential_provider": _provider,
    "client_name": _text,
    "timeout": _seconds,
    "socket_timeout": _seconds,
    "socket_connect_timeout": _seconds,
}
READ_WITH_TLS: dict[str, Callable[[str, object], object]] = {
    "ssl": _flag,
    "ssl_ca_certs": _path,
    "ssl_ca_path": _path,
    "ssl_ca_data": _certificates,
    "ssl_certfile": _path,
    "ssl_keyfile": _path,
    "ssl_cert_reqs": _proof,
    "ssl_check_hostname": _flag,
    "ssl_min_version": _version,
}
