"""W4: a real uvicorn in a process of its own, and a real load generator on another core."""

import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

from tests.benchmarks.apps import (
    BLOCKED_S,
    CONTESTANTS,
    DEPENDS,
    DETACHED,
    INSTALL,
    TASKFLOW_SQLITE,
    THREADS,
    available,
)
from tests.benchmarks.contestants import HAND_WRITTEN, STOCK
from tests.benchmarks.measure import Effort, Series, Tick, shuffled
from tests.benchmarks.peers import AIOJOBS, TASKFLOW, TASKIQ

RATE = "requests per second, one async task each"
GC_SHARE = "time in the garbage collector meanwhile"
GC_LONGEST = "longest pause of the garbage collector"
P50 = "innocent sync endpoint in a flood of sync tasks, median"
P99 = "innocent sync endpoint in a flood of sync tasks, p99"
FLOOD_GC = "longest pause of the garbage collector in the flood"

CONNECTIONS = 16
PROBE_EVERY_S = 0.01
MOST_FLOODS = 9
DEADLINE_S = 15.0
FAST = (STOCK, HAND_WRITTEN, DEPENDS, INSTALL, DETACHED, TASKFLOW, TASKFLOW_SQLITE, AIOJOBS, TASKIQ)
FLOODED = (STOCK, HAND_WRITTEN, INSTALL, DETACHED, TASKFLOW, AIOJOBS, TASKIQ)


class Failed(Exception):
    """The server or the load generator did not do its part."""


def cores() -> tuple[int | None, int | None]:
    """The cores for the server and for the load; `None` where there are no two to choose from."""
    if not hasattr(os, "sched_getaffinity"):
        return None, None
    mine = sorted(os.sched_getaffinity(0))
    return (mine[0], mine[1]) if len(mine) > 1 else (None, None)


def generator() -> str:
    """What makes the load of the requests per second."""
    return "wrk" if shutil.which("wrk") else "tests.benchmarks.load"


@contextmanager
def on_core(core: int | None) -> Iterator[None]:
    """What is started inside runs on one core."""
    if core is None:
        yield
        return
    mine = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, mine)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server."""

    name: str
    port: int

    def report(self) -> dict[str, float]:
        """What it says about itself."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE_S)
        try:
            connection.request("GET", "/report")
            answer: dict[str, float] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return answer


@contextmanager
def server(name: str) -> Iterator[Server]:
    """Serve one contestant."""
    command = [sys.executable, "-m", "tests.benchmarks.server_app", name]
    pipe, quiet = subprocess.PIPE, subprocess.DEVNULL  # a peer logs what its database refuses
    with tempfile.TemporaryDirectory(prefix="bgx-bench-") as folder, ExitStack() as stack:
        with on_core(cores()[0]):
            process = subprocess.Popen(
                command,
                env=os.environ | {"TMPDIR": folder},
                stdin=pipe,
                stdout=pipe,
                stderr=quiet,
                text=True,
            )
        stack.enter_context(process)
        try:
            assert process.stdout is not None
            printed = process.stdout.readline()
            if not printed:
                raise Failed(f"no server for {name}: {' '.join(command)}")
            running = Server(name, int(printed))
            _wait_until_up(running)
            yield running
        finally:
            process.kill()


def _wait_until_up(running: Server) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            running.report()
        except OSError as error:
            if time.monotonic() > deadline:
                raise Failed(f"{running.name} does not answer") from error
            time.sleep(0.05)
        else:
            return


async def w4(effort: Effort, tick: Tick) -> list[Series]:
    """Requests per second, and what a flood of sync tasks does to an innocent endpoint."""
    return [*_rates(effort, tick), *_floods(effort, tick)]


def steps(effort: Effort) -> int:
    """How often `w4` ticks."""
    rates = len(available(*FAST)) * (_rate_rounds(effort) + 1)
    return rates + len(available(*FLOODED)) * _flood_rounds(effort)


def _rate_rounds(effort: Effort) -> int:
    return min(effort.rounds, 2) if effort.quick else effort.rounds


def _flood_rounds(effort: Effort) -> int:
    """A flood takes long, and its ratio has no need of many."""
    return 1 if effort.quick else min(effort.rounds, MOST_FLOODS)


# Requests per second.


