"""The script call that every other side sends: the project's own, with the library's arguments."""

from __future__ import annotations

import hashlib
import re
import secrets
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .server import Server

SCRIPTS = Path(__file__).resolve().parent.parent / "src" / "scripts"

SESSION = "<session>"
NUMBER = "<number>"
NEVER = "9999999999999999"
"""A deadline, in microseconds of the server's clock, that does not come."""


@dataclass(frozen=True)
class ScriptCall:
    """One sale. SESSION and NUMBER stand where each client's own identity and batch number go."""

    source: str
    keys: tuple[str, ...]
    args: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(["EVALSHA", self.sha, str(len(self.keys)), *self.keys, *self.args])

    @property
    def sha(self) -> str:
        return hashlib.sha1(self.source.encode()).hexdigest()

    def by(self, session: str) -> ScriptCall:
        keys = tuple(key.replace(SESSION, session) for key in self.keys)
        return ScriptCall(self.source, keys, self.args)

    def session(self) -> tuple[list[str], Callable[[], list[str]]]:
        """A new session: its keys, and a function that returns the arguments of its next call."""
        call = self.by(secrets.token_hex(16))
        args = list(call.args)
        place, number = args.index(NUMBER), 0

        def following() -> list[str]:
            nonlocal number
            number += 1
            args[place] = str(number)
            return args

        return list(call.keys), following


def one_sale(lock: str, stock: str) -> ScriptCall:
    """What `update_inventory(lock, stock, -1)` sends, on a lock that is free; see stock.lua."""
    tag = stock[1:].partition("}")[0] if stock.startswith("{") else stock
    source = "".join((SCRIPTS / name).read_text() for name in ("session.lua", "stock.lua"))
    keys = (f"seckill:{{{tag}}}:{SESSION}:{stock}", stock, lock)
    return ScriptCall(source, keys, (NUMBER, NEVER, "600000", "", "", "-1", "1"))


ONE_SALE = (
    "import sys, seckill; seckill.configure(port=int(sys.argv[1])).update_inventory('l', 's', -1)"
)


def check(server: Server) -> None:
    """Compares it with what the server gets from the library; RuntimeError if they differ."""
    expected = one_sale("l", "s")
    server.client.set("s", 1)
    server.client.script_load(expected.source)
    with server.client.monitor() as monitor:  # type: ignore[no-untyped-call]
        subprocess.run([sys.executable, "-c", ONE_SALE, str(server.port)], check=True)
        server.client.echo("over")
        sent = ""
        while not sent.startswith("EVALSHA"):
            sent = monitor.next_command()["command"]
            if sent == "ECHO over":
                raise RuntimeError("the library did not send the script that is in the tree")
    pattern = re.escape(str(expected))
    for place, what in ((SESSION, "[0-9a-f]{32}"), (NUMBER, "[0-9]+"), (NEVER, "[0-9]{16}")):
        pattern = pattern.replace(re.escape(place), what)
    if not re.fullmatch(pattern, sent):
        raise RuntimeError(
            f"the library sends {sent!r}, not {str(expected)!r}: see benches/call.py"
        )
