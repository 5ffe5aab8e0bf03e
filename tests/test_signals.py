"""Signals: the drain begins with the server's signal, and the server's own handler stays."""

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import anyio
import pytest

from fastapi_bgx import Bgx, Settings, Status
from fastapi_bgx.signals import SignalWatch
from tests.logs import Lines, logged, named
from tests.supervision import serving, tasks_of, until

SIGINT, SIGTERM = signal.SIGINT, signal.SIGTERM
Heard = list[Any]


@pytest.fixture(autouse=True)
def heard() -> Iterator[Heard]:
    """What the handlers of a server hear; the handlers of the tests are back afterwards."""
    heard: Heard = []

    def server(number: int, frame: FrameType | None) -> None:
        heard.append(signal.Signals(number))

    before = {number: signal.signal(number, server) for number in (SIGINT, SIGTERM)}
    yield heard
    for number, handler in before.items():
        signal.signal(number, handler)


def watch(noticed: Callable[[bool], None]) -> SignalWatch:
    started = SignalWatch(noticed)
    started.start()
    return started


# Chaining.


@pytest.mark.parametrize("number", [SIGINT, SIGTERM])
def test_the_handler_of_the_server_is_called_first(number: signal.Signals, heard: Heard) -> None:
    watch(heard.append)
    signal.raise_signal(number)
    assert heard == [number, False]


def test_a_handler_that_raises_does_not_keep_the_signal_from_being_noticed(heard: Heard) -> None:
    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(SIGINT, interrupt)
    watch(heard.append)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(SIGINT)
    assert heard == [False]


@pytest.mark.parametrize(
    "handler", [signal.SIG_DFL, signal.SIG_IGN, signal.default_int_handler], ids=str
)
def test_where_no_server_listens_nothing_is_installed(handler: Any, heard: Heard) -> None:
    signal.signal(SIGINT, handler)
    watch(heard.append)
    assert signal.getsignal(SIGINT) == handler


def test_another_thread_cannot_install_handlers_and_does_not_try(heard: Heard) -> None:
    before = signal.getsignal(SIGTERM)
    watches: list[SignalWatch] = []
    thread = threading.Thread(target=lambda: watches.append(watch(heard.append)))
    thread.start()
    thread.join()
    assert signal.getsignal(SIGTERM) is before
    watches[0].stop()


# Again.


