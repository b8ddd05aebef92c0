"""Docstrings of the asyncio face: those of its sync twins, with examples that await."""

from __future__ import annotations

import re

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, TypeVar

    Twin = TypeVar("Twin", bound=Callable[..., Any])

_AWAITED = re.compile(
    r"""\b(
        (?:seckill|seckill\.Client\(\)|client|careful)
            \.(?:acquire_lock|release_lock|incr_inventory|update_inventory|close)
        | lock\.(?:acquire|release|extend|reacquire|locked|owned|ensure_held)
        | super\(\)\.do_(?:acquire|release|extend|reacquire)
    )\(""",
    re.VERBOSE,
)
_ENTERED = re.compile(r"\bwith (?=seckill\.(?:Client|Lock)\(|lock:|Talkative\(|Generous\()")
_OF_THE_PACKAGE = re.compile(r"\bseckill(?!\.(?:embedded|[A-Z]\w+ as\b))")


def twin_of(sync: object, without: str | None = None) -> Callable[[Twin], Twin]:
    """Give a function, method or class the docstring of its sync twin, less one argument's line."""
    words, heading, examples = (sync.__doc__ or "").partition("Examples:")
    if without:
        words = re.sub(rf"\n *{without}: .*", "", words)
    examples = _AWAITED.sub(r"await \1(", examples)
    examples = _ENTERED.sub("async with ", examples)
    examples = examples.replace(" def ", " async def ")
    examples = _OF_THE_PACKAGE.sub("seckill.aio", examples)

    def document(twin: Twin) -> Twin:
        twin.__doc__ = words + heading + examples
        return twin

    return document
