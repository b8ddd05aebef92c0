"""Sales per second: workers started together, or redis-benchmark. No figure without an audit."""

from __future__ import annotations

import csv
import json
import secrets
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path

from . import aio_sides
from .call import NUMBER, ScriptCall, one_sale
from .deployments import Deployment
from .server import Server
from .sides import MODULES, Job

ROOT = Path(__file__).resolve().parent.parent
UNITS = 1_000_000_000
"""More than any side can sell: a sold-out sale would be a different measurement."""

GRACE = 60.0
"""Seconds beyond the measured time, or before an answer, after which a worker counts as hung."""


class NotMeasured(Exception):
    """This side has no figure; the message says why."""


@dataclass
class Bench:
    """What a measurement needs: the server, and how long one run may take."""

    server: Server
    seconds: float
    handoffs: int
    starts: int
    rates: dict[tuple[int, int], float] = field(default_factory=dict)
    """redis-benchmark wants a number of requests, not a time: what each crowd of it ran at last."""
    deployments: dict[str, Deployment] = field(default_factory=dict)
    """What the contest that is played has running, beside the server."""


Measure = Callable[[Bench], list[float]]
"""Runs one side once; returns its samples, whose median is the side's figure of this round."""


def put_on_sale(bench: Bench) -> tuple[str, str]:
    """An empty server (its scripts stay), UNITS in a fresh stock key; returns lock and stock."""
    tag = secrets.token_hex(4)
    bench.server.client.flushall()
    bench.server.client.set(f"stock:{tag}", UNITS)
    return f"lock:{tag}", f"stock:{tag}"


def audit(bench: Bench, stock: str, sold: int) -> None:
    left = int(bench.server.client.get(stock) or 0)
    if left + sold != UNITS:
        raise NotMeasured(f"does not add up: {UNITS} put on sale, {sold} sold, {left} left")


def workers(
    side: str, *, processes: int = 1, threads: int = 1, tasks: int = 0, loop: str = "asyncio"
) -> Measure:
    """Processes in which threads sell, or the tasks of one event loop."""
    module, modules = "benches.worker", MODULES
    if tasks:
        module, modules = "benches.aio_worker", aio_sides.MODULES

    def measure(bench: Bench) -> list[float]:
        need(modules[side])
        need(loop)
        lock, stock = put_on_sale(bench)
        call = one_sale(lock, stock)
        port, seconds = bench.server.port, bench.seconds
        job = Job(side, port, lock, stock, call, seconds, threads, tasks, loop)
        reports = run_workers(module, asdict(job), processes, seconds)
        audit(bench, stock, sum(int(report["sold"]) for report in reports))
        began = min(report["began"] for report in reports)
        ended = max(report["ended"] for report in reports)
        return [sum(report["timed"] for report in reports) / (ended - began)]

    return measure


def need(module: str) -> None:
    if find_spec(module) is None:
        raise NotMeasured(f"{module} is not installed")


def run_workers(module: str, job: object, processes: int, seconds: float) -> list[dict[str, float]]:
    """Starts the processes, waits until all are warm, lets them go at once, gathers reports."""
    started = [start_worker(module, job) for _ in range(processes)]
    try:
        for process in started:
            expect_ready(process)
        for process in started:
            tell(process, "go")
        end = time.monotonic() + seconds + GRACE
        reports = []
        for process in started:
            out, _ = process.communicate(timeout=max(0.1, end - time.monotonic()))
            if process.returncode:
                raise NotMeasured("the measured process failed")
            reports.append(json.loads(out))
        return reports
    except subprocess.TimeoutExpired as error:
        raise NotMeasured("the measured process hung") from error
    finally:
        for process in started:
            process.kill()
            process.wait()


def start_worker(module: str, job: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", module, json.dumps(job)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def expect_ready(process: subprocess.Popen[str]) -> None:
    if read_line(process) != "ready\n":
        raise NotMeasured("the measured process failed")


def tell(process: subprocess.Popen[str], word: str) -> None:
    assert process.stdin is not None
    process.stdin.write(f"{word}\n")
    process.stdin.flush()


def read_line(process: subprocess.Popen[str]) -> str:
    """For workers that say a line and then wait: nothing that select misses is in the buffer."""
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], GRACE)[0]:
        raise NotMeasured("the measured process hung")
    return process.stdout.readline()


def redis_benchmark(connections: int, pipeline: int = 1) -> Measure:
    """The C limit: redis-benchmark sending the very script that the library sends, one sale each.

    It can change an argument from call to call only at random, so the batch numbers of one session
    cannot be made to grow. Each of its calls comes from a new session instead: the same branch of
    the script and the same commands, but a record is inserted where the library's is overwritten,
    which costs the server 2 % more (7.3 instead of 7.15 us a call).
    """

    def measure(bench: Bench) -> list[float]:
        path = shutil.which("redis-benchmark")
        if path is None:
            raise NotMeasured("not installed")
        crowd = connections, pipeline
        if crowd not in bench.rates:
            bench.rates[crowd] = run(path, bench, 2_000 * pipeline)
        requests = max(1_000 * pipeline, int(bench.rates[crowd] * bench.seconds))
        # It sends whole pipelines only, however many requests it is told to send.
        bench.rates[crowd] = run(path, bench, requests - requests % pipeline)
        return [bench.rates[crowd]]

    def run(path: str, bench: Bench, requests: int) -> float:
        lock, stock = put_on_sale(bench)
        call = one_sale(lock, stock)
        bench.server.client.script_load(call.source)
        command = [path, "-p", str(bench.server.port), "-c", str(connections)]
        command += ["-P", str(pipeline), "-n", str(requests), "-r", str(2**31 - 1), "--csv"]
        command += ["EVALSHA", *one_session_a_call(call)]
        said = subprocess.run(
            command, check=False, capture_output=True, text=True, timeout=bench.seconds + GRACE
        )
        audit(bench, stock, requests)
        rows = list(csv.DictReader(said.stdout.splitlines()))
        if len(rows) != 1:
            raise NotMeasured("redis-benchmark failed")
        return float(rows[0]["rps"])

    return measure


def one_session_a_call(call: ScriptCall) -> list[str]:
    """As long as a session's id; two random numbers, for one of 31 bits would soon meet itself."""
    call = call.by("bench-c-__rand_int____rand_int__")
    args = ["1" if arg == NUMBER else arg for arg in call.args]
    return [call.sha, str(len(call.keys)), *call.keys, *args]
