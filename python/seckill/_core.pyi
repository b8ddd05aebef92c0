"""The native module: the Rust core's edge to Python. Docstrings stand in the Rust code."""

from collections.abc import Awaitable
from datetime import timedelta
from typing import SupportsIndex, TypeAlias

from typing_extensions import Self, disjoint_base

__all__ = [
    "CoreClient",
    "acquire_lock",
    "begin_acquire_lock",
    "begin_close",
    "begin_incr_inventory",
    "begin_release_lock",
    "begin_update_inventory",
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

def acquire_lock(
    lockname: _Name, acquire_time: _Milliseconds = 5000, time_out: _Milliseconds = 10000
) -> bool: ...
def release_lock(lockname: _Name) -> None: ...
def incr_inventory(key: _Name, change_num: _Change = 1) -> None: ...
def update_inventory(
    lockname: _Name,
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
    ) -> Self: ...
    def acquire_lock(
        self, lockname: _Name, acquire_time: _Milliseconds = 5000, time_out: _Milliseconds = 10000
    ) -> bool: ...
    def release_lock(self, lockname: _Name) -> None: ...
    def incr_inventory(self, key: _Name, change_num: _Change = 1) -> None: ...
    def update_inventory(
        self,
        lockname: _Name,
        key: _Name,
        change_num: _Change = 1,
        acquire_time: _Milliseconds = 5000,
        time_out: _Milliseconds = 10000,
    ) -> None: ...
    def close(self) -> None: ...
    def statistics(self) -> dict[str, int]: ...
    def settings(self) -> dict[str, object]: ...

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
    lockname: _Name,
    key: _Name,
    change_num: _Change,
    acquire_time: _Milliseconds,
    time_out: _Milliseconds,
) -> Awaitable[None]: ...
def begin_close(client: CoreClient) -> Awaitable[None]: ...
def settle() -> None: ...
