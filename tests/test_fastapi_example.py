"""examples/fastapi_sale.py: a real uvicorn, a crowd at its door, and servers that go away."""

from __future__ import annotations

import ast
import asyncio
import json
import os
import re
import resource
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from support.aio import eventually, gathered
from support.servers import Server, die_with_parent
from support.threads import call, wait_until

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "examples" / "fastapi_sale.py"
UVICORN = ("-m", "uvicorn", "examples.fastapi_sale:app", "--no-access-log")
PROGRAM = (str(SCRIPT),)
ADDRESS = re.compile(r"Uvicorn running on http://127\.0\.0\.1:(\d+)")
COMPLAINTS = re.compile(r"Traceback|(?:Resource|Runtime)Warning|never retrieved|pending!|panicked")
CROWD, UNITS = 2_000, 700


class App:
    """A uvicorn of our own, on a port that the kernel chose."""

    def __init__(self, log: Path, url: str, *command: str) -> None:
        self._log = log
        workers = 2 if "--workers" in command else 1
        environment = {"SECKILL_REDIS_URL": url, "PYTHONASYNCIODEBUG": "1"}
        if workers == 1:  # uvicorn's supervisor leaves the socket that it listens on unclosed
            environment["PYTHONWARNINGS"] = "default::ResourceWarning"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, *command, "--port", "0"],
                cwd=ROOT,
                env=os.environ | environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
        wait_until(lambda: self._is_up(workers) or self._process.poll() is not None)
        found = ADDRESS.search(self.log())
        assert found, self.log()
        self.port = int(found[1])

    def _is_up(self, workers: int) -> bool:
        text = self.log()
        return bool(ADDRESS.search(text)) and text.count("startup complete") == workers

    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def end(self) -> None:
        """As Ctrl-C does; it says good-bye to its buyers, and complains of nothing."""
        self._process.send_signal(signal.SIGINT)
        try:
            status = self._process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            raise
        assert status == 0, self.log()
        assert not COMPLAINTS.search(self.log()), self.log()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: Any

    @classmethod
    def read(cls, text: bytes) -> Answer:
        head, _, body = text.decode().partition("\r\n\r\n")
        first, *lines = head.split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return cls(int(first.split()[1]), headers, json.loads(body))

    @property
    def done(self) -> bool | None:
        return self.body["done"]

    @property
    def may_be_repeated(self) -> bool:
        return "retry-after" in self.headers


class Visitor:
    """Somebody with a connection to the shop, for one question."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def come(self) -> Visitor:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def ask(self, method: str, path: str) -> Answer:
        head = f"{method} {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n"
        self._writer.write(head.encode())
        text = await self._reader.read(-1)
        self._writer.close()
        await self._writer.wait_closed()
        return Answer.read(text)


async def visit(app: App, method: str, path: str) -> Answer:
    return await (await Visitor(app.port).come()).ask(method, path)


def get(app: App, path: str) -> Answer:
    return asyncio.run(visit(app, "GET", path))


def post(app: App, path: str) -> Answer:
    return asyncio.run(visit(app, "POST", path))


def crowd(app: App, buyers: int, path: str) -> list[Answer]:
    """All are at the door before the first one asks."""

    async def main() -> list[Answer]:
        visitors: list[Visitor] = []
        while len(visitors) < buyers:
            many = min(200, buyers - len(visitors))
            visitors += await gathered(Visitor(app.port).come() for _ in range(many))
        return await gathered(visitor.ask("POST", path) for visitor in visitors)

    return asyncio.run(main())


@pytest.fixture
def open_files() -> Iterator[None]:
    """A connection of each buyer, here and in the shop: more than some systems start with."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * CROWD if hard == resource.RLIM_INFINITY else min(2 * CROWD, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def open_app(tmp_path: Path) -> Iterator[Callable[..., App]]:
    """Open a shop: `open_app(url, *command)`."""
    apps: list[App] = []

    def open_one(url: str, *command: str) -> App:
        apps.append(App(tmp_path / f"log{len(apps)}", url, *(command or UVICORN)))
        return apps[-1]

    yield open_one
    for app in apps:
        app.end()


@pytest.fixture(scope="module")
def stall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[App, Server]]:
    """One shop, and its server, for the tests that do them no harm."""
    server = Server().start()
    app = App(tmp_path_factory.mktemp("shop") / "log", server.url, *UVICORN)
    yield app, server
    app.end()
    server.stop()


