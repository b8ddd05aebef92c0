"""What is seen of a sale while it goes on: bars and a curve on a terminal, else plain lines."""

from __future__ import annotations

import sys
from bisect import bisect_left
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from seckill.demo.crowd import Ledger, Plan

    Show = Callable[[float, Ledger, int, bool], None]

BLOCKS = "▁▂▃▄▅▆▇█"
WIDTH = 44  # columns of the bars and the curve
FRAME_SECONDS = 0.1
LINE_SECONDS = 1.0  # between two lines, where nobody watches


def make_console() -> Console:
    """Make the console to print on: without colours where it is piped or NO_COLOR is set."""
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    return Console(highlight=False)


@contextmanager
def display(console: Console, plan: Plan) -> Iterator[Show]:
    """Show a sale while it goes on.

    Args:
        console: where to.
        plan: the sale.

    Yields:
        A function to call often, with the seconds since the doors opened, the buyers' ledger,
        what the server says is left, and whether the sale is over.
    """
    crowd = f"{plan.buyers:,} buyers from {plan.processes} x {plan.threads} threads"
    console.print()
    console.print(Text.assemble((f"{plan.side:9}", "bold"), f"{plan.units:,} on sale, {crowd}"))
    if sys.stdout.isatty() and not console.is_dumb_terminal:
        # Without a thread of its own: it is drawn when there is news.
        with Live(console=console, auto_refresh=False) as live:
            yield _Bars(live, plan).show
    else:
        yield _Lines(console).show


class Curve:
    """Sales per second over the time of a sale."""

    def __init__(self) -> None:
        self.seconds = [0.0]
        self.sold = [0]  # by then

    def add(self, seconds: float, sold: int) -> None:
        """Note how many units were sold by then."""
        if seconds > self.seconds[-1]:
            self.seconds.append(seconds)
            self.sold.append(sold)

    def rates(self, stretches: int) -> list[float]:
        """Units per second in each of so many equal stretches of the time so far."""
        length = self.seconds[-1] / stretches
        if not length:
            return [0.0] * stretches
        edges = [self._sold_by(length * edge) for edge in range(stretches + 1)]
        return [(edges[i + 1] - edges[i]) / length for i in range(stretches)]

    def drawn(self) -> tuple[str, float]:
        """The curve as one line of text, no wider than there are samples, and its highest rate."""
        rates = self.rates(min(WIDTH, max(1, len(self.seconds) - 1)))
        peak = max(rates)
        steps = (rate / (peak or 1.0) * (len(BLOCKS) - 1) for rate in rates)
        return "".join(BLOCKS[round(step)] for step in steps), peak

    def _sold_by(self, seconds: float) -> float:
        """Between two samples, on the straight line."""
        later = bisect_left(self.seconds, seconds)
        if later == 0:
            return 0.0
        if later == len(self.seconds):
            return self.sold[-1]
        (start, end), (before, after) = (
            self.seconds[later - 1 : later + 1],
            self.sold[later - 1 : later + 1],
        )
        return before + (seconds - start) / (end - start) * (after - before)


class _Bars:
    """The picture on a terminal."""

    def __init__(self, live: Live, plan: Plan) -> None:
        self.live = live
        self.plan = plan
        self.curve = Curve()
        self.due = 0.0

    def show(self, seconds: float, ledger: Ledger, left: int, over: bool) -> None:
        self.curve.add(seconds, ledger.sold)
        if seconds >= self.due or over:
            self.due = seconds + FRAME_SECONDS
            self.live.update(self._drawn(ledger, left), refresh=True)

    def _drawn(self, ledger: Ledger, left: int) -> Table:
        units, others = self.plan.units, max(self.plan.buyers - self.plan.units, 1)
        picture = Table.grid(padding=(0, 1))
        picture.add_column(width=8)
        picture.add_column(width=WIDTH)
        picture.add_column(justify="right", width=14)
        for label, count, total, colour in (
            ("sold", ledger.sold, units, "green"),
            ("left", left, units, "cyan"),
            ("refused", ledger.refused, others, "yellow"),
        ):
            bar = ProgressBar(
                total,
                min(max(count, 0), total),
                WIDTH,
                complete_style=colour,
                finished_style=colour,
            )
            picture.add_row(label, bar, f"{count:,}")
        curve, peak = self.curve.drawn()
        picture.add_row("sales/s", Text(curve, "magenta"), f"peak {peak:,.0f}")
        return picture


class _Lines:
    """The lines in a pipe or a file."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.due = LINE_SECONDS
        self.last = (0.0, 0)

    def show(self, seconds: float, ledger: Ledger, left: int, over: bool) -> None:
        if seconds < self.due and not over:
            return
        rate = (ledger.sold - self.last[1]) / ((seconds - self.last[0]) or 1.0)
        self.due, self.last = seconds + LINE_SECONDS, (seconds, ledger.sold)
        self.console.print(
            f"{seconds:6.1f} s  sold {ledger.sold:,}  left {left:,}  refused {ledger.refused:,}"
            f"  {rate:,.0f} sales/s"
        )
