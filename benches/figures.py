"""What a crowd of waiting tasks costs its own process, and the server: see crowd.py."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from operator import itemgetter

from .crowd import PATIENCE, Crowd
from .rates import (
    GRACE,
    UNITS,
    Bench,
    Measure,
    NotMeasured,
    expect_ready,
    need,
    put_on_sale,
    read_line,
    start_worker,
    tell,
)
from .rows import Compare, Contest, Row, Unit
from .server import Server

Holding = Callable[[Server, str], AbstractContextManager[None]]


@contextmanager
def held_lock(server: Server, lock: str) -> Iterator[None]:
    server.client.set(lock, "somebody else's")
    try:
        yield
    finally:
        server.client.delete(lock)


@contextmanager
def slow_server(server: Server, lock: str) -> Iterator[None]:
    """It carries out no script meanwhile."""
    server.client.client_pause(PATIENCE, all=False)
    try:
        yield
    finally:
        server.client.client_unpause()


def memory(tasks: int, holding: Holding | None = None) -> Measure:
    """Bytes for each task that waits for what is held; for a plain future where nothing is."""

    def measure(bench: Bench) -> list[float]:
        side = "seckill" if holding else "futures"
        return [run_crowd(bench, side, tasks, holding or nothing)["bytes"]]

    return measure


def blocked(side: str, tasks: int, loop: str = "asyncio") -> Measure:
    """How long the loop was blocked at worst, in ms: by tasks that ask, and by their answers."""

    def measure(bench: Bench) -> list[float]:
        need(loop)
        report = run_crowd(bench, side, tasks, loop=loop)
        return [report["asking"], report["answers"]]

    return measure


def scripts(tasks: int, *, stocks: int = 1, changes: tuple[int, ...] = (-1,)) -> Measure:
    """The longest script of a crowd that has gathered, and all of a batch in the mean, in ms."""

    def measure(bench: Bench) -> list[float]:
        client = bench.server.client
        client.config_set("slowlog-max-len", 1_000_000)

        @contextmanager
        def watched(server: Server, lock: str) -> Iterator[None]:
            with slow_server(server, lock):
                yield
                client.config_set("slowlog-log-slower-than", 0)
                client.slowlog_reset()

        try:
            report = run_crowd(bench, "seckill", tasks, watched, stocks=stocks, changes=changes)
        finally:
            client.config_set("slowlog-log-slower-than", 10_000)
        took = [
            entry["duration"] / 1000
            for entry in client.slowlog_get(1_000_000)
            if entry["command"].startswith(b"EVAL")
        ]
        if not took:
            raise NotMeasured("the server knows of no script")
        return [max(took), sum(took) / report["batches"]]

    return measure


def nothing(server: Server, lock: str) -> AbstractContextManager[None]:
    return nullcontext()


def run_crowd(
    bench: Bench,
    side: str,
    tasks: int,
    holding: Holding | None = None,
    *,
    loop: str = "asyncio",
    stocks: int = 1,
    changes: tuple[int, ...] = (-1,),
) -> dict[str, float]:
    """Lets a crowd ask, while what it asks for is held, if anything; gives the crowd's report."""
    need("seckill")
    server = bench.server
    lock, stock = put_on_sale(bench)
    keys = [stock, *(f"{stock}:{number}" for number in range(1, stocks))]
    server.client.mset(dict.fromkeys(keys, UNITS))
    crowd = Crowd(
        side, tasks, server.port, lock, keys, list(changes), loop, waits=holding is not None
    )
    process = start_worker("benches.crowd", asdict(crowd))
    try:
        expect_ready(process)
        on_sale = left(server, keys)
        with (holding or nothing)(server, lock):
            tell(process, "go")
            if crowd.waits:
                if read_line(process) != "waiting\n":
                    raise NotMeasured("the measured process failed")
                tell(process, "go")
        out, _ = process.communicate(timeout=GRACE)
    except subprocess.TimeoutExpired as error:
        raise NotMeasured("the measured process hung") from error
    finally:
        process.kill()
        process.wait()
    if process.returncode:
        raise NotMeasured("the measured process failed")
    report: dict[str, float] = json.loads(out)
    sold = on_sale - left(server, keys)
    if sold != report["sold"]:
        raise NotMeasured(f"does not add up: {report['sold']} sold, {sold} gone")
    return report


def left(server: Server, stocks: list[str]) -> int:
    return sum(int(stock or 0) for stock in server.client.mget(stocks))


def memory_of(tasks: int) -> Contest:
    return Contest(
        {
            "held lock": memory(tasks, held_lock),
            "slow server": memory(tasks, slow_server),
            "plain futures": memory(tasks),
        },
        tuple(
            Row(
                f"memory of a call, {tasks:,} tasks wait for a {cause}; for plain futures",
                cause,
                "plain futures",
                Compare.ADDED,
                Unit.BYTES,
            )
            for cause in ("held lock", "slow server")
        ),
    )


def blocked_by(tasks: int, loop: str = "asyncio") -> Contest:
    on = "" if loop == "asyncio" else f" on {loop}"
    return Contest(
        {
            "seckill": blocked("seckill", tasks, loop),
            "plain futures": blocked("futures", tasks, loop),
        },
        tuple(
            Row(
                f"loop blocked, {tasks:,} tasks{on} {doing}; plain futures",
                "seckill",
                "plain futures",
                Compare.ADDED,
                Unit.MILLISECONDS,
                figure=itemgetter(place),
            )
            for place, doing in enumerate(("ask at once", "get answers"))
        ),
    )


def scripts_of(tasks: int) -> Contest:
    crowds = {
        "of one unit": scripts(tasks),
        "of one unit or two": scripts(tasks, changes=(-1, -2)),
        "of 1,000 stocks": scripts(tasks, stocks=1_000),
    }
    return Contest(
        {"one task": scripts(1), **crowds},
        tuple(
            Row(
                f"{what}, {tasks:,} sales {crowd}; one sale",
                crowd,
                "one task",
                Compare.ADDED,
                Unit.MILLISECONDS,
                figure=itemgetter(place),
            )
            for crowd in crowds
            for place, what in enumerate(("longest script", "scripts of a batch"))
        ),
    )


FIGURES: dict[str, Contest] = {
    "memory-10000": memory_of(10_000),
    "memory-100000": memory_of(100_000),
    "blocked-1000": blocked_by(1_000),
    "blocked-10000": blocked_by(10_000),
    "blocked-100000": blocked_by(100_000),
    "blocked-uvloop": blocked_by(100_000, "uvloop"),
    "scripts": scripts_of(100_000),
}
"""What a crowd costs where it is: the second table."""
