"""A run: a world, a crew, a schedule; and what the ledger says in the end."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

from chaos import ledger
from chaos.checker import check
from chaos.crew import Crew
from chaos.report import Report
from chaos.schedule import schedule
from chaos.worlds import World


def run(
    world: World,
    directory: Path,
    seed: str,
    seconds: float,
    sellers: Iterable[str] | None = None,
    faults: Iterable[str] | None = None,
) -> Report:
    """`faults` are those of the world that may happen; all of them, if it is not said."""
    report = Report(world.name, world.kind, seed)
    began = time.monotonic()
    with world:
        world.stock_up()
        crew = Crew(world, directory, seed)
        crew_faults = {"seller_killed": crew.kill, "seller_stopped": crew.stop_one}
        weights = {name: world.FAULTS[name] for name in faults or world.FAULTS}
        try:
            for kind in sellers or world.SELLERS:
                crew.hire(kind)
            wait_for_first_sales(directory, len(crew.members))
            end = time.monotonic() + seconds
            for event in schedule(f"{seed}/{world.name}", weights, world.PAUSE):
                time.sleep(min(event.after, max(0.0, end - time.monotonic())))
                if time.monotonic() >= end:
                    break
                if os.environ.get("SECKILL_CHAOS_ALOUD"):
                    print(f"{time.monotonic() - began:8.2f} {event.fault}", flush=True)
                (crew_faults.get(event.fault) or getattr(world, event.fault))(event.dice)
                report.faults[event.fault] += 1
            world.heal()
            crew.go_home()
        finally:
            crew.close()
        world.heal()
        report.failed = crew.failed
        entries = ledger.read(directory.glob("*.ledger"))
        report.verdict = check(entries, world.offered, world.left(), world.rules())
    report.seconds = time.monotonic() - began
    return report


def wait_for_first_sales(directory: Path, sellers: int) -> None:
    """A run in which nobody sells shows nothing."""
    end = time.monotonic() + 30
    while sum(path.stat().st_size > 0 for path in directory.glob("*.ledger")) < sellers:
        assert time.monotonic() < end, "the sellers do not begin to sell"
        time.sleep(0.01)
