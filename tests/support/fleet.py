"""Members of a mixed fleet: what the processes of test_mixed_fleet.py run.

"Disturbed" counts the times that a holder did not find its lock as it had left it.
"""

from __future__ import annotations

import time
from multiprocessing.synchronize import Barrier
from typing import Any

from support import old_script


def run(member: str, url: str, begin: Barrier, answers: Any, *arguments: Any) -> None:
    old_script.connect(url)
    old_script.connection.ping()
    if member.startswith("new"):
        import seckill

        seckill.configure(url)
    begin.wait(60)
    answers.put(globals()[member](*arguments))


def old_buyer(lock: str, key: str, attempts: int, pause: float) -> dict[str, int]:
    """Buys with the old functions, slowly, and looks whether its lock is there to the end."""
    sold = disturbed = 0
    release = old_script.release_lock

    def look_and_release(lockname: str) -> None:
        nonlocal disturbed
        disturbed += old_script.connection.get(lockname) != b"1"
        release(lockname)

    old_script.release_lock = look_and_release
    for _ in range(attempts):
        try:
            old_script.update_inventory(lock, key, -1, 60_000, pause=pause)
            sold += 1
        except ValueError:
            break  # sold out
    return {"sold": sold, "disturbed": disturbed}


def new_buyer(lock: str, key: str, attempts: int, pause: float) -> dict[str, int]:
    """Buys with our functions, and takes a breath between: or the old ones would get nothing."""
    import seckill

    sold = 0
    for _ in range(attempts):
        try:
            seckill.update_inventory(lock, key, -1, 60_000, 60_000)
            sold += 1
            time.sleep(pause)
        except seckill.InsufficientInventory:
            break
    return {"sold": sold, "disturbed": 0}


def old_holder(lock: str, counter: str, rounds: int) -> dict[str, int]:
    return hold(old_script, lock, counter, rounds)


def new_holder(lock: str, counter: str, rounds: int) -> dict[str, int]:
    import seckill

    return hold(seckill, lock, counter, rounds)


def hold(functions: Any, lock: str, counter: str, rounds: int) -> dict[str, int]:
    """Under the lock, count up in two steps, as only one who is alone can."""
    disturbed = 0
    for _ in range(rounds):
        assert functions.acquire_lock(lock, 60_000, 60_000)
        mine = old_script.connection.get(lock)
        count = int(old_script.connection.get(counter))
        time.sleep(0.001)
        old_script.connection.set(counter, count + 1)
        disturbed += old_script.connection.get(lock) != mine
        functions.release_lock(lock)
    return {"sold": 0, "disturbed": disturbed}
