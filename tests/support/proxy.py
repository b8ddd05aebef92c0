"""A lossy loopback proxy: what a network does to bytes, at a byte and in a direction of our choice.

A `Fault` says what happens to one direction of one connection after so many bytes:

    cut       both sides are closed, as by a peer that ends
    reset     both sides get a TCP reset
    swallow   from here on the bytes of this direction vanish; the connection stays open
    delay     the bytes wait for `seconds`, once
    say       `junk` is said in place of the bytes, and then nothing more
    hold      the bytes wait until `proxy.release()`, and reach the other side even when the
              one who sent them has long gone: a packet that was on a slow way

`Proxy(target, faults)` calls `faults()` for the fault of each connection (None: a good one), and
again when a connection has got over a delay. `proxy.faults = ...` changes what is in store.
The proxy runs in a thread with an event loop of its own; its methods may be called from anywhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

from support.acl import USER_INFO

REQUEST, REPLY = "request", "reply"
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True)
class Fault:
    action: str
    direction: str = REPLY
    after: int = 0
    seconds: float = 0.0
    junk: bytes = b""


Faults = Callable[[], "Fault | None"]


def none() -> Fault | None:
    return None


def in_turn(*faults: Fault | None) -> Faults:
    """These for the first connections, one each; the later ones are good."""
    left = list(faults)
    return lambda: left.pop(0) if left else None


def random_faults(seed: int, *, mean_bytes: int = 3000, longest_delay: float = 0.05) -> Faults:
    """Every kind of fault, in either direction."""
    dice = random.Random(seed)

    def fault() -> Fault:
        direction = dice.choice([REQUEST, REPLY])
        # Replies are some ten times shorter than requests; both are cut about equally often.
        mean = mean_bytes if direction == REQUEST else mean_bytes / 10
        after = int(dice.expovariate(1 / mean))
        action = dice.choices(["cut", "reset", "swallow", "delay"], [4, 4, 1, 2])[0]
        return Fault(action, direction, after, dice.uniform(0, longest_delay))

    return fault


class _Link:
    """One connection through the proxy: a pump for each direction."""

    def __init__(
        self,
        proxy: Proxy,
        fault: Fault | None,
        client: tuple[asyncio.StreamReader, asyncio.StreamWriter],
        server: tuple[asyncio.StreamReader, asyncio.StreamWriter],
    ) -> None:
        self.proxy = proxy
        self.passed = {REQUEST: 0, REPLY: 0}
        self.meet(fault)
        self.writers = (client[1], server[1])
        self.pumps = asyncio.gather(
            self.pump(REQUEST, client[0], server[1]), self.pump(REPLY, server[0], client[1])
        )

    async def pump(
        self, direction: str, source: asyncio.StreamReader, sink: asyncio.StreamWriter
    ) -> None:
        while data := await self.read(source):
            self.proxy.bytes_seen[direction] += len(data)
            fault = self.fault
            if fault is not None and fault.direction == direction:
                room = max(fault.after - self.passed[direction], 0)
                if len(data) > room:
                    await self.write(sink, data[:room])
                    self.passed[direction] += room
                    data = data[room:]
                    self.proxy.faults_met += 1
                    if fault.action in ("cut", "reset"):
                        self.end(reset=fault.action == "reset")
                        return
                    if fault.action in ("say", "swallow"):
                        await self.write(sink, fault.junk)
                        await self.swallow(source)
                        break
                    if fault.action == "hold":
                        await self.proxy.released.wait()
                    elif fault.action == "delay":
                        await asyncio.sleep(fault.seconds)
                    # It got over this one: the next is again so many bytes away.
                    self.meet(self.proxy.faults())
            if direction not in self.proxy.swallowed:
                await self.write(sink, data)
            self.passed[direction] += len(data)
        with contextlib.suppress(OSError, RuntimeError):
            if sink.can_write_eof():
                sink.write_eof()

    def meet(self, fault: Fault | None) -> None:
        """Have a fault in store, counted from the bytes that have passed so far."""
        self.fault = fault and replace(fault, after=fault.after + self.passed[fault.direction])

    async def swallow(self, source: asyncio.StreamReader) -> None:
        while await self.read(source):
            pass

    async def read(self, source: asyncio.StreamReader) -> bytes:
        with contextlib.suppress(OSError):
            return await source.read(65536)
        return b""

    async def write(self, sink: asyncio.StreamWriter, data: bytes) -> None:
        # A sink that is gone takes nothing more; the other direction may still have to arrive.
        if data and not sink.is_closing():
            with contextlib.suppress(OSError):
                sink.write(data)
                await sink.drain()

    def end(self, *, reset: bool = False) -> None:
        for writer in self.writers:
            if reset:
                end = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
                writer.transport.abort()
            else:
                writer.close()


class Proxy:
    """In front of a server, on a loopback port of its own."""

    def __init__(self, target: tuple[str, int], faults: Faults = none) -> None:
        self.target = target
        self.faults = faults
        self.bytes_seen = {REQUEST: 0, REPLY: 0}
        self.connections = 0
        self.faults_met = 0
        self.swallowed: frozenset[str] = frozenset()
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._thread.start()
        self._up.wait()

    # -- for the tests ------------------------------------------------------------------------

    @property
    def url(self) -> str:
        return f"redis://{USER_INFO}{self.host}:{self.port}/0"

    @property
    def links(self) -> int:
        """How many connections there are."""
        return len(self._links)

    def cut(self, *, reset: bool = False) -> None:
        """End every connection, now."""
        self._call(lambda: [link.end(reset=reset) for link in list(self._links)])

    def strike(self, fault: Fault) -> None:
        """Have this happen to the connections that there are, so many bytes from now."""
        self._call(lambda: [link.meet(fault) for link in self._links])

    def swallow(self, *directions: str) -> None:
        """From now on let the bytes of these directions vanish, on every connection."""
        self._call(lambda: setattr(self, "swallowed", frozenset(directions)))

    def release(self) -> None:
        """Let all that a `hold` holds back go on to its destination."""
        self._call(self.released.set)

    def refuse(self) -> None:
        """Stop listening: further connections are refused."""
        self._call(self._stop_listening)

    def listen(self) -> None:
        """Listen again, on the same port."""
        asyncio.run_coroutine_threadsafe(self._listen(self.port), self._loop).result(10)

    def close(self) -> None:
        if self._thread.is_alive():
            self._call(self._stop_listening)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- in its thread ------------------------------------------------------------------------

    def _call(self, action: Callable[[], object]) -> None:
        done = threading.Event()

        def act() -> None:
            try:
                action()
            finally:
                done.set()

        self._loop.call_soon_threadsafe(act)
        assert done.wait(10), "the proxy's loop does not answer"

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self.released = asyncio.Event()
        self._loop.run_until_complete(self._listen(0))
        self._up.set()
        self._loop.run_forever()
        for link in self._links:
            link.end()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _listen(self, port: int) -> None:
        self._listener = await asyncio.start_server(self._accept, "127.0.0.1", port)
        self.host, self.port = self._listener.sockets[0].getsockname()

    def _stop_listening(self) -> None:
        self._listener.close()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        fault = self.faults()
        try:
            server = await asyncio.open_connection(*self.target)
        except OSError:
            writer.transport.abort()
            return
        link = _Link(self, fault, (reader, writer), server)
        self._links.add(link)
        try:
            with contextlib.suppress(asyncio.CancelledError):  # the proxy is being closed
                await link.pumps
        finally:
            link.end()
            self._links.discard(link)


class SilentHost:
    """An address that takes connections and never answers, or (`full`) never even takes them."""

    def __init__(self, *, full: bool = False) -> None:
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self._listener.listen(0 if full else 64)
        self.host, self.port = self._listener.getsockname()
        # With its queue full, the kernel drops further SYNs: connect() hangs, as on a dead host.
        self._filling = [self._connect() for _ in range(3)] if full else []

    def _connect(self) -> socket.socket:
        filling = socket.socket()
        filling.setblocking(False)
        filling.connect_ex((self.host, self.port))
        return filling

    @property
    def url(self) -> str:
        return f"redis://{USER_INFO}{self.host}:{self.port}/0"

    def received(self) -> tuple[int, bytes]:
        """How many connections came, and all bytes that they brought."""
        self._listener.setblocking(False)
        count, data = 0, b""
        with contextlib.suppress(BlockingIOError):
            while True:
                taken, _ = self._listener.accept()
                count += 1
                taken.setblocking(False)
                with taken, contextlib.suppress(BlockingIOError, ConnectionError):
                    data += taken.recv(65536)
        return count, data

    def close(self) -> None:
        for filling in self._filling:
            filling.close()
        self._listener.close()

    def __enter__(self) -> SilentHost:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
