"""The books of a sale: the buyers' own ledger held against what the server says is left."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Sequence

    from seckill.demo.crowd import Ledger, Plan


@dataclass(frozen=True)
class Audit:
    """One sale, when all is over.

    Attributes:
        plan: the sale as it was planned.
        ledger: what the buyers have written down.
        left: the stock, read from the server; None when the key is gone.
        opened: when the doors opened, in ns of the monotonic clock.
    """

    plan: Plan
    ledger: Ledger
    left: int | None
    opened: int

    @property
    def oversold(self) -> int:
        """Units that buyers have and that were never on sale."""
        return max(0, self.ledger.sold - self.plan.units)

    @property
    def adds_up(self) -> bool:
        """Whether every unit is in one place, and every buyer had an answer.

        A sale whose answer was lost for good may or may not have happened.
        """
        if self.left is None or self.left < 0 or self.oversold:
            return False
        gone = self.plan.units - self.left
        sold, unknown = self.ledger.sold, self.ledger.unknown
        return sold <= gone <= sold + unknown and self.ledger.served == self.plan.buyers

    @property
    def seconds(self) -> float:
        """From the opening of the doors to the last sale."""
        return max(self.ledger.last_sale - self.opened, 1) / 1e9

    @property
    def rate(self) -> float:
        """Units sold in a second, until the last one was."""
        return self.ledger.sold / self.seconds if self.ledger.sold else 0.0

    @property
    def trips(self) -> float:
        """Round trips for one sale, counted until a process of buyers meets its first refusal."""
        return self.ledger.round_trips / max(self.ledger.sold, 1)


def table(audits: Sequence[Audit]) -> Table:
    """The audits side by side."""
    out = Table()
    out.add_column("audit")
    for audit in audits:
        out.add_column(audit.plan.side, justify="right", min_width=10)

    def row(label: str, cells: Sequence[str | Text], style: str = "") -> None:
        out.add_row(label, *cells, style=style)

    def flag(value: int, good: bool) -> Text:
        return Text(f"{value:,}", style="green" if good else "bold red")

    row("units offered", [f"{audit.plan.units:,}" for audit in audits])
    row("sold, by the buyers' ledger", [f"{audit.ledger.sold:,}" for audit in audits])
    row(
        "left, by the server",
        ["gone" if a.left is None else flag(a.left, a.left >= 0) for a in audits],
    )
    row("buyers refused", [f"{audit.ledger.refused:,}" for audit in audits])
    if any(audit.ledger.unknown for audit in audits):
        row("answer lost", [f"{audit.ledger.unknown:,}" for audit in audits])
    row("oversold", [flag(audit.oversold, not audit.oversold) for audit in audits])
    row("round trips per sale", [f"{audit.trips:,.2f}" for audit in audits])
    row("sales per second", [f"{audit.rate:,.0f}" for audit in audits])
    return out
