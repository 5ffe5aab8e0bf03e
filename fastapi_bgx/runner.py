"""The runner: owns every live task of one event loop, from `add_task` to its final event.

The path of a task reads from top to bottom: `entrance.accept`, `start`, `begin`, then `_complete`
and `finish` in `endings.py`; what was handed over goes through `_spawn` and `workers.py` between.
What a single call does is in `executors.py`, and shutting down in `drain.py`.
"""

import sys
import threading
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi_bgx.attempt import ASKED, LOOP_ENDED, OUTSIDE, Ending, Watch, judge
from fastapi_bgx.backends import Backend
from fastapi_bgx.backlog import Followers, Waiting
from fastapi_bgx.endings import RUNNING, Endings
from fastapi_bgx.entrance import Common, Entrance
from fastapi_bgx.events import Publisher, TaskStarted
from fastapi_bgx.executors import ENDED, call_async, first_step, go_on, run_attempt
from fastapi_bgx.limits import (
    Limiter,
    give_back_slots,
    note_start,
    release_slots,
    take_slots,
)
from fastapi_bgx.listeners.hooks import FailureHooks
from fastapi_bgx.notices import notice
from fastapi_bgx.options import Particulars, TaskOptions
from fastapi_bgx.outcome import Status
from fastapi_bgx.pauses import Pauses
from fastapi_bgx.plan import Planner
from fastapi_bgx.reports import Stats
from fastapi_bgx.settings import Settings
from fastapi_bgx.task import Task
from fastapi_bgx.threads import Mailbox, Threads
from fastapi_bgx.timers import Clock, Timers
from fastapi_bgx.workers import Workers


