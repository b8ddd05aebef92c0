"""The seller: the least-privilege user of docs/connecting.md, as whom the code under test comes.

What it may do is read from the tables on that page, so that what is documented is what is tested:
every test server has this user (servers.py), and every URL of the tests names it. Observers, which
look at the data or play somebody else, come as the default user.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PAGE = Path(__file__).resolve().parents[2] / "docs" / "connecting.md"
USER, PASSWORD = "seller", "least"
USER_INFO = f"{USER}:{PASSWORD}@"  # what stands before the host in a URL


@dataclass(frozen=True)
class Row:
    """One of a table: what some rules are for, and from which version on servers know them."""

    purpose: str
    rules: tuple[str, ...]
    since: tuple[int, ...]


def _rows(table: str) -> Iterator[Row]:
    for line in table.partition("\n\n")[0].splitlines()[2:]:
        cells = [cell.strip().replace("\0", "|") for cell in line.replace("\\|", "\0").split("|")]
        _, purpose, rules, since, *_ = cells
        version = tuple(map(int, since.split("."))) if since else ()
        yield Row(purpose, tuple(rules.strip("`").split()), version)


@cache
def tables() -> tuple[list[Row], list[Row]]:
    """What the page lists: for every shop, and for some deployments."""
    page = PAGE.read_text(encoding="utf-8")
    usual, special = (list(_rows(table)) for table in page.split("| for | rules |")[1:])
    return usual, special


def rules(version: tuple[int, ...], *, special: bool = True, doctor: bool = False) -> list[str]:
    """All that is listed and known to a server of this version."""
    usual, more = tables()
    rows = usual + [row for row in more if special and (doctor or "doctor" not in row.purpose)]
    return list(dict.fromkeys(rule for row in rows if row.since <= version for rule in row.rules))


def user(
    version: tuple[int, ...], *keys: str, without: Sequence[str] = (), **which: bool
) -> list[str]:
    """What ACL SETUSER takes after the name, and `user` in a configuration file."""
    allowed = [rule for rule in rules(version, **which) if rule not in without]
    return ["reset", "on", f">{PASSWORD}", *(f"~{key}" for key in keys), *allowed]


def as_observer(url: str) -> str:
    """The URL for those who are not the code under test, and may do everything."""
    return url.replace(USER_INFO, "")
