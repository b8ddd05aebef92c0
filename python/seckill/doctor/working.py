"""What a server is, and what it does."""

from __future__ import annotations

from seckill.doctor.facts import Facts, Silent, Unknown, known
from seckill.doctor.finding import Finding, Gravity, not_known, on_another_node, said, see, silent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator


def active_replica(facts: Facts) -> Iterator[Finding]:
    check = "active-replica"
    if facts.active_replica is True:
        yield Finding(
            check,
            Gravity.OVERSELL,
            "several servers take writes (active-replica), and the newest wins",
            "Two of them sell the last unit, each to a buyer; then one of the two writes is thrown"
            " away. Locks fare no better.",
            "Do not sell on it. Set active-replica no and multi-master no: one primary, with"
            " replicas that only read.",
        )
    elif isinstance(facts.active_replica, Unknown):
        look = see("active-replica and multi-master")
        yield not_known(check, "whether replicas take writes", facts.active_replica, look)


def role(facts: Facts) -> Iterator[Finding]:
    if isinstance(facts.role, Unknown):
        look = "Allow this user INFO or ROLE."
        yield not_known("role", "primary or replica", facts.role, look)
    elif facts.role == "slave":
        of = f"of {facts.primary}" if isinstance(facts.primary, str) else "of another server"
        there = facts.primary if isinstance(facts.primary, str) else "the primary"
        remedy = f"Give the primary's address, {there}, or the Sentinels' to those who sell."
        lost = "" if known(facts.link_up, True) else ", with which it has no connection"
        if facts.takes_writes is True:
            yield Finding(
                "role",
                Gravity.OVERSELL,
                f"a replica {of}{lost}, and it takes writes",
                "The primary never learns what is sold here, sells the same units, and undoes the"
                " sales at the next resynchronization.",
                f"{remedy} Set replica-read-only yes.",
            )
        else:
            yield Finding(
                "role",
                Gravity.STALL,
                f"a read-only replica {of}{lost}",
                "It refuses every sale and every lock.",
                remedy,
            )
    elif facts.role in ("master", "active-replica"):
        yield Finding("role", Gravity.FINE, "primary")
    else:
        yield Finding(
            "role",
            Gravity.STALL,
            f"its role is {facts.role}: not a server that keeps data",
            "Stock and locks live elsewhere.",
            "Give the primary's address.",
        )


def failover(facts: Facts) -> Iterator[Finding]:
    if isinstance(facts.failover, Unknown):
        # A server whose INFO has no such field has no such command.
        if "does not tell" not in facts.failover.why:
            look = "Allow this user INFO."
            yield not_known("fail-over", "whether a fail-over is going on", facts.failover, look)
    elif facts.failover != "no-failover":
        yield Finding(
            "fail-over",
            Gravity.STALL,
            f"a fail-over is going on ({facts.failover})",
            "Writes wait until another server has taken over.",
            "Wait for its end, or end it with FAILOVER ABORT; then ask again.",
        )


def scripts(facts: Facts) -> Iterator[Finding]:
    if isinstance(facts.scripts, Silent):
        yield silent("scripts", "a script that reads", facts.scripts)
    elif isinstance(facts.scripts, Unknown):
        yield not_known("scripts", "scripts", facts.scripts, "Ask again.")
    elif facts.scripts is None:
        yield Finding("scripts", Gravity.FINE, "scripts run")
    elif facts.scripts.startswith(("MOVED", "CLUSTERDOWN")):
        yield on_another_node("scripts", "whether scripts run", facts.scripts)
    else:
        yield Finding(
            "scripts",
            Gravity.STALL,
            f"scripts do not run: {said(facts.scripts)}",
            "Every sale and every lock is a script, so that check and change are one step.",
            "Allow this user EVAL and EVALSHA, the commands in docs/connecting.md, and the keys"
            " seckill:*; or take a server that has scripts.",
        )


