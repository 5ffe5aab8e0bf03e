"""The small world of `test_model.py`: a clock that the test owns, functions that it steers, laws.

Everything happens on a loop in another thread, which goes on only as far as it can without time.
"""

import asyncio
import gc
import heapq
import itertools
import math
import threading
import weakref
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextvars import Context
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import anyio
from anyio.abc import TaskGroup, TaskStatus
from anyio.lowlevel import checkpoint
from fastapi import BackgroundTasks as StockBackgroundTasks
from fastapi import WebSocket
from starlette.requests import Request

from fastapi_bgx import (
    BackgroundTasks,
    BacklogFull,
    Bgx,
    Draining,
    Limit,
    Retry,
    Settings,
    Status,
    current_task,
)
from fastapi_bgx.attempt import Watch
from fastapi_bgx.backends import Backend
from fastapi_bgx.backlog import Followers, Waiting
from fastapi_bgx.events import (
    Event,
    Publisher,
    TaskEnded,
    TaskEvent,
    TaskOverran,
    TaskRetrying,
    TaskStarted,
)
from fastapi_bgx.pauses import Pause
from fastapi_bgx.reports import DrainReport
from fastapi_bgx.task import Task
from fastapi_bgx.threads import Threads, nothing
from tests.supervision import PATIENCE

BY_PRIORITY = True
"""True once limiters look at priorities; False: first come, first served, whatever they are."""
LONG = 1_000.0


class Alarm:
    """A callback that is due later."""

    def __init__(self, due: float, number: int, callback: Callable[[], Any]) -> None:
        self.due = due
        self.number = number
        self.callback: Callable[[], Any] | None = callback

    def cancel(self) -> None:
        self.callback = None

    def __lt__(self, other: "Alarm") -> bool:
        return (self.due, self.number) < (other.due, other.number)


class Clock:
    """Stands still until it is set. All times are multiples of a quarter: no rounding."""

    def __init__(self) -> None:
        self.time = 1024.0
        self._alarms: list[Alarm] = []
        self._number = itertools.count()

    @property
    def now(self) -> Callable[[], float]:
        return lambda: self.time

    def wall(self) -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.time)

    def call_later(self, backend: Backend | None, delay: float, callback: Callable[[], Any]) -> Any:
        alarm = Alarm(self.time + delay, next(self._number), callback)
        heapq.heappush(self._alarms, alarm)
        return alarm

    def due(self, until: float) -> Iterator[Callable[[], Any]]:
        """What is due until then, in order; the clock shows the time of each."""
        while self._alarms and self._alarms[0].due <= until:
            alarm = heapq.heappop(self._alarms)
            if alarm.callback is not None:
                self.time = max(self.time, alarm.due)
                yield alarm.callback
        self.time = until

    @property
    def nothing_due(self) -> bool:
        return not self._alarms or self._alarms[0].due > self.time

    def left(self) -> int:
        return sum(alarm.callback is not None for alarm in self._alarms)

    async def sleep(self, seconds: float) -> None:
        rung = anyio.Event()
        alarm = self.call_later(None, seconds, rung.set)
        try:
            await rung.wait()
        finally:
            alarm.cancel()


POOL = Threads()


class StagedThreads(Threads):
    """Real threads, one at a time, and only while the loop waits for it: so each run is the same.

    A thread runs until its call ends, or until it comes to a gate that the test opens.
    """

    def __init__(self) -> None:
        super().__init__()
        self._changed = threading.Condition()
        self._running = 0
        self._blocked: Counter[threading.Event] = Counter()
        self._submitted = 0
        self._admitted = 0

    def submit(self, call: Callable[[], None], report: Callable[[], None] = nothing) -> None:
        self._submitted = ticket = self._submitted + 1

        def take_turn() -> None:
            with self._changed:
                self._changed.wait_for(lambda: self._admitted >= ticket)
            call()

        def tell() -> None:
            report()
            self._stop()

        POOL.submit(take_turn, tell)

    def step(self) -> bool:
        """Have the next thread run as far as it can; false when there is none."""
        if self._admitted == self._submitted:
            return False
        with self._changed:
            self._admitted += 1
            self._let_run(1)
        return True

    def wait(self, gate: threading.Event) -> None:
        """Wait in a thread, until somebody opens the gate."""
        with self._changed:
            if gate.is_set():
                return
            self._blocked[gate] += 1
        self._stop()
        gate.wait()

    def open(self, gate: threading.Event) -> None:
        with self._changed:
            gate.set()
            self._let_run(self._blocked.pop(gate, 0))

    def _let_run(self, threads: int) -> None:
        self._running += threads
        self._changed.notify_all()
        assert self._changed.wait_for(lambda: not self._running, PATIENCE)

    def _stop(self) -> None:
        with self._changed:
            self._running -= 1
            self._changed.notify_all()


