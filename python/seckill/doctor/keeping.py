"""What a server keeps: memory, disk and replicas."""

from __future__ import annotations

from seckill.doctor.facts import Facts, Unknown, known
from seckill.doctor.finding import Finding, Gravity, bytes_, not_known, see

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

NEARLY_FULL = 0.9
SILENT_SECONDS = 3  # a replica says something every second
FAR_BEHIND = 1 << 20  # bytes


def eviction(facts: Facts) -> Iterator[Finding]:
    check = "eviction"
    if facts.maxmemory == 0 and (isinstance(facts.policy, Unknown) or facts.policy == "noeviction"):
        yield Finding(check, Gravity.FINE, "nothing is evicted: maxmemory is 0")
        return
    if isinstance(facts.policy, Unknown):
        look = see("maxmemory-policy")
        yield not_known(check, "eviction policy", facts.policy, look)
        return
    if facts.policy == "noeviction":
        yield Finding(check, Gravity.FINE, "nothing is evicted: maxmemory-policy is noeviction")
        return
    remedy = (
        "CONFIG SET maxmemory-policy noeviction, also in the configuration file (on a managed"
        " server: in its parameter group), and caches on another server. A full server then refuses"
        " sales instead of forgetting them."
    )
    if facts.maxmemory == 0:
        yield Finding(
            check,
            Gravity.NOTE,
            f"maxmemory-policy is {facts.policy}, without effect while maxmemory is 0",
            "It takes effect on the day that somebody sets maxmemory.",
            remedy,
        )
        return
    limit = "unknown" if isinstance(facts.maxmemory, Unknown) else bytes_(facts.maxmemory)
    so_far = known(facts.evicted, 0)
    keys = "key" if so_far == 1 else "keys"
    evicted = f"; it has evicted {so_far:,} {keys} since its start" if so_far else ""
    why = (
        "When it is full it drops keys that have a time to live: locks, so that two hold the same"
        " one, and the records of what was applied, so that a call whose reply was lost is applied"
        " twice."
    )
    if not facts.policy.startswith("volatile-"):
        why = (
            "When it is full it drops any key: the stock, which is sold again if the shop puts it"
            " back from elsewhere; locks, so that two hold the same one; and the records of what"
            " was applied."
        )
    what = f"maxmemory-policy is {facts.policy}, with maxmemory {limit}{evicted}"
    yield Finding(check, Gravity.OVERSELL, what, why, remedy)


def memory(facts: Facts) -> Iterator[Finding]:
    limit, used = known(facts.maxmemory, 0), known(facts.used_memory, 0)
    if limit and facts.policy == "noeviction" and used >= limit * NEARLY_FULL:
        yield Finding(
            "memory",
            Gravity.STALL,
            f"{bytes_(used)} of {bytes_(limit)} are in use ({used / limit:.0%})",
            "A full server refuses every sale and every lock (OOM).",
            "Raise maxmemory, or remove what does not belong here.",
        )


def persistence(facts: Facts) -> Iterator[Finding]:
    check = "persistence"
    remedy = (
        "Set appendonly yes, with appendfsync always (dearer for each round trip, which a crowd"
        " shares) or everysec."
    )
    if isinstance(facts.aof, Unknown):
        look = see("appendonly, appendfsync and save")
        yield not_known(check, "what survives a restart", facts.aof, look)
    elif facts.aof:
        yield from _append_only(facts, remedy)
    elif facts.snapshots == "":
        yield Finding(
            check,
            Gravity.LOSE,
            "nothing is written to disk: no append-only file, no snapshots",
            "A restart comes back empty: stock, locks, and the records of what was applied are"
            " gone; and replicas follow a primary that has come back empty.",
            remedy,
        )
    else:
        how_often = facts.snapshots
        of = f"unknown ({how_often.why})" if isinstance(how_often, Unknown) else f"save {how_often}"
        yield Finding(
            check,
            Gravity.OVERSELL,
            f"snapshots only ({of}), no append-only file",
            "A restart brings the stock back as it was in the last snapshot: what was sold since is"
            " sold again.",
            remedy,
        )
    if facts.disk_errors:
        yield Finding(
            check,
            Gravity.STALL,
            f"it could not write to disk ({', '.join(facts.disk_errors)}: err)",
            "It may refuse all writes until it can (MISCONF), and what it does not write is lost in"
            " a restart.",
            "See its log: a full disk, rights, or no memory to fork.",
        )


