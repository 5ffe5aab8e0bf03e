"""The watchdog: finds out which task blocks the event loop, and where it is, while it does so.

A thread asks the event loop to answer. When no answer comes it looks, from outside, at what runs on
the loop's thread, and goes on looking until there is one. (A loop that sleeps is not asked.) A task
is named when it was seen all the time, for as long as `Settings.loop_block_after`. It is better to
miss a short block than to blame a task for what another one did: nothing here may turn this round.
"""

import gc
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator
from contextlib import contextmanager
from contextvars import Context
from typing import Any, NamedTuple, Protocol

from fastapi_bgx.attempt import CALLERS
from fastapi_bgx.backends import Backend, Observer
from fastapi_bgx.events import Event, TaskBlockedLoop
from fastapi_bgx.executors import call_async, on_loop, watched
from fastapi_bgx.listeners.hooks import FailureHooks
from fastapi_bgx.notices import notice
from fastapi_bgx.task import Task, current

LOOKS = 5  # in the time after which a task is named
LEAST_PAUSE_SECONDS = 0.005  # Python switches threads no faster
LEAST_WAIT_SECONDS = 0.001
ANSWER_SHARE = 0.25  # of the pause: the loop may take so long to answer
MOST_SPARED = 20  # questions in a row: they also tell whether there is a loop
LAST_WORD_SECONDS = 1.0
MOST_FRAMES = 50

OWNERS = {id(each.__code__) for each in (call_async, on_loop, watched, FailureHooks.run)}
"""The functions under which code of a task runs. Each has it in its variable `task`."""
OURS = CALLERS | {FailureHooks.run.__module__}
"""The modules between those functions and the code of the task."""


class Watched(Protocol):
    """What the watchdog needs from the runner whose tasks it watches."""

    backend: Backend

    def publish(self, event: Event) -> None:
        """Hand an event to the listeners; never raises."""
        ...


Place = tuple[str, int, str]
"""A file, a line and a function."""


class Sight(NamedTuple):
    """A task that was seen to run, and where it was, innermost first."""

    task: Task[Any]
    places: list[Place]

    def stack(self) -> str:
        """The places as a traceback shows them; empty when none of it is written in Python."""
        shown = [(*place, None) for place in reversed(self.places[:MOST_FRAMES])]
        return "".join(traceback.format_list(shown))


class Lap(NamedTuple):
    """What passed while the watchdog waited, and how long it had meant to wait; in seconds."""

    meant: float
    elapsed: float
    worked: float
    """Processor time of the loop's thread."""

    @property
    def late(self) -> float:
        """By how much the watchdog itself woke too late; 0 for the delays of every day."""
        late = self.elapsed - self.meant
        return late if late > self.meant + LEAST_PAUSE_SECONDS else 0.0

    @property
    def seen(self) -> float:
        """For how long the loop's thread was under watch.

        Who wakes late was stopped, with the whole process or machine, or did not get the
        interpreter. Then only what the loop's thread worked is its own.
        """
        return max(self.meant, min(self.worked, self.elapsed)) if self.late else self.elapsed

    @property
    def held(self) -> float:
        """For how long, at least, the loop's thread worked while the watchdog could not wake.

        So it kept the interpreter to itself: a long call of a function that is written in C.
        """
        return max(0.0, self.worked - self.meant) if self.late else 0.0


class Stopwatch:
    """Measures laps; made on the loop's thread."""

    def __init__(self) -> None:
        self._work = _work_clock()
        self._now, self._worked = time.monotonic(), self._work()

    def lap(self, meant: float) -> Lap:
        """What passed since the last one, or since the beginning."""
        now, worked = time.monotonic(), self._work()
        lap = Lap(meant, now - self._now, worked - self._worked)
        self._now, self._worked = now, worked
        return lap


class Suspect:
    """A task that was seen while the loop did not answer."""

    def __init__(self, task: Task[Any], seconds: float = 0.0) -> None:
        self.task = task
        self.seconds: float = seconds
        """For how long."""
        self.stack: str | None = None
        """Where it was when it was named; `None` before."""
        self.context: Context | None = None
        """Its context, which it lets go as it ends, perhaps before that is told."""


