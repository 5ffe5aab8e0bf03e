"""Every `Bgx` of the process: those that exist, and those that a test makes."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from fastapi_bgx.events import Listener
from fastapi_bgx.runners import Runners, everyone, when_made
from fastapi_bgx.timers import Clock


@contextmanager
def each_bgx(
    arrive: Callable[[Runners], None], leave: Callable[[Runners], None]
) -> Generator[None]:
    """Call `arrive` with each, now or when it is made; at the end, `leave` with each that lives."""
    when_made.append(arrive)
    try:
        for runners in list(everyone):
            arrive(runners)
        yield
    finally:
        when_made.remove(arrive)
        for runners in list(everyone):
            leave(runners)


@contextmanager
def listening(listener_for: Callable[[Runners], Listener]) -> Generator[None]:
    """Have each tell its events to a listener of its own."""
    listeners = WeakKeyDictionary[Runners, Listener]()

    def arrive(runners: Runners) -> None:
        listeners[runners] = listener_for(runners)
        runners.join(listeners[runners])

    def leave(runners: Runners) -> None:
        runners.leave(listeners[runners])

    with each_bgx(arrive, leave):
        yield


@contextmanager
def living_by(clock: Clock) -> Generator[None]:
    """Have each live by `clock`."""
    before = WeakKeyDictionary[Runners, Clock]()

    def arrive(runners: Runners) -> None:
        before[runners] = runners.clock
        runners.tell_time_by(clock)

    def leave(runners: Runners) -> None:
        runners.tell_time_by(before[runners])

    with each_bgx(arrive, leave):
        yield
