"""What is kept of an error: its class, message, place and traceback, as texts; never its locals.

The traceback is written here, not by `traceback`: each message in it is one that may be kept.
"""

import hashlib
import re
import sys
import sysconfig
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import count, islice
from pathlib import Path
from types import TracebackType
from typing import TypeGuard, cast

from fastapi_bgx.records import MOST_TEXT, MOST_TRACEBACK
from fastapi_bgx.telemetry import error_type
from fastapi_bgx.texts import both_ends, clean, shortened, text_of

MOST_CHAIN = 10
"""Errors of a chain, and levels of groups, that are followed."""
MOST_GROUP = 15
"""Errors of a group that are shown."""
MOST_ERRORS = 200
"""Errors that are shown in one traceback: groups may hold the same ones many times."""
MOST_FRAMES = 50
"""Frames of one traceback that are shown, at its beginning and at its end."""
SAFE = Callable[[str], str]
"""Makes of a message what may be kept of it."""

_CAUSE = "\nThe above exception was the direct cause of the following exception:\n\n"
_CONTEXT = "\nDuring handling of the above exception, another exception occurred:\n\n"
_HEAD = "Traceback (most recent call last):\n"
_FRAME = re.compile(r'^ *File "(?P<file>.+)", line (?P<line>\d+), in (?P<function>.+)$', re.M)

Frame = tuple[str, int, str]
"""File, line and function."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as a record keeps it."""

    type: str
    message: str
    place: str
    """`app/mail.py:31 in send`; empty when nobody knows."""
    traceback: str
    fingerprint: str
    """The same for errors of one class from one place."""


def message_of(error: BaseException, safe: SAFE) -> str:
    """What an error says, as far as it may be kept."""
    return shortened(safe(text_of(error)[: 10 * MOST_TEXT]))


def describe(error: BaseException, safe: SAFE, otherwise: Frame | None = None) -> Failure:
    """Everything that is kept of an error.

    `otherwise`: where it was raised, when no frame of it is the application's.
    """
    kind = shortened(error_type(error))
    file, line, function = _innermost(error, otherwise) or ("", 0, "")
    where = f"{file} in {function}" if file else ""
    return Failure(
        type=kind,
        message=message_of(error, safe),
        place=shortened(f"{file}:{line} in {function}") if file else "",
        traceback=both_ends(_traceback(error, safe), MOST_TRACEBACK),
        fingerprint=_hash(f"{kind} {where}"),
    )


def _hash(text: str) -> str:
    return hashlib.sha256(clean(text).encode()).hexdigest()[:16]


def _traceback(error: BaseException, safe: SAFE) -> str:
    return "".join(_text(error, safe, set(), 0, count())).rstrip("\n")


# The place.


def _innermost(error: BaseException, otherwise: Frame | None) -> Frame | None:
    """The innermost frame of the application; without one `otherwise`, or the innermost of all."""
    frames = _frames(error)
    ours = [frame for frame in frames if is_of_application(frame[0])]
    found = [*frames[-1:], *([] if otherwise is None else [otherwise]), *ours]
    return _shown(found[-1]) if found else None


def _frames(error: BaseException) -> list[Frame]:
    """The frames of an error; of a timeout, and of what a worker raised, those of its cause.

    These may be known as a text alone: a thread that still runs, another process.
    """
    cause = error.__cause__
    frames = list(_walk(error.__traceback__)) or list(
        _walk(None if cause is None else cause.__traceback__)
    )
    if not frames and cause is not None:
        told = _FRAME.finditer(text_of(cause)[-MOST_TRACEBACK:])
        frames = [(each["file"], int(each["line"]), each["function"]) for each in told]
    return frames


def _walk(found: TracebackType | None) -> Iterator[Frame]:
    while found is not None:
        code = found.tb_frame.f_code
        yield code.co_filename, found.tb_lineno or 0, code.co_name
        found = found.tb_next