# -- a sale ---------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
@pytest.mark.usefixtures("open_files")
def test_a_crowd_gets_what_there_is_and_not_one_more(start_server, open_app, loop):
    server = start_server()
    server.redis().set("stock:ticket", UNITS)
    app = open_app(server.url, *UVICORN, "--loop", loop)
    answers = crowd(app, CROWD, "/buy/ticket")
    assert Counter(answer.status for answer in answers) == {200: UNITS, 409: CROWD - UNITS}
    assert Counter(answer.done for answer in answers) == {True: UNITS, False: CROWD - UNITS}
    assert {answer.body["detail"] for answer in answers if not answer.done} == {"only 0 left"}
    assert server.redis().get("stock:ticket") == b"0"
    assert get(app, "/stock/ticket").body == {"left": 0}


@pytest.mark.usefixtures("open_files")
def test_two_workers_sell_one_stock(start_server, open_app):
    server = start_server()
    server.redis().set("stock:ticket", UNITS)
    app = open_app(server.url, *UVICORN, "--workers", "2")

    def at_the_server() -> int:
        get(app, "/stock/ticket")
        return sum(one["cmd"].startswith("eval") for one in server.redis().client_list())

    wait_until(lambda: at_the_server() == 2)
    answers = crowd(app, CROWD, "/buy/ticket")
    assert Counter(answer.status for answer in answers) == {200: UNITS, 409: CROWD - UNITS}
    assert server.redis().get("stock:ticket") == b"0"


def test_sells_all_the_units_of_an_order_or_none(stall):
    app, server = stall
    server.redis().set("stock:pair", 5)
    assert post(app, "/buy/pair?units=3").body == {"done": True}
    refusal = post(app, "/buy/pair?units=3")
    assert (refusal.status, refusal.body) == (409, {"done": False, "detail": "only 2 left"})
    assert not refusal.may_be_repeated
    assert get(app, "/stock/pair").body == {"left": 2}
    assert post(app, "/buy/pair?units=2").status == 200
    assert server.redis().get("stock:pair") == b"0"


@pytest.mark.parametrize("units", ["0", "-1", "11", "1.5", "many"])
def test_an_order_that_is_none_changes_nothing(stall, units):
    """Fewer than none would be a restock, by anybody."""
    app, server = stall
    server.redis().set("stock:odd", 20)
    assert post(app, f"/buy/odd?units={units}").status == 422
    assert server.redis().get("stock:odd") == b"20"


def test_looking_at_the_stock_changes_nothing(stall):
    app, server = stall
    for units in (0, 1, 2**63 - 1):
        server.redis().set("stock:look", units)
        assert get(app, "/stock/look").body == {"left": units}
        assert int(server.redis().get("stock:look")) == units


@pytest.mark.parametrize("visit", [get, post])
def test_what_has_no_stock_is_not_on_sale(stall, visit):
    app, server = stall
    server.redis().set("stock:junk", "ten")
    for item in ("nothing", "junk"):
        answer = visit(app, f"/stock/{item}" if visit is get else f"/buy/{item}")
        assert (answer.status, answer.body) == (409, {"done": False, "detail": "not on sale"})
        assert not answer.may_be_repeated
    assert not server.redis().exists("stock:nothing")
    assert server.redis().get("stock:junk") == b"ten"


# -- a pause --------------------------------------------------------------------------------------


def test_a_paused_sale_is_a_no_for_now(stall):
    app, server = stall
    server.redis().set("stock:paused", 1)
    server.redis().set("lock:paused", "stock-taking", px=60_000)
    answer = post(app, "/buy/paused")
    assert (answer.status, answer.done) == (409, False)
    assert answer.may_be_repeated
    assert server.redis().get("stock:paused") == b"1"


def test_buyers_wait_for_a_pause_to_end(stall):
    app, server = stall
    data = server.redis()
    data.set("stock:counted", 30)
    data.set("lock:counted", "stock-taking", px=60_000)
    before = calls(server)
    buying = call(crowd, app, 50, "/buy/counted")
    wait_until(lambda: calls(server) > before)  # somebody has asked, and has not got it
    assert data.get("stock:counted") == b"30"
    data.delete("lock:counted")
    answers = buying.result()
    assert Counter(answer.status for answer in answers) == {200: 30, 409: 20}
    assert {answer.body["detail"] for answer in answers if not answer.done} == {"only 0 left"}


def calls(server: Server) -> int:
    """How often the server was asked by a script."""
    told = server.redis().info("commandstats")
    return sum(told.get(f"cmdstat_{name}", {}).get("calls", 0) for name in ("eval", "evalsha"))


