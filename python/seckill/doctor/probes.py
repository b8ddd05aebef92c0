"""What is asked of a server. INFO first, CONFIG where it is allowed; features are tried out.

Nothing is changed but one throw-away key, `seckill:{doctor}:<random>`, gone at once, or after five
seconds if the user may not remove it; in a cluster the tag may have a number.
"""

from __future__ import annotations

import hashlib
import secrets
import statistics
import time

from seckill import AuthenticationError, ConnectionError, ServerError
from seckill._core import Probe
from seckill.doctor.facts import Facts, Silent, Slots, Unknown
from seckill.doctor.reaching import slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from seckill import Client

ROUND_TRIPS = 20
KEY_MS = 5000
# A question that gets no answer ends its connection. Who does not answer that often is not there.
MOST_SILENCES = 2
# A node of a cluster that serves so few slots that none of these is in one of them is not tried.
MOST_TAGS = 2000

# All that the scripts of `_core` call; what a user may not call is an error in a script, too.
READ = """\
redis.call('TIME')
redis.call('GET', KEYS[1])
redis.call('TYPE', KEYS[1])
redis.call('PTTL', KEYS[1])
return redis.call('EXISTS', KEYS[1])"""
# SET comes first: after another write, a full server lets it through.
WRITE = """\
local now = redis.call('TIME')
redis.call('SET', KEYS[1], now[1], 'PX', ARGV[1])
redis.call('INCRBY', KEYS[1], '1')
redis.call('MGET', KEYS[1])
return redis.call('DEL', KEYS[1])"""


def examine(client: Client, *, lock: str | None = None, key: str | None = None) -> Facts:
    """Ask a server everything that `findings` wants to know.

    Args:
        client: says where the server is and as whom to ask; it is not used itself.
        lock: the name of a lock that will be used.
        key: the name of a stock that will be used.

    Returns:
        The facts.

    Raises:
        ConnectionError: the server cannot be reached, or does not answer any more.
        AuthenticationError: it does not accept the credentials.
        ServerError: it refuses the handshake.
    """
    server = Server(client)
    settings = client.settings()
    facts: dict[str, object] = {
        "lock": lock,
        "key": key,
        "remote": server.probe.remote,
        "encrypted": bool(settings.get("ssl")),
        "socket_timeout": settings["socket_timeout"],
    }
    facts |= _distance(server)
    info = Info(server.ask("INFO"))
    for ask in (_identity, _memory, _persistence, _replicas, _cluster):
        facts |= ask(server, info)
    facts |= _features(server, facts["role"], facts.get("slots"))
    facts["barred"] = tuple(name for name in (lock, key) if name and _is_barred(server, name))
    facts["open_to_all"] = _open_to_all(client)
    return Facts(**facts)  # type: ignore[arg-type]


class Server:
    """Asks, and connects anew when a question went unanswered."""

    def __init__(self, client: Client, *, sentinel: bool = False) -> None:
        self.client = client
        self.sentinel = sentinel
        self.probe = Probe(client, sentinel=sentinel)
        self.silences = 0

    def ask(self, *words: str) -> object:
        """What it says; a ServerError where that is an error, `Silent` where it is nothing."""
        try:
            return self.probe.ask(*words)
        except ConnectionError as error:
            self.silences += 1
            if self.silences > MOST_SILENCES:
                raise
            self.probe = Probe(self.client, sentinel=self.sentinel)
            return Silent(str(error))

    def setting(self, *names: str) -> str | Unknown:
        """What CONFIG GET says of the first of these settings that the server has."""
        why = Unknown(f"the server has no setting {names[0]}")
        for name in names:
            reply = self.ask("CONFIG", "GET", name)
            if isinstance(reply, ServerError | Unknown):
                return unknown(reply)
            if isinstance(reply, list):  # RESP2
                reply = dict(zip(reply[::2], reply[1::2], strict=False))
            if isinstance(reply, dict) and name in reply:
                return str(reply[name])
        return why


