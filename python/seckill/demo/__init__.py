"""`seckill demo`: a sale to watch, and an audit of its books.

__init__   what happens in which order
crowd      the buyers: processes, threads, and their ledger
script     the usual redis-py functions, for comparison
display    what is seen meanwhile
witness    what the server says, by way of redis-py
audit      the ledger against the server
"""

from __future__ import annotations

import secrets
import signal
import sys
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import redis

from seckill import Client, SeckillError, embedded
from seckill.demo.audit import Audit, table
from seckill.demo.crowd import Crowd, Plan, SaleFailed
from seckill.demo.display import display, make_console
from seckill.demo.witness import Witness

if TYPE_CHECKING:
    from argparse import Namespace

    from rich.console import Console

SAMPLE_SECONDS = 0.025
CROWDING = 3  # buyers for each unit

# Units on sale unless told otherwise, for a few seconds of it on two cores.
UNITS = 200_000
UNITS_AGAINST_SCRIPT = 2_000
UNITS_WITH_WORK = 100  # the script's sales wait for one another, work included


def run(options: Namespace) -> int:
    """Run `seckill demo`.

    Args:
        options: what the command line said; see `seckill.__main__`.

    Returns:
        The exit status: 0 the books of seckill's sale add up, 1 they do not, 2 there was no sale.
        The script's books are only shown.
    """
    console = make_console()
    # Ended like this, it still takes its processes, its server and its keys with it.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        with ExitStack() as stack:
            url = options.url or stack.enter_context(embedded()).url
            return _run(options, url, console, stack)
    except (SaleFailed, SeckillError, redis.RedisError) as error:
        message = f"{error}"
    except ValueError as error:  # a URL that is none
        message = f"--url: {error}"
    print(f"seckill: {message}", file=sys.stderr)
    return 2


def _run(options: Namespace, url: str, console: Console, stack: ExitStack) -> int:
    client = stack.enter_context(Client(url))
    witness = Witness(client.settings())
    plans = _plans(options, client.settings())
    for plan in plans:
        client.incr_inventory(plan.stock, plan.units)
        stack.callback(_tidy_up, witness, plan)
        witness.forget_soon(plan.stock)
    console.print(f"On {'' if options.url else 'a private '}{witness.name()}.")
    audits = [_sell(plan, witness, console) for plan in plans]
    console.print()
    console.print(table(audits))
    _explain(audits, console)
    return 0 if audits[0].adds_up else 1


def _plans(options: Namespace, server: dict[str, Any]) -> list[Plan]:
    sides = ["seckill", *([options.against] if options.against else [])]
    usual = UNITS_AGAINST_SCRIPT if options.against else UNITS
    if options.work:
        usual = UNITS_WITH_WORK
    units = options.units or (options.buyers and -(-options.buyers // CROWDING)) or usual
    buyers = options.buyers or units * CROWDING
    return [
        Plan(
            side=side,
            server=server,
            tag=secrets.token_hex(4),
            units=units,
            buyers=buyers,
            processes=options.processes,
            threads=options.threads,
            lease=options.lease,
            work=options.work,
        )
        for side in sides
    ]


def _sell(plan: Plan, witness: Witness, console: Console) -> Audit:
    with Crowd(plan) as crowd:
        crowd.open()
        with display(console, plan) as show:
            going_on = True
            while going_on:
                going_on = crowd.go_on(SAMPLE_SECONDS)
                seconds = (time.monotonic_ns() - crowd.opened) / 1e9
                show(seconds, crowd.ledger(), witness.left(plan.stock) or 0, not going_on)
        return Audit(plan, crowd.ledger(), witness.left(plan.stock), crowd.opened)


def _tidy_up(witness: Witness, plan: Plan) -> None:
    try:
        witness.tidy_up(plan.lock, plan.stock, side_keys=f"seckill:{{{plan.tag}}}:*")
    except redis.RedisError as error:
        print(f"seckill: could not remove {plan.stock}: {error}", file=sys.stderr)


def _explain(audits: list[Audit], console: Console) -> None:
    ours, *others = audits
    if ours.adds_up:
        console.print(
            "[green]seckill's books add up:[/] every unit is sold or left, every buyer was heard."
        )
    else:
        console.print(
            "[bold red]seckill's books do not add up:[/] a unit is missing, or sold twice."
        )
    for script in others:
        plan = script.plan
        if script.oversold:
            console.print(
                f"[bold red]The script sold {script.oversold:,} too many.[/] Its lock lasts"
                f" {plan.lease:,} ms, its sale {plan.work:,} ms: the lock runs out in mid-sale, the"
                " next buyer sees the same stock, and both get the last unit."
            )
        elif plan.lease > plan.work:
            console.print("For a lock that runs out in mid-sale, add: --lease 20 --work 50")
        if script.ledger.sold and ours.ledger.sold:
            faster, fewer = ours.rate / script.rate, script.trips / ours.trips
            console.print(
                f"seckill: {faster:,.1f} times the sales, {fewer:,.1f} times fewer trips."
            )
