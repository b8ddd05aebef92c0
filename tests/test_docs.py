"""The documentation is right: each Python block runs, names that are shown exist."""

from __future__ import annotations

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import seckill
from support.programs import search_path

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    *(page for page in (ROOT / "README.md", ROOT / "README.zh-CN.md") if page.exists()),
    *sorted((ROOT / "docs").glob("*.md")),
]
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(language: str) -> list:
    """Every block in that language, as (page, line, what else the fence says, text)."""
    found_blocks = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for found in FENCE.finditer(text):
            if found[1] == language:
                line = text.count("\n", 0, found.start()) + 2
                name = f"{page.relative_to(ROOT)}:{line}"
                found_blocks.append(pytest.param(page, line, found[2].strip(), found[3], id=name))
    return found_blocks


def test_there_is_documentation():
    assert ROOT / "README.md" in PAGES
    assert blocks("python"), "with Python in it"


@pytest.mark.parametrize(("page", "line", "_more", "text"), blocks("python"))
def test_a_python_block_runs(start_server, tmp_path, page, line, _more, text):
    """Alone, in a fresh interpreter, with a stock on the server that the environment names."""
    server = start_server()
    server.redis().set("inventory", 100)
    program = tmp_path / "block.py"
    # The lines keep their numbers: a traceback names the line of the page.
    program.write_text("\n" * (line - 1) + text, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, str(program)],
        cwd=tmp_path,
        env={
            "PYTHONPATH": search_path(),
            "PYTHONIOENCODING": "utf-8",
            "SECKILL_REDIS_URL": server.url,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, f"{page.name}:{line}\n{ended.stderr}"


@pytest.mark.parametrize(("page", "line", "command", "text"), blocks("text"))
def test_a_help_text_is_what_the_command_prints(page, line, command, text):
    """A block that begins with ```text seckill demo --help."""
    if not command.endswith("--help"):
        return
    assert command.startswith("seckill ")
    ended = subprocess.run(
        [sys.executable, "-m", *command.split()],
        env={"COLUMNS": "80", "NO_COLOR": "1", "PYTHONPATH": search_path()},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ended.stdout.strip() == text.strip(), f"{page.name}:{line}"


@pytest.mark.parametrize(("page", "line", "_more", "text"), blocks("lua"))
def test_a_lua_block_is_what_the_server_runs(page, line, _more, text):
    """A block names its file in its first line; what it leaves out stands before or behind it."""
    first, _, excerpt = text.partition("\n")
    script = (ROOT / first.removeprefix("-- ").strip()).read_text(encoding="utf-8")
    assert excerpt.strip() in script, f"{page.name}:{line}"


def test_each_case_of_the_guarantees_is_named_by_a_test():
    """By its docstring or its name: what is promised is tried."""

    def plain(text: str) -> str:
        return " ".join(text.replace("`", "").replace("_", " ").lower().split())

    tables = (ROOT / "docs/guarantees.md").read_text(encoding="utf-8").split("| case |")[1:]
    rows = [row for table in tables for row in table.partition("\n\n")[0].splitlines()[2:]]
    cases = [plain(row.split("|")[1]) for row in rows]
    assert len(cases) > 30
    pages = (page.read_text(encoding="utf-8") for page in (ROOT / "tests").glob("test_*.py"))
    words = plain(" ".join(pages))
    assert [case for case in cases if case not in words] == []


def test_links_between_the_pages_lead_somewhere():
    for page in PAGES:
        text = FENCE.sub("", page.read_text(encoding="utf-8"))
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
            if not target.startswith(("http://", "https://", "mailto:")):
                assert (page.parent / target).exists(), f"{page.name} -> {target}"


def test_all_is_what_can_be_imported():
    public = {name for name in vars(seckill) if not name.startswith("_")}
    modules = {name for name in public if name in sys.modules or f"seckill.{name}" in sys.modules}
    assert set(seckill.__all__) == public - modules | {"__version__"}
    namespace = {}
    exec("from seckill import *", namespace)
    assert set(seckill.__all__) <= set(namespace)
    assert len(set(seckill.__all__)) == len(seckill.__all__)


def test_all_holds_the_functions_the_client_and_the_whole_exception_tree():
    exceptions = importlib.import_module("seckill._exceptions")
    tree = {
        name
        for name, value in vars(exceptions).items()
        if not name.startswith("_")
        and isinstance(value, type)
        and issubclass(value, seckill.SeckillError)
    }
    functions = {"acquire_lock", "release_lock", "incr_inventory", "update_inventory"}
    assert tree | functions | {"Client", "configure", "embedded"} <= set(seckill.__all__)
