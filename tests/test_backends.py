"""The adapters for the event loops: one behaviour on asyncio and on trio."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.to_thread
import pytest

from fastapi_bgx.backends import Backend, current_backend, current_token, is_cancellation
from tests.supervision import PATIENCE, until

here: ContextVar[str] = ContextVar("here", default="nowhere")


# Which loop.


def test_a_thread_without_a_loop_has_no_backend() -> None:
    for ask in current_backend, current_token:
        with pytest.raises(RuntimeError):
            ask()


@pytest.mark.anyio
async def test_a_loop_has_one_token_wherever_it_is_asked_for() -> None:
    seen = [current_backend().token, current_token()]

    async def child() -> None:
        seen.append(current_token())

    async with anyio.create_task_group() as group:
        group.start_soon(child)
    assert all(token is seen[0] for token in seen)


def test_each_loop_has_a_token_of_its_own(anyio_backend: str) -> None:
    async def token() -> object:
        return current_token()

    first, second = (anyio.run(token, backend=anyio_backend) for _ in range(2))
    assert first is not second


def test_a_backend_knows_when_its_loop_has_ended(anyio_backend: str) -> None:
    async def make() -> Backend:
        backend = current_backend()
        assert not backend.ended()
        return backend

    backend = anyio.run(make, backend=anyio_backend)
    assert backend.ended()
    with pytest.raises(RuntimeError):
        backend.call_soon_threadsafe(lambda: None)


@pytest.mark.anyio
async def test_what_cancels_is_the_exception_of_the_loop() -> None:
    backend = current_backend()
    assert backend.cancelled is anyio.get_cancelled_exc_class()


@pytest.mark.anyio
async def test_a_group_with_a_cancellation_in_it_is_one() -> None:
    cancelled = asyncio.CancelledError
    assert is_cancellation(cancelled(), cancelled)
    group = BaseExceptionGroup("", [ValueError(), BaseExceptionGroup("", [cancelled()])])
    assert is_cancellation(group, cancelled)
    for other in None, ValueError(), BaseExceptionGroup("", [ValueError()]):
        assert not is_cancellation(other, cancelled)


# Callbacks and coroutines.


@pytest.mark.anyio
async def test_a_thread_can_have_something_called_on_the_loop() -> None:
    backend, called = current_backend(), list[int]()
    await anyio.to_thread.run_sync(
        lambda: backend.call_soon_threadsafe(lambda: called.append(threading.get_ident()))
    )
    await until(lambda: called)
    assert called == [threading.get_ident()]


@pytest.mark.anyio
async def test_a_callback_is_called_later_unless_it_is_cancelled() -> None:
    backend, called, started = current_backend(), list[float](), time.monotonic()
    cancelled = backend.call_later(0.01, lambda: called.append(0.0))
    backend.call_later(0.02, lambda: called.append(time.monotonic() - started))
    cancelled.cancel()
    await until(lambda: called)
    assert len(called) == 1
    assert called[0] >= 0.02


@pytest.mark.anyio
async def test_what_is_spawned_runs_beside_in_an_empty_context() -> None:
    here.set("in the request")
    backend, seen = current_backend(), list[str]()

    async def spawned() -> None:
        seen.append(here.get())
        await anyio.sleep(0)
        seen.append("went on")

    backend.spawn(spawned)
    backend.call_soon_threadsafe(lambda: seen.append(here.get()))
    backend.call_later(0, lambda: seen.append(here.get()))
    assert not seen
    await until(lambda: len(seen) == 4)
    assert sorted(seen) == ["nowhere", "nowhere", "nowhere", "went on"]


@pytest.mark.anyio
async def test_a_waiter_wakes_the_one_who_waits() -> None:
    waiter, woken = current_backend().waiter(), list[str]()

    async def wait() -> None:
        await waiter.wait()
        woken.append("yes")

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
        await anyio.sleep(0.001)
        assert not woken
        waiter.set()
        waiter.set()
    assert woken == ["yes"]


@pytest.mark.anyio
async def test_a_waiter_that_was_set_before_does_not_wait() -> None:
    waiter = current_backend().waiter()
    waiter.set()
    with anyio.fail_after(PATIENCE):
        await waiter.wait()


@pytest.mark.anyio
async def test_a_checkpoint_lets_others_run_and_notices_a_cancellation() -> None:
    backend, order = current_backend(), list[str]()

    async def other() -> None:
        order.append("other")

    async with anyio.create_task_group() as group:
        group.start_soon(other)
        for _ in range(3):
            await backend.checkpoint()
        order.append("first")
        group.cancel_scope.cancel()
        for _ in range(3):
            await backend.checkpoint()
        order.append("never")
    assert order == ["other", "first"]


@pytest.mark.anyio
async def test_a_swallowed_cancellation_can_be_raised_anew() -> None:
    backend, reached = current_backend(), list[str]()
    with anyio.CancelScope() as scope:
        scope.cancel()
        with contextlib.suppress(backend.cancelled):
            await anyio.sleep_forever()
        reached.append("swallowed")
        await backend.raise_cancelled()
        reached.append("never")
    assert reached == ["swallowed"]


# Interrupts.


async def interrupted(fire: Callable[[Callable[[], None]], object]) -> Any:
    """An interrupt after its block, where `fire` got the way to fire it."""
    interrupt = current_backend().interrupt()
    fire(interrupt.fire)
    with anyio.fail_after(PATIENCE), interrupt:
        await anyio.sleep_forever()
    return interrupt


@pytest.mark.anyio
async def test_an_interrupt_ends_its_block_and_nothing_more() -> None:
    backend = current_backend()
    interrupt = await interrupted(lambda fire: backend.call_later(0.001, fire))
    assert isinstance(interrupt.caught, backend.cancelled)
    assert not interrupt.outside
    await anyio.sleep(0.001)  # what follows is not cancelled


@pytest.mark.anyio
async def test_an_interrupt_that_fires_twice_ends_its_block_once() -> None:
    backend = current_backend()

    def twice(fire: Callable[[], None]) -> None:
        backend.call_later(0.001, fire)
        backend.call_later(0.001, fire)

    interrupt = await interrupted(twice)
    assert not interrupt.outside
    await anyio.sleep(0.001)


@pytest.mark.anyio
async def test_an_interrupt_that_does_not_fire_does_nothing() -> None:
    interrupt = current_backend().interrupt()
    with interrupt:
        await anyio.sleep(0)
    assert (interrupt.caught, interrupt.outside) == (None, False)
    interrupt.fire()  # too late
    await anyio.sleep(0.001)


@pytest.mark.anyio
async def test_a_block_may_interrupt_itself() -> None:
    interrupt, reached = current_backend().interrupt(), list[str]()
    with anyio.fail_after(PATIENCE), interrupt:
        interrupt.fire()
        reached.append("goes on until it waits")
        await anyio.sleep_forever()
    assert reached
    assert interrupt.caught is not None
    await anyio.sleep(0.001)


@pytest.mark.anyio
async def test_a_block_that_interrupts_itself_at_its_very_end_hurts_nobody() -> None:
    interrupt = current_backend().interrupt()
    with interrupt:
        interrupt.fire()
    assert interrupt.caught is None
    for _ in range(3):
        await anyio.sleep(0)


@pytest.mark.anyio
async def test_an_error_passes_through_an_interrupt() -> None:
    interrupt = current_backend().interrupt()

    async def fails() -> None:
        await anyio.sleep(0)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"), interrupt:
        await fails()
    assert (interrupt.caught, interrupt.outside) == (None, False)


@pytest.mark.anyio
async def test_a_cancellation_that_leaks_passes_through_an_interrupt() -> None:
    interrupt = current_backend().interrupt()
    with pytest.raises(asyncio.CancelledError), interrupt:
        raise asyncio.CancelledError
    assert (interrupt.caught, interrupt.outside) == (None, False)


@pytest.mark.anyio
async def test_a_cancellation_from_elsewhere_passes_through_an_interrupt() -> None:
    backend, interrupts, passed = current_backend(), list[Any](), list[str]()

    async def block() -> None:
        interrupt = backend.interrupt()
        interrupts.append(interrupt)
        with interrupt:
            await anyio.sleep_forever()
        passed.append("no")

    async with anyio.create_task_group() as group:
        group.start_soon(block)
        await until(lambda: interrupts)
        group.cancel_scope.cancel()
    [interrupt] = interrupts
    assert interrupt.outside
    assert not passed


@pytest.mark.anyio
async def test_the_inner_of_two_interrupts_leaves_the_outer_one_alone() -> None:
    backend = current_backend()
    outer, inner = backend.interrupt(), backend.interrupt()
    backend.call_later(0.001, inner.fire)
    with anyio.fail_after(PATIENCE), outer:
        with inner:
            await anyio.sleep_forever()
        await anyio.sleep(0.001)
    assert inner.caught is not None
    assert not inner.outside
    assert (outer.caught, outer.outside) == (None, False)


@pytest.mark.anyio
async def test_the_outer_of_two_interrupts_ends_the_inner_one_too() -> None:
    backend = current_backend()
    outer, inner, reached = backend.interrupt(), backend.interrupt(), list[str]()
    backend.call_later(0.001, outer.fire)
    with anyio.fail_after(PATIENCE), outer:
        with inner:
            await anyio.sleep_forever()
        reached.append("never")
    assert not reached
    assert inner.outside
    assert outer.caught is not None
    assert not outer.outside
    await anyio.sleep(0.001)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_count_of_cancellations_is_as_before() -> None:
    """`asyncio.timeout` and task groups around a request count on it."""
    backend, host = current_backend(), asyncio.current_task()
    assert host is not None
    for _ in range(3):
        await interrupted(lambda fire: backend.call_later(0.001, fire))
    assert host.cancelling() == 0
    async with asyncio.timeout(PATIENCE):
        await interrupted(lambda fire: backend.call_later(0.001, fire))


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_timeout_of_asyncio_around_an_interrupt_is_not_taken_for_it() -> None:
    interrupt = current_backend().interrupt()

    async def times_out() -> None:
        async with asyncio.timeout(0.001):
            with interrupt:
                await asyncio.sleep(PATIENCE)

    with pytest.raises(TimeoutError):
        await times_out()
    assert (interrupt.caught, interrupt.outside) == (None, True)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_loop_is_ending_when_everything_is_cancelled() -> None:
    backend, seen = current_backend(), list[bool]()
    assert not backend.ending()

    async def main() -> None:
        mine = current_backend()

        async def stays() -> None:
            try:
                await asyncio.sleep(PATIENCE)
            finally:
                seen.append(mine.ending())

        task = asyncio.create_task(stays())
        await asyncio.sleep(0)
        assert not task.done()

    await anyio.to_thread.run_sync(asyncio.run, main())
    assert seen == [True]


@pytest.mark.anyio
@pytest.mark.parametrize("interrupt_first", [True, False])
async def test_an_interrupt_and_a_cancellation_in_one_moment_are_a_cancellation(
    interrupt_first: bool,
) -> None:
    backend, reached = current_backend(), list[str]()
    interrupt = backend.interrupt()
    with anyio.CancelScope() as scope:

        def both() -> None:
            for cancel in (interrupt.fire, scope.cancel)[:: 1 if interrupt_first else -1]:
                cancel()

        backend.call_later(0.001, both)
        with interrupt:
            await anyio.sleep_forever()
        await backend.checkpoint()
        reached.append("never")
    assert not reached
    # anyio waits with its cancellation when another is on its way, and cancels again afterwards.
    assert interrupt.outside or interrupt_first
    await anyio.sleep(0.001)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_that_is_delivered_once_is_not_swallowed_by_an_interrupt() -> None:
    backend, host = current_backend(), asyncio.current_task()
    assert host is not None
    interrupt = backend.interrupt()

    def both() -> None:
        interrupt.fire()
        host.cancel()

    backend.call_later(0.001, both)
    with pytest.raises(asyncio.CancelledError), interrupt:
        await asyncio.sleep(PATIENCE)
    assert (interrupt.caught, interrupt.outside) == (None, True)
    assert host.uncancel() == 0


# For tests: when nothing can go on.


@pytest.mark.anyio
async def test_a_loop_is_idle_once_every_task_waits() -> None:
    seen: list[str] = []
    idle = anyio.Event()

    async def busy() -> None:
        for _ in range(100):
            await anyio.sleep(0)
        seen.append("done")
        await idle.wait()

    async with anyio.create_task_group() as group:
        for _ in range(3):
            group.start_soon(busy)

        def tell() -> None:
            seen.append("idle")
            idle.set()

        current_backend().when_idle(tell)
        with anyio.fail_after(PATIENCE):
            await idle.wait()
    assert seen == ["done", "done", "done", "idle"]
