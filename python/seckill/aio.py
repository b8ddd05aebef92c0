"""The four functions and the lock for asyncio: awaited, and otherwise as those of `seckill`.

All tasks that ask in the same moment share one round trip, with the threads of the process, too.
Needs a running asyncio event loop: the standard one, uvloop, or anyio on asyncio; not trio.

The docstrings are those of `seckill`, with examples that await.
"""

from __future__ import annotations

from seckill import _client, _core
from seckill._aio_lock import Lock
from seckill._keywords import safety as _safety
from seckill._settings import resolve
from seckill._twins import twin_of as _twin_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable
    from contextvars import Context

    from typing_extensions import Self, Unpack

    from seckill._core import _Change, _Lock, _Milliseconds, _Name
    from seckill._settings import Options, RedisLike

__all__ = [
    "Client",
    "Lock",
    "acquire_lock",
    "configure",
    "incr_inventory",
    "release_lock",
    "update_inventory",
]


def _wake(tasks: Iterable[tuple[Context, Callable[[object], None], object]]) -> None:
    """Wake the tasks whose calls are over; the loop's callback."""
    for context, step, future in tasks:
        context.run(step, future)


@_twin_of(_core.acquire_lock)
async def acquire_lock(
    lockname: _Name, acquire_time: _Milliseconds = 5000, time_out: _Milliseconds = 10000
) -> bool:
    return await _core.begin_acquire_lock(None, lockname, acquire_time, time_out)


@_twin_of(_core.release_lock)
async def release_lock(lockname: _Name) -> None:
    await _core.begin_release_lock(None, lockname)


@_twin_of(_core.incr_inventory)
async def incr_inventory(key: _Name, change_num: _Change = 1) -> None:
    await _core.begin_incr_inventory(None, key, change_num)


@_twin_of(_core.update_inventory)
async def update_inventory(
    lockname: _Name | _Lock,
    key: _Name,
    change_num: _Change = 1,
    acquire_time: _Milliseconds = 5000,
    time_out: _Milliseconds = 10000,
) -> None:
    await _core.begin_update_inventory(None, lockname, key, change_num, acquire_time, time_out)


@_twin_of(_client.Client)
class Client:
    def __init__(
        self, source: str | RedisLike | None = None, /, **options: Unpack[Options]
    ) -> None:
        self._core = _core.CoreClient(**resolve(source, options))  # type: ignore[arg-type]

    @_twin_of(_core.CoreClient.acquire_lock)
    async def acquire_lock(
        self, lockname: _Name, acquire_time: _Milliseconds = 5000, time_out: _Milliseconds = 10000
    ) -> bool:
        return await _core.begin_acquire_lock(self._core, lockname, acquire_time, time_out)

    @_twin_of(_core.CoreClient.release_lock)
    async def release_lock(self, lockname: _Name) -> None:
        await _core.begin_release_lock(self._core, lockname)

    @_twin_of(_core.CoreClient.incr_inventory)
    async def incr_inventory(self, key: _Name, change_num: _Change = 1) -> None:
        await _core.begin_incr_inventory(self._core, key, change_num)

    @_twin_of(_core.CoreClient.update_inventory)
    async def update_inventory(
        self,
        lockname: _Name | _Lock,
        key: _Name,
        change_num: _Change = 1,
        acquire_time: _Milliseconds = 5000,
        time_out: _Milliseconds = 10000,
    ) -> None:
        await _core.begin_update_inventory(
            self._core, lockname, key, change_num, acquire_time, time_out
        )

    @_twin_of(_client.Client.with_options)
    def with_options(
        self, *, wait_replicas: int | None = None, wait_aof: bool | None = None
    ) -> Self:
        other = type(self).__new__(type(self))
        options = _safety(wait_replicas, wait_aof)
        other._core = _core.CoreClient(**options, like=self._core)  # type: ignore[arg-type]
        return other

    @_twin_of(_core.CoreClient.close)
    async def close(self) -> None:
        await _core.begin_close(self._core)

    aclose = close

    @_twin_of(_core.CoreClient.statistics)
    def statistics(self) -> dict[str, int]:
        return self._core.statistics()

    @_twin_of(_core.CoreClient.settings)
    def settings(self) -> dict[str, object]:
        return self._core.settings()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def __await__(self) -> Generator[None, None, Self]:
        return self
        yield  # A generator, with nothing to wait for.

    def __reduce__(self) -> tuple[object, ...]:
        return _restore, (type(self), self.settings())

    def __repr__(self) -> str:
        return repr(self._core).replace("CoreClient", type(self).__qualname__, 1)


def _restore(cls: type[Client], settings: dict[str, object]) -> Client:
    client = cls.__new__(cls)
    client._core = _core.CoreClient(**settings)  # type: ignore[arg-type]
    return client


@_twin_of(_client.configure)
def configure(source: str | RedisLike | None = None, /, **options: Unpack[Options]) -> Client:
    client = Client(source, **options)
    _core.set_default(client._core)
    return client
