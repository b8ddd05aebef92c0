"""What servers answer to made-up commands and script calls, in a file that the simulator's model is
held against, too (src/sim/transcript.txt): so the model answers as servers do.

    python -m support.transcript redis://localhost:6379/0 > ../src/sim/transcript.txt

Times are rounded, and fences, which are times, are left out.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import redis

ROOT = Path(__file__).parents[2]
FILE = ROOT / "src" / "sim" / "transcript.txt"

SESSION = (ROOT / "src/scripts/session.lua").read_text()
SCRIPTS = {
    name: SESSION + (ROOT / f"src/scripts/{name}.lua").read_text()
    for name in ("stock", "acquire", "release", "extend", "holder")
}

FAR = str(2**53 - 1)
LIFE = "600000"


def made_up(seed: int, count: int) -> Iterator[list[str]]:
    """Commands, and script calls as `@name number-of-keys keys and arguments`."""
    dice = random.Random(seed)
    for number in range(1, count + 1):
        yield plain(dice) if dice.random() < 0.4 else script(dice, number)


def plain(dice: random.Random) -> list[str]:
    key = dice.choice(["one", "two", "lock", "hash", "sorted", "gone"])
    value = dice.choice(["0", "1", "-3", "07", "text", "9223372036854775807", "4503599627370495"])
    field = dice.choice(["a", "b", "c"])
    return dice.choice(
        [
            ["GET", key],
            ["MGET", "one", "hash", key],
            ["EXISTS", key],
            ["TYPE", key],
            ["PTTL", key],
            ["SET", key, value],
            ["SET", key, value, "PX", dice.choice(["100000", "200000", "0", "-1"])],
            ["SET", key, value, "KEEPTTL"],
            ["INCRBY", key, dice.choice(["1", "-5", "0", "x", "9223372036854775807"])],
            ["DEL", key],
            ["PEXPIRE", key, dice.choice(["300000", "0", "-1"])],
            ["HSET", "hash", field, value],
            ["HGET", dice.choice(["hash", key]), field],
            ["HDEL", "hash", field],
            ["ZADD", "sorted", "NX", str(dice.randrange(4)), field],
            ["ZREM", "sorted", field],
            ["ZCARD", dice.choice(["sorted", key])],
            ["ZCOUNT", "sorted", "-inf", str(dice.randrange(4))],
            ["ZRANK", "sorted", field],
            ["ZRANGE", "sorted", str(dice.randrange(3)), str(dice.randrange(3))],
        ]
    )


def script(dice: random.Random, number: int) -> list[str]:
    record = dice.choice(["record:a", "record:b"])
    # Mostly the next number, or one that was there before.
    head = [
        str(max(1, number - dice.choice([0] * 9 + [1, 2, 30]))),
        dice.choice([FAR] * 9 + ["1"]),
        LIFE,
    ]
    token, who = dice.choice(["", "mine", "yours"]), dice.choice(["p" * 32, "q" * 32])
    runs = [
        word
        for _ in range(dice.randrange(1, 4))
        for word in (
            dice.choice(["-1", "-2", "1", "5", "4503599627370497"]),
            dice.choice(["1", "3"]),
        )
    ]
    stock, again = dice.choice(["one", "two"]), dice.choice(["", "1"])
    side = ["queue", "lives", f"place-{who}"]
    name, keys, arguments = dice.choice([
        ("stock", [stock, "lock"], [token, dice.choice(["", "1"] if token else [""]), *runs]),
        ("stock", [stock], ["", dice.choice(["", "1"]), *runs]),
        ("acquire", ["lock"], [token or "mine", dice.choice(["", "100000"]), again, "", who]),
        ("acquire", ["lock", "fence"], [token or "mine", "100000", "1", "1", who]),
        (
            "acquire",
            ["lock", *side],
            [token or "mine", "100000", "1", "", who, dice.choice("0123"), "100000",
             dice.choice(["", "1"]), dice.choice(["", "1"])],
        ),
        ("release", ["lock"], [token, "", ""]),
        ("release", ["lock", *side], [token, who, ""]),
        ("release", ["lock", "fence"], [token, "", who]),
        ("extend", ["lock"], [token, "200000", dice.choice(["add", "replace", "reset"])]),
        ("holder", ["lock"], []),
    ])  # fmt: skip
    return [f"@{name}", str(len(keys) + 1), record, *keys, *head, *arguments]


def answers(client: redis.Redis, commands: Iterable[list[str]]) -> Iterator[str]:
    """What a server answers to each of them, as the file has it."""
    connection = client.connection_pool.get_connection()
    for name, *arguments in commands:
        is_script = name.startswith("@")
        words = ["EVAL", SCRIPTS[name[1:]], *arguments] if is_script else [name, *arguments]
        connection.send_command(*words)  # type: ignore[no-untyped-call]
        try:
            reply = connection.read_response()
        except redis.ResponseError:
            yield "error"
            continue
        if is_script:
            yield said(reply.decode())
        elif name == "PTTL" and reply > 0:
            yield rounded(reply)
        else:
            yield shown(reply)


def said(text: str) -> str:
    """A script's answer, without the time."""
    kind, *rest = text.split(" ")[2:]
    if kind in ("H", "Q", "E"):
        return " ".join([kind, rounded(int(rest[0])), *rest[1:]])
    return kind if kind == "A" else " ".join([kind, *rest])


def rounded(ms: int) -> str:
    """Up to tens of seconds."""
    return str(ms if ms <= 0 else -(-ms // 10_000))


def shown(reply: object) -> str:
    if isinstance(reply, list):
        return "[" + " ".join(shown(item) for item in reply) + "]"
    if isinstance(reply, bytes):
        return reply.decode()
    return "nil" if reply is None else str(reply)


def pairs() -> list[tuple[list[str], str]]:
    """What the file has: commands, and their answers."""
    lines = FILE.read_text().splitlines()
    commands = [
        ["" if word == "''" else word for word in line[2:].split(" ")]
        for line in lines
        if line.startswith("> ")
    ]
    return list(zip(commands, [line[2:] for line in lines if line.startswith("< ")], strict=True))


def main() -> None:
    client = redis.Redis.from_url(sys.argv[1])
    client.flushall()
    commands = list(made_up(1, 1500))
    for command, answer in zip(commands, answers(client, commands), strict=True):
        print(">", *[word or "''" for word in command])
        print("<", answer)


if __name__ == "__main__":
    main()