# -- trouble --------------------------------------------------------------------------------------


@pytest.mark.parametrize("trouble", ["killed", "frozen"])
def test_while_the_server_is_lost_the_answer_is_503_and_honest(start_server, open_app, trouble):
    server = start_server("appendonly yes", "appendfsync always")  # a restart forgets nothing
    offered = 1_000_000
    server.redis().set("stock:ticket", offered)
    app = open_app(server.url)
    answers: list[Answer] = []
    over = False

    async def buyer() -> None:
        while not over:
            answers.append(await visit(app, "POST", "/buy/ticket"))

    async def more(count: int, done: bool | None) -> None:
        """Wait for so many more answers of that kind."""
        begin = len(answers)
        await eventually(lambda: sum(one.done is done for one in answers[begin:]) >= count)

    async def main() -> None:
        nonlocal over
        buyers = [asyncio.ensure_future(buyer()) for _ in range(40)]
        await more(100, True)
        if trouble == "killed":
            server.kill()
            await more(1, False)  # it could not be asked
            server.start()
        else:
            server.freeze()
            await more(1, None)  # it was asked, and did not answer
            server.thaw()
        await more(100, True)
        over = True
        await gathered(buyers)

    asyncio.run(main())
    assert {answer.status for answer in answers} == {200, 503}
    lost = [answer for answer in answers if answer.status == 503]
    # Who may have bought is told so, and not to try again; who has not is told that, too.
    assert all((answer.done is False) == answer.may_be_repeated for answer in lost)
    done = Counter(answer.done for answer in answers)
    left = int(server.redis().get("stock:ticket"))
    assert 0 <= offered - left - done[True] <= done[None]
    assert get(app, "/stock/ticket").body == {"left": left}


def test_what_a_frozen_server_was_asked_is_not_done_when_it_thaws(start_server, open_app):
    server = start_server()
    server.redis().set("stock:ticket", 10)
    app = open_app(server.url)
    assert post(app, "/buy/ticket").status == 200  # connected
    with server.frozen():
        answer = post(app, "/buy/ticket")
    assert (answer.status, answer.done) == (503, None)
    assert "may have been done, and will not be done any more" in answer.body["detail"]
    assert not answer.may_be_repeated
    assert post(app, "/buy/ticket").status == 200
    assert server.redis().get("stock:ticket") == b"8"


def test_opens_without_a_server_and_sells_when_there_is_one(start_server, open_app):
    server = start_server()
    server.kill()
    app = open_app(server.url)
    answer = post(app, "/buy/ticket")
    assert (answer.status, answer.done) == (503, False)
    assert answer.may_be_repeated
    assert get(app, "/stock/ticket").status == 503
    assert "ConnectionError" in app.log(), "whoever runs the shop is told why"
    server.start()
    server.redis().set("stock:ticket", 1)
    assert post(app, "/buy/ticket").status == 200


def test_a_server_that_refuses_is_503_and_nothing_was_done(stall):
    app, server = stall
    data = server.redis()
    data.set("stock:full", 1)
    data.config_set("maxmemory", 1)
    try:
        answer = post(app, "/buy/full")
    finally:
        data.config_set("maxmemory", 0)
    assert (answer.status, answer.done) == (503, False)
    assert answer.may_be_repeated
    assert "OOM" in app.log()
    assert data.get("stock:full") == b"1"


# -- as a program ---------------------------------------------------------------------------------


def test_as_a_program_it_sells_from_the_server_that_it_was_given(start_server, open_app):
    server = start_server()
    server.redis().set("stock:ticket", 3)
    app = open_app(server.url, *PROGRAM)
    assert get(app, "/stock/ticket").body == {"left": 3}


def test_a_private_server_is_started_when_asked_for_and_never_else(open_app):
    nowhere = "redis://127.0.0.1:1/0"
    app = open_app(nowhere, *PROGRAM)
    assert get(app, "/stock/ticket").status == 503
    app = open_app(nowhere, *PROGRAM, "--embedded")
    assert get(app, "/stock/ticket").body == {"left": 100}
    assert post(app, "/buy/ticket?units=10").status == 200
    assert get(app, "/stock/ticket").body == {"left": 90}


def test_needs_nothing_but_fastapi_uvicorn_and_seckill():
    tree = ast.parse(SCRIPT.read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {
        name
        for node in imports
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [alias.name for alias in node.names]
        )
    }
    packages = {name.partition(".")[0] for name in names} - sys.stdlib_module_names
    assert packages == {"fastapi", "uvicorn", "seckill"}
