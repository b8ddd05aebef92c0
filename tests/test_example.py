"""examples/flash_sale.py: runs as it is, on any server, and its sums are right."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from support.servers import Server

SCRIPT = Path(__file__).parent.parent / "examples" / "flash_sale.py"
TOTAL = re.compile(r"^offered (\d+), sold (\d+), left (\d+), refused (\d+), in ", re.MULTILINE)


def run(url: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SECKILL_REDIS_URL": url}
    return subprocess.run(
        [sys.executable, SCRIPT], env=environment, capture_output=True, text=True, timeout=60
    )


def totals(ended: subprocess.CompletedProcess[str]) -> list[int]:
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not ended.stderr
    found = TOTAL.search(ended.stdout)
    assert found, ended.stdout
    return [int(number) for number in found.groups()]


@pytest.fixture
def database(server: Server) -> str:
    """The URL of an empty database: the example's key names are its own to choose."""
    server.redis(db=9).flushdb()
    return server.url.rpartition("/")[0] + "/9"


def test_sells_what_there_is_and_not_one_more(server: Server, database: str) -> None:
    assert totals(run(database)) == [100, 100, 0, 300]
    assert server.redis(db=9).get("inventory") == b"0"


def test_sells_what_a_former_run_has_left(server: Server, database: str) -> None:
    server.redis(db=9).set("inventory", 1000)
    assert totals(run(database)) == [1100, 400, 700, 0]
    assert server.redis(db=9).get("inventory") == b"700"


def test_says_in_one_line_that_there_is_no_server() -> None:
    ended = run("redis://127.0.0.1:1/0")
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    assert ended.stderr.startswith("no sale without a server: ")
    assert "SECKILL_REDIS_URL" in ended.stderr


def test_needs_nothing_but_the_standard_library_and_seckill() -> None:
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
        )
    }
    assert imported - sys.stdlib_module_names == {"seckill"}
