"""A gate in front of a server: notes when somebody comes, and can be shut on everybody at once."""

from __future__ import annotations

import contextlib
import resource
import selectors
import socket
import struct
import threading
import time
from collections.abc import Callable

from support.acl import USER_INFO

RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Gate:
    """One thread for any number of connections. While it is shut, who comes is turned away."""

    def __init__(self, target: tuple[str, int]) -> None:
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        self.came: list[float] = []
        self._target = target
        self._open = True
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        self._listener.setblocking(False)
        self.port = self._listener.getsockname()[1]
        self.url = f"redis://{USER_INFO}127.0.0.1:{self.port}/0"
        self._bell, self._rung = socket.socketpair()
        self._orders: list[Callable[[], object]] = []
        self._ends: dict[socket.socket, socket.socket] = {}
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._rung, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    @property
    def links(self) -> int:
        """How many connections there are."""
        return len(self._ends) // 2

    def shut(self) -> float:
        """End every connection, and let nobody in; when that was."""
        return self._order(lambda: (setattr(self, "_open", False), self._drop(*self._ends)))

    def open(self) -> float:
        """Let everybody in again; when that was."""
        return self._order(lambda: setattr(self, "_open", True))

    def close(self) -> None:
        self._order(lambda: self._drop(*self._ends, self._listener))
        self._bell.close()
        self._thread.join()
        self._rung.close()
        self._selector.close()

    def _order(self, order: Callable[[], object]) -> float:
        done = threading.Event()
        self._orders += [order, done.set]
        self._bell.send(b"!")
        assert done.wait(30), "the gate does not answer"
        return time.monotonic()

    # -- in its thread ------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.fileobj is self._rung:
                    if not self._rung.recv(1):
                        return
                    self._orders.pop(0)()
                    self._orders.pop(0)()
                elif key.fileobj is self._listener:
                    self._receive()
                elif key.fileobj in self._ends:
                    self._pass_on(key.fileobj)

    def _receive(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                guest, _ = self._listener.accept()
                self.came.append(time.monotonic())
                if not self._open:
                    self._drop(guest)
                    continue
                server = socket.create_connection(self._target)
                for end, other in ((guest, server), (server, guest)):
                    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    self._ends[end] = other
                    self._selector.register(end, selectors.EVENT_READ)

    def _pass_on(self, source: socket.socket) -> None:
        other = self._ends[source]
        try:
            data = source.recv(65536)
            other.sendall(data)
        except OSError:
            data = b""
        if not data:
            self._drop(source, other)

    def _drop(self, *ends: socket.socket) -> None:
        for end in ends:
            if self._ends.pop(end, None) or end is self._listener:
                self._selector.unregister(end)
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
            end.close()
