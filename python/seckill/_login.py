"""Asking a credential provider as whom to connect, in a thread that the core starts for it.

A provider is an object with `get_credentials()`, as redis-py has them, or a callable. It gives a
password, or user name and password; or an awaitable of them, which is awaited in a loop of its own.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Answer = Callable[[str | None, str, BaseException | None], None]


def ask(provider: Any, answer: Answer) -> None:
    """Ask, and answer whatever comes of it."""
    try:
        username, password = credentials(provider)
    except BaseException as error:  # whatever it is, somebody waits to be told
        answer(None, "", error)
    else:
        answer(username, password, None)


def credentials(provider: Any) -> tuple[str | None, str]:
    """User name (None: the default user) and password, of whom a provider says they are now.

    Raises:
        TypeError: it gave something else; the message does not say what.

    Examples:
        >>> credentials(lambda: "secret")
        (None, 'secret')
        >>> credentials(lambda: ("alice", b"secret"))
        ('alice', 'secret')
    """
    try:
        told = getattr(provider, "get_credentials", provider)()
    except NotImplementedError:  # a provider of redis-py's for asyncio
        told = provider.get_credentials_async()
    if hasattr(told, "__await__"):
        told = awaited(told)
    if isinstance(told, str | bytes):
        told = (told,)
    if not isinstance(told, tuple | list) or len(told) not in (1, 2):
        raise TypeError("a credential provider must give a password, or user name and password")
    *username, password = map(_text, told)
    return (username[0] or None if username else None), password


def awaited(told: Any) -> Any:
    import asyncio

    async def wait() -> Any:
        return await told

    return asyncio.run(wait())


def _text(told: object) -> str:
    if isinstance(told, bytes):
        return told.decode()
    if not isinstance(told, str):
        raise TypeError(f"a credential provider must give str, not {type(told).__name__}")
    return told
