"""Worker processes: `executor="process"`, on anyio's `to_process`.

anyio's pool is used because a cancellation kills its worker, on asyncio and on trio, and because
every FastAPI application has it. The limiter in front decides how many run; anyio's own is open.
"""

import contextlib
import io
import os
import pickle
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Generator
from contextvars import Context
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import anyio
import anyio.to_process
import structlog

from fastapi_bgx.errors import WrongCall
from fastapi_bgx.outcome import Progress
from fastapi_bgx.progress import (
    PROGRESS_SECONDS,
    ProgressReader,
    ProgressWriter,
    not_a_fraction,
)
from fastapi_bgx.task import Task, current, logger_for
from fastapi_bgx.telemetry import carried, carrier_of
from fastapi_bgx.timers import Timer, Timers

WARM_SECONDS = 30.0
"""How long a worker process may take to start and to import what a call needs."""
MOST_OUTPUT = 64_000
"""Characters of a function's output that are brought back; the last ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFacts:
    """What a worker process is told of the task."""

    id: str
    name: str
    attempt: int
    remaining: float | None
    """Seconds until the timeout. Not a moment: the server's clock need not be the worker's."""
    progress_path: str
    """Where it may tell of its progress."""
    trace: dict[str, str] = field(default_factory=dict[str, str])
    """The span around it, for `telemetry.carried`."""


class WorkerTask:
    """The running task, seen from inside its worker process."""

    def __init__(self, facts: TaskFacts) -> None:
        self.id: str = facts.id
        self.name: str = facts.name
        self.attempt: int = facts.attempt
        self.cancelled: bool = False
        left = facts.remaining
        self._deadline = None if left is None else time.monotonic() + left
        self._writer = ProgressWriter(facts.progress_path)
        self._log: Any = None

    @property
    def timed_out(self) -> bool:
        """True when the timeout has passed; the process is killed then, so hardly ever seen."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def remaining(self) -> float | None:
        """Seconds until the timeout."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def check_cancelled(self) -> None:
        """Do nothing: a worker process is not asked to stop, it is killed."""

    def progress(self, fraction: float, note: str | None = None) -> None:
        """Tell how far the task is, and what it does; the first `MOST_NOTE` bytes of that.

        Raises:
            ValueError: `fraction` is not from 0 to 1.
        """
        if not 0 <= fraction <= 1:
            raise not_a_fraction(fraction)
        self._writer.write(fraction, note)

    @property
    def log(self) -> Any:
        """A logger as structlog is configured in this process, with the task in each line."""
        if self._log is None:
            self._log = logger_for(self)
        return self._log

    def end(self) -> None:
        """The function has ended: nothing more is told."""
        self._writer.close()


class ProgressPublisher:
    """Looks once in a second how far a worker process is, and has the runner publish that."""

    def __init__(self, task: Task[Any], timers: Timers) -> None:
        self._task = task
        self._timers = timers
        self._last: Progress | None = None
        self._timer: Timer = timers.start(PROGRESS_SECONDS, self._look_again)

    def stop(self) -> None:
        """Look for the last time."""
        self._timer.cancel()
        del self._timer  # it leads back here: a cycle
        self._look()

    def _look_again(self) -> None:
        self._timer = self._timers.start(PROGRESS_SECONDS, self._look_again)
        self._look()

    def _look(self) -> None:
        now = self._task.last_progress
        if now != self._last:
            self._last = now
            self._task.runner.progressed(self._task)


class RemoteTraceback(Exception):
    """The traceback of an error as it was in the worker process."""

    def __init__(self, text: str) -> None:
        super().__init__(f"\n{text}")


def pack_call(name: str, func: Callable[..., Any], args: Any, kwargs: Any) -> bytes:
    """The call as it is sent to a worker.

    Raises:
        WrongCall: something in it cannot be pickled.
    """
    try:
        return pickle.dumps((func, args, kwargs), pickle.HIGHEST_PROTOCOL)
    except Exception as error:
        raise WrongCall(
            f'add_task({name}, ...) with executor="process": the call cannot be pickled '
            f"({error}); use a function of a module, and arguments that pickle"
        ) from error


async def warm_worker(task: Task[Any]) -> None:
    """Have a worker import what the call needs, so that its timeout is for the function alone.

    Raises:
        TimeoutError: it took longer than `WARM_SECONDS`.
    """
    try:
        with anyio.fail_after(WARM_SECONDS):
            await _in_worker(_unpack, task.payload)
    except TimeoutError:
        raise TimeoutError(f"no worker process was ready after {WARM_SECONDS:g} s") from None


async def run_in_worker(task: Task[Any], timers: Timers) -> tuple[Any, BaseException | None]:
    """Run the task's function in a worker, and give what it returned and what it raised.

    Raises:
        Exception: it did neither: its worker died, or what it returned cannot be brought back.
    """
    progress = ProgressReader()
    facts = TaskFacts(
        id=task.id,
        name=task.name,
        attempt=task.attempt,
        remaining=task.remaining(),
        progress_path=progress.path,
        trace=carrier_of(_context(task)),
    )
    task.progress_elsewhere = progress.read
    # A timer that only costs, where nobody hears it.
    publisher = ProgressPublisher(task, timers) if task.runner.progressed(task) else None
    try:
        returned, failure, output = await _in_worker(
            _work, task.payload, facts, _picklable(_log_context(task))
        )
    finally:  # also when the worker was killed
        task.keep_progress(progress.close())
        if publisher is not None:
            publisher.stop()
    if output:
        sys.stderr.write(output)
    if failure is not None:
        error, text = failure
        error.__cause__ = RemoteTraceback(text)
        return None, error
    return pickle.loads(returned), None  # noqa: S301 - from our own worker


async def _in_worker(function: Callable[..., Any], *args: Any) -> Any:
    return await anyio.to_process.run_sync(
        function, *args, cancellable=True, limiter=anyio.CapacityLimiter(1)
    )


def _context(task: Task[Any]) -> Context:
    assert task.context is not None, "a task that has ended runs again"
    return task.context


def _log_context(task: Task[Any]) -> dict[str, Any]:
    fields: dict[str, Any] = _context(task).run(structlog.contextvars.get_contextvars)
    return fields


def _picklable(fields: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for name, value in fields.items():
        with contextlib.suppress(Exception):
            pickle.dumps(value)
            kept[name] = value
    return kept


# What follows runs in the worker process. The event loop kills its workers as it ends, before they
# can report what of it they ran: hence the pragmas. tests/test_executors.py sees what it does.


def _unpack(payload: bytes) -> None:  # pragma: no cover - in a worker
    with _streams():
        pickle.loads(payload)  # noqa: S301 - from our own parent


@contextlib.contextmanager
def _streams() -> Generator[BinaryIO, None, None]:
    """Standard streams for the function, and for the processes that it starts.

    Those of the worker are anyio's pipes: one byte of output would break them, and nobody reads
    what is written to the third, until it is full and blocks.
    """
    with tempfile.TemporaryFile(buffering=0) as output, Path(os.devnull).open("rb") as nothing:
        of_worker = [os.dup(number) for number in range(3)]
        for number, stream in enumerate((nothing, output, output)):
            os.dup2(stream.fileno(), number)
        text = io.TextIOWrapper(output, encoding="utf-8", errors="replace", write_through=True)
        try:
            with contextlib.redirect_stdout(text), contextlib.redirect_stderr(text):
                yield output
        finally:
            text.detach()
            for number, kept in enumerate(of_worker):
                os.dup2(kept, number)
                os.close(kept)


def _last_of(output: BinaryIO) -> str:
    output.seek(max(0, output.seek(0, os.SEEK_END) - MOST_OUTPUT))
    return output.read().decode(errors="replace")


def _ignore(_number: int, _frame: object) -> None:
    """A handler, not SIG_IGN: that would be inherited by the processes that the function starts."""


def _work(  # pragma: no cover - in a worker
    payload: bytes, facts: TaskFacts, log_context: dict[str, Any]
) -> tuple[bytes, tuple[BaseException, str] | None, str]:
    """Call the function; its result and its error come back as values, its output as text."""
    for number in signal.SIGINT, signal.SIGTERM:  # sent to the whole group: the server drains
        signal.signal(number, _ignore)
    task = WorkerTask(facts)
    current.set(task)
    returned, failure = b"", None
    logged = structlog.contextvars.bound_contextvars(**log_context)
    with _streams() as output, logged, carried(facts.trace):
        try:
            func, args, kwargs = pickle.loads(payload)  # noqa: S301 - from our own parent
            returned = pickle.dumps(func(*args, **kwargs), pickle.HIGHEST_PROTOCOL)
        except BaseException as caught:
            failure = _portable(caught), "".join(traceback.format_exception(caught))
        finally:
            task.end()
        return returned, failure, _last_of(output)


def _portable(error: BaseException) -> BaseException:  # pragma: no cover - in a worker
    """An error that survives the way home."""
    try:
        pickle.loads(pickle.dumps(error))  # noqa: S301 - made in the same line
    except Exception:
        return RuntimeError(f"{type(error).__qualname__}: {error}")
    return error
