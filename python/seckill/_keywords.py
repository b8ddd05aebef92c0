"""The keywords of `Client`, those of redis-py among them: which are read, and as what.

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

UNSUPPORTED = "is not supported by this version of seckill"

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
# What an unset variable of the environment often makes of them: os.environ.get("REDIS_USER", "").
MAY_BE_EMPTY = ("username", "password")
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


def read_all(
    options: Mapping[str, object], whose: str = "Client()"
) -> tuple[dict[str, object], dict[str, object]]:
    """The settings among the keywords, in the types that the core takes; None means not given.

    So does an empty user name or password, as in redis-py.
    Those of TLS are apart, as they were given: whether they mean anything is not yet known.
    """
    given: dict[str, object] = {}
    tls: dict[str, object] = {}
    for name, value in options.items():
        if name in READ:
            read = None if value is None else READ[name](name, value)
            if read is not None and not (name in MAY_BE_EMPTY and not read):
                given[name] = read
        elif name in READ_WITH_TLS or name in REFUSED_WITH_TLS:
            tls[name] = value
        elif name in REFUSED:
            if value:
                raise ValueError(f"{name}: {REFUSED[name]} {UNSUPPORTED}")
        elif name not in IDLE:
            raise TypeError(f"{whose} got an unexpected keyword argument {name!r}")
    return given, tls


def used(tls: dict[str, object], by_url: bool = False) -> dict[str, object]:
    """What was said of TLS, if it is used: by a URL that says so, or because `ssl` does."""
    if not (by_url or tls.get("ssl")):
        return {}
    for name, words in REFUSED_WITH_TLS.items():
        if tls.get(name):
            raise ValueError(f"{name}: {words} {UNSUPPORTED}")
    # As in redis-py, None asks for no proof; of the others it means not given.
    return {
        name: read(name, tls[name])
        for name, read in READ_WITH_TLS.items()
        if name in tls and (tls[name] is not None or name == "ssl_cert_reqs")
    }


def of_sentinels(given: dict[str, object], tls: dict[str, object]) -> dict[str, object]:
    """What `sentinel_kwargs` come to. The time-outs are the client's."""
    for name in ("host", "port", "unix_socket_path", "credential_provider"):
        if name in given:
            raise ValueError(f"sentinel_kwargs: {name} {UNSUPPORTED}")
    return {name: given[name] for name in ("username", "password") if name in given} | used(tls)


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


def _places(name: str, value: object) -> list[tuple[str, int]]:
    if not isinstance(value, list | tuple):
        raise TypeError(f"{name} must be a list of (host, port), not {type(value).__name__}")
    if not value:
        raise ValueError(f"{name} must name one place at least")
    for place in value:
        if not isinstance(place, list | tuple) or len(place) != 2:
            raise TypeError(f"{name} must be a list of (host, port), not of {place!r}")
    return [(_text(name, host), _port(name, port)) for host, port in value]


def _service(name: str, value: object) -> str:
    if not value:
        raise ValueError(f"{name} must not be empty")
    return _text(name, value)


def _sentinel_kwargs(name: str, value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise TypeError(f"{name} must be a dict, not {type(value).__name__}")
    return of_sentinels(*read_all(value, name))


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


def safety(wait_replicas: object, wait_aof: object) -> dict[str, object]:
    """What is said of how safe a change must be; None means not given."""
    said = {"wait_replicas": wait_replicas, "wait_aof": wait_aof}
    return {name: READ[name](name, value) for name, value in said.items() if value is not None}


def _replicas(name: str, value: object) -> int:
    return _within(name, _whole(name, value), 0, 1000)


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
    "sentinels": _places,
    "service_name": _service,
    "sentinel_kwargs": _sentinel_kwargs,
    "cluster": _places,
    "db": _db,
    "username": _text,
    "password": _text,
    "credential_provider": _provider,
    "client_name": _text,
    "timeout": _seconds,
    "socket_timeout": _seconds,
    "socket_connect_timeout": _seconds,
    "wait_replicas": _replicas,
    "wait_aof": _flag,
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
