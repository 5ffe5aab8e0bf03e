"""A misspelt setting, or a value of the wrong type, is an error; and what is read has its type."""

from collections.abc import Mapping, Set
from typing import assert_type

from fastapi_bgx import DrainReport, Limit, LimiterStats, Settings, Stats, Status, TaskOptions
from fastapi_bgx.settings import EventName


def right() -> None:
    Settings()
    Settings(max_concurrency=None, max_threads=20, timeout=30, slow_after=None, drain_timeout=0)
    Settings(limits={"smtp": 3}, tasks={"send": TaskOptions(timeout=5, limit="smtp")})
    Settings(tasks={"send": TaskOptions(limit=Limit("tenant", 2), executor="process")})
    Settings(log_events={"task.failed", "task.timed_out"}, log_arguments=True)
    Settings(log_events=frozenset(), mode="detached", on_error="capture")


def wrong() -> None:
    Settings(max_thread=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Settings(timeout="3")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Settings(max_threads=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Settings(mode="async")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Settings(limits={"smtp": "3"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
    Settings(log_events={"task.faild"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Settings(tasks={"send": TaskOptions(timout=5)})  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Settings(tasks={"send": TaskOptions(executor="fork")})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def read(settings: Settings) -> None:
    assert_type(settings.timeout, float | None)
    assert_type(settings.max_threads, int)
    assert_type(settings.limits, dict[str, int])
    assert_type(settings.log_events, Set[EventName])
    assert_type(settings.tasks["send"].timeout, float | None)
    print(settings.timout)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]


def stats(stats: Stats) -> None:
    assert_type(stats.running, int)
    assert_type(stats.waiting, int)
    assert_type(stats.overrunning, int)
    assert_type(stats.limiters, Mapping[str, LimiterStats])
    assert_type(stats.limiters["smtp"].slots, int | None)
    assert_type(stats.limiters["smtp"].taken, int)
    assert_type(stats.limiters["smtp"].waiting, int)
    assert_type(stats.executors, Mapping[str, int])
    assert_type(stats.totals, Mapping[Status, int])
    assert_type(stats.totals[Status.FAILED], int)
    stats.running = 3  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    print(stats.failed)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]


def report(report: DrainReport) -> None:
    assert_type([ref.name for ref in report.finished], list[str])
    assert_type([ref.id for ref in report.in_thread], list[str])
    assert_type(report.duration_s, float)
