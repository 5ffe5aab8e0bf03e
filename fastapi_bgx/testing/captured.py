"""Captured tasks: what was added and not run. Asked, asserted on, and run when a test says so.

A captured task has a `Holding` for its runner: whoever calls the task (the list of its request)
only marks it as called. `release` gives it back to its real runner, or to that of another loop.
"""

import threading
from collections.abc import Awaitable, Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, Unpack, overload

import anyio

from fastapi_bgx.backends import Backend, current_token
from fastapi_bgx.events import Event, TaskQueued
from fastapi_bgx.options import Options, Particulars, TaskOptions, parse_options
from fastapi_bgx.outcome import Outcome
from fastapi_bgx.runner import Runner
from fastapi_bgx.runners import Runners
from fastapi_bgx.task import Supervisor, Task
from fastapi_bgx.testing.calls import Wanted, told, wanted
from fastapi_bgx.testing.clock import Clock, runs
from fastapi_bgx.testing.failures import errors_of, raise_all, shown
from fastapi_bgx.testing.reach import listening
from fastapi_bgx.timers import Clock as AnyClock

T = TypeVar("T")
UNRUN = "captured by a test, and never run"
LOOK_SECONDS = 0.05


class Holding:
    """Stands in for the runner of a captured task: nothing runs."""

    def __init__(self, house: Supervisor, runners: Runners) -> None:
        self.house = house
        self.runners = runners
        self.prefix: str = house.prefix
        self.clock: Callable[[], float] = runners.clock.now

    def start(self, task: Task[Any]) -> None:
        """Mark the task as called: its request may end."""
        task.claimed = True

    def start_now(self, task: Task[Any]) -> bool:
        """The same, for one that does not wait for its request."""
        task.claimed = True
        return True

    def drop(self, task: Task[Any], reason: str) -> None:
        """End the task as if it were not captured."""
        self.house.drop(task, reason)

    def drop_from_any_thread(self, task: Task[Any], reason: str) -> None:
        """Nothing: its list was forgotten uncalled, as by a test that calls a route by hand."""

    def outlives(self, task: Task[Any]) -> bool:  # noqa: ARG002 - as the protocol has it
        """True: nobody waits for what does not run."""
        return True

    def cancel(self, task: Task[Any], reason: str) -> None:
        """Nothing of it runs."""

    def stop(self, task: Task[Any]) -> bool:
        """Cancel the task as if it were not captured; from any thread."""
        return self.house.stop(task)

    def raise_if_told(self, task: Task[Any]) -> None:
        """Nothing of it failed."""

    def progressed(self, task: Task[Any]) -> bool:  # noqa: ARG002 - as the protocol has it
        """False: nothing of it runs."""
        return False

    def hears_lines(self) -> bool:
        """False: nothing of it runs."""
        return False

    def logged(self, task: Task[Any], level: str, text: str) -> None:
        """Nothing of it runs."""

    def overruns(self, task: Task[Any]) -> bool:  # noqa: ARG002 - as the protocol has it
        """False: nothing of it runs."""
        return False

    def __getattr__(self, name: str) -> Any:
        """Whatever else a task may ask of its runner."""
        return getattr(self.house, name)

    @property
    def backend(self) -> Backend | None:
        """The event loop of the task, if that still runs."""
        backend = self.house.backend if isinstance(self.house, Runner) else None
        return backend if backend is not None and runs(backend) else None


class _Catcher:
    """The listener that captures what one `Bgx` accepts."""

    def __init__(self, captured: "Captured", runners: Runners) -> None:
        self._captured = captured
        self._runners = runners

    def hears(self, event: type[Event]) -> bool:
        return event is TaskQueued

    def changed(self) -> bool:
        return False

    def __call__(self, event: Event) -> None:
        assert isinstance(event, TaskQueued)
        task = event.task
        task.runner = Holding(task.runner, self._runners)
        # The attribute hides the method: who waits for the task would wait for ever.
        task.__dict__["wait"] = partial(_refuse_to_wait, task)
        self._captured.tasks.append(task)


