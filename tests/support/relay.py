"""A relay in front of a server: a test decides on every packet, for faults that need a plot."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable

from support.acl import USER_INFO

# Of which connection (0, 1, ...), what came, and the way on.
Plot = Callable[[int, bytes, Callable[[bytes], None]], None]


def pass_on(_connection: int, data: bytes, on: Callable[[bytes], None]) -> None:
    on(data)


class Relay:
    """`on_request` and `on_reply` may be replaced at any time; they pass packets on, or do not."""

    def __init__(self, target: tuple[str, int]) -> None:
        self.on_request: Plot = pass_on
        self.on_reply: Plot = pass_on
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self.url = f"redis://{USER_INFO}127.0.0.1:{self.port}"
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def close(self) -> None:
        for end in [self._listener, *self._ends]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in [self._listener, *self._ends]:
            end.close()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments, daemon=True))
        self._threads[-1].start()

    def _accept(self) -> None:
        connection = 0
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.create_connection(self._target)
            self._ends += [client, server]
            for end in (client, server):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for source, target, request in ((client, server, True), (server, client, False)):
                self._start(self._pump, connection, source, target, request)
            connection += 1

    def _pump(
        self, connection: int, source: socket.socket, target: socket.socket, request: bool
    ) -> None:
        def on(data: bytes) -> None:
            with contextlib.suppress(OSError):
                target.sendall(data)

        while True:
            try:
                data = source.recv(1 << 16)
            except OSError:
                data = b""
            if not data:
                # A client that hangs up leaves its last words under way; a server's end is the end.
                if not request:
                    with contextlib.suppress(OSError):
                        target.shutdown(socket.SHUT_RDWR)
                return
            (self.on_request if request else self.on_reply)(connection, data, on)