def _append_only(facts: Facts, remedy: str) -> Iterator[Finding]:
    check = "persistence"
    if isinstance(facts.fsync, Unknown):
        look = see("appendfsync")
        subject = "append-only file, but how soon it is on the disk (appendfsync)"
        yield not_known(check, subject, facts.fsync, look)
    elif facts.fsync == "always":
        yield Finding(check, Gravity.FINE, "append-only file, appendfsync always")
    elif facts.fsync == "everysec":
        yield Finding(
            check,
            Gravity.NOTE,
            "append-only file, appendfsync everysec",
            "When the machine goes down (not only the server's process), the sales of the last"
            " second or two are sold again.",
            "appendfsync always, if that is too much.",
        )
    else:
        yield Finding(
            check,
            Gravity.LOSE,
            f"append-only file, but appendfsync {facts.fsync}",
            "When the machine goes down, all is lost that the operating system had not written yet:"
            " half a minute, as a rule. Those units are sold again.",
            remedy,
        )


def replicas(facts: Facts) -> Iterator[Finding]:
    check = "replicas"
    if facts.role == "slave":
        return
    if isinstance(facts.replicas, Unknown):
        look = "Allow this user INFO or ROLE."
        yield not_known(check, "how many replicas it has", facts.replicas, look)
        return
    if isinstance(facts.min_replicas, Unknown):
        look = see("min-replicas-to-write")
        yield not_known(check, "min-replicas-to-write", facts.min_replicas, look)
    count = facts.replicas
    have = "1 replica" if count == 1 else f"{count} replicas"
    if count == 0:
        yield Finding(
            check,
            Gravity.STALL,
            "no replica",
            "When this server goes down, the sale stops until it is back.",
            "Two replicas under Sentinel (or your provider's fail-over), and min-replicas-to-write"
            " 1; or accept the pause.",
        )
    elif facts.min_replicas == 0:
        yield Finding(
            check,
            Gravity.OVERSELL,
            f"{have}, but min-replicas-to-write is 0",
            "A primary that is cut off from its replicas goes on selling, for as long as its"
            " callers reach it; the fail-over undoes those sales, and the units are sold again.",
            "CONFIG SET min-replicas-to-write 1, also in the configuration file"
            + ("" if count > 1 else ", and a second replica, so that one may be down")
            + ". What is sold within min-replicas-max-lag (10 s) before a fail-over can still be"
            " lost.",
        )
    elif not facts.scripts_are_held:
        yield Finding(
            check,
            Gravity.OVERSELL,
            f"{have}, and min-replicas-to-write {facts.min_replicas} does not hold back scripts",
            "Before version 7.0 only plain commands are refused: a primary that is cut off from its"
            " replicas goes on selling; the fail-over undoes those sales, and the units are sold"
            " again.",
            "Redis 7.0 or up, or Valkey.",
        )
    elif not isinstance(facts.min_replicas, Unknown):
        what = f"{have}, min-replicas-to-write {facts.min_replicas}"
        yield Finding(check, Gravity.FINE, what)
    silent, bytes_behind = known(facts.behind, (0, 0))
    if silent >= SILENT_SECONDS or bytes_behind >= FAR_BEHIND:
        yield Finding(
            check,
            Gravity.OVERSELL,
            f"the replica that has the most is {bytes_(bytes_behind)} behind, and was heard of"
            f" {silent} s ago",
            "A fail-over now undoes what it has not got: those units are sold again.",
            "See the network between them, and the replica: a slow disk, a script, a fork. What"
            " waits for all replicas (wait_replicas) is safe.",
        )
    online = known(facts.replicas_online, count)
    if online < count:
        yield Finding(
            check,
            Gravity.NOTE,
            f"{online} of {have} in step with it",
            "One that is still being copied is of no use in a fail-over.",
            "Wait, and ask again.",
        )
