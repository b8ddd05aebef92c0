"""The judgement: from facts to findings. Asks nothing, so every case of it can be tried.

A check that learnt nothing says so: what is forbidden is unknown, never fine.
"""

from __future__ import annotations

from seckill.doctor import keeping, reaching, working
from seckill.doctor.facts import Facts
from seckill.doctor.finding import Finding

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def judge(facts: Facts) -> list[Finding]:
    """Judge a server.

    Args:
        facts: what is known of it.

    Returns:
        The result of each check, the gravest first; what is fine comes last.
    """
    results = [finding for check in CHECKS for finding in check(facts)]
    return sorted(results, key=lambda finding: finding.gravity)


# Within one gravity, in this order.
CHECKS: tuple[Callable[[Facts], Iterator[Finding]], ...] = (
    working.active_replica,
    keeping.eviction,
    working.role,
    keeping.persistence,
    keeping.replicas,
    working.scripts,
    working.writes,
    working.barred,
    working.failover,
    reaching.cluster,
    reaching.names,
    keeping.memory,
    reaching.clock,
    working.tracking,
    reaching.round_trip,
    reaching.password,
    reaching.plaintext,
    working.waiting,
)
