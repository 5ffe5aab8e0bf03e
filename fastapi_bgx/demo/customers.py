"""The customers: what goes on in the shop by itself, so that the dashboard has something to show.

They come at a gentle pace, and what they set off is bounded: no task of theirs takes longer than a
minute, and a shop that is full sends them away.
"""

import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from fastapi_bgx.demo.server import DemoFailed
from fastapi_bgx.demo.stage import Stage


@dataclass(frozen=True, slots=True)
class Habit:
    """Something that customers do again and again."""

    seconds: float
    """From one time to the next."""
    visit: Callable[[Stage], object]
    """What they do."""


def posts(path: str) -> Callable[[Stage], object]:
    """Send that request. `{email}` in its path is an address that nobody else has."""

    def visit(stage: Stage) -> object:
        email = f"{uuid.uuid4().hex[:6]}@example.com"
        return stage.send_unseen("POST", path.format(email=email))

    return visit


def changes_its_mind(stage: Stage) -> object:
    """Ask for a reminder, and have it cancelled by the status API."""
    path = f"/reminders?email={uuid.uuid4().hex[:6]}@example.com&seconds=60"
    wanted = stage.send_unseen("POST", path).json().get("task", "refused")
    return stage.send_unseen("POST", f"/bgx/tasks/{wanted}/cancel")


HABITS = (
    Habit(2, posts("/signup?email={email}")),
    Habit(5, posts("/thumbnails")),
    Habit(7, posts("/orders")),  # the bank hangs up
    Habit(8, posts("/reminders?email={email}&seconds=20")),
    Habit(9, posts("/shipments?refusals=2&busy=5")),  # the third attempt succeeds
    Habit(11, posts("/newsletter?readers=5&seconds=3")),  # two at once: three of them wait
    Habit(12, posts("/offers")),  # no slot within a second
    Habit(13, posts("/catalogues?pages=1200")),
    Habit(15, posts("/contacts")),  # the CRM hangs
    Habit(17, posts("/photos?seconds=9")),  # a thread overruns
    Habit(19, posts("/invoice")),  # it has a bug
    Habit(23, changes_its_mind),
    Habit(29, posts("/payments")),  # the card is declined
    Habit(31, posts("/shipments?refusals=9&busy=2")),  # no attempt succeeds
)


class Customers:
    """Everybody who comes to the shop."""

    def __init__(self, stage: Stage) -> None:
        now = time.monotonic()
        self._stage = stage
        self._next = {habit: now + habit.seconds for habit in HABITS}

    def come_all_at_once(self) -> None:
        """Do everything once, so that there are tasks in every state."""
        for habit in HABITS:
            habit.visit(self._stage)

    def come_in_time(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        for habit, due in self._next.items():
            if now >= due:
                self._next[habit] = now + habit.seconds
                with suppress(DemoFailed):  # no answer: the log says what has become of the server
                    habit.visit(self._stage)
