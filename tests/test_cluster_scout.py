"""Who looks for a cluster's map, and gets no answer for a moment, or an error: when to give up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, BinaryIO

import pytest
import seckill
from support.fake_sentinels import FakeSentinel, bulk, pairs, read_command
from support.threads import call, wait_until

pytestmark = pytest.mark.core
NAME = "sale"
LAST = 16383


class FakeNode(FakeSentinel):
    """A node of a cluster. It says what `answer` says, and what a node would where that is None."""

    def __init__(self) -> None:
        super().__init__(lambda: None)
        self.answer: Callable[[list[bytes]], bytes | None] = lambda _: None

    def _serve(self, requests: BinaryIO, replies: BinaryIO) -> None:
        while command := read_command(requests):
            told = self.answer(command)
            replies.write(self._usual(command) if told is None else told)
            if told == b"":  # it hangs up
                return

    def _usual(self, command: list[bytes]) -> bytes:
        now = time.time()
        seconds, micros = int(now), int(now % 1 * 1e6)
        match [word.decode().upper() for word in command[:2]]:
            case ["HELLO", _]:
                return pairs({"server": "redis", "proto": 3, "mode": "cluster"}, resp3=True)
            case ["TIME"]:
                return b"*2\r\n" + bulk(seconds) + bulk(micros)
            case ["CLUSTER", "SLOTS"]:
                return slots(self, LAST)
            case ["CLUSTER", _]:
                return bulk("cluster_state:ok")
            case ["EVALSHA", _]:
                return bulk(f"{seconds} {micros} C 1 5")
            case _:
                return b"+OK\r\n"


def slots(owner: FakeNode, last: int) -> bytes:
    """One node has all slots up to that one; nobody has the rest."""
    node = b"*3\r\n" + bulk(owner.host) + b":%d\r\n" % owner.port + bulk("id")
    return b"*1\r\n*3\r\n:0\r\n:%d\r\n" % last + node


def asks_for_slots(command: list[bytes]) -> bool:
    return [word.upper() for word in command] == [b"CLUSTER", b"SLOTS"]


@pytest.fixture
def start_node() -> Iterator[Callable[[], FakeNode]]:
    with ExitStack() as stack:

        def start() -> FakeNode:
            node = FakeNode()
            stack.callback(node.close)
            return node

        yield start


def url_of(*nodes: FakeNode) -> str:
    return "redis+cluster://" + ",".join(f"{node.host}:{node.port}" for node in nodes)


@pytest.mark.parametrize("error", ["LOADING it", "BUSY with a script", "CLUSTERDOWN", "MASTERDOWN"])
def test_who_cannot_tell_just_now_is_asked_again(start_node: Any, error: str) -> None:
    node = start_node()
    until = time.monotonic() + 0.4

    def answer(command: list[bytes]) -> bytes | None:
        early = asks_for_slots(command) and time.monotonic() < until
        return f"-{error}\r\n".encode() if early else None

    node.answer = answer
    with seckill.Client(url_of(node)) as client:
        client.update_inventory(NAME, NAME, -1, time_out=5000)
    assert time.monotonic() >= until


def test_who_cannot_tell_all_the_time_is_told_of_in_the_end(start_node: Any) -> None:
    node = start_node()
    node.answer = lambda command: b"-LOADING it\r\n" if asks_for_slots(command) else None
    with (
        seckill.Client(url_of(node)) as client,
        pytest.raises(seckill.ConnectionError, match="LOADING it") as caught,
    ):
        client.update_inventory(NAME, NAME, -1, time_out=500)
    assert caught.value.sent is False


def test_who_may_not_be_asked_is_an_error_at_once(start_node: Any) -> None:
    node = start_node()
    node.answer = lambda command: b"-NOPERM no\r\n" if asks_for_slots(command) else None
    began = time.monotonic()
    with (
        seckill.Client(url_of(node)) as client,
        pytest.raises(seckill.ServerError, match="NOPERM no"),
    ):
        client.update_inventory(NAME, NAME, -1, time_out=5000)
    assert time.monotonic() - began < 2


def test_one_that_refuses_does_not_speak_for_a_known_cluster(start_node: Any) -> None:
    """The other one is merely away for a moment."""
    owner, other = start_node(), start_node()
    with seckill.Client(url_of(owner, other)) as client:
        client.update_inventory(NAME, NAME, -1)
        # The slot is nobody's, so that nobody but the scout knows how to go on.
        hole = lambda command: slots(owner, 0) if asks_for_slots(command) else None  # noqa: E731
        owner.answer = lambda command: b"" if b"EVALSHA" in command else hole(command)
        other.answer = hole
        sale = call(client.update_inventory, NAME, NAME, -1, time_out=10_000)
        time.sleep(0.3)
        refused = threading.Event()

        def refuse(command: list[bytes]) -> bytes | None:
            if not asks_for_slots(command):
                return None
            refused.set()
            return b"-NOAUTH Authentication required.\r\n"

        owner.answer = lambda _: b""
        other.answer = refuse
        wait_until(refused.is_set)
        time.sleep(0.3)
        owner.answer = lambda _: None
        other.answer = lambda command: slots(owner, LAST) if asks_for_slots(command) else None
        assert sale.result() is None
