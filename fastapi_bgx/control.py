"""The console's control over the tasks of this process, and what other processes ask of them."""

from collections.abc import Sequence
from typing import Any, Protocol

from fastapi_bgx.errors import NotRetryable, StoreUnavailable, Unavailable
from fastapi_bgx.held import Held
from fastapi_bgx.records import Answer, Command, FullRecord
from fastapi_bgx.runners import Runners
from fastapi_bgx.stores import Store
from fastapi_bgx.task import Task

FLUSH_SECONDS = 0.2
MOST_ANSWERS = 100


class Recording(Protocol):
    """What the control needs from the recorder."""

    @property
    def store(self) -> Store:
        """Where the records are."""
        ...

    @property
    def process(self) -> str:
        """The id of this process."""
        ...

    def flush(self, timeout: float) -> bool:
        """Have the store know what has happened up to now; false when it does not by then."""
        ...

    def record_of(self, task: Task[Any]) -> FullRecord:
        """The record of a task, as it is now."""
        ...

    def unwritten(self, task_id: str) -> FullRecord | None:
        """The record of a task of this process as long as the store may not have it."""
        ...


class ProcessControl:
    """The tasks of one `Bgx` in this process; see `Control`. From any thread."""

    def __init__(self, runners: Runners, held: Held, recorder: Recording) -> None:
        self._runners = runners
        self._held = held
        self._recorder = recorder
        self._answers: dict[str, Answer] = {}  # by command, the oldest first

    @property
    def process(self) -> str:
        """The id of this process."""
        return self._recorder.process

    def flush(self) -> None:
        """Have the store know what has happened up to now, if it takes no longer than a moment."""
        self._recorder.flush(FLUSH_SECONDS)

    def live(self, task_id: str) -> FullRecord | None:
        """The record of a task that lives, or that the history has, or not yet the store."""
        task = self._runners.get(task_id)
        return self._recorder.unwritten(task_id) if task is None else self._recorder.record_of(task)

    def is_held(self, task_id: str) -> bool:
        """True when that task can be run again."""
        return self._held.is_held(task_id)

    def cancel(self, task_id: str) -> Answer | None:
        """Ask a task to stop; `None` when it is not known here."""
        task = self._runners.get(task_id)
        if task is None:
            return None
        if task.cancel():
            return Answer(done=True)
        return Answer(done=False, detail=f"it has ended already: {task.status}")

    def retry(self, task_id: str) -> Answer | None:
        """Run a task again; `None` when it is not known here."""
        if not self._held.is_held(task_id) and self._runners.get(task_id) is None:
            return None
        try:
            task = self._held.retry(task_id)
        except NotRetryable as error:
            return Answer(done=False, detail=error.why)
        except Unavailable as error:
            return Answer(done=False, detail=str(error.detail), retry_after_s=error.retry_after)
        except Exception as error:  # of a `key` of its limit, or a limit that was taken away
            return Answer(done=False, detail=f"add_task refused it: {type(error).__name__}")
        return Answer(done=True, task_id=task.id)

    def obey(self, commands: Sequence[Command]) -> None:
        """Do what other processes ask, and answer each; in the recorder's thread. Never raises."""
        for command in commands:
            # The answer to one that was carried out may not have reached the store.
            answer = self._answers.get(command.id) or self._carry_out(command)
            self._keep(command, answer)
            try:
                self._recorder.store.answer(command.id, answer)
            except StoreUnavailable:
                return  # the others are asked for again, too

    def _carry_out(self, command: Command) -> Answer:
        do = self.cancel if command.action == "cancel" else self.retry
        return do(command.task_id) or Answer(
            done=False, detail="its process does not know it any more"
        )

    def _keep(self, command: Command, answer: Answer) -> None:
        self._answers[command.id] = answer
        if len(self._answers) > MOST_ANSWERS:
            del self._answers[next(iter(self._answers))]
