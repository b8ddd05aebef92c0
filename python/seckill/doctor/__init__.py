"""`seckill doctor`: what about a server could oversell, lose or stall, and what to do about it.

facts      what is known of a server, and what could not be learnt
probes     the questions: INFO first, CONFIG where it is allowed, and what the server really does
findings   the judgement: from facts to findings, in order of gravity; asks nothing
           working, keeping, reaching: its checks; finding: what one is
sentinels  a service that they watch: they, and the servers behind it
cluster    its nodes and slots
nodes      what is said of several servers, as one list
report     text for people, JSON for programs
"""

from __future__ import annotations

import re
import sys

from seckill import Client, SeckillError
from seckill.doctor import cluster, sentinels
from seckill.doctor.findings import judge
from seckill.doctor.probes import examine
from seckill.doctor.report import Report

TYPE_CHECKING = False
if TYPE_CHECKING:
    from argparse import Namespace

    from seckill.doctor.finding import Finding
    from seckill.doctor.report import Examined

HEALTHY, FINDINGS, UNREACHABLE = 0, 1, 2


def run(options: Namespace) -> int:
    """Run `seckill doctor`.

    Args:
        options: what the command line said; see `seckill.__main__`.

    Returns:
        The exit status: 0 healthy, 1 findings, or something that could not be learnt, 2 the server
        could not be asked.
    """
    report = _examined(options)
    sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]
    if options.json:
        print(report.as_json())
    elif report.error is not None:
        print(f"seckill: {report.error}", file=sys.stderr)
    else:
        print(report.as_text())
    if report.error is not None:
        return UNREACHABLE
    return FINDINGS if report.findings else HEALTHY


def _examined(options: Namespace) -> Report:
    try:
        client = Client(options.url)
    except ValueError as error:
        # The environment's URL is named by the one who reads it.
        words = str(error) if options.url is None else f"URL: {error}"
        return Report(None, error=words)
    server = repr(client).partition("'")[2].rpartition("'")[0]  # as a URL, password hidden
    try:
        facts, results = _surveyed(client, options)
    except SeckillError as error:
        password = client.settings()["password"]
        words = str(error)
        if re.search("unknown command .TIME", words):
            words = "it does not know TIME: a Sentinel? Give redis+sentinel://host:port/service"
        if password:  # a server, or what stands before it, may repeat what it was told
            words = words.replace(str(password), "***")
        says_where = words.startswith("cannot connect to") or " is not ready: " in words
        return Report(server, error=words if says_where else f"{server}: {words}")
    return Report(server, facts, sorted(results, key=lambda result: result.gravity))


def _surveyed(client: Client, options: Namespace) -> tuple[Examined, list[Finding]]:
    settings = client.settings()
    if "sentinels" in settings:
        return sentinels.survey(client, options.lock, options.key)
    if "cluster" in settings:
        return cluster.survey(client, options.lock, options.key)
    facts = examine(client, lock=options.lock, key=options.key)
    return facts, judge(facts)
