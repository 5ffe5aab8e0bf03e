"""`@bgx.on_failure`: the application's own functions, called when a task has failed."""

import inspect
from collections.abc import Callable
from contextvars import copy_context
from typing import Any, TypeVar

import anyio

from fastapi_bgx.backends import current_backend
from fastapi_bgx.driving import discard
from fastapi_bgx.notices import notice
from fastapi_bgx.outcome import Outcome
from fastapi_bgx.task import Task
from fastapi_bgx.threads import Mailbox, Threads

FailureHook = Callable[[Task[Any], Outcome[Any]], object]
Hook = TypeVar("Hook", bound=FailureHook)
HOOK_SECONDS = 10.0


class FailureHooks:
    """Calls each hook for a task that failed or timed out; a hook cannot hurt anybody."""

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        self._hooks: list[FailureHook] = []

    def __bool__(self) -> bool:
        """True when there is a hook."""
        return bool(self._hooks)

    def add(self, hook: Hook) -> Hook:
        """Add one; used as a decorator."""
        self._hooks.append(hook)
        return hook

    async def run(self, task: Task[Any], outcome: Outcome[Any]) -> None:
        """Call every hook in the order added, each for at most `HOOK_SECONDS`."""
        for hook in self._hooks:
            interrupt = current_backend().interrupt()
            try:
                with interrupt, anyio.fail_after(HOOK_SECONDS):
                    await self._call(hook, task, outcome)
            except BaseException as error:
                if interrupt.outside or isinstance(error, KeyboardInterrupt | GeneratorExit):
                    raise
                notice(
                    "error",
                    "bgx.hook_failed",
                    hook=getattr(hook, "__qualname__", type(hook).__qualname__),
                    task=task.name,
                    task_id=task.id,
                    exc_info=error,
                )

    async def _call(self, hook: FailureHook, task: Task[Any], outcome: Outcome[Any]) -> None:
        if inspect.iscoroutinefunction(hook):
            await hook(task, outcome)
            return
        result = await _in_thread(self._threads, lambda: hook(task, outcome))
        if inspect.isawaitable(result):
            await result


async def _in_thread(threads: Threads, call: Callable[[], Any]) -> Any:
    """Call a sync hook where it cannot block the event loop."""
    backend, context = current_backend(), copy_context()
    mailbox, waiter = Mailbox(backend), backend.waiter()
    value: Any = None
    error: BaseException | None = None
    left = False

    def work() -> None:
        nonlocal value, error
        try:
            value = context.run(call)
        except BaseException as caught:
            error = caught

    def arrive() -> None:
        if left:
            discard(value)
        waiter.set()

    threads.submit(work, lambda: mailbox.post(arrive))
    try:
        await waiter.wait()
    except BaseException:
        left = True
        discard(value)  # it may have arrived at the same moment
        raise
    if error is not None:
        raise error
    return value
