"""One finding, and the words that all checks share."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

from seckill.doctor.facts import Silent, Unknown


class Gravity(IntEnum):
    """What may come of it, the gravest first. From NOTE on it is no finding."""

    OVERSELL = 0
    LOSE = 1
    STALL = 2
    OPEN = 3
    UNKNOWN = 4
    NOTE = 5
    FINE = 6

    @property
    def is_finding(self) -> bool:
        return self < Gravity.NOTE


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        check: its name.
        gravity: what may come of it.
        what: what was found.
        why: what that leads to.
        remedy: what to do about it.
        where: of several servers, which it is about.
    """

    check: str
    gravity: Gravity
    what: str
    why: str = ""
    remedy: str = ""
    where: str = ""


def not_known(check: str, subject: str, fact: Unknown, look: str) -> Finding:
    return Finding(check, Gravity.UNKNOWN, f"{subject}: unknown ({said(fact.why)})", "", look)


def said(error: str) -> str:
    """What the server said, without the command that it said it to."""
    return error.partition(", with args beginning with")[0]


def see(setting: str) -> str:
    return (
        f"Look at {setting} yourself (on a managed server: its parameter group), or run the doctor"
        " as a user who may use INFO and CONFIG GET."
    )


def silent(check: str, subject: str, fact: Silent) -> Finding:
    return Finding(
        check,
        Gravity.STALL,
        f"{subject} was not answered: {fact.why}",
        "What the doctor waits for in vain, sales wait for, too.",
        "See what holds it up: CLIENT PAUSE, a fail-over, a slow script (SLOWLOG GET), a full"
        " disk.",
    )


def on_another_node(check: str, subject: str, error: str) -> Finding:
    look = "Ask the other nodes of the cluster as well."
    return not_known(check, subject, Unknown(f"its key is not served here: {said(error)}"), look)


def bytes_(count: int) -> str:
    amount, unit = float(count), "B"
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 1024 or unit == "TiB":
            break
        amount /= 1024
    return f"{amount:.4g} {unit}"


def seconds_(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1000:.2g} ms" if seconds < 0.1 else f"{seconds * 1000:.0f} ms"
    return f"{seconds:,.0f} s" if seconds >= 100 else f"{seconds:.3g} s"
