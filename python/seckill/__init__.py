"""Flash sales on Redis or Valkey that never oversell: four drop-in functions over a Rust core."""

from seckill._client import Client, configure
from seckill._core import acquire_lock, incr_inventory, release_lock, update_inventory
from seckill._embedded import embedded
from seckill._exceptions import (
    AuthenticationError,
    ConnectionError,
    InsufficientInventory,
    InvalidInventory,
    InventoryError,
    LockTimeout,
    NoInventory,
    OutcomeUnknown,
    SeckillError,
    ServerError,
)

__version__: str

__all__ = [
    "AuthenticationError",
    "Client",
    "ConnectionError",
    "InsufficientInventory",
    "InvalidInventory",
    "InventoryError",
    "LockTimeout",
    "NoInventory",
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


def __getattr__(name: str) -> str:
    # Only when asked: importlib.metadata costs more than all the rest of the import.
    if name == "__version__":
        from importlib.metadata import version

        return version("seckill")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
