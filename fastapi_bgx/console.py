"""`Console`: what the status API and the dashboard ask, and what they can have done.

It asks the store in threads of its own, so that a slow database holds nobody else up, and it knows
the tasks that live in this process, which may be newer than what the store has. What another
process has to do is left in the store as a command.
"""

import os
import uuid
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any, Literal, Protocol, TypeVar

import anyio

from fastapi_bgx.asking import Asking
from fastapi_bgx.outcome import Status
from fastapi_bgx.records import (
    Answer,
    Changes,
    Command,
    Failure,
    FullRecord,
    Page,
    ProcessReading,
    Query,
    Record,
    Summary,
)
from fastapi_bgx.stores import Store

T = TypeVar("T")
R = TypeVar("R", bound=Record)
STORE_SECONDS = 5.0
"""How long a question to the store may take."""
STORE_THREADS = 4
"""How many questions it is asked at once."""
OWN_THREADS = 2
"""How many records of tasks of this process are made at once."""
LOOK_SECONDS = 3.0
"""How long a task that another process has just accepted is looked for: a busy one is slow."""
MOST_LOOKING = 20
"""How many are looked for at once: others wait for what does not come."""
COMMAND_SECONDS = 3.0
"""How long another process may take to do what it is asked."""
PAUSE_SECONDS = 0.1
"""Between one look and the next."""

Action = Literal["cancel", "retry"]


class Control(Protocol):
    """The tasks of this process. Everything may be called from any thread."""

    @property
    def process(self) -> str:
        """The id of this process: what the ids of its tasks begin with."""
        ...

    def flush(self) -> None:
        """Have the store know what has happened up to now; may block, for a moment."""
        ...

    def live(self, task_id: str) -> FullRecord | None:
        """The record of a task of this process that is still in its memory; may block.

        In the end it is in the store, without a moment in between.
        """
        ...

    def is_held(self, task_id: str) -> bool:
        """True when a task of this process can be run again."""
        ...

    def cancel(self, task_id: str) -> Answer | None:
        """Ask a task of this process to stop; `None` when it is not known here."""
        ...

    def retry(self, task_id: str) -> Answer | None:
        """Run a task of this process again; `None` when it is not known here."""
        ...