@dataclass(frozen=True)
class Spec:
    """A task to be added: what each attempt does, where, and its options."""

    acts: tuple[str, ...]
    thread: bool = False
    options: dict[str, Any] = field(default_factory=dict)
    key: str = ""

    def __repr__(self) -> str:
        given = {name: value for name, value in self.options.items() if value is not None}
        return f"Spec({self.acts}, {self.thread}, {given}, {self.key!r})"

    def act(self, attempt: int) -> str:
        return self.acts[min(attempt, len(self.acts)) - 1]


@dataclass
class Call:
    """One call, as its function sees it."""

    began: float
    ended: float | None = None
    how: str = ""


@dataclass(eq=False)
class Case:
    """One task, and what is known of it."""

    spec: Spec
    requests: "list[Visit]"
    gate: anyio.Event
    gate_of_thread: threading.Event
    held_limits: tuple[str, ...] = ()
    late: bool = False
    """It was added when its request was over, by a task that outlives it."""
    calls: list[Call] = field(default_factory=list)
    asked: bool = False
    stopped: bool = False
    """It was cancelled while it waited: it must not be called any more."""
    seen_waiting: tuple[int, int] | None = None
    """For which attempt it waits for slots, and since which moment."""
    held: int = 0
    events: list[TaskEvent] = field(init=False)
    task: Task[Any] = field(init=False)

    @property
    def plain(self) -> bool:
        """One after the other, in the coroutine of its request."""
        return not self.task.plan.special and not self.late

    def __repr__(self) -> str:
        return f"{self.task} of {self.spec}, called {self.calls}, told {self.told}"

    @property
    def told(self) -> list[str]:
        return [event.name for event in self.events]


@dataclass(eq=False)
class Visit:
    """One request."""

    tasks: BackgroundTasks | None
    cases: list[Case] = field(default_factory=list)
    called: bool = False
    over: bool = False
    cancelled: bool = False
    dropped: bool = False
    scope: anyio.CancelScope | None = None


class Broken(Exception):
    """What the functions fail with."""