class Info:
    """The fields of INFO."""

    def __init__(self, reply: object) -> None:
        self.refused = None if isinstance(reply, str) else unknown(reply)
        text = reply if isinstance(reply, str) else ""
        pairs = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
        self.fields = {name: value.strip() for name, colon, value in pairs if colon}

    def text(self, name: str) -> str | Unknown:
        missing = self.refused or Unknown(f"INFO does not tell {name}")
        return self.fields.get(name, missing)

    def number(self, name: str) -> int | Unknown:
        return number_of(self.text(name))


def unknown(reply: object) -> Unknown:
    return reply if isinstance(reply, Unknown) else Unknown(str(reply))


def number_of(text: str | Unknown) -> int | Unknown:
    if isinstance(text, Unknown):
        return text
    try:
        return int(text)
    except ValueError:
        return Unknown(f"{text!r} is not a number")


def _is(text: str | Unknown, yes: str) -> bool | Unknown:
    return text if isinstance(text, Unknown) else text == yes


def _first(*sources: Callable[[], str | Unknown]) -> str | Unknown:
    """The first source that knows, else why the first one does not."""
    answers: list[str | Unknown] = []
    for source in sources:
        answers.append(source())
        if not isinstance(answers[-1], Unknown):
            return answers[-1]
    return answers[0]


def _distance(server: Server) -> dict[str, object]:
    """How long an answer takes, and how far apart the clocks are."""
    took: list[float] = []
    skews: list[tuple[float, float]] = []  # the quicker the answer, the better it is known
    why = Unknown("no answer to TIME")
    patience = float(str(server.client.settings()["socket_timeout"]))
    while len(took) < ROUND_TRIPS and sum(took) < patience:
        ours, began = time.time(), time.perf_counter()
        reply = server.ask("TIME")
        seconds = time.perf_counter() - began
        if not isinstance(reply, list):
            why = unknown(reply)
            break
        theirs = int(reply[0]) + int(reply[1]) / 1e6  # the handshake has seen to it that it is so
        took.append(seconds)
        skews.append((seconds, theirs - ours - seconds / 2))
    if not took:
        return {"round_trip": why, "slowest": why, "skew": why}
    return {
        "round_trip": statistics.median(took),
        "slowest": max(took),
        "skew": min(skews)[1],
    }


def _name(info: Info) -> str | Unknown:
    for name in ("Valkey", "Redis"):
        version = info.text(f"{name.lower()}_version")
        if not isinstance(version, Unknown):
            return f"{name} {version}"
    return version


def _identity(server: Server, info: Info) -> dict[str, object]:
    facts: dict[str, object] = {"server": _name(info)}

    def of_role() -> str | Unknown:
        reply = server.ask("ROLE")
        return str(reply[0]) if isinstance(reply, list) and reply else unknown(reply)

    role = _first(lambda: info.text("role"), of_role)
    facts["role"] = role
    facts["failover"] = info.text("master_failover_state")
    if role == "slave":
        host, port = info.text("master_host"), info.text("master_port")
        facts["primary"] = host if isinstance(host, Unknown) else f"{host}:{port}"
        facts["link_up"] = _is(info.text("master_link_status"), "up")
        facts["takes_writes"] = _is(info.text("slave_read_only"), "0")
    return facts | {"active_replica": _active_replica(server, info, role)}


def _active_replica(server: Server, info: Info, role: str | Unknown) -> bool | Unknown:
    """Whether several servers take writes for one another, as KeyDB can have it."""
    if role == "active-replica":
        return True
    settings = [server.setting(name) for name in ("active-replica", "multi-master")]
    if "yes" in settings:
        return True
    why = settings[0]
    if not isinstance(why, Unknown) or "no setting" in why.why:
        return False
    # Not allowed to look: the servers that have no such mode are told by their own words.
    says_keydb = any("keydb" in value.lower() for value in info.fields.values())
    return why if info.refused or says_keydb else False


