"""The native module: the Rust core's edge to Python. Docstrings stand in the Rust code."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any, Protocol, SupportsIndex, TypeAlias, final

from typing_extensions import Self, disjoint_base

__all__ = [
    "CoreClient",
    "CoreLock",
    "Held",
    "Probe",
    "acquire_lock",
    "begin_acquire_lock",
    "begin_close",
    "begin_incr_inventory",
    "begin_release_lock",
    "begin_update_inventory",
    "generation",
    "get_default",
    "incr_inventory",
    "release_lock",
    "set_default",
    "settle",
    "update_inventory",
]

_Name: TypeAlias = str | bytes | bytearray | memoryview | int | float
_Change: TypeAlias = SupportsIndex
_Milliseconds: TypeAlias = float | timedelta

class _Lock(Protocol):
    def _proof(self) -> tuple[bytes, bytes]: ...

def acquire_lock(
    lockname: _Name, acquire_time: _Milliseconds = 5000, time_out: _Milliseconds = 10000
) -> bool: ...
def release_lock(lockname: _Name) -> None: ...
def incr_inventory(key: _Name, change_num: _Change = 1) -> None: ...
def update_inventory(
    lockname: _Name | _Lock,
    key: _Name,
    change_num: _Change = 1,
    acquire_time: _Milliseconds = 5000,
    time_out: _Milliseconds = 10000,
) -> None: ...

@disjoint_base
class CoreClient:
    def __new__(
        cls,
        *,
        url: str | None = None,
        host: str | None = None,
        port: int | None = None,
        unix_socket_path: str | None = None,
        db: int | None = None,
        username: str | None = None,
        password: str | None = None,
        client_name: str | None = None,
        timeout: float | None = None,
        socket_timeout: float | None = None,
        socket_connect_timeout: float | None = None,
        ssl: bool | None = None,
        ssl_ca_certs: str | None = None,
        ssl_ca_path: str | None = None,
        ssl_ca_data: bytes | None = None,
        ssl_certfile: str | None = None,
        ssl_keyfile: str | None = None,
        ssl_cert_reqs: str | None = None,
        ssl_check_hostname: bool | None = None,
        ssl_min_version: int | None = None,
        credential_provider: object | None = None,
        sentinels: Sequence[tuple[str, int]] | None = None,
        service_name: str | None = None,
        sentinel_kwargs: dict[str, Any] | None = None,
        cluster: Sequence[tuple[str, int]] | None = None,
        wait_replicas: int | None = None,
        wait_aof: bool | None = None,
        like: CoreClient | None = None,
    ) -> Self: ...
    def acquire_lock(
        self, lockname: _Name, acquire_time: _Milliseconds = 5000, time_out: _Milliseconds = 10000
    ) -> bool: ...
    def release_lock(self, lockname: _Name) -> None: ...
    def incr_inventory(self, key: _Name, change_num: _Change = 1) -> None: ...
    def update_inventory(
        self,
        lockname: _Name | _Lock,
        key: _Name,
        change_num: _Change = 1,
        acquire_time: _Milliseconds = 5000,
        time_out: _Milliseconds = 10000,
    ) -> None: ...
    def close(self) -> None: ...
    def statistics(self) -> dict[str, int]: ...
    def settings(self) -> dict[str, object]: ...

@final
class Held:
    @property
    def token(self) -> bytes: ...
    @property
    def fence(self) -> int: ...
    @property
    def lost(self) -> bool: ...
    def lose(self) -> None: ...
    def remaining(self) -> float: ...

@final
class CoreLock:
    def __new__(cls, client: CoreClient | None, name: _Name, /) -> Self: ...
    @property
    def name(self) -> bytes: ...
    def acquire(
        self,
        token: bytes | None,
        lease: int | None,
        wait: float | None,
        fair: bool = False,
        renew: bool = False,
        max_hold: float | None = None,
        on_lost: Callable[[], object] | None = None,
    ) -> Held | None: ...
    def release(self, token: bytes, held: Held | None = None) -> bool: ...
    def extend(self, token: bytes, ms: int, how: str, held: Held | None = None) -> bool: ...
    def holder(self) -> bytes | None: ...
    def begin_acquire(
        self,
        token: bytes | None,
        lease: int | None,
        wait: float | None,
        fair: bool = False,
        renew: bool = False,
        max_hold: float | None = None,
        on_lost: Callable[[], object] | None = None,
        task: object | None = None,
    ) -> Awaitable[Held | None]: ...
    def begin_release(self, token: bytes, held: Held | None = None) -> Awaitable[bool]: ...
    def begin_extend(
        self, token: bytes, ms: int, how: str, held: Held | None = None
    ) -> Awaitable[bool]: ...
    def begin_holder(self) -> Awaitable[bytes | None]: ...
    def statistics(self) -> dict[str, float]: ...

@final
class Probe:
    def __new__(
        cls, client: CoreClient, *, anonymous: bool = False, sentinel: bool = False
    ) -> Self: ...
    @property
    def remote(self) -> bool: ...
    def ask(self, *words: str) -> object: ...
    def pushes(self) -> list[tuple[str, list[object]]]: ...

def generation() -> int: ...
def set_default(client: CoreClient | None) -> None: ...
def get_default() -> CoreClient: ...
def begin_acquire_lock(
    client: CoreClient | None,
    lockname: _Name,
    acquire_time: _Milliseconds,
    time_out: _Milliseconds,
) -> Awaitable[bool]: ...
def begin_release_lock(client: CoreClient | None, lockname: _Name) -> Awaitable[None]: ...
def begin_incr_inventory(
    client: CoreClient | None, key: _Name, change_num: _Change
) -> Awaitable[None]: ...
def begin_update_inventory(
    client: CoreClient | None,
    lockname: _Name | _Lock,
    key: _Name,
    change_num: _Change,
    acquire_time: _Milliseconds,
    time_out: _Milliseconds,
) -> Awaitable[None]: ...
def begin_close(client: CoreClient) -> Awaitable[None]: ...
def settle() -> None: ...
