"""`Client` and the process's default client."""

from __future__ import annotations

from seckill import _core
from seckill._keywords import safety as _safety
from seckill._settings import resolve

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

    from seckill._settings import Options, RedisLike


class Client(_core.CoreClient):
    """The four functions as methods, on one server, service or cluster; shared by all threads.

    Nothing is sent, opened or started before the first call. After a fork the child connects
    anew. A client can be pickled: its settings travel, password included, its connection does not.

    Args:
        source: a URL (`redis://`, `valkey://`, `unix://`; with TLS `rediss://`, `valkeys://`;
            `redis+sentinel://host,host/service` and `redis+cluster://host,host` and their likes),
            or an existing `redis.Redis` or `valkey.Valkey`, one that their `Sentinel` made, a
            `RedisCluster` or `ValkeyCluster` (or an asyncio twin), whose settings are read. None:
            the keywords; and if they do not say where or as whom to connect, the environment
            variable SECKILL_REDIS_URL, else REDIS_URL, else `redis://localhost:6379/0`.
        options: the keywords of `redis.Redis` (`host`, `port`, `db`, `username`, `password`,
            `unix_socket_path`, `client_name`; `credential_provider`: who is asked for user and
            password at each connect, an object with `get_credentials()` or a callable;
            `socket_timeout`: seconds that one attempt waits for an answer, 1 by default;
            `socket_connect_timeout`), and `timeout`: seconds that a call without a `time_out` of
            its own may take in all, 10 by default. `ssl=True` asks for TLS; `ssl_ca_certs`,
            `ssl_ca_path` or `ssl_ca_data` say whom to believe (else the system does),
            `ssl_certfile` and `ssl_keyfile` are a certificate of our own, `ssl_check_hostname`,
            `ssl_cert_reqs` and `ssl_min_version` are as in redis-py. `sentinels` (pairs of host and
            port) and `service_name` follow the primary that sentinels name; `sentinel_kwargs` says
            how to talk to them (`username`, `password`, `ssl` ...). `cluster` (such pairs, too)
            names some nodes of a cluster. `wait_replicas` and `wait_aof` say how safe a change
            must be before a caller is told, see `with_options`. Those that only tune how redis-py
            works inside (`decode_responses`, `retry`, `max_connections` ...) have no effect. What a
            URL says goes before a keyword.

    Raises:
        TypeError: unknown keyword, or a source or value of another type.
        ValueError: malformed URL, or something that this version does not support.

    Examples:
        >>> import seckill
        >>> with seckill.embedded() as server:
        ...     with seckill.Client(server.url) as client:
        ...         client.incr_inventory("inventory", 10)
        ...         client.update_inventory("lockname", "inventory", -3)
    """

    def __new__(cls, source: str | RedisLike | None = None, /, **options: Unpack[Options]) -> Self:
        return super().__new__(cls, **resolve(source, options))  # type: ignore[arg-type]

    def __init__(
        self, source: str | RedisLike | None = None, /, **options: Unpack[Options]
    ) -> None:
        """All is done in `__new__`; a subclass may call this one with the same arguments."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def with_options(
        self, *, wait_replicas: int | None = None, wait_aof: bool | None = None
    ) -> Self:
        """Make a client that differs from this one in how safe a change must be; or for one call.

        It shares everything else with this one: connection, queue, locks.

        Args:
            wait_replicas: how many replicas must have a change (a sale, a lock, its extension)
                before the caller is told. None: as before.
            wait_aof: whether it must be in the primary's append-only file, on its disk. None: as
                before.

        Returns:
            The other client. What it does raises `NotReplicated` where a change is done, but not as
            safe as that in time.

        Raises:
            TypeError: a value of another type.
            ValueError: a negative number.

        Examples:
            >>> import seckill
            >>> with seckill.embedded() as server:
            ...     with seckill.Client(server.url) as client:
            ...         careful = client.with_options(wait_replicas=0)
            ...         careful.incr_inventory("inventory", 10)
        """
        options = _safety(wait_replicas, wait_aof)
        return _core.CoreClient.__new__(type(self), **options, like=self)  # type: ignore[arg-type]

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), self.settings())


def _restore(cls: type[Client], settings: dict[str, object]) -> Client:
    return _core.CoreClient.__new__(cls, **settings)  # type: ignore[arg-type]


def configure(source: str | RedisLike | None = None, /, **options: Unpack[Options]) -> Client:
    """Set which server the functions of this process talk to: those that are awaited, too.

    Without it they use what `Client()` finds in the environment. It sends nothing. Call it at
    start: locks that were taken through the former default client stay with that one.

    Args:
        source: a URL or a redis-py client, as for `Client`.
        options: keywords, as for `Client`.

    Returns:
        The new default client.

    Raises:
        TypeError: unknown keyword, or a source or value of another type.
        ValueError: malformed URL, or something that this version does not support.

    Examples:
        >>> import seckill
        >>> with seckill.embedded() as server:
        ...     client = seckill.configure(server.url, timeout=5)
        ...     seckill.incr_inventory("inventory", 10)
        ...     seckill.update_inventory("lockname", "inventory", -1)
    """
    client = Client(source, **options)
    _core.set_default(client)
    return client


def default_client() -> Client:
    """What the core makes its default client, if a function is called before `configure`."""
    return Client()
