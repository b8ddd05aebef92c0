"""Where names live in a cluster, and the way to the server."""

from __future__ import annotations

import binascii
import os

from seckill.doctor.facts import Facts, Unknown, known
from seckill.doctor.finding import Finding, Gravity, not_known, seconds_

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

SLOTS = 16384
SKEW_SECONDS = 1.0
FAR_SECONDS = 0.005


def cluster(facts: Facts) -> Iterator[Finding]:
    check = "cluster"
    if isinstance(facts.cluster, Unknown):
        look = "Allow this user INFO or CLUSTER INFO."
        yield not_known(check, "cluster mode", facts.cluster, look)
        return
    if not facts.cluster:
        return
    if isinstance(facts.cluster_state, Unknown):
        look = "Allow this user CLUSTER INFO, CLUSTER MYID and CLUSTER SLOTS."
        yield not_known(check, "the cluster's state", facts.cluster_state, look)
    elif facts.cluster_state != "ok":
        yield Finding(
            check,
            Gravity.STALL,
            f"cluster_state is {facts.cluster_state}",
            "The cluster refuses sales (CLUSTERDOWN).",
            "See CLUSTER INFO, CLUSTER SLOTS, and the log of the node that is missing.",
        )
    if isinstance(facts.slots, Unknown):
        return
    if facts.slots.nobodys:
        yield Finding(
            check,
            Gravity.STALL,
            f"{facts.slots.nobodys:,} of {SLOTS:,} slots are served by nobody",
            "Names in these slots can be neither sold nor locked.",
            "Give them to a node: CLUSTER ADDSLOTS, or redis-cli --cluster fix.",
        )
    if facts.slots.elsewhere:
        yield Finding(
            check,
            Gravity.STALL,
            f"{facts.slots.count:,} of {SLOTS:,} slots are served here, the rest by other nodes",
            "A connection to this node alone is refused for the names of the others (MOVED).",
            "redis+cluster:// and this address (here and where you sell) asks all nodes.",
        )


def names(facts: Facts) -> Iterator[Finding]:
    check = "names"
    given = [(what, name) for what, name in (("lock", facts.lock), ("key", facts.key)) if name]
    if not given:
        return
    slots = {what: slot(name) for what, name in given}
    shown = ", ".join(f"{what} {name!r} in slot {slots[what]:,}" for what, name in given)
    if len(set(slots.values())) == 2:
        in_cluster = facts.cluster is True
        yield Finding(
            check,
            Gravity.STALL if in_cluster else Gravity.NOTE,
            f"different slots: {shown}",
            ("" if in_cluster else "It matters in a cluster only. ")
            + "There one step cannot reach both: an update is refused, or takes three round trips"
            " instead of one.",
            hash_tag_advice(known(facts.lock, "") or "", known(facts.key, "") or ""),
        )
    else:
        both = "the same slot: " if len(given) == 2 else ""
        yield Finding(check, Gravity.FINE, f"{both}{shown}")
    for what, name in given:
        address = None
        if not isinstance(facts.slots, Unknown):
            address = facts.slots.server_of(slots[what])
        if address:
            yield Finding(
                check,
                Gravity.STALL,
                f"the {what} {name!r} is served by another node, {address}",
                "This one refuses it (MOVED).",
                f"Connect by redis+cluster://{address}.",
            )


def hash_tag_advice(lock: str, key: str) -> str:
    tag = _tag(key)
    if "}" in tag or "{" in lock or "{" in tag:
        return "Give both names the same part in braces: {sale}:lock and {sale}:stock."
    return f"Name the lock {lock}:{{{tag}}}: only what stands in braces tells its slot."


def _tag(name: str) -> str:
    """The part of a name that tells its slot."""
    _, brace, rest = name.partition("{")
    tag, close, _ = rest.partition("}")
    return tag if brace and close and tag else name


def slot(name: str) -> int:
    """The hash slot of a name, as the cluster specification has it."""
    return binascii.crc_hqx(os.fsencode(_tag(name)), 0) % SLOTS


def clock(facts: Facts) -> Iterator[Finding]:
    if isinstance(facts.skew, Unknown):
        yield not_known("clock", "its clock", facts.skew, "Allow this user TIME.")
    elif abs(facts.skew) >= SKEW_SECONDS:
        side = "ahead of" if facts.skew > 0 else "behind"
        yield Finding(
            "clock",
            Gravity.LOSE,
            f"its clock is {seconds_(abs(facts.skew))} {side} this machine's",
            "One of the two is wrong. If it is the server's, setting it right ends leases at once"
            " (two hold the same lock), or keeps them that much longer.",
            "Run NTP (chrony) on both.",
        )
    else:
        yield Finding("clock", Gravity.FINE, "its clock agrees with this machine's")


def round_trip(facts: Facts) -> Iterator[Finding]:
    check = "round trip"
    if isinstance(facts.round_trip, Unknown) or isinstance(facts.slowest, Unknown):
        why = facts.round_trip if isinstance(facts.round_trip, Unknown) else Unknown("")
        yield not_known(check, check, why, "Allow this user TIME.")
        return
    usual, slowest = seconds_(facts.round_trip), seconds_(facts.slowest)
    what = f"{check} {usual}, the slowest {slowest}"
    limit = facts.socket_timeout
    if facts.slowest > limit / 2:
        yield Finding(
            check,
            Gravity.STALL,
            what,
            f"The client takes a connection for dead that is silent for {seconds_(limit)}.",
            "See SLOWLOG GET and LATENCY DOCTOR; else raise socket_timeout.",
        )
    elif facts.round_trip > FAR_SECONDS:
        yield Finding(
            check,
            Gravity.NOTE,
            what,
            f"A loop of single sales makes {1 / facts.round_trip:,.0f} a second. A crowd in one"
            " process shares the round trips.",
            "Sell from a machine that is nearer, if that is too few.",
        )
    else:
        yield Finding(check, Gravity.FINE, what)


def plaintext(facts: Facts) -> Iterator[Finding]:
    if facts.encrypted:
        yield Finding("encryption", Gravity.FINE, "the connection is encrypted")
    elif facts.remote:
        yield Finding(
            "encryption",
            Gravity.OPEN,
            "the connection to another machine is not encrypted",
            "Who is on the way reads the password and can change the stock.",
            "TLS (rediss://), or a private network that you trust.",
        )
    else:
        yield Finding("encryption", Gravity.FINE, "the connection stays on this machine")


def password(facts: Facts) -> Iterator[Finding]:
    if isinstance(facts.open_to_all, Unknown):
        look = "Try it: redis-cli PING, without a password."
        yield not_known("password", "whether it wants a password", facts.open_to_all, look)
    elif facts.open_to_all:
        yield Finding(
            "password",
            Gravity.OPEN,
            "the default user needs no password",
            "Whoever reaches the server can change the stock and take locks away.",
            "requirepass, or ACL users of their own and ACL SETUSER default off.",
        )
    else:
        yield Finding("password", Gravity.FINE, "nobody gets in without a password")