class Console:
    """The records of tasks: what became of them, by any question. It is `bgx.records`.

    From any event loop. With a store that several processes share, it tells of the tasks of all of
    them, and reaches them. Each method raises `StoreUnavailable` when the store does not answer.
    """

    def __init__(self, store: Store, control: Control) -> None:
        self._store = store
        self._control = control
        self._looking = 0
        self._start_afresh()

    async def get(self, task_id: str) -> FullRecord | None:
        """Everything that is known of a task; `None` when nothing is.

        A task that was accepted a moment ago is found, by whichever process.
        """
        own = await self._own(task_id)
        if own is not None:
            return own  # also when the store does not answer
        found = await self._ask(self._store.get, task_id) or await self._look_again(task_id)
        return None if found is None else self._as_held(found)

    async def find(self, query: Query) -> Page:
        """The records that fit, the last added first.

        Raises:
            ValueError: the cursor is not one that a page gave.
        """
        page = await self._ask(self._store.find, query)
        return page.model_copy(update={"records": tuple(map(self._as_held, page.records))})

    async def summary(self, since: datetime, until: datetime, buckets: int = 60) -> Summary:
        """What ended between two moments, in so many pieces of time."""
        return await self._ask(self._store.summary, since, until, buckets)

    async def failures(
        self, since: datetime, until: datetime, most: int = 100
    ) -> tuple[Failure, ...]:
        """What failed or timed out, by error and place; those that ended last first."""
        return await self._ask(self._store.failures, since, until, most)

    async def processes(self) -> tuple[ProcessReading, ...]:
        """The processes that run tasks, and what they do now."""
        return await self._ask(self._store.processes)

    async def changes(self, after: int | None, most: int = 200) -> Changes:
        """What has changed after that change; `None`: nothing yet, but where changes stand."""
        changes = await self._ask(self._store.changes, after, most)
        return changes.model_copy(update={"records": tuple(map(self._as_held, changes.records))})

    async def cancel(self, task_id: str) -> Answer | None:
        """Ask a task to stop, wherever it runs; `None` when nobody knows it.

        As with `task.cancel()`, that it was asked does not mean that it stops.
        """
        return self._control.cancel(task_id) or await self._elsewhere("cancel", task_id)

    async def retry(self, task_id: str) -> Answer | None:
        """Run a task that did not succeed again, where it ran; `None` when nobody knows it.

        See `bgx.retry`. What stands against it is in the answer.
        """
        return self._control.retry(task_id) or await self._elsewhere("retry", task_id)

    # Asking.

    async def _ask(self, question: Callable[..., T], *arguments: Any) -> T:
        def asked() -> T:
            self._control.flush()
            return question(*arguments)

        return await self._here()._questions.ask(asked)

    async def _own(self, task_id: str) -> FullRecord | None:
        if _process_of(task_id) != self._control.process:
            return None
        # Not by the threads for the store, which may all hang. And not on the event loop: to put
        # the values of a task into words is to call code of the application.
        return await self._here()._own_questions.ask(partial(self._control.live, task_id))

    def _here(self) -> "Console":
        if self._pid != os.getpid():  # forked since: no thread came along
            self._start_afresh()
        return self

    def _start_afresh(self) -> None:
        self._pid = os.getpid()
        self._questions = Asking(STORE_THREADS, STORE_SECONDS)
        self._own_questions = Asking(OWN_THREADS, STORE_SECONDS)

    def _as_held(self, record: R) -> R:
        """What is held was known when the record was written, and may be another thing now."""
        if not record.final or record.process != self._control.process:
            return record
        held = self._control.is_held(record.id)
        return record if record.retryable is held else record.model_copy(update={"retryable": held})

    async def _look_again(self, task_id: str) -> FullRecord | None:
        """The record of a task that another process has accepted, and not written yet.

        Only ids that a living process may have given are waited for: one that the store has heard
        of, which takes a moment after its start.
        """
        process = _process_of(task_id)
        if process in ("", self._control.process) or self._looking >= MOST_LOOKING:
            return None
        self._looking += 1
        found = None
        try:
            if self._store.shared and await self._lives(process):
                with anyio.move_on_after(LOOK_SECONDS):
                    while found is None:
                        await anyio.sleep(PAUSE_SECONDS)
                        found = await self._ask(self._store.get, task_id)
        finally:
            self._looking -= 1
        return found

    async def _lives(self, process: str) -> bool:
        return any(process == each.id for each in await self.processes())

    # Commands.

    async def _elsewhere(self, action: Action, task_id: str) -> Answer | None:
        """Have something done with a task that this process does not know."""
        record = await self.get(task_id)
        if record is None:
            return None
        refusal = _refusal(action, record, self._control.process)
        if refusal is None and not self._store.shared:
            refusal = _refuse(f"nothing leads to its process {record.process}, which has ended")
        if refusal is None and not await self._lives(record.process):
            refusal = _refuse(f"its process {record.process} has ended")
        return refusal or await self._command(action, record)

    async def _command(self, action: Action, record: Record) -> Answer:
        command = Command(
            id=uuid.uuid4().hex, process=record.process, task_id=record.id, action=action
        )
        await self._ask(self._store.ask, command)
        answer = None
        with anyio.move_on_after(COMMAND_SECONDS):
            while answer is None:
                await anyio.sleep(PAUSE_SECONDS)
                answer = await self._ask(self._store.answer_to, command.id)
        if answer is None and not await self._lives(record.process):
            return _refuse(f"its process {record.process} has ended")
        return answer or _refuse(
            f"its process {record.process} did not answer within {COMMAND_SECONDS:g} s; "
            f"it may still do it"
        )


def _process_of(task_id: str) -> str:
    """The id of the process that gave this id; empty when none did."""
    process, _, number = task_id.rpartition("-")
    return process if number.isdecimal() else ""


def _refusal(action: Action, record: Record, here: str) -> Answer | None:
    """Why a task that this process does not know cannot be cancelled or run again, if so.

    Only an end is for certain: a task that goes on in the store may have ended since.
    """
    if action == "cancel" and record.final:
        return _refuse(f"it has ended already: {record.status}")
    if action == "retry" and record.status is Status.SUCCEEDED:
        return _refuse("it succeeded")
    if record.process == here:
        held = "its arguments are not held any more"
        return _refuse(held if action == "retry" else "its process does not know it any more")
    return None


def _refuse(why: str) -> Answer:
    return Answer(done=False, detail=why)