def writes(facts: Facts) -> Iterator[Finding]:
    error = facts.writes
    if isinstance(error, Silent):
        yield silent("writes", "a write", error)
    elif isinstance(error, Unknown):
        if facts.scripts is None:
            yield not_known("writes", "whether it takes writes", error, "Ask again.")
    elif error is None:
        yield Finding("writes", Gravity.FINE, "writes are taken")
    elif error.startswith("MOVED"):
        yield on_another_node("writes", "whether it takes writes", error)
    elif not ("READONLY" in error and facts.role == "slave"):
        code = next((code for code in REFUSALS if code in error), "")
        why, remedy = REFUSALS[code]
        yield Finding("writes", Gravity.STALL, f"it refuses writes: {said(error)}", why, remedy)


def barred(facts: Facts) -> Iterator[Finding]:
    for name in dict.fromkeys(facts.barred):
        yield Finding(
            "keys",
            Gravity.STALL,
            f"this user may not use the key {name!r}",
            "Each sale or lock with this name is refused (NOPERM).",
            "Allow it: ACL SETUSER, and ~ before the name or a pattern of such names.",
        )


# By what the error says; inside a script's error the code is not its first word.
REFUSALS = {
    "NOREPLICAS": (
        "Fewer replicas are in step than min-replicas-to-write wants. No sale until they are.",
        "See why they are not; have one replica more than min-replicas-to-write.",
    ),
    "MISCONF": (
        "Its last snapshot failed. No sale until one succeeds.",
        "See its log: a full disk, rights, or no memory to fork.",
    ),
    "OOM": (
        "It is full (maxmemory). No sale until there is room.",
        "Raise maxmemory, or remove what does not belong here.",
    ),
    "CLUSTERDOWN": (
        "The cluster does not serve this slot. No sale until it does.",
        "See CLUSTER INFO, CLUSTER SLOTS, and the log of the node that is missing.",
    ),
    "READONLY": ("No sale and no lock until it takes writes.", "Give the primary's address."),
    "": (
        "No sale and no lock until it takes them: each writes a record, seckill:*, as well.",
        "Allow this user the commands in docs/connecting.md, on its own keys and on seckill:*.",
    ),
}


def tracking(facts: Facts) -> Iterator[Finding]:
    if isinstance(facts.tracking, Silent):
        yield silent("tracking", "CLIENT TRACKING", facts.tracking)
    elif isinstance(facts.tracking, Unknown):
        look = "Ask again when it takes writes."
        yield not_known("tracking", "CLIENT TRACKING", facts.tracking, look)
    elif facts.tracking is None:
        yield Finding("tracking", Gravity.FINE, "it tells when a lock is freed (CLIENT TRACKING)")
    elif facts.tracking.startswith(("MOVED", "CLUSTERDOWN")):
        yield on_another_node("tracking", "CLIENT TRACKING", facts.tracking)
    else:
        yield Finding(
            "tracking",
            Gravity.STALL,
            f"it does not tell when a lock is freed (CLIENT TRACKING): {said(facts.tracking)}",
            "Those who wait for a lock have to ask from time to time, and get it later.",
            "Allow this user HELLO, CLIENT TRACKING and GET on its locks; or accept the delay.",
        )


def waiting(facts: Facts) -> Iterator[Finding]:
    for command, error, purpose in (
        ("WAIT", facts.wait, "has reached a replica"),
        ("WAITAOF", facts.waitaof, "is on disk"),
    ):
        check = command.lower()
        if isinstance(error, Silent):
            yield silent(check, command, error)
        elif isinstance(error, Unknown):
            if facts.role != "slave":
                yield not_known(check, command, error, "Ask again.")
        elif error is None:
            yield Finding(check, Gravity.FINE, f"{command} works")
        else:
            yield Finding(
                check,
                Gravity.NOTE,
                f"{command} does not work: {said(error)}",
                f"Nobody can wait until a sale {purpose}.",
                f"Allow this user {command}, or take a server that has it, if you want that.",
            )