class Runner(Endings):
    """Owns the live tasks of one event loop. Other threads may only use the entrance."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        publisher: Publisher,
        hooks: FailureHooks,
        threads: Threads,
        common: Common,
        clock: Clock,
    ) -> None:
        super().__init__(settings, backend, publisher, hooks, common)
        self.clock: Callable[[], float] = clock.now
        self.threads = threads
        self.timers: Timers = Timers(backend, clock)
        self.mailbox: Mailbox = Mailbox(backend)
        self.prefix: str = common.prefix
        self.detaching = False
        """True while a lifespan is active: detached tasks may outlive their request."""
        self.closed: bool = False
        self.when_drained: Callable[[], None] | None = None
        """Told at the end of the drain."""
        self._planner = Planner(settings, eager=backend.eager, timers=self.timers)
        self._common = common
        self._thread = threading.get_ident()
        self.entrance: Entrance = Entrance(self, settings, self._planner, publisher, common, clock)
        """Where calls become tasks. The one part that other threads may use."""
        self._workers = Workers(self)
        self._take = self._workers.take
        self._followers = Followers(self)
        self.pauses: Pauses = Pauses(self)
        self._arriving: dict[Task[Any], None] = {}
        self._learn()

    @property
    def refusing(self) -> bool:
        """True when only running tasks may add tasks."""
        return self.entrance.refusing

    def tell_time_by(self, clock: Clock) -> None:
        """Use another clock from now on; for tests. A timer that runs keeps the one it has."""
        self.clock = clock.now
        self.entrance.tell_time_by(clock)
        self.timers = Timers(self.backend, clock)

    # Entering: `self.entrance.accept`, in the route.

    def adopt(
        self, task: Task[Any], options: TaskOptions | None, call: Particulars | None
    ) -> Awaitable[None] | None:
        """Start a task that was made outside of every loop, and is refused no more."""
        try:
            self.entrance.adopt(task, options, call)
        except Exception as error:
            task.claimed = True
            self.finish(task, Ending(Status.FAILED, error=error))
            return None
        return self.start(task)

    # Starting: after the response, on the loop's thread.

    def start(self, task: Task[Any]) -> Awaitable[None] | None:
        """Run the task, or hand it over; at most once.

        What has to be awaited for the rest of it; `None` when there is no rest.
        """
        if task.claimed:
            return None
        task.claimed = True
        plan = task.plan
        if plan.special and self._goes_aside(task):
            return None
        if self.closed:
            self._cancel_unstarted(task)
            return None
        only = plan.only
        if only is not None and only.taken < only.slots and not only.waiting:
            only.taken += 1  # what `take_slots` comes down to for one limiter: 0.1 µs less
            return self.begin(task, plan.limiters)
        limiters = self.limiters_of(task)
        if take_slots(limiters):
            return self.begin(task, limiters)
        return self._run_later(task, limiters)

    def start_now(self, task: Task[Any]) -> bool:
        """Hand a task over without waiting for its request; from any thread."""
        if not self.detaching:
            return False
        if task.unique is None:  # else others may be about to start it
            task.claimed = True
        self._arriving[task] = None
        self.mailbox.post(lambda: self._arrive(task))
        return True

    def _arrive(self, task: Task[Any]) -> None:
        """Go on with what `start_now` began, on the loop's thread."""
        if task.unique is None or not task.claimed:
            task.claimed = True
            self._spawn(task)
        self._arriving.pop(task, None)

    def _goes_aside(self, task: Task[Any]) -> bool:
        """True when the task goes on without the coroutine that starts it."""
        plan = task.plan
        # A task that several requests share is not to end with the one that happens to call it.
        beside = plan.concurrent or task.sharers > 1
        if beside or (plan.detached and self._may_detach()):
            self._spawn(task)
            return True
        if self.closed or not self.pauses.delay(task):
            return False
        task.spawned = True
        return True

    def _may_detach(self) -> bool:
        if not self.detaching and not self._common.warned_of_lifespan:
            self._common.warned_of_lifespan = True
            notice(
                "warning",
                "bgx.no_lifespan",
                effect="detached tasks run inline: nothing would wait for them at shutdown",
                remedy="bgx.install(app), with a server (or TestClient as a context manager)",
            )
        return self.detaching

    async def _run_later(self, task: Task[Any], limiters: tuple[Limiter, ...]) -> None:
        """Run a task in the coroutine of its request, once it has its slots."""
        if await self._wait_for_slots(task, limiters):
            rest = self.begin(task, limiters)
            if rest is not None:
                await rest

    def _spawn(self, task: Task[Any]) -> None:
        """Run a task in a worker, once the detached sibling before it has ended."""
        task.spawned = True
        if task.done:  # cancelled before it came here
            return
        if self.closed:
            self._cancel_unstarted(task)
            return
        if task.due is not None and self.pauses.delay(task):
            return
        before = task.follows = _unfinished_before(task)
        if before is not None:
            before.followed_by = task
            before.at_end = before.at_end or []  # who looks at one of them need not look at both
            self.live[task] = self._followers
            return
        self.admit(task)

    def admit(self, task: Task[Any]) -> None:
        """Have a task run in a worker, once it has its slots."""
        limiters = self.limiters_of(task)
        if take_slots(limiters):
            self._take(task)
        else:
            self.live[task] = Waiting(self, task, limiters, then=self._take)

    def limiters_of(self, task: Task[Any]) -> tuple[Limiter, ...]:
        """The limiters whose slots it needs, that of its key included."""
        plan = task.plan
        return plan.limiters if plan.keyed is None else (*plan.keyed.of(task.key), *plan.limiters)

    async def _wait_for_slots(self, task: Task[Any], limiters: tuple[Limiter, ...]) -> bool:
        """Wait in the backlog; false when the task ended there."""
        waiter = self.backend.waiter()
        waiting = Waiting(self, task, limiters, then=lambda _: waiter.set(), ended=waiter.set)
        self.live[task] = waiting
        try:
            await waiter.wait()
        except BaseException:
            waiting.cancel(task, OUTSIDE)
            raise
        self.live.pop(task, None)
        return not task.done

    def end_with_the_loop(self) -> bool:
        """End what waits, if the loop is about to end; false when it goes on."""
        if not self.backend.ending():
            return False
        self.closed = True
        self.entrance.refuse()
        for task in list(self.live):
            entry = self.live.get(task)
            if not (entry is None or isinstance(entry, Watch)):  # an earlier one may have ended it
                entry.cancel(task, LOOP_ENDED)
        return True

    # Executing and ending: the same for all.

    def begin(self, task: Task[Any], limiters: tuple[Limiter, ...]) -> Awaitable[None] | None:
        """Start a task that holds its slots; `None` when it has succeeded already."""
        started = self.clock()
        plan = task.plan
        if plan.marks_start:
            too_late = self._mark_start(task, limiters, started)
            if too_late is not None:
                give_back_slots(limiters)
                return self._complete(task, (), too_late)
        self.entrance.left += 1
        task.status = RUNNING
        task.attempt += 1
        task.started_at = started
        if self._tells_start:
            self._publisher.publish(TaskStarted(task, task.attempt, started - task.added_at))
        context = task.context
        if not plan.by_hand or context is None:
            return self._go_on(task, limiters, run_attempt(task, self))
        steps = call_async(task).__await__()
        try:
            yielded = first_step(context, steps)
        except BaseException as error:
            return self._complete(task, limiters, judge(task, None, error))
        if yielded is not ENDED:
            return self._go_on(task, limiters, go_on(task, self, steps, yielded))
        self._succeed(task, limiters)
        return None

    def _mark_start(
        self, task: Task[Any], limiters: tuple[Limiter, ...], now: float
    ) -> Ending | None:
        """What has to be noted when an attempt starts; how the task ends if it is too late."""
        plan = task.plan
        if task.attempt:
            too_late = self.pauses.too_late(task, now)
            if too_late is not None:
                self.entrance.left += 1
                task.status = RUNNING  # as it was when it failed
                return too_late
        elif plan.expires is not None and now >= task.added_at + plan.expires:
            return Ending(Status.EXPIRED, reason="expires")
        if plan.rated:
            note_start(limiters, now)
        if plan.timeout is not None:
            task.deadline = now + plan.timeout
        if plan.retry is not None and task.context is not None:
            if task.untouched is None:
                task.untouched = task.context
                task.when_ended(_forget_contexts)
            task.context = task.untouched.copy()  # an attempt does not see what another one set
            task.error = None
        return None

    async def _go_on(
        self, task: Task[Any], limiters: tuple[Limiter, ...], rest: Awaitable[Ending | None]
    ) -> None:
        try:
            ending = await rest
        except GeneratorExit:  # nobody will go on with this coroutine
            if not sys.is_finalizing():  # pragma: no branch - no test sees the interpreter's end
                self.end_with_the_loop()
                release_slots(limiters)
                self.finish(task, Ending(Status.CANCELLED, reason=LOOP_ENDED))
                self._let_go(task)
            raise
        if ending is None:
            self.live.pop(task, None)
            self._succeed(task, limiters)
        else:
            await self._complete(task, limiters, ending)

    def _start_follower(self, task: Task[Any]) -> None:
        before = task.follows = _unfinished_before(task)
        follower, task.followed_by = task.followed_by, None
        if follower is not None and not follower.done and not self.closed:  # or the drain ends it
            follower.follows = before  # this one may have ended while it stood behind another
            self.live.pop(follower, None)
            self._spawn(follower)

    def drop(self, task: Task[Any], reason: str) -> None:
        """End a task that was added and will not be called."""
        if task.claimed:
            return
        if task.unique is not None and not self.entrance.uniques.leave(task):
            return  # another request asked for it, too
        task.claimed = True
        self.finish(task, Ending(Status.DROPPED, reason=reason))

    def drop_from_any_thread(self, task: Task[Any], reason: str) -> None:
        """The same, from any thread."""
        if threading.get_ident() == self._thread or self.backend.ended():
            self.drop(task, reason)
        else:
            self.mailbox.post(lambda: self.drop(task, reason))

    def outlives(self, task: Task[Any]) -> bool:
        """True when the request does not wait for the task."""
        return task.plan.detached and self.detaching

    def cancel(self, task: Task[Any], reason: str) -> None:
        """Have a live task end soon, because of `reason`."""
        entry = self.live.get(task)
        if entry is not None:
            entry.cancel(task, reason)

    def stop(self, task: Task[Any]) -> bool:
        """Have a task end because its owner wants that; from any thread."""
        if task.done:
            return False
        if threading.get_ident() == self._thread or self.backend.ended():
            self._stop(task)
        else:
            self.mailbox.post(lambda: self._stop(task))
        return True

    def _stop(self, task: Task[Any]) -> None:
        if task.done:
            return
        task.cancelled = True
        place = self.live.get(task)
        if isinstance(place, Watch):
            place.ask()
        elif place is not None:
            place.cancel(task, ASKED)
        elif task.status is not RUNNING:  # else its first step is being made, by itself
            task.claimed = True
            self.finish(task, Ending(Status.CANCELLED, reason=ASKED))

    def unfinished(self) -> list[Task[Any]]:
        """Every task that has not ended; some twice, and some that have. From any thread.

        Read in the order in which a task moves on, so that none is missed that moves meanwhile.
        """
        found: list[Any] = []
        for reference in list(self.entrance.lists.values()):
            tasks = reference()
            for added in () if tasks is None else tuple(tasks.tasks):
                if type(added) is Task and added.runner is self:
                    found.append(added)
        found += self._arriving
        found += self.live
        begins = self._workers.begins
        if begins is not None:
            found.append(begins)
        found += self.live
        return found

    def resize(self, name: str, slots: int) -> None:
        """Change the slots of a limiter; what waits and now may start does so at once."""
        self._planner.resize(name, slots)

    def _cancel_unstarted(self, task: Task[Any]) -> None:
        self.finish(task, Ending(Status.CANCELLED, error=task.error, reason="shutdown"))

    def stats(self) -> Stats:
        """A snapshot; from any thread."""
        planner = self._planner
        running, threads, processes = (
            limiter.taken for limiter in (planner.concurrency, planner.threads, planner.processes)
        )
        return Stats(
            running=running,
            waiting=self.entrance.waiting,
            overrunning=len(self.overrunning),
            limiters={
                **planner.limits.stats(),
                "concurrency": planner.concurrency.stats(),
                "threads": planner.threads.stats(),
                "processes": planner.processes.stats(),
            },
            executors={
                "async": running - threads - processes,
                "thread": threads,
                "process": processes,
            },
            totals=self._totals
            | {
                Status.SUCCEEDED: self._totals[Status.SUCCEEDED] + self._succeeded,
                Status.REJECTED: self.entrance.rejected,
            },
        )


def _unfinished_before(task: Task[Any]) -> Task[Any] | None:
    """The nearest of the tasks before it that goes on: others may have ended where they waited.

    Not one that was tried again: who stood behind it then has started, too.
    """
    before = task.follows
    while before is not None and (before.done or before.first_started_at is not None):
        before = before.follows
    return before


def _forget_contexts(task: Task[Any]) -> None:
    task.untouched = None