def _rates(effort: Effort, tick: Tick) -> list[Series]:
    seconds = effort.scaled(2, 1)
    found = _Values()
    with ExitStack() as stack:
        servers = [stack.enter_context(server(name)) for name in available(*FAST)]
        for each in servers:
            tick(f"warming up {each.name}")
            load_closed(each.port, 1)
        for _ in range(_rate_rounds(effort)):
            for each in shuffled(servers):
                tick(f"{RATE}: {each.name}")
                _measure_rate(each, seconds, found)
    return found.series()


def _measure_rate(each: Server, seconds: float, found: "_Values") -> None:
    before = each.report()
    answered, took = load_closed(each.port, seconds)
    after = _when_all_ran(each, int(before["ran"]) + answered)
    found.add(RATE, each.name, "requests/s", answered / took)
    found.add(GC_SHARE, each.name, "%", (after["gc_total_s"] - before["gc_total_s"]) / took * 100)
    found.add(GC_LONGEST, each.name, "ms", after["gc_longest_s"] * 1e3)


def _when_all_ran(each: Server, expected: int) -> dict[str, float]:
    """Nobody is fast by losing tasks."""
    deadline = time.monotonic() + DEADLINE_S
    while (report := each.report())["ran"] < expected:
        if time.monotonic() > deadline:
            raise Failed(f"{each.name} ran {report['ran']:.0f} of {expected} tasks")
        time.sleep(0.05)
    return report


def load_closed(port: int, seconds: float) -> tuple[int, float]:
    """Have as many requests answered as can be; how many, and in how many seconds.

    Raises:
        Failed: a request was not answered, or not with 200.
    """
    if generator() == "wrk":
        url = f"http://127.0.0.1:{port}/light"
        output = _load("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:.0f}s", url, seconds=seconds)
        return parse_wrk(output)
    result = json.loads(_load_here("closed", port, "/light", CONNECTIONS, seconds, seconds=seconds))
    if result["refused"]:
        raise Failed(f"{result['refused']} requests were refused")
    return result["answered"], result["seconds"]


def parse_wrk(output: str) -> tuple[int, float]:
    """Requests and seconds of wrk's summary.

    Raises:
        Failed: it tells of errors.
    """
    if "Socket errors" in output or "Non-2xx" in output:
        raise Failed(output)
    summary = re.search(r"(\d+) requests in ([\d.]+)(s|m)", output)
    if summary is None:
        raise Failed(output)
    return int(summary[1]), float(summary[2]) * (60 if summary[3] == "m" else 1)


# The flood.


def _floods(effort: Effort, tick: Tick) -> list[Series]:
    found = _Values()
    for _ in range(_flood_rounds(effort)):
        for name in shuffled(available(*FLOODED)):
            tick(f"flood: {name}")
            _measure_flood(name, effort, found)
    return found.series()


def _measure_flood(name: str, effort: Effort, found: "_Values") -> None:
    """In a new server each time: what was flooded in is never waited for."""
    seconds = effort.scaled(5, 1.5)
    rate = 2 * THREADS / BLOCKED_S
    limit = 3 * seconds + 5
    with server(name) as each:
        load_closed(each.port, 1)  # what is measured is not the first requests of a new process
        output = _load_here("flood", each.port, rate, seconds, PROBE_EVERY_S, limit, seconds=limit)
        found.add(FLOOD_GC, name, "ms", each.report()["gc_longest_s"] * 1e3)
    result = json.loads(output)
    if result["failed"]:
        raise Failed(f"{name}: {result['failed']} requests of the flood failed")
    percentiles = quantiles(result["latencies"], n=100, method="inclusive")
    found.add(P50, name, "ms", percentiles[49] * 1e3)
    found.add(P99, name, "ms", percentiles[98] * 1e3)


# The load generator.


def _load_here(*arguments: Any, seconds: float) -> str:
    command = [sys.executable, "-m", "tests.benchmarks.load", *map(str, arguments)]
    return _load(*command, seconds=seconds)


def _load(*command: str, seconds: float) -> str:
    with on_core(cores()[1]):
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds * 2 + 30, check=False
        )
    if done.returncode:
        raise Failed(f"{command[0]} ended with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


class _Values:
    """What was found, round by round."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str, str], list[float]] = defaultdict(list)

    def add(self, case: str, contestant: str, unit: str, value: float) -> None:
        self._found[case, contestant, unit].append(value)

    def series(self) -> list[Series]:
        """In the order of the contestants, which the rounds have shuffled."""
        order = list(CONTESTANTS)
        found = [
            Series(case=case, contestant=contestant, unit=unit, values=tuple(values))
            for (case, contestant, unit), values in self._found.items()
        ]
        return sorted(found, key=lambda each: order.index(each.contestant))
