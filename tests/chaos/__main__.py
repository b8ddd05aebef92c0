"""`python -m chaos`: all deployments in turn; SECONDS in all (180), SECKILL_SEED (by chance)."""

from __future__ import annotations

import itertools
import os
import secrets
import sys
import tempfile
from pathlib import Path

from support.servers import KINDS, missing_kinds

from chaos.runs import run
from chaos.worlds import Sharded, Standalone, Watched

WORLDS = {
    "standalone": lambda kind: Standalone(kind),
    "sentinel": lambda kind: Watched(kind),
    "sentinel-without-wait": lambda kind: Watched(kind, careful=False),
    "cluster": lambda kind: Sharded(kind),
}


def main(names: list[str]) -> int:
    seed = os.environ.get("SECKILL_SEED") or secrets.token_hex(4)
    seconds = float(os.environ.get("SECONDS", "180"))
    kinds = os.environ.get("SECKILL_SERVERS", "").split() or KINDS
    kinds = [kind for kind in kinds if kind not in missing_kinds()]
    worlds = names or list(WORLDS)
    # Which kind is for which deployment follows from the seed, so that it reproduces the run.
    start = int(seed, 16) if not seed.strip("0123456789abcdef") else len(seed)
    chosen = itertools.islice(itertools.cycle(kinds), start % len(kinds), None)
    print(f"SECKILL_SEED={seed} SECONDS={seconds:.0f}", flush=True)
    good = True
    for name, kind in zip(worlds, chosen, strict=False):
        with tempfile.TemporaryDirectory(prefix="sk-chaos-") as directory:
            report = run(WORLDS[name](kind), Path(directory), seed, seconds / len(worlds))
        print(report, flush=True)
        good &= report.good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
