"""Functions that fail a few times: a module of its own, which worker processes import."""

import time
from pathlib import Path


class Again(Exception):
    """Try again."""


def flaky(notes: str, failures: int) -> int:
    """Fail that often, then give the number of the call; every process counts in one file."""
    with Path(notes).open("a") as file:
        file.write(".")
    calls = Path(notes).stat().st_size
    if calls <= failures:
        raise Again(f"call {calls}")
    return calls


async def flaky_async(notes: str, failures: int) -> int:
    return flaky(notes, failures)


def slow_at_first(notes: str, seconds: float) -> str:
    """Take too long, once."""
    note = Path(notes)
    if not note.exists():
        note.touch()
        time.sleep(seconds)
    return "done"
