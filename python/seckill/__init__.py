"""Flash sales on Redis or Valkey that never oversell: four drop-in functions and a lock.

A Rust core does the work. The asyncio twins are in `seckill.aio`; `seckill.compat` has modules to
import instead of redis-py's.
"""

from seckill._client import Client, configure
from seckill._core import acquire_lock, incr_inventory, release_lock, update_inventory
from seckill._embedded import embedded
from seckill._exceptions import (
    AuthenticationError,
    ConnectionError,
    InsufficientInventory,
    InvalidInventory,
    InventoryError,
    LockError,
    LockLostError,
    LockNotOwnedError,
    LockTimeout,
    NoInventory,
    NotReplicated,
    OutcomeUnknown,
    SeckillError,
    ServerError,
)
from seckill._lock import Lock

__version__: str

__all__ = [
    "AuthenticationError",
    "Client",
    "ConnectionError",
    "InsufficientInventory",
    "InvalidInventory",
    "InventoryError",
    "Lock",
    "LockError",
    "LockLostError",
    "LockNotOwnedError",
    "LockTimeout",
    "NoInventory",
    "NotReplicated",
    "OutcomeUnknown",
    "SeckillError",
    "ServerError",
    "__version__",
    "acquire_lock",
    "configure",
    "embedded",
    "incr_inventory",
    "release_lock",
    "update_inventory",
]


TYPE_CHECKING = False
if TYPE_CHECKING:
    from seckill import aio as aio
del TYPE_CHECKING  # no name of ours


def __getattr__(name: str) -> object:
    # Only when asked: either costs more than all the rest of the import.
    if name == "__version__":
        from importlib.metadata import version

        return version("seckill")
    if name == "aio":
        from importlib import import_module

        return import_module("seckill.aio")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
