"""Who is taken for dead: those that fall silent while others are heard, and nobody else."""

from datetime import datetime, timedelta

from fastapi_bgx.listeners.recorder.watch import UNSEEN_SECONDS, Watch
from fastapi_bgx.records import ProcessReading
from tests.records import NOW, SECOND

HOUR = timedelta(hours=1)


def a_process(name: str, seen_at: datetime) -> ProcessReading:
    return ProcessReading(id=name, host="h", pid=1, started_at=NOW, seen_at=seen_at)


class Machine:
    """Processes that beat, and one that looks every ten seconds."""

    def __init__(self, **ahead: timedelta) -> None:
        self.watch = Watch()
        self.now = 1_000.0
        self.wall = NOW
        self.ahead = ahead
        self.readings: dict[str, ProcessReading] = {}
        self.gone_before = NOW

    def beat(self, *names: str) -> None:
        for name in names:
            seen_at = self.wall + self.ahead.get(name, 0 * SECOND)
            self.readings[name] = a_process(name, seen_at)

    def look(self) -> list[str]:
        """Who is taken for dead."""
        before = self.watch.gone_before(self.readings.values(), self.now, self.wall)
        return [name for name, reading in self.readings.items() if reading.seen_at < before]

    def passes(self, seconds: float) -> None:
        self.now += seconds
        self.wall += seconds * SECOND


def test_who_falls_silent_while_others_are_heard_is_gone_after_thirty_seconds() -> None:
    machine = Machine()
    machine.beat("here", "dead")
    found = []
    for _ in range(5):
        found.append(machine.look())
        machine.passes(10)
        machine.beat("here")
    assert found == [[], [], [], [], ["dead"]]


def test_after_an_outage_nobody_is_gone_who_has_not_had_the_time_to_come_back() -> None:
    machine = Machine()
    machine.beat("here", "there")
    assert machine.look() == []
    machine.passes(3_600)
    machine.beat("here")
    for _ in range(3):
        assert machine.look() == []
        machine.passes(9)
        machine.beat("here")
    machine.beat("there")
    for _ in range(5):
        assert machine.look() == []
        machine.passes(10)
        machine.beat("here", "there")


def test_an_outage_begins_the_watch_anew_however_short_it_was() -> None:
    machine = Machine()
    machine.beat("there")
    for _ in range(3):
        machine.look()
        machine.passes(10)
    machine.watch.begin_anew()
    machine.passes(1)
    assert machine.look() == []


def test_nobody_is_gone_because_a_machine_was_asleep() -> None:
    machine = Machine()
    machine.beat("here", "there")
    machine.look()
    machine.wall += HOUR  # the monotonic clock has slept, too
    machine.passes(10)
    machine.beat("here")
    assert machine.look() == []


def test_a_clock_that_is_late_is_no_death_and_lets_only_the_dead_wait() -> None:
    machine = Machine(late=-HOUR)
    machine.beat("here", "late", "dead")
    for _ in range(10):
        assert machine.look() == []
        machine.passes(10)
        machine.beat("here", "late")
    machine.wall += HOUR
    machine.beat("here", "late")
    assert machine.look() == ["dead"]


def test_alone_one_counts_back_from_now() -> None:
    assert Watch().gone_before([], 1.0, NOW) == NOW - UNSEEN_SECONDS * SECOND
