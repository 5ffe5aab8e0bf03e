"""How numbers, times and words look to people. Pure; the templates use these as filters."""

from datetime import UTC, datetime
from typing import NamedTuple

from fastapi_bgx.outcome import Status
from fastapi_bgx.records import Answer, Record, Step

NOTHING = "\N{EN DASH}"
"""Where there is no value."""
MINUTE, HOUR, DAY = 60.0, 3_600.0, 86_400.0
LIBRARIES = ("site-packages", "dist-packages", "/lib/python", "\\lib\\", "<frozen ")
"""What the path of a file has that is not of the application."""

WORDS = {
    "started": "attempt {} began",
    "failed": "attempt {} failed",
    "delayed": "delayed",
    "retrying": "will retry",
    "log": "log",
    "slow": "slow",
    "blocked_loop": "blocked the loop",
    "overran": "overran",
}


def duration(seconds: float | None) -> str:
    """A length of time with the digits that matter: `180 ms`, `1.9 s`, `2 min 5 s`, `3 d 4 h`."""
    if seconds is None:
        return NOTHING
    if seconds < 0:
        return f"-{duration(-seconds)}"
    if seconds < 0.00005:
        return "0 ms"
    if seconds < 0.9995:
        return f"{seconds * 1_000:.0f} ms" if seconds >= 0.0095 else f"{seconds * 1_000:.1f} ms"
    if seconds < 9.95:
        return f"{seconds:.2f} s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    return _long(round(seconds))


def _long(seconds: int) -> str:
    minutes, seconds = divmod(seconds, 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = ((days, "d"), (hours, "h"), (minutes, "min"), (seconds, "s"))
    first = next(i for i, (many, _) in enumerate(parts) if many)
    return " ".join(f"{many} {unit}" for many, unit in parts[first : first + 2] if many)


def ago(at: datetime | None, now: datetime) -> str:
    """How far a moment is from now: `8 s ago`, `in 9 min`, `just now`."""
    if at is None:
        return NOTHING
    seconds = (now - at).total_seconds()
    if abs(seconds) < 1:
        return "just now"
    return f"{_coarse(seconds)} ago" if seconds > 0 else f"in {_coarse(-seconds)}"


def _coarse(seconds: float) -> str:
    for length, unit in ((DAY, "d"), (HOUR, "h"), (MINUTE, "min")):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit}"
    return f"{seconds // 1:.0f} s"


def clock(at: datetime | None, now: datetime) -> str:
    """The time of day in UTC, with the day when it is not that of `now`."""
    if at is None:
        return NOTHING
    at, now = at.astimezone(UTC), now.astimezone(UTC)
    if at.date() == now.date():
        return f"{at:%H:%M:%S}"
    return f"{at.day} {at:%b %H:%M}" if at.year == now.year else f"{at.day} {at:%b %Y}"


def exact(at: datetime | None) -> str:
    """A moment in full, in UTC and to the millisecond."""
    if at is None:
        return NOTHING
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}.{at.microsecond // 1_000:03d} UTC"


def iso(at: datetime) -> str:
    """A moment for `<time datetime>`."""
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def count(number: int) -> str:
    """A number with a comma at each thousand."""
    return f"{number:,}"


def share(part: int, whole: int) -> str:
    """A part of a whole in percent: never `0 %` of something, nor `100 %` of less than all."""
    if not whole:
        return NOTHING
    percent = part / whole * 100
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.0f} %" if percent >= 9.95 or not part else f"{percent:.1f} %"


def many(number: int, word: str, words: str = "") -> str:
    """A number and its noun: `1 task`, `2 tasks`."""
    return f"{number:,} {word if number == 1 else words or word + 's'}"


def status_word(status: str) -> str:
    """The word for a status: `timed out`."""
    return status.replace("_", " ")


def step_word(step: Step) -> str:
    """The words for a step: `attempt 2 failed`."""
    return WORDS[step.kind].format(step.attempt)


def last_of_dots(name: str) -> str:
    """The last part of a dotted name: `smtplib.SMTPServerDisconnected` without its module."""
    return name.rpartition(".")[2]


def took(record: Record, now: datetime) -> float | None:
    """Seconds that it ran, up to now while it runs; `None` when it never began."""
    if record.duration_s is not None or record.started_at is None or record.final:
        return record.duration_s
    return max(0.0, (now - record.started_at).total_seconds())


def waited(record: Record, now: datetime) -> float | None:
    """Seconds that it waited for its first attempt, up to now while it waits."""
    if record.queued_s is not None or record.final:
        return record.queued_s
    return max(0.0, (now - record.added_at).total_seconds())


def why(record: Record) -> str:
    """One line about what a record's status does not say: its error, its reason or its note."""
    if record.error_type and record.status is not Status.SUCCEEDED:
        error = last_of_dots(record.error_type)
        return f"{error}: {record.error_message}" if record.error_message else error
    return record.reason or record.note


class Line(NamedTuple):
    """A line of a traceback."""

    kind: str
    """`own` or `library` for a place, `code`, or `error` for what is not indented."""
    text: str


def traceback_lines(text: str) -> list[Line]:
    """The lines of a traceback, told apart so that the eye finds its own code."""
    lines: list[Line] = []
    own = True
    for line in text.splitlines():
        if line.lstrip(" |+-").startswith('File "'):
            own = not any(part in line for part in LIBRARIES)
            lines.append(Line("own" if own else "library", line))
        elif line[:1] in (" ", ""):
            lines.append(Line("code" if own else "library", line))
        else:
            lines.append(Line("head" if _is_head(line) else "error", line))
    return lines


def _is_head(line: str) -> bool:
    return line.startswith(("Traceback (", "The above exception", "During handling"))


class Done(NamedTuple):
    """What became of an action on some tasks."""

    action: str
    done: int = 0
    ended: int = 0
    """Had ended already."""
    unknown: int = 0
    """Nobody knows them any more."""
    refused: int = 0
    """Could not be, for another reason."""

    def sentence(self) -> str:
        """What happened, for whoever asked for it."""
        verb = "asked to stop" if self.action == "cancel" else "run again"
        parts = [f"{many(self.done, 'task')} {verb}"]
        parts += [f"{self.ended:,} had ended already"] if self.ended else []
        parts += [f"{self.unknown:,} not found"] if self.unknown else []
        parts += [f"{self.refused:,} could not be {verb}"] if self.refused else []
        return ", ".join(parts) + "."

    def code(self) -> str:
        """It as a text for a URL, which `done_of` reads."""
        return ".".join(map(str, self))


def done_of(code: str) -> Done | None:
    """What `Done.code` gave; `None` for anything else, so that no URL puts words on a page."""
    action, *numbers = code[:60].split(".")
    if action not in ("cancel", "retry") or len(numbers) != 4:
        return None
    if not all(number.isascii() and number.isdigit() for number in numbers):
        return None
    return Done(action, *map(int, numbers))


def sum_up(action: str, answers: list[Answer | None]) -> Done:
    """Count what became of an action."""
    done = sum(answer is not None and answer.done for answer in answers)
    unknown = answers.count(None)
    ended = sum(
        answer is not None and not answer.done and answer.detail.startswith("it has ended")
        for answer in answers
    )
    return Done(action, done, ended, unknown, len(answers) - done - unknown - ended)