def test_a_second_sigterm_is_in_a_hurry(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastapi_bgx.signals.SAME_STOP_SECONDS", 0.0)
    watch(heard.append)
    signal.raise_signal(SIGTERM)
    signal.raise_signal(SIGTERM)
    assert heard == [SIGTERM, False, SIGTERM, True]


@pytest.mark.parametrize("first", [SIGINT, SIGTERM])
def test_a_sigterm_right_after_another_signal_asks_for_the_same_stop(
    first: signal.Signals, heard: Heard
) -> None:
    watch(heard.append)
    signal.raise_signal(first)
    signal.raise_signal(SIGTERM)
    assert heard == [first, False, SIGTERM]


def test_a_second_sigint_is_in_a_hurry_however_soon_it_comes(heard: Heard) -> None:
    watch(heard.append)
    signal.raise_signal(SIGTERM)
    signal.raise_signal(SIGINT)
    assert heard == [SIGTERM, False, SIGINT, True]


# Stopping.


def test_stopping_puts_the_handlers_back(heard: Heard) -> None:
    before = signal.getsignal(SIGINT), signal.getsignal(SIGTERM)
    watch(heard.append).stop()
    assert (signal.getsignal(SIGINT), signal.getsignal(SIGTERM)) == before


def test_who_has_chained_to_it_since_is_left_alone(heard: Heard) -> None:
    watching = watch(heard.append)
    ours = signal.getsignal(SIGTERM)

    def later(number: int, frame: FrameType | None) -> None:
        heard.append("later")
        assert callable(ours)
        ours(number, frame)

    signal.signal(SIGTERM, later)
    watching.stop()
    assert signal.getsignal(SIGTERM) is later
    signal.raise_signal(SIGTERM)
    assert heard == ["later", SIGTERM]


def test_two_watches_may_stop_in_the_order_they_started(heard: Heard) -> None:
    """Two applications in one process, each with a `Bgx`."""
    one, two = watch(lambda again: heard.append(1)), watch(lambda again: heard.append(2))
    one.stop()
    signal.raise_signal(SIGTERM)
    two.stop()
    signal.raise_signal(SIGTERM)
    assert heard == [SIGTERM, 2, SIGTERM]


def test_stopped_from_another_thread_it_only_passes_on(heard: Heard) -> None:
    watching = watch(heard.append)
    thread = threading.Thread(target=watching.stop)
    thread.start()
    thread.join()
    signal.raise_signal(SIGTERM)
    assert heard == [SIGTERM]


# What a signal does to a `Bgx`.


@pytest.fixture
def lines() -> Iterator[Lines]:
    with logged() as captured:
        yield captured


async def nothing() -> None:
    """A task that ends at once."""


@pytest.mark.anyio
async def test_after_a_signal_tasks_may_still_be_added(heard: Heard) -> None:
    async with serving() as bgx:
        signal.raise_signal(SIGTERM)
        await until(lambda: bgx.runners.current().when_finished)
        tasks = await tasks_of(bgx)
        task = tasks.add_task(nothing)
        await tasks()
        assert task.status is Status.SUCCEEDED
        assert heard == [SIGTERM]


@pytest.mark.anyio
async def test_after_a_signal_it_is_the_lifespan_that_ends_the_drain(lines: Lines) -> None:
    async with serving() as bgx:
        signal.raise_signal(SIGTERM)
        await until(lambda: bgx.runners.current().when_finished)
        tasks = await tasks_of(bgx)
        task = tasks.add_task(nothing)
        await tasks()
        await anyio.wait_all_tasks_blocked()
        assert not named(lines, "bgx.drained")
        assert (await bgx.drain()).finished == (task.ref,)


@pytest.mark.anyio
async def test_a_signal_begins_the_grace_period_for_inline_tasks(lines: Lines) -> None:
    async with serving(drain_timeout=0.01) as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.add_task(anyio.sleep_forever)
        signal.raise_signal(SIGTERM)
        with anyio.fail_after(5):
            await tasks()
        assert task.status is Status.CANCELLED
        await until(lambda: named(lines, "bgx.drained"))
        assert (await bgx.drain()).cancelled == (task.ref,)
    assert len(named(lines, "bgx.drained")) == 1


@pytest.mark.anyio
async def test_what_a_request_under_way_had_added_is_in_the_report(lines: Lines) -> None:
    async with serving(drain_timeout=0.01) as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.add_task(nothing)
        signal.raise_signal(SIGTERM)
        await until(lambda: bgx.runners.current().closed)
        await anyio.wait_all_tasks_blocked()
        assert not named(lines, "bgx.drained")
        await tasks()
        await until(lambda: named(lines, "bgx.drained"))
        assert (await bgx.drain()).cancelled == (task.ref,)


@pytest.mark.anyio
async def test_a_request_that_does_not_end_cannot_withhold_the_report(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fastapi_bgx.drain.UNWIND_SECONDS", 0.02)
    async with serving(drain_timeout=0.01) as bgx:
        tasks = await tasks_of(bgx)
        tasks.add_task(nothing)
        signal.raise_signal(SIGTERM)
        await until(lambda: named(lines, "bgx.drained"))
        await tasks()


@pytest.mark.anyio
async def test_who_asks_for_the_drain_does_not_wait_for_requests() -> None:
    async with serving() as bgx:
        tasks = await tasks_of(bgx)
        tasks.add_task(nothing)
        assert (await bgx.drain()).duration_s < 0.5
        await tasks()


@pytest.mark.anyio
async def test_a_second_signal_ends_the_grace_period(lines: Lines) -> None:
    async with serving(drain_timeout=60) as bgx:
        tasks = await tasks_of(bgx)
        task = tasks.add_task(anyio.sleep_forever)
        signal.raise_signal(SIGTERM)
        signal.raise_signal(SIGINT)
        with anyio.fail_after(5):
            await tasks()
        assert task.status is Status.CANCELLED


@pytest.mark.anyio
async def test_the_drain_of_the_lifespan_does_not_begin_the_grace_period_anew() -> None:
    async with serving(drain_timeout=0.05) as bgx:
        tasks = await tasks_of(bgx)
        tasks.using(detached=True).add_task(anyio.sleep_forever)
        await tasks()
        signal.raise_signal(SIGTERM)
        with anyio.fail_after(5):
            report = await bgx.drain(60)
        assert len(report.cancelled) == 1


@pytest.mark.anyio
async def test_a_drain_puts_the_handlers_back(heard: Heard) -> None:
    before = signal.getsignal(SIGTERM)
    async with serving() as bgx:
        assert signal.getsignal(SIGTERM) is not before
        await bgx.drain()
        assert signal.getsignal(SIGTERM) is before


def test_a_signal_after_the_end_of_the_loop_hurts_nobody(heard: Heard) -> None:
    async def start_and_leave() -> None:
        Bgx(Settings()).start()

    asyncio.run(start_and_leave())
    signal.raise_signal(SIGTERM)
    assert heard == [SIGTERM]


def test_started_again_without_a_drain_it_watches_once(heard: Heard) -> None:
    before = signal.getsignal(SIGTERM)
    bgx = Bgx(Settings())

    async def start_and_leave() -> None:
        bgx.start()

    async def start_and_drain() -> None:
        bgx.start()
        await bgx.drain()

    asyncio.run(start_and_leave())
    asyncio.run(start_and_drain())
    assert signal.getsignal(SIGTERM) is before