@cache
def is_of_application(file: str) -> bool:
    """True for a file that is neither installed, nor Python's own, nor this library's."""
    if file.startswith("<") or file.startswith(_of_others()):
        return False
    return not {"site-packages", "dist-packages"}.intersection(Path(file).parts)


@cache
def _of_others() -> tuple[str, ...]:
    ours = str(Path(__file__).parents[2])
    pythons = (sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib"))
    return (ours, *(path for path in pythons if path))


@cache
def _short_path(file: str) -> str:
    """A path as people know it: from the folder that the process runs in, or that it imports from.

    The same in each process, and after the next deployment to another folder.
    """
    folders = [str(Path.cwd()), *(each for each in sys.path if each)]
    inside = [each for each in folders if file.startswith(each.rstrip("/\\") + "/")]
    return file[len(max(inside, key=len).rstrip("/\\")) + 1 :] if inside else file


def _shown(frame: Frame) -> Frame:
    return _short_path(frame[0]), frame[1], frame[2]


# The traceback.


def _text(
    error: BaseException, safe: SAFE, seen: set[int], depth: int, told: Iterator[int]
) -> Iterator[str]:
    """The chain that led to an error, and the error; pieces of text that end with a line.

    `told` counts the errors of all chains and groups together.
    """
    if next(told) >= MOST_ERRORS:
        yield "… and more errors, which were left out …\n"
        return
    seen.add(id(error))
    before, joint = _before(error)
    if before is not None and id(before) not in seen:
        if len(seen) < MOST_CHAIN:
            yield from _text(before, safe, seen, depth, told)
        else:
            yield "… the errors before this one were left out …\n"
        yield joint
    if error.__traceback__ is not None:
        yield _HEAD
        yield from _frame_lines(error.__traceback__)
    yield f"{error_type(error)}: {message_of(error, safe)}\n"
    for note in islice(_notes(error), MOST_GROUP):
        yield f"{shortened(safe(text_of(note)[: 10 * MOST_TEXT]))}\n"
    if _is_group(error):
        yield from _group(error, safe, seen, depth, told)


def _notes(error: BaseException) -> Iterable[object]:
    """What was added to an error; anybody may put anything there."""
    notes: object = getattr(error, "__notes__", None)
    return cast(list[object], notes) if isinstance(notes, list) else ()


def _is_group(error: BaseException) -> TypeGuard[BaseExceptionGroup[BaseException]]:
    return isinstance(error, BaseExceptionGroup)


def _before(error: BaseException) -> tuple[BaseException | None, str]:
    if error.__cause__ is not None:
        return error.__cause__, _CAUSE
    return (None if error.__suppress_context__ else error.__context__), _CONTEXT


def _frame_lines(found: TracebackType) -> Iterator[str]:
    frames = list(traceback.walk_tb(found))
    middle = len(frames) - 2 * MOST_FRAMES
    first, last = frames, frames[:0]
    if middle > 0:
        first, last = frames[:MOST_FRAMES], frames[-MOST_FRAMES:]
    yield from traceback.StackSummary.extract(iter(first)).format()
    if last:
        yield f"  … {middle} frames left out …\n"
        yield from traceback.StackSummary.extract(iter(last)).format()


def _group(
    group: "BaseExceptionGroup[BaseException]",
    safe: SAFE,
    seen: set[int],
    depth: int,
    told: Iterator[int],
) -> Iterator[str]:
    if depth == MOST_CHAIN:
        yield "  | … what is inside of it was left out …\n"
        return
    shown = group.exceptions[:MOST_GROUP]
    for number, error in enumerate(shown, 1):
        yield f"  +---------------- {number} ----------------\n"
        for text in _text(error, safe, set(seen), depth + 1, told):
            yield from (f"  | {line}\n" for line in text.splitlines())
    if len(group.exceptions) > len(shown):
        yield f"  | and {len(group.exceptions) - len(shown)} more\n"
