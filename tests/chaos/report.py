"""What is printed of a run."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from chaos.checker import Verdict


@dataclass
class Report:
    world: str
    kind: str
    seed: str
    seconds: float = 0.0
    faults: Counter[str] = field(default_factory=Counter)
    verdict: Verdict = field(default_factory=Verdict)
    failed: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        return not self.failed and not self.verdict.wrong

    def __str__(self) -> str:
        verdict, outcomes = self.verdict, self.verdict.outcomes
        counted = {
            "faults": (sum(self.faults.values()), self.faults),
            "calls": (sum(outcomes.values()), outcomes),
        }
        lines = [f"{self.world} ({self.kind}), SECKILL_SEED={self.seed}, {self.seconds:.0f} s"]
        for what, (total, counts) in counted.items():
            each = ", ".join(f"{name} {count}" for name, count in sorted(counts.items()))
            lines.append(f"  {what:<9} {total:>7}  {each}")
        ends = ("oversold", "lost", "double", "shared")
        lines.append("  " + "  ".join(f"{end} {getattr(verdict, end)}" for end in ends))
        if verdict.forgiven:
            lines.append(
                f"  {verdict.forgiven} units were sold, and lost when a replica took over that had "
                "not got them: what asynchronous replication allows without wait_replicas"
            )
        lines += [f"  WRONG: {words}" for words in [*verdict.wrong[:20], *self.failed]]
        return "\n".join(lines)