class World:
    """A `Bgx` whose time and functions belong to the test."""

    def __init__(self, **settings: Any) -> None:
        self.clock = Clock()
        self.threads = StagedThreads()
        self.slots: dict[str, float] = {
            "a": 1,
            "b": 2,
            "k:x": 1,
            "k:y": 1,
            "threads": settings["max_threads"],
            "concurrency": settings["max_concurrency"] or math.inf,
        }
        self.keyed = Limit("k", 1, key=lambda key, **_: key)
        self.bgx = Bgx(
            Settings(limits={"a": 1, "b": 2}, slow_after=None, **settings),
        )
        self.bgx.runners.clock = self.clock
        self.bgx.runners.threads = self.threads
        self.bgx.runners.publisher = Publisher([self])
        self.visits: list[Visit] = []
        self.cases: dict[Task[Any], Case] = {}
        self.events: dict[Task[Any], list[TaskEvent]] = {}
        self.rejected = 0
        self.broken: list[str] = []
        self.inside: Counter[str] = Counter()
        self.moments = itertools.count()
        self.draining = False
        self.report: DrainReport | None = None
        self.group: TaskGroup
        self._lock = threading.Lock()

    async def live(self, *, task_status: TaskStatus[None]) -> None:
        """Serve requests, until `give_up`."""
        self.bgx.start()
        self.runner = self.bgx.runners.current()
        async with anyio.create_task_group() as self.group:
            task_status.started()
            await anyio.sleep_forever()

    # As a listener.

    def hears(self, event: type[Event]) -> bool:
        return issubclass(event, TaskEvent)

    def changed(self) -> bool:
        return False

    def __call__(self, event: Event) -> None:
        assert isinstance(event, TaskEvent)
        self.events.setdefault(event.task, []).append(event)
        case = self.cases.get(event.task)  # none yet, if it starts while it is added
        if isinstance(event, TaskStarted) and case is not None:
            self._check_start(case)

    # What the test does.

    async def visit(self, *, websocket: bool = False) -> Visit:
        if websocket:
            scope: Any = {"type": "websocket"}
            connection: Any = WebSocket(scope, _never, _never)
        else:
            connection = Request({"type": "http"})
        visit = Visit(await self.bgx(StockBackgroundTasks(), connection))
        self.visits.append(visit)
        return visit

    async def case(self, visit: Visit, spec: Spec) -> Case:
        return Case(spec, [visit], anyio.Event(), threading.Event())

    def elsewhere(self, function: Callable[..., None], *args: Any) -> None:
        """Call a function in another thread, which the loop does not overtake."""
        thread = threading.Thread(target=function, args=args)
        thread.start()
        thread.join()

    def add(self, visit: Visit, case: Case) -> None:
        """Add a task; from any thread."""
        assert visit.tasks is not None
        spec, options = case.spec, dict(case.spec.options)
        limit = options.get("limit")
        names = ("threads", "concurrency") if spec.thread else ("concurrency",)
        if limit == "k":
            options["limit"], limit = self.keyed, f"k:{spec.key}"
        case.held_limits = (*((limit,) if limit else ()), *names)
        function = self._in_thread(case) if spec.thread else self._on_loop(case, visit)
        try:
            task = visit.tasks.using(name="work", **options).add_task(function, key=spec.key)
        except (BacklogFull, Draining):
            self.rejected += 1
            return
        known = self.cases.get(task)
        if known is None:
            case.task, case.late = task, visit.over
            case.events = self.events.setdefault(task, [])
            self.cases[task] = case
        else:
            case = known
            case.requests.append(visit)
            if task.done:
                self.broken.append(f"{task} has ended, and was joined")
        visit.cases.append(case)

    async def respond(self, visit: Visit) -> None:
        visit.called = True
        self.group.start_soon(self._end_of_request, visit)

    async def drop(self, visit: Visit) -> None:
        assert visit.tasks is not None
        visit.called = visit.over = visit.dropped = True
        visit.tasks.drop("the route failed")

    async def forget(self, visit: Visit) -> None:
        visit.called = visit.over = visit.dropped = True
        visit.tasks = None
        gc.collect()

    async def cancel_request(self, visit: Visit) -> None:
        assert visit.scope is not None
        visit.cancelled = True
        visit.scope.cancel()

    def cancel(self, case: Case) -> None:
        """Ask a task to stop; from any thread."""
        waited = case.task.status in (Status.QUEUED, Status.RETRYING)
        ended = case.task.done
        asked = case.task.cancel()
        if asked == ended:
            self.broken.append(f"cancel() of {case.task} said {asked}")
        case.asked = case.asked or asked
        if asked and waited:
            case.stopped = True

    def open(self, case: Case) -> None:
        self.threads.open(case.gate_of_thread)
        case.gate.set()

    async def advance(self, seconds: float) -> None:
        for callback in self.clock.due(self.clock.time + seconds):
            Context().run(callback)
            await self.settle()
            if self.clock.nothing_due:
                self.check()

    async def drain(self, grace: float) -> None:
        self.draining = True
        self.group.start_soon(self._drain, grace)

    async def _drain(self, grace: float) -> None:
        self.report = await self.bgx.drain(grace)

    async def _end_of_request(self, visit: Visit) -> None:
        assert visit.tasks is not None
        with anyio.CancelScope() as visit.scope:
            await visit.tasks()
        visit.over = True

    async def settle(self) -> None:
        """Let happen what can happen without time."""
        await _idle()
        while self.threads.step():
            await _idle()
        # In the order in which they came to the queues: that of a dictionary.
        for task, place in list(self.runner.live.items()):
            case = self.cases.get(task)
            if case is not None and isinstance(place, Waiting):
                case.held = place._held
                if case.seen_waiting is None or case.seen_waiting[0] != task.attempt:
                    case.seen_waiting = task.attempt, next(self.moments)

    # The functions.

    def _on_loop(self, case: Case, visit: Visit) -> Callable[..., Awaitable[Any]]:
        seen = weakref.ref(visit)

        async def work(key: str) -> None:
            call = self._enter(case)
            try:
                await self._act(case, seen())
                call.how = "returned"
            except BaseException as error:
                call.how = type(error).__name__
                raise
            finally:
                self._leave(case, call)

        return work

    async def _act(self, case: Case, visit: Visit | None) -> None:
        task = current_task()
        assert task is not None
        act = case.spec.act(task.attempt)
        acts: dict[str, Callable[[], Awaitable[Any]]] = {
            "wait": case.gate.wait,
            "yield": checkpoint,
            "sleep": lambda: self.clock.sleep(1),
            "swallow": lambda: self._when_cancelled(case, 0.5, swallow=True),
            "clean up": lambda: self._when_cancelled(case, 3, swallow=False),
            "add": lambda: self._add_another(visit),
            "cancel itself": lambda: self._cancel_itself(case),
        }
        if act in acts:
            await acts[act]()
        else:
            _fail(act)

    async def _when_cancelled(self, case: Case, seconds: float, *, swallow: bool) -> None:
        try:
            await case.gate.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True):
                await self.clock.sleep(seconds)
            if not swallow:
                raise

    async def _add_another(self, visit: Visit | None) -> None:
        assert visit is not None
        await checkpoint()
        self.add(visit, await self.case(visit, Spec(("yield",))))

    async def _cancel_itself(self, case: Case) -> None:
        self.cancel(case)
        await checkpoint()
        await case.gate.wait()

    def _in_thread(self, case: Case) -> Callable[..., Any]:
        def work(key: str) -> Any:
            call = self._enter(case)
            try:
                task = current_task()
                assert task is not None
                act = case.spec.act(task.attempt)
                if act in ("wait", "sleep", "swallow", "clean up"):
                    self.threads.wait(case.gate_of_thread)
                else:
                    _fail(act)
                call.how = "returned"
            except BaseException as error:
                call.how = type(error).__name__
                raise
            finally:
                self._leave(case, call)

        return work

    def _enter(self, case: Case) -> Call:
        call = Call(self.clock.time)
        with self._lock:
            if case.stopped:
                self.broken.append(f"{case.task} is called though it was cancelled")
            if any(call.ended is None for call in case.calls):
                self.broken.append(f"two attempts of {case.task} run at once")
            case.calls.append(call)
            for name in case.held_limits:
                self.inside[name] += 1
                if self.inside[name] > self.slots[name]:
                    self.broken.append(f"{self.inside[name]} run on {name!r}")
        return call

    def _leave(self, case: Case, call: Call) -> None:
        call.ended = self.clock.time
        with self._lock:
            for name in case.held_limits:
                self.inside[name] -= 1

    # The laws.

    def _check_start(self, case: Case) -> None:
        """Nobody is overtaken."""
        for task, place in self.runner.live.items():
            other = self.cases.get(task)
            if (
                other is not None
                and isinstance(place, Waiting)
                and place.waits
                and other.held_limits == case.held_limits
                and self._overtaken(other, case)
            ):
                self.broken.append(f"{case.task} starts before {task}")
        for visit in case.requests:
            for before in visit.cases[: visit.cases.index(case)] if case in visit.cases else ():
                if before.plain and case.plain and not before.task.done:
                    self.broken.append(f"{case.task} starts before its sibling {before.task}")

    def _overtaken(self, waiting: Case, starts: Case) -> bool:
        if waiting.seen_waiting is None or waiting.seen_waiting[0] != waiting.task.attempt:
            return False  # it came just now
        mine = starts.seen_waiting
        waited = mine is not None and mine[0] == starts.task.attempt - 1
        first = waiting.seen_waiting[1]
        if BY_PRIORITY:
            one, two = waiting.task.plan.priority, starts.task.plan.priority
            if one != two:
                return False
        return not waited or (mine is not None and mine[1] > first and waiting.held >= starts.held)

    def check(self) -> None:
        """What holds whenever nothing can happen without time."""
        assert not self.broken, self.broken
        unfinished = [case for case in self.cases.values() if not case.task.done]
        for case in self.cases.values():
            self._check_case(case)
        for case in unfinished:
            self._check_wait(case)
        for visit in self.visits:
            self._check_visit(visit)
        stats = self.bgx.stats()
        waiting = [case for case in unfinished if case.task.status is not Status.RUNNING]
        assert stats.waiting == len(waiting), (stats, waiting)
        assert stats.totals[Status.REJECTED] == self.rejected
        ended = Counter(case.task.status for case in self.cases.values() if case.task.done)
        for status, count in stats.totals.items():
            assert status is Status.REJECTED or count == ended[status], (status, count, ended)
        assert stats.running == self.inside["concurrency"], (stats, self.inside)
        assert stats.limiters["threads"].taken >= self.inside["threads"]
        for key, count in Counter(case.task.unique for case in unfinished).items():
            assert key is None or count == 1, f"{count} tasks of {key}"

    def _check_wait(self, case: Case) -> None:
        """Whoever waits has a reason."""
        task, place = case.task, self.runner.live.get(case.task)
        if task.status is Status.RUNNING:
            assert isinstance(place, Watch), (task, place)
        elif isinstance(place, Pause):
            assert place.due > self.clock.time or task in self.runner.overrunning, task
        elif isinstance(place, Waiting):
            limiter = place._limiters[place._held]
            assert place.waits, f"{task} got its slots and does not go on"
            assert limiter.taken >= limiter.slots, f"{task} waits, and {limiter.name} is free"
        elif isinstance(place, Followers):
            before = [each for each in self.cases if each.followed_by is task and not each.done]
            assert len(before) == 1, f"{task} stands behind {before}"
        else:
            assert place is None, (task, place)
            assert not task.claimed, f"{task} is lost"
            assert not all(visit.over for visit in case.requests), f"nobody calls {task}"

    def _check_case(self, case: Case) -> None:
        task, spec = case.task, case.spec
        endings = [event for event in case.events if isinstance(event, TaskEnded)]
        assert len(endings) == task.done, (task, case.events)
        assert len(case.calls) == task.attempt, (task, case.calls)
        assert all(call.ended is not None for call in case.calls[:-1])
        retry: Retry | None = spec.options.get("retry")
        assert task.attempt <= (1 if retry is None else retry.attempts)
        retries = [event for event in case.events if isinstance(event, TaskRetrying)]
        for event, last, following in zip(retries, case.calls, case.calls[1:], strict=False):
            assert last.ended is not None
            assert following.began >= last.ended
            assert event.delay_s >= 0
            assert isinstance(event.error, Exception), event
        if case.calls:
            waited = case.calls[0].began - task.added_at
            assert waited >= (spec.options.get("delay") or 0), task
            assert waited < (spec.options.get("expires") or math.inf), task
        if task.done:
            assert case.events[-1] is endings[0] or isinstance(case.events[-1], TaskOverran)
            self._check_outcome(case)

    def _check_outcome(self, case: Case) -> None:
        """The status says what happened."""
        task, options, status = case.task, case.spec.options, case.task.status
        outcome = task.outcome
        assert outcome is not None
        assert outcome.status is status
        assert outcome.attempts == len(case.calls)
        last = case.calls[-1].how if case.calls else None
        disturbed = case.asked or self.draining or any(v.cancelled for v in case.requests)
        if status is Status.SUCCEEDED:
            assert last == "returned", (task, last)
        elif status is Status.FAILED:
            assert last not in ("returned", None), (task, last)
            retry: Retry | None = options.get("retry")
            tried = 1 if retry is None else retry.attempts
            covered, bounded = last == "Broken", retry is not None and retry.total_timeout
            assert disturbed or not covered or len(case.calls) == tried or bounded
        elif status is Status.TIMED_OUT:
            assert task.ended_at is not None
            assert task.started_at is not None
            assert task.ended_at - task.started_at >= options["timeout"]
        elif status is Status.EXPIRED:
            assert not case.calls
            assert options.get("expires") or options.get("queue_timeout")
        elif status is Status.DROPPED:
            assert not case.calls
            assert all(visit.dropped or visit.cancelled for visit in case.requests), task
        else:
            assert status is Status.CANCELLED, status
            assert disturbed, f"{task}: by whom?"
        assert len(outcome.errors) <= len(case.calls)

    def _check_visit(self, visit: Visit) -> None:
        """A request ends with its inline tasks: neither before nor after them."""
        if visit.dropped or visit.cancelled or not visit.called:
            return
        inline = [c for c in visit.cases if not c.task.done and not self.runner.outlives(c.task)]
        own = [case for case in inline if case.requests == [visit]]  # not shared
        assert visit.over <= (not own), f"a request ended before {own}"
        assert visit.over >= (not inline), "a request waits for nothing"

    async def give_up(self) -> None:
        """End whatever can be ended."""
        for case in self.cases.values():
            self.open(case)
        self.group.cancel_scope.cancel()
        for _ in range(10):
            for callback in self.clock.due(self.clock.time + LONG):
                Context().run(callback)
                await self.settle()

    async def finish(self) -> None:
        """Bring everything to its end, and see that nothing is left."""
        for visit in self.visits:
            if not visit.called:
                await self.respond(visit)
        await self.settle()
        self.check()
        await self.drain(2)
        await self.settle()
        await self.advance(LONG)
        for case in self.cases.values():
            self.open(case)
        await self.settle()
        await self.advance(LONG)
        self.check()
        self.check_end()

    def check_end(self) -> None:
        runner = self.runner
        assert self.report is not None
        left = [case.task for case in self.cases.values() if not case.task.done]
        assert not left
        assert not runner.live
        assert not runner.overrunning
        assert not runner.entrance.waiting
        assert not runner.entrance.uniques._tasks
        for name, limiter in self.bgx.stats().limiters.items():
            assert (limiter.taken, limiter.waiting) == (0, 0), name
        assert not self.clock.left(), "timers are left"
        assert all(reference() is not None for reference in runner.entrance.lists.values())
        told = Counter((*self.report.finished, *self.report.cancelled))
        assert all(count == 1 for count in told.values())
        for case in self.cases.values():
            assert case.task.at_end is None, case.task
            assert case.task.context is None, case.task
            assert case.task.followed_by is None


def _fail(act: str) -> None:
    if act == "fail":
        raise Broken
    if act == "leak":
        raise asyncio.CancelledError
    if act == "exit":
        raise SystemExit(3)
    if act == "group":
        raise BaseExceptionGroup("some", [Broken(), SystemExit(3)])


async def _never(*_: object) -> Any:
    raise AssertionError


async def _idle() -> None:
    """Return when nothing else on the loop could go on."""
    try:
        loop: Any = asyncio.get_running_loop()
    except RuntimeError:
        await anyio.wait_all_tasks_blocked()
    else:
        calm = 0
        while calm < 3:
            await asyncio.sleep(0)
            calm = 0 if any(map(_matters, loop._ready)) else calm + 1


def _matters(handle: Any) -> bool:
    """False for what anyio does all the time, while somebody in a cancelled scope goes on."""
    return getattr(handle._callback, "__name__", "") != "_deliver_cancellation"