def _memory(server: Server, info: Info) -> dict[str, object]:
    def either(field: str, setting: str) -> str | Unknown:
        return _first(lambda: info.text(field), lambda: server.setting(setting))

    return {
        "maxmemory": number_of(either("maxmemory", "maxmemory")),
        "used_memory": info.number("used_memory"),
        "policy": either("maxmemory_policy", "maxmemory-policy"),
        "evicted": info.number("evicted_keys"),
    }


def _persistence(server: Server, info: Info) -> dict[str, object]:
    aof = _is(info.text("aof_enabled"), "1")
    if isinstance(aof, Unknown):
        setting = _is(server.setting("appendonly"), "yes")
        aof = aof if isinstance(setting, Unknown) else setting
    tries = ("aof_last_write_status", "aof_last_bgrewrite_status", "rdb_last_bgsave_status")
    return {
        "aof": aof,
        "fsync": server.setting("appendfsync"),
        "snapshots": server.setting("save"),
        "disk_errors": tuple(name for name in tries if info.fields.get(name) == "err"),
    }


def _replicas(server: Server, info: Info) -> dict[str, object]:
    count = info.number("connected_slaves")
    followers = [
        dict(field.partition("=")[::2] for field in value.split(","))
        for name, value in info.fields.items()
        if name.startswith("slave") and "state=" in value
    ]
    good = [follower for follower in followers if follower.get("state") == "online"]
    online: int | Unknown = len(good)
    if isinstance(count, Unknown):
        online = count
        reply = server.ask("ROLE")
        if isinstance(reply, list) and len(reply) == 3 and reply[0] == "master":
            count = online = len(reply[2])
    # INFO counts the good replicas only where so many are wanted.
    wanted: int | Unknown = 0
    if info.refused or "min_slaves_good_slaves" in info.fields:
        wanted = number_of(server.setting("min-replicas-to-write", "min-slaves-to-write"))
        if isinstance(wanted, Unknown) and not info.refused:
            wanted = 1  # or more
    return {
        "replicas": count,
        "replicas_online": online,
        "behind": _behind(good, info),
        "min_replicas": wanted,
        # By its version, for once: while there are replicas enough, nothing shows it.
        "scripts_are_held": not str(_name(info)).startswith(("Redis 5.", "Redis 6.")),
    }


def _behind(followers: list[dict[str, str]], info: Info) -> tuple[int, int] | Unknown:
    """Of the replica that has the most: since when it is silent, and what it has not got yet."""
    written = info.number("master_repl_offset")
    if isinstance(written, Unknown) or not followers:
        return Unknown("INFO does not tell")
    try:
        distances = [(int(one["lag"]), max(written - int(one["offset"]), 0)) for one in followers]
    except (KeyError, ValueError):
        return Unknown("INFO does not tell")
    return min(distances, key=lambda distance: (distance[1], distance[0]))


def _cluster(server: Server, info: Info) -> dict[str, object]:
    enabled = _is(info.text("cluster_enabled"), "1")
    if enabled is False:
        return {"cluster": False}
    reply = server.ask("CLUSTER", "INFO")
    if not isinstance(reply, str):
        why = unknown(reply)
        if "cluster support disabled" in why.why:
            return {"cluster": False, "cluster_state": why, "slots": why}
        slots = _slots(server)
        if isinstance(slots, Slots):
            enabled = True
        return {"cluster": enabled, "cluster_state": why, "slots": slots}
    state = Info(reply).text("cluster_state")
    return {"cluster": True, "cluster_state": state, "slots": _slots(server)}