class Watchdog:
    """Watches one event loop for one runner, from `start` to `stop`."""

    def __init__(self, place: Watched, seconds: float) -> None:
        self._place = place
        self._seconds = seconds
        self._pause = max(seconds / LOOKS, LEAST_PAUSE_SECONDS)
        self._stopped = threading.Event()
        self._answered = threading.Event()
        self._loop_thread = 0
        self._thread: threading.Thread | None = None
        self._observer: Observer | None = None
        self._stopwatch: Stopwatch

    def start(self) -> None:
        """Begin to watch the event loop that runs in this thread."""
        if not _gil_enabled():
            _tell_of_none("Python runs without its GIL")
            return
        self._loop_thread = threading.get_ident()
        self._stopwatch = Stopwatch()
        thread = threading.Thread(target=self._run, name="bgx-watchdog", daemon=True)
        self._observer = self._place.backend.observer()
        try:
            thread.start()
        except RuntimeError as error:  # the system has no more threads
            _tell_of_none(str(error))
        else:
            self._thread = thread

    def stop(self) -> None:
        """Watch no more; on the thread of the loop, which so has come back."""
        self._stopped.set()
        self._answered.set()
        if self._thread is not None:
            self._thread.join(LAST_WORD_SECONDS)  # it may have the end of a block to tell
        if self._observer is not None:
            self._observer.end()

    # All that follows is on the thread of the watchdog.

    def _run(self) -> None:
        try:
            self._watch()
        except Exception:
            notice("exception", "bgx.watchdog_failed", effect="it watches the event loop no more")

    def _watch(self) -> None:
        spared = 0
        while not self._stopped.wait(self._pause):
            lap = self._stopwatch.lap(self._pause)
            if lap.worked == 0 and spared < MOST_SPARED and self._look() is None:
                spared += 1  # it sleeps, and not in a task: to ask would wake it, which costs most
                continue
            spared = 0
            if not self._question(lap.held):
                return

    def _question(self, held: float) -> bool:
        """Ask the loop, and find out why if it does not answer; false when it never will."""
        suspect, grace = self._caught(held), self._pause * ANSWER_SHARE
        asked = self._ask()
        answered = not asked or self._answered.wait(grace)
        suspect = suspect or self._caught(self._stopwatch.lap(grace).held)
        self._investigate(suspect, answered)
        return asked

    def _ask(self) -> bool:
        """Have the loop answer; false when it never will."""
        self._answered.clear()
        try:
            self._place.backend.call_soon_threadsafe(self._answered.set)
        except RuntimeError:  # it has ended
            return False
        return not self._stopped.is_set()  # or the answer of `stop` may just have been cleared

    def _caught(self, held: float) -> Suspect | None:
        """The task that kept the interpreter, and so the watchdog, for long, and has it still."""
        sight = self._look() if held >= self._seconds else None
        if sight is None:
            return None
        suspect = Suspect(sight.task, held)
        self._name(suspect, sight)
        return suspect

    def _investigate(self, suspect: Suspect | None, answered: bool) -> None:
        """The loop does not answer: look who keeps it from that, until it does."""
        seen = 0.0
        while not answered and not self._stopped.is_set():
            sight = self._look()
            if sight is None and self._place.backend.ended():
                break
            suspect = self._follow(suspect, sight, seen)
            seconds = self._next_look(suspect)
            answered = self._answered.wait(seconds)
            seen = self._stopwatch.lap(seconds).seen
        self._let_go(suspect, seen)

    def _follow(self, before: Suspect | None, sight: Sight | None, seen: float) -> Suspect | None:
        """Who is suspected now. A task is, as long as it is the one that every look sees.

        The loop takes what is ready in turn, the question of the watchdog included. So a task that
        is seen twice, without an answer in between, has not waited for anything meanwhile.
        """
        if before is None or sight is None or sight.task is not before.task:
            self._let_go(before, 0.0)
            return None if sight is None else Suspect(sight.task)
        before.seconds += seen
        if before.stack is None and before.seconds >= self._seconds:
            self._name(before, sight)
        return before

    def _next_look(self, suspect: Suspect | None) -> float:
        """Seconds until then: not later than when the suspect is to be named."""
        if suspect is None or suspect.stack is not None:
            return self._pause
        return min(self._pause, max(self._seconds - suspect.seconds, LEAST_WAIT_SECONDS))

    def _name(self, suspect: Suspect, sight: Sight) -> None:
        """Tell of a task that blocks."""
        suspect.stack, suspect.context = sight.stack(), suspect.task.context
        self._tell(suspect, suspect.seconds, suspect.stack, ended=False)

    def _let_go(self, suspect: Suspect | None, seen: float) -> None:
        """The suspect blocks no more."""
        if suspect is not None and suspect.stack is not None:
            self._tell(suspect, suspect.seconds + seen, suspect.stack, ended=True)

    def _tell(self, suspect: Suspect, seconds: float, stack: str, *, ended: bool) -> None:
        context = Context() if suspect.context is None else suspect.context.copy()
        event = TaskBlockedLoop(suspect.task, seconds, stack, ended)
        context.run(self._place.publish, event)

    def _look(self) -> Sight | None:
        """The task of this runner that runs on the loop's thread, if one does."""
        assert self._observer is not None
        with _without_collection():
            task, places = _walk(self._loop_thread, self._observer)
        owner: object = getattr(task, "runner", None)
        return Sight(task, places) if isinstance(task, Task) and owner is self._place else None


def _walk(thread: int, observer: Observer) -> tuple[object, list[Place]]:
    """Whose code runs in a thread, if it is a task's, and where that is, innermost first.

    Nothing but names is kept of a frame: who keeps one keeps its variables alive.
    """
    context, first = observer.running()
    places: list[Place] = []
    # The dictionary has the frame of this function, too: in a variable, it would be a cycle.
    frame = sys._current_frames().get(thread)  # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if id(frame.f_code) in OWNERS:
            return frame.f_locals.get("task"), places
        if frame.f_globals.get("__name__") not in OURS:
            places.append((frame.f_code.co_filename, frame.f_lineno or 0, frame.f_code.co_name))
        if frame is first:  # what a task has spawned has a copy of its context
            return None if context is None else context.get(current, None), places
        frame = frame.f_back
    return None, places


@contextmanager
def _without_collection() -> Generator[None]:
    """No garbage is collected meanwhile.

    On Python 3.11 that may happen in the middle of reading a frame, let others run, and then crash
    the process or bring it to a deadlock (CPython issue 106883, sentry-python issue 6119).
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


def _tell_of_none(reason: str) -> None:
    effect = "nobody is told of tasks that block the event loop"
    notice("warning", "bgx.no_watchdog", reason=reason, effect=effect)


def _gil_enabled() -> bool:
    """False for a free-threaded Python, where looking at the frames of others may crash it."""
    enabled: Callable[[], bool] | None = getattr(sys, "_is_gil_enabled", None)
    return enabled is None or enabled()


def _work_clock() -> Callable[[], float]:
    """A clock of the processor time of this thread, to be read from others."""
    if sys.platform != "linux":  # pragma: no cover
        return lambda: math.nan  # neither more than anything, nor 0
    clock = time.pthread_getcpuclockid(threading.get_ident())
    return lambda: time.clock_gettime(clock)
