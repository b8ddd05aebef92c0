"""What an import adds to a bare interpreter: the whole life of fresh processes, in turns."""

from __future__ import annotations

import subprocess
import sys
import time

from .rates import Bench, Measure, NotMeasured, need


def interpreter(module: str | None) -> Measure:
    statement = f"import {module}" if module else "pass"

    def measure(bench: Bench) -> list[float]:
        if module:
            need(module)
        command = [sys.executable, "-c", statement]
        samples = []
        for _ in range(bench.starts + 1):
            began = time.perf_counter()
            if subprocess.run(command, check=False).returncode:
                raise NotMeasured(f"`{statement}` failed")
            samples.append((time.perf_counter() - began) * 1000)
        return samples[1:]  # the first one reads the files from the disk

    return measure
