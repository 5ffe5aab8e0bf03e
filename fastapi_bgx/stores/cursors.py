"""Cursors: where a page ended, as a text that leads to the next one.

Records are listed by when they were added, the last first, and by id where that is the same.
"""

import base64
import binascii
import json
import math

Position = tuple[float, str]
"""When a record was added, in seconds since 1970, and its id."""


def cursor_at(position: Position) -> str:
    """The cursor that leads to what comes after `position`."""
    text = json.dumps(position, separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def position_of(cursor: str) -> Position:
    """Where the page before ended.

    Raises:
        ValueError: no page has given such a cursor.
    """
    try:
        padded = cursor + "=" * (-len(cursor) % 4)
        added_at, task_id = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        position = float(added_at), str(task_id)
    except (binascii.Error, TypeError, ValueError, RecursionError):
        raise ValueError(f"no page has given the cursor {cursor[:50]!r}") from None
    if not math.isfinite(position[0]):
        raise ValueError(f"no page has given the cursor {cursor[:50]!r}")
    return position