class CapturedView:
    """What was captured, seen through the options that a test expects."""

    def __init__(
        self, captured: "Captured", options: TaskOptions | None = None, count: int | None = None
    ) -> None:
        self._captured = captured
        self._options = options or TaskOptions()
        self._count = count

    def using(self, **options: Unpack[Options]) -> "CapturedView":
        """The same, for tasks that are to run with these options, wherever they were set.

        Raises:
            UnknownOption: an option that does not exist.
            ValueError: a value that is out of range.
        """
        given: Any = self._options.given() | options
        return CapturedView(self._captured, parse_options("using", given), self._count)

    def times(self, count: int) -> "CapturedView":
        """The same, where `added` wants so many, neither more nor fewer."""
        return CapturedView(self._captured, self._options, count)

    @overload
    def added(self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any) -> Task[T]: ...
    @overload
    def added(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> Task[T]: ...
    def added(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Task[Any]:
        """Assert that this call was added; the first such task.

        Arguments are compared by name, however they were passed, with `==`; those that are not
        named here may be anything. So `added(send_email)` stands for every call of it.

        Raises:
            AssertionError: it was not, or not as often; the message shows what was added instead.
            TypeError: the function has no such argument.
        """
        __tracebackhide__ = True
        call = wanted(func, args, kwargs, self._options)
        found = self._captured.find(call)
        if not found or (self._count is not None and len(found) != self._count):
            raise AssertionError(self._captured.explain(call, len(found), self._count))
        return found[0]

    def not_added(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> None:
        """Assert that no such call was added.

        Raises:
            AssertionError: one was; the message shows it.
            TypeError: the function has no such argument.
        """
        __tracebackhide__ = True
        call = wanted(func, args, kwargs, self._options)
        found = self._captured.find(call)
        if found:
            lines = [f"{call} was added:", *(f"  {told(task)}" for task in found)]
            raise AssertionError("\n".join(lines))

    @overload
    def matching(
        self, func: Callable[..., Awaitable[T]], /, *args: Any, **kwargs: Any
    ) -> list[Task[T]]: ...
    @overload
    def matching(self, func: Callable[..., T], /, *args: Any, **kwargs: Any) -> list[Task[T]]: ...
    def matching(self, func: Callable[..., Any], /, *args: Any, **kwargs: Any) -> list[Task[Any]]:
        """The tasks that `added` would accept, in the order added; perhaps none."""
        return self._captured.find(wanted(func, args, kwargs, self._options))


class Captured(CapturedView):
    """The tasks that were added while it captures, in the order added. None of them has run.

    Those whose request failed are not among them: they would not run either.
    """

    def __init__(self) -> None:
        super().__init__(self)
        self.tasks: list[Task[Any]] = []
        """Everything that was captured, dropped or not."""

    def __iter__(self) -> Iterator[Task[Any]]:
        return iter(self._kept())

    def __len__(self) -> int:
        return len(self._kept())

    def __getitem__(self, index: int) -> Task[Any]:
        return self._kept()[index]

    def __repr__(self) -> str:
        """The calls, in the order added."""
        return f"<Captured {[told(task) for task in self]}>"

    def names(self) -> list[str]:
        """The names of the tasks, in the order added."""
        return [task.name for task in self]

    def in_order(self, *funcs: Callable[..., Any]) -> list[Task[Any]]:
        """Assert that calls of these functions were added in this order, others perhaps between.

        Raises:
            AssertionError: they were not; the message shows the order.
        """
        __tracebackhide__ = True
        left, found = self._kept(), list[Task[Any]]()
        for call in [wanted(func, (), {}, TaskOptions()) for func in funcs]:
            while left and call.differences(left[0]) is None:
                left.pop(0)
            if not left:
                after = f" after {told(found[-1])}" if found else ""
                raise AssertionError(f"no {call.shape.name} was added{after}.\n{self._list()}")
            found.append(left.pop(0))
        return found

    def clear(self) -> None:
        """Forget what was captured; it will not run."""
        forgotten, self.tasks = self.tasks, []
        for task in forgotten:
            holding = task.runner
            if isinstance(holding, Holding) and not task.done:
                _give_back(task, holding)
                with suppress(RuntimeError):  # its loop ends just now
                    holding.house.drop_from_any_thread(task, UNRUN)

    # Running.

    def run(self, *, raises: bool = True, backend: str = "asyncio") -> list[Outcome[Any]]:
        """Run what was captured, one after the other, and what these tasks add; then forget it.

        By the real runner: with timeouts, limits, retries, events and hooks. On the event loop of
        a `TestClient` that is still open; without one, on a new loop of `backend`.

        Returns:
            The outcomes, in the order run.

        Raises:
            Exception: what a task raised; of several, an `ExceptionGroup`. Not with `raises=False`.
            RuntimeError: an event loop runs in this thread: `await run_async()` instead.
        """
        __tracebackhide__ = True
        try:
            current_token()
        except RuntimeError:
            pass
        else:
            raise RuntimeError("an event loop runs here: await bgx_tasks.run_async() instead")
        there = next(filter(None, (_backend_of(task) for task in reversed(self.tasks))), None)
        go = partial(self.run_async, raises=False)
        outcomes = anyio.run(go, backend=backend) if there is None else _run_on(there, go)
        return _checked(outcomes, raises=raises)

    async def run_async(self, *, raises: bool = True) -> list[Outcome[Any]]:
        """The same, from an async test, on its event loop."""
        __tracebackhide__ = True
        outcomes = list[Outcome[Any]]()
        while self._kept():
            task = self._kept()[0]
            self.tasks.remove(task)
            shown.add(task)
            outcomes.append(await _run(task))
        return _checked(outcomes, raises=raises)

    # Explaining.

    def find(self, call: Wanted) -> list[Task[Any]]:
        """The tasks that match."""
        return [task for task in self if call.differences(task) == []]

    def explain(self, call: Wanted, found: int, count: int | None) -> str:
        """Why `added` fails."""
        times = "" if count is None else f" {_times(count)}, but {_times(found) if found else ''}"
        head = f"{call} was not added{times}".removesuffix(", but ")
        dropped = [task for task in self.tasks if task not in self._kept()]
        lost = [f"  {told(task)}" for task in dropped if call.differences(task) == []]
        if lost:
            lost = ["", "Added, but dropped, because its request failed:", *lost]
        return "\n".join([f"{head}.", *lost, "", self._list(call)])

    def _list(self, call: Wanted | None = None) -> str:
        """What was added: with `call`, the most alike first, and what is different."""
        if not self._kept():
            return "Nothing was added."
        if call is None:
            return "\n".join(["Added, in this order:", *(f"  {told(task)}" for task in self)])
        compared = [(call.differences(task), task) for task in self]
        compared.sort(key=lambda each: (each[0] is None, len(each[0] or ())))
        lines = [
            f"  {told(task)}" + (f"  <- {', '.join(different)}" if different else "")
            for different, task in compared
        ]
        return "\n".join(["Added, the most alike first:", *lines])

    def _kept(self) -> list[Task[Any]]:
        return [task for task in self.tasks if not task.done]


@contextmanager
def capturing_tasks() -> Generator[Captured]:
    """Capture the tasks of every `Bgx` of the process, inside of the block."""
    captured = Captured()
    with listening(partial(_Catcher, captured)):
        try:
            yield captured
        finally:
            captured.clear()


async def _refuse_to_wait(task: Task[Any], *_: object, **__: object) -> Outcome[Any]:
    raise RuntimeError(
        f"{task.name} is captured and does not run, so nobody can wait for it: run it first, with "
        f"bgx_tasks.run() or run_async()"
    )


def _backend_of(task: Task[Any]) -> Backend | None:
    return task.runner.backend if isinstance(task.runner, Holding) else None


def _give_back(task: Task[Any], holding: Holding) -> None:
    """Make it a task again that was added and not called yet."""
    task.runner = holding.house
    task.claimed = False
    task.follows = None
    task.__dict__.pop("wait", None)


async def _run(task: Task[Any]) -> Outcome[Any]:
    """Run a captured task on this event loop, and wait for its end."""
    holding = task.runner
    assert isinstance(holding, Holding)
    runner, clock = holding.runners.current(), holding.runners.clock
    _give_back(task, holding)
    detaching, runner.detaching = runner.detaching, True  # whatever it is, we wait for it
    try:
        at_home = holding.house is runner
        rest = runner.start(task) if at_home else runner.adopt(task, *_asked(task, clock))
        with clock.flowing() if isinstance(clock, Clock) else nullcontext():
            if rest is not None:
                with suppress(*_raised_again(runner)):
                    await rest
            return await task.wait()
    finally:
        runner.detaching = detaching


def _asked(task: Task[Any], clock: AnyClock) -> tuple[TaskOptions | None, Particulars | None]:
    """The options of the call, for another loop to plan it anew."""
    if task.due is None:
        return task.plan.using, None
    moment = clock.wall() + timedelta(seconds=task.due - clock.now())
    return task.plan.using, Particulars(run_at=moment)


def _raised_again(runner: Runner) -> tuple[type[Exception], ...]:
    """With on_error='raise' a task raises what is in its outcome, too."""
    return (Exception,) if runner.settings.on_error == "raise" else ()


def _run_on(
    backend: Backend, go: Callable[[], Awaitable[list[Outcome[Any]]]]
) -> list[Outcome[Any]]:
    """Run on an event loop that runs in another thread, and wait for it."""
    over, outcomes, errors = threading.Event(), list[Outcome[Any]](), list[BaseException]()

    async def work() -> None:
        try:
            outcomes.extend(await go())
        except Exception as error:  # here it would hurt the loop
            errors.append(error)
        finally:
            over.set()

    backend.call_soon_threadsafe(lambda: backend.spawn(work))
    while not over.wait(LOOK_SECONDS):
        if not runs(backend):
            raise RuntimeError("the event loop of the captured tasks has ended meanwhile")
    raise_all(errors, "runs")
    return outcomes


def _checked(outcomes: list[Outcome[Any]], *, raises: bool) -> list[Outcome[Any]]:
    __tracebackhide__ = True
    if raises:
        raise_all(errors_of(outcomes), f"of {len(outcomes)} captured tasks")
    return outcomes


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"
