"""TLS in front of a real server: tells of the handshakes, and speaks what a test chooses."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable

from support.acl import USER_INFO
from support.certificates import Certificate


class TlsFront:
    """Ends TLS and passes the bytes on. `resumed` has, for each handshake, whether it was one."""

    def __init__(
        self,
        target: tuple[str, int],
        certificate: Certificate,
        set_up: Callable[[ssl.SSLContext], None] = lambda _context: None,
    ) -> None:
        self.resumed: list[bool] = []
        self._target = target
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificate.file, certificate.key)
        set_up(self._context)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        place = f"{USER_INFO}localhost:{self.port}"
        self.url = f"rediss://{place}?ssl_ca_certs={certificate.authority.file}"
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._start(self._accept)

    def __enter__(self) -> TlsFront:
        return self

    def __exit__(self, *_: object) -> None:
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
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._start(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        try:
            secured = self._context.wrap_socket(client, server_side=True)
        except OSError:
            client.close()
            return
        self.resumed.append(bool(secured.session_reused))
        server = socket.create_connection(self._target)
        self._ends += [secured, server]
        self._start(self._pump, server, secured)
        self._pump(secured, server)

    def _pump(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_RDWR)