def _slots(server: Server) -> Slots | Unknown:
    me, ranges = server.ask("CLUSTER", "MYID"), server.ask("CLUSTER", "SLOTS")
    if not isinstance(ranges, list):
        return unknown(ranges)
    here, elsewhere = [], []
    try:
        if not isinstance(me, str):
            # Who may not ask a node for its name knows it by its address, if it tells that one.
            name = _name_at(server, ranges)
            if name is None:
                return unknown(me)
            me = name
        for first, last, (host, port, node, *_), *_replicas in ranges:
            if node == me:
                here.append((int(first), int(last)))
            else:
                elsewhere.append((int(first), int(last), f"{host}:{port}"))
    except (TypeError, ValueError):
        return Unknown("CLUSTER SLOTS answers in a way of its own")
    return Slots(tuple(here), tuple(elsewhere))


def _name_at(server: Server, ranges: list[Any]) -> str | None:
    settings = server.client.settings()
    places = [(settings.get("host"), settings.get("port")), ("", settings.get("port"))]
    for _, _, *nodes in ranges:
        for host, port, name, *_ in nodes:
            if (host or "", port) in places:
                return str(name)
    return None


def _features(server: Server, role: object, slots: object) -> dict[str, object]:
    """What the server really does, with a key of our own, in a slot that it serves."""
    tags = ["doctor", *(f"doctor{number}" for number in range(MOST_TAGS))]
    if isinstance(slots, Slots) and slots.here:
        tags = [tag for tag in tags if slots.server_of(slot(tag)) is None] or tags
    key = f"seckill:{{{tags[0]}}}:{secrets.token_hex(8)}"
    facts: dict[str, object] = {"scripts": _error(server.ask("EVAL", READ, "1", key))}
    if facts["scripts"] is None:
        write = server.ask("EVAL", WRITE, "1", key, str(KEY_MS))
        facts["writes"] = _error(write)
        if facts["writes"] is None:
            digest = hashlib.sha1(WRITE.encode(), usedforsecurity=False).hexdigest()
            again = server.ask("EVALSHA", digest, "1", key, str(KEY_MS))
            if not str(again).startswith("NOSCRIPT"):  # then EVAL it is, each time
                facts["scripts"] = _error(again)
    else:
        facts["writes"] = Unknown("not tried, as scripts do not run")
    facts["tracking"] = _tracking(server, key, writable=facts["writes"] is None)
    # On a replica both are refused, which says nothing about the primary.
    if role != "slave":
        facts["wait"] = _error(server.ask("WAIT", "0", "1"))
        facts["waitaof"] = _error(server.ask("WAITAOF", "0", "0", "1"))
    return facts


def _is_barred(server: Server, name: str) -> bool:
    """Whether the user may not touch this key, whatever the command."""
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes that are no text cannot be asked for
        return False
    refused = str(_error(server.ask("EXISTS", name)))
    return refused.startswith("NOPERM") and " key" in refused and "run the" not in refused


def _tracking(server: Server, key: str, *, writable: bool) -> str | Unknown | None:
    """Whether the server tells of a change to what was read, as those who wait for a lock need."""
    questions: list[tuple[str, ...]] = [("HELLO",), ("CLIENT", "TRACKING", "ON")]
    for words in questions:  # it tells in RESP3 only
        refused = _error(server.ask(*words))
        if refused is not None:
            return refused
    if not writable:
        return Unknown("accepted, but not tried, as nothing can be written")
    questions = [("GET", key), ("EVAL", WRITE, "1", key, str(KEY_MS)), ("TIME",)]
    for words in questions:
        refused = _error(server.ask(*words))
        if refused is not None:
            return refused
    told = any(kind == "invalidate" for kind, _ in server.probe.pushes())
    return None if told else "it is accepted, and nothing is told"


def _error(reply: object) -> str | Unknown | None:
    if isinstance(reply, Unknown):
        return reply
    return str(reply) if isinstance(reply, ServerError) else None


def _open_to_all(client: Client) -> bool | Unknown:
    settings = client.settings()
    who = ("password", "username", "credential_provider")
    if not any(settings.get(name) for name in who):
        return True  # we are in
    try:
        Probe(client, anonymous=True)
    except (AuthenticationError, ServerError):
        return False
    except ConnectionError as error:
        return Unknown(str(error))
    return True
