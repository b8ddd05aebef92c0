"""Whose a lock is: the acquisitions of one lock object, by thread, by task, or one for all.

    thread_local    seckill.Lock           seckill.aio.Lock
    True            one of each thread     one of each task, and one of each thread outside of tasks
    False           one of all             one of all

A slot keeps its acquisition until the next one. What becomes of it is written into the acquisition
and not into the slot, so a release that ends late cannot clear what was acquired since:

    token    held    the acquisition
    bytes    Held    was made here, and not released; whether it is lost, the Held knows
    bytes    None    is a token that was assigned: another acquired
    None     Held    is lost, and its holder has been told so
    None     None    is released

What was inherited through a fork is the parent's: to the child its slots are empty. A Held dies
with its slot, that is with the thread, the task or the lock object; then nobody renews it any more.
"""

from __future__ import annotations

import sys
from _thread import _local as thread_local  # as threading has it, whose import takes longer
from _weakref import ref

from seckill import _core
from seckill._exceptions import LockNotOwnedError, ServerError, caught

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import Task
    from typing import Any
    from weakref import WeakKeyDictionary


class Acquisition:
    """One row of the table above."""

    __slots__ = ("__weakref__", "cancelled", "generation", "held", "leaving", "token", "told")

    def __init__(self, token: bytes | None = None) -> None:
        self.token = token
        self.held: _core.Held | None = None
        self.generation = _core.generation()
        self.leaving = False  # a release was begun, and perhaps carried out
        self.told = False  # the server said that it is another's
        self.cancelled = False  # its task was cancelled because it is lost

    @property
    def lost(self) -> bool:
        return self.told or (self.held is not None and self.held.lost)

    @property
    def inherited(self) -> bool:
        return self.generation != _core.generation()


class Slot:
    """What `lock.local` is: `token` can be read and assigned, by whom it belongs to."""

    _acquisition: Acquisition | None = None

    @property
    def token(self) -> Any:
        mine = self._find()
        return None if mine is None else mine.token

    @token.setter
    def token(self, token: Any) -> None:
        if token is None:
            self._keep(None)
        elif token != self.token:
            self._keep(Acquisition(token))

    def _find(self, task: Task[Any] | None = None) -> Acquisition | None:
        mine = self._acquisition
        return None if mine is None or mine.inherited else mine

    def _keep(self, mine: Acquisition | None, task: Task[Any] | None = None) -> None:
        self._acquisition = mine

    def _show(self, mine: Acquisition | None) -> None:
        """Let `on_lost` see what is lost; here it is there to be seen."""


class ThreadSlot(Slot, thread_local):
    """One for each thread."""

    def _show(self, mine: Acquisition | None) -> None:
        self._keep(mine)


class TaskSlot(ThreadSlot):
    """One for each task: the running one, if no other is named."""

    _tasks: WeakKeyDictionary[Task[Any], Acquisition | None]

    def __init__(self) -> None:  # once in each thread: a task stays in its own
        from weakref import WeakKeyDictionary

        self._tasks = WeakKeyDictionary()

    def _find(self, task: Task[Any] | None = None) -> Acquisition | None:
        task = task or current_task()
        mine = self._acquisition if task is None else self._tasks.get(task)
        return None if mine is None or mine.inherited else mine

    def _keep(self, mine: Acquisition | None, task: Task[Any] | None = None) -> None:
        task = task or current_task()
        if task is None:
            self._acquisition = mine
        else:
            self._tasks[task] = mine

    def _until_done(self, task: Task[Any]) -> None:
        """See that the slot ends with its task, though somebody may still refer to that."""
        if task not in self._tasks:
            self._tasks[task] = None
            mine = ref(self)

            def forget(task: Task[Any]) -> None:
                slot = mine()
                if slot is not None:
                    slot._tasks.pop(task, None)

            task.add_done_callback(forget)


def current_task() -> Task[Any] | None:
    """The running task; None outside of tasks, and where no loop runs."""
    # Without asyncio there are no tasks. Another thread may be importing it right now.
    ask = getattr(sys.modules.get("asyncio"), "current_task", None)
    try:
        return ask() if ask else None
    except RuntimeError:
        return None


class Leaving:
    """A release from its beginning to its end: what its outcome says about the acquisition."""

    def __init__(self, mine: Acquisition) -> None:
        self._mine = mine

    def __enter__(self) -> None:
        self._again = self._mine.leaving
        self._mine.leaving = True

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        mine = self._mine
        if error is None:
            mine.token = mine.held = None
            mine.told = False
        elif isinstance(error, caught(LockNotOwnedError)):
            mine.token = None
            if self._again:  # the one before, whose outcome was not known, was carried out
                mine.held, mine.told = None, False
                return True
            mine.told = mine.held is not None
        elif isinstance(error, ServerError) or getattr(error, "sent", True) is False:
            mine.leaving = self._again  # for certain nothing was done
        return False
