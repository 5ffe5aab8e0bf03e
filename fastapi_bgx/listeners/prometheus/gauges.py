"""What runs and waits now, from `bgx.stats()`: read when somebody scrapes.

In the multi-process mode of `prometheus_client` the process that is scraped answers for all, from
their files, and can ask none of them. There each process writes its own gauges once a second.
"""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import GaugeMetricFamily

from fastapi_bgx.listeners.prometheus.labels import MOST_NAMES, OTHER, printable
from fastapi_bgx.notices import notice
from fastapi_bgx.reports import Stats

WRITE_SECONDS = 1.0
CAN_ASK_FOR_PIDS = os.name == "posix"  # on Windows signal 0 is Ctrl+C


class GaugeName(NamedTuple):
    """What is known of a gauge before it is read."""

    name: str
    meaning: str
    labels: tuple[str, ...] = ()


RUNNING = GaugeName("bgx_tasks_running", "Tasks that hold their slots now.", ("executor",))
WAITING = GaugeName("bgx_tasks_waiting", "Tasks that were added and not started yet.")
OVERRUNNING = GaugeName(
    "bgx_tasks_overrunning", "Functions that still run though their task is over."
)
SLOTS = GaugeName(
    "bgx_limiter_slots", "Slots of a limiter; of each key, if it has keys.", ("limiter",)
)
TAKEN = GaugeName("bgx_limiter_slots_taken", "Slots that are taken now.", ("limiter",))
QUEUED = GaugeName("bgx_limiter_tasks_waiting", "Tasks that wait for a limiter.", ("limiter",))
GAUGES = (RUNNING, WAITING, OVERRUNNING, SLOTS, TAKEN, QUEUED)

Readings = Mapping[tuple[GaugeName, tuple[str, ...]], float]
"""The value of each gauge, by the values of its labels."""


def readings_of(snapshots: Iterable[Stats]) -> Readings:
    """Every gauge, added up over the snapshots."""
    sums: dict[tuple[GaugeName, tuple[str, ...]], float] = {}
    limiters: set[str] = set()

    def add(gauge: GaugeName, value: float, *labels: str) -> None:
        sums[gauge, labels] = sums.get((gauge, labels), 0.0) + value

    for stats in snapshots:
        for executor, running in stats.executors.items():
            add(RUNNING, running, executor)
        add(WAITING, stats.waiting)
        add(OVERRUNNING, stats.overrunning)
        for name, limiter in stats.limiters.items():
            known = name in limiters or len(limiters) < MOST_NAMES
            limiters.add(name if known else OTHER)
            label = printable(name) if known else OTHER
            add(TAKEN, limiter.taken, label)
            add(QUEUED, limiter.waiting, label)
            if limiter.slots is not None:
                add(SLOTS, limiter.slots, label)
    return sums


class GaugeReader:
    """Reads the gauges when its registry is asked."""

    def __init__(self, read: Callable[[], Readings]) -> None:
        self._read = read

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """The gauges without their values, so that no other metric takes their names."""
        return iter(self._families().values())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """The gauges as they are now."""
        families = self._families()
        for (gauge, labels), value in self._read().items():
            families[gauge].add_metric(labels, value)
        return iter(families.values())

    def _families(self) -> dict[GaugeName, GaugeMetricFamily]:
        return {
            gauge: GaugeMetricFamily(gauge.name, gauge.meaning, labels=gauge.labels)
            for gauge in GAUGES
        }


class GaugeWriter:
    """Writes the gauges of this process, and removes the files of those that have died."""

    def __init__(
        self, read: Callable[[], Readings], registry: CollectorRegistry | None = None
    ) -> None:
        self._read = read
        self._gauges = {
            gauge: Gauge(
                gauge.name,
                gauge.meaning,
                gauge.labels,
                registry=registry,
                multiprocess_mode="livesum",
            )
            for gauge in GAUGES
        }
        self._written: dict[tuple[GaugeName, tuple[str, ...]], Gauge] = {}
        self._process: int | None = None
        self._fails = False

    def start(self) -> None:
        """Write once a second, from now to the end of this process; also after a fork."""
        if self._process != os.getpid():
            self._process = os.getpid()
            threading.Thread(target=self._run, name="bgx-prometheus", daemon=True).start()

    def step(self) -> None:
        """Write every gauge once; what fails is logged when it first does."""
        try:
            self._write()
            remove_the_dead(Path(os.environ["PROMETHEUS_MULTIPROC_DIR"]))
            self._fails = False
        except Exception:
            if not self._fails:
                notice("exception", "bgx.listener_failed", listener="prometheus", about="gauges")
            self._fails = True

    def _run(self) -> None:
        while True:
            self.step()
            time.sleep(WRITE_SECONDS)

    def _write(self) -> None:
        readings = self._read()
        for key in readings.keys() - self._written.keys():
            gauge, labels = key
            family = self._gauges[gauge]
            self._written[key] = family.labels(*labels) if labels else family
        for key, child in self._written.items():
            child.set(readings.get(key, 0.0))


def remove_the_dead(directory: Path) -> None:
    """Remove the files of live gauges whose process has ended: a server need not do it.

    Only where files are named by process ids, as that of this process shows.
    """
    if not CAN_ASK_FOR_PIDS or not (directory / f"gauge_livesum_{os.getpid()}.db").exists():
        return
    for path in directory.glob("gauge_live*.db"):
        pid = path.stem.rpartition("_")[2]
        if pid.isdecimal() and not _lives(int(pid)):
            path.unlink(missing_ok=True)  # another process may have been faster


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
