"""Sentinels that lie, stammer or say nothing; and one that shows the servers through proxies.

What a fake one says is up to the test: `FakeSentinel(where)` asks `where()` each time for the host,
the port and the epoch of the fail-over that put the primary there; None means that it has never
heard of the service. One with a `noise` says just that, whatever it is asked.
"""

from __future__ import annotations

import contextlib
import socketserver
import threading
from collections.abc import Callable
from typing import Any, BinaryIO

from support.sentinels import HOST, SERVICE, Deployment
from support.servers import Server

Place = tuple[str, int, int] | None


class FakeSentinel:
    """On a loopback port of its own, with a thread for each connection."""

    def __init__(
        self, where: Callable[[], Place], *, resp3: bool = True, noise: bytes | None = None
    ) -> None:
        self.where = where
        self.resp3 = resp3
        self.noise = noise
        self.asked = 0
        fake = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                with contextlib.suppress(ConnectionError):
                    fake._serve(self.rfile, self.wfile)

        class Listener(socketserver.ThreadingTCPServer):
            daemon_threads = True
            allow_reuse_address = True

        self._listener = Listener((HOST, 0), Handler)
        self.host, self.port = self._listener.server_address[:2]
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,))
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown()
        self._thread.join()
        self._listener.server_close()

    def _serve(self, requests: BinaryIO, replies: BinaryIO) -> None:
        resp3 = False
        while command := read_command(requests):
            words = [word.decode().upper() for word in command[:2]]
            if self.noise is not None:
                replies.write(self.noise)
            elif words[0] == "HELLO" and not self.resp3:
                replies.write(b"-ERR unknown command `HELLO`, with args beginning with:\r\n")
            elif words[0] == "HELLO":
                resp3 = len(command) > 1 and command[1] == b"3"
                known = {"server": "redis", "proto": 3 if resp3 else 2, "mode": "sentinel"}
                replies.write(pairs(known, resp3=resp3))
            elif words[0] == "SENTINEL":
                self.asked += 1
                meant = words[1] == "MASTERS" or command[-1] == SERVICE.encode()
                place = self.where() if meant else None
                replies.write(answer(words[1], place, resp3=resp3))
            else:
                replies.write(b"+OK\r\n")


def answer(what: str, place: Place, *, resp3: bool) -> bytes:
    if what == "GET-MASTER-ADDR-BY-NAME":
        if place is None:
            return b"_\r\n" if resp3 else b"*-1\r\n"
        return b"*2\r\n" + bulk(place[0]) + bulk(place[1])
    if what == "MASTERS":
        return b"*0\r\n" if place is None else b"*1\r\n" + details(place, resp3=resp3)
    if what in ("MASTER", "PRIMARY"):
        if place is None:
            return b"-ERR No such master with that name\r\n"
        return details(place, resp3=resp3)
    return b"*0\r\n"


def details(place: tuple[str, int, int], *, resp3: bool) -> bytes:
    host, port, epoch = place
    known = {"name": SERVICE, "ip": host, "port": port, "flags": "master"}
    return pairs(known | {"config-epoch": epoch, "num-other-sentinels": 2}, resp3=resp3)


def read_command(requests: BinaryIO) -> list[bytes]:
    """The next command, as clients write them: an array of bulk strings. Nothing at the end."""
    head = requests.readline()
    if not head.startswith(b"*"):
        return []
    words = []
    for _ in range(int(head[1:])):
        length = int(requests.readline()[1:])
        words.append(requests.read(length + 2)[:-2])
    return words


def bulk(value: object) -> bytes:
    text = str(value).encode()
    return b"$%d\r\n%s\r\n" % (len(text), text)


def said(name: str, value: object) -> bytes:
    # Of all the numbers that a sentinel says, this one alone is not said as a text.
    return b":%d\r\n" % value if name == "proto" else bulk(value)


def pairs(known: dict[str, object], *, resp3: bool) -> bytes:
    body = b"".join(bulk(name) + said(name, value) for name, value in known.items())
    return (b"%%%d\r\n" % len(known) if resp3 else b"*%d\r\n" % (2 * len(known))) + body


def at(server: Server, epoch: int = 0) -> Place:
    return server.host, server.port, epoch


class Front(FakeSentinel):
    """Says what the sentinels of a deployment say, but shows each server through a proxy.

    So the network between the clients and the servers is in the hands of the test, and that
    between servers and sentinels is as it was.
    """

    def __init__(self, deployment: Deployment, start_proxy: Callable[[Server], Any]) -> None:
        self.deployment = deployment
        self.proxies = {server.port: start_proxy(server) for server in deployment.servers}
        super().__init__(self._seen)

    def proxy_of(self, server: Server) -> Any:
        return self.proxies[server.port]

    def _seen(self) -> Place:
        """Those that answer, and of them the one that knows of the latest fail-over."""
        said = [sentinel.place() for sentinel in self.deployment.sentinels]
        places = [place for place in said if place is not None]
        if not places:
            return None
        _, port, epoch = max(places, key=lambda place: place[2])
        proxy = self.proxies[port]
        return proxy.host, proxy.port, epoch
