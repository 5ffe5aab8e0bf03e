"""Values as texts of bounded size that any database and any page takes; nothing here can raise.

A value may be huge, refer to itself, or fail when it is looked at: no more of it is looked at than
is shown.
"""

import dataclasses
import json
import math
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import islice
from pathlib import PurePath
from typing import Any, TypeGuard, cast
from uuid import UUID

from pydantic import BaseModel

from fastapi_bgx.records import MOST_TEXT

MOST_DEPTH = 20
MOST_BITS = 10_000
"""Of an integer; Python refuses to write one of more than 4,300 digits."""
LEFT_OUT = "…"

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")  # PostgreSQL refuses them, and so does UTF-8
_LISTS = (list, tuple, set, frozenset, deque)
_BYTES = (bytes, bytearray, memoryview)
_SPELT = (date, time, timedelta, Decimal, UUID, PurePath)  # a datetime is a date


def clean(text: str) -> str:
    """The text without what no database keeps: NUL and lone surrogates."""
    if text.isascii() and "\x00" not in text:  # most are: to look for more costs ten times as much
        return text
    return _UNSTORABLE.sub("\ufffd", text)


def shortened(text: str, most: int = MOST_TEXT) -> str:
    """The beginning of a text, clean, at most `most` characters."""
    return clean(text if len(text) <= most else text[: most - 1] + LEFT_OUT)


def both_ends(text: str, most: int) -> str:
    """The beginning and the end of a long text, clean, at most `most` characters."""
    if len(text) <= most:
        return clean(text)
    note = f"\n{LEFT_OUT} {len(text) - most:,} characters and more left out {LEFT_OUT}\n"
    half = (most - len(note)) // 2
    return clean(text[:half] + note + text[-half:])


def summary_of(value: object, most: int = MOST_TEXT) -> str:
    """A value as JSON where it can be, or else its `repr`; at most `most` characters.

    Fields of dataclasses and pydantic models that are not in their `repr` are left out.
    """
    try:
        if _has_no_json(value):
            return shortened(_repr(value, most), most)
        return _as_json(value, most)
    except BaseException as error:  # of a property, an iterator: whatever its class has written
        return _unshown(value, error)


def text_of(value: object) -> str:
    """`str(value)`; never raises."""
    try:
        return str.__str__(str(value))
    except BaseException as error:
        return _unshown(value, error)


def _unshown(value: object, error: BaseException) -> str:
    return shortened(f"<{type(value).__qualname__} that cannot be shown: {type(error).__name__}>")


def _as_json(value: object, most: int) -> str:
    writer = _Writer(most - len(LEFT_OUT))
    try:
        writer.write(value, 0)
    except _Full:
        writer.parts.append(LEFT_OUT)
    return clean("".join(writer.parts))


def _has_no_json(value: object) -> bool:
    known = (str, int, float, Enum, Mapping, BaseModel, *_LISTS, *_SPELT)
    return not (value is None or isinstance(value, known) or _is_dataclass(value))


def _is_dataclass(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _repr(value: Any, most: int) -> str:
    if isinstance(value, _BYTES):
        return repr(bytes(cast(Any, value[:most])))
    return str.__str__(repr(value))


class _Full(Exception):
    """There is enough."""


class _Writer:
    """Writes one value as JSON, piece by piece, until there is enough."""

    def __init__(self, most: int) -> None:
        self.parts: list[str] = []
        self._left = most
        self._inside: set[int] = set()

    def write(self, value: Any, depth: int) -> None:
        """Write a value that is `depth` levels inside of the first."""
        if isinstance(value, Enum):
            value = value.value
        if value is None or isinstance(value, bool | int | float | str):
            self._put(_plain(value, self._left))
        elif isinstance(value, Mapping | BaseModel) or _is_dataclass(value):
            self._nest(value, depth, "{}", self._write_fields)
        elif isinstance(value, _LISTS):
            self._nest(value, depth, "[]", self._write_items)
        elif isinstance(value, _SPELT):
            self._put(json.dumps(str(value), ensure_ascii=False))
        else:
            shown = _shown(value, self._left)
            self._put(json.dumps(shown, ensure_ascii=False))

    def _put(self, text: str) -> None:
        self.parts.append(text[: self._left])
        self._left -= len(text)
        if self._left < 0:
            raise _Full

    def _nest(
        self, value: Any, depth: int, brackets: str, inside: Callable[[Any, int], None]
    ) -> None:
        if depth == MOST_DEPTH or id(value) in self._inside:
            self._put(f'"{LEFT_OUT}"')
            return
        self._inside.add(id(value))
        self._put(brackets[0])
        inside(value, depth + 1)
        self._put(brackets[1])
        self._inside.remove(id(value))

    def _write_items(self, value: Iterable[Any], depth: int) -> None:
        for index, each in enumerate(value):
            if index:
                self._put(", ")
            self.write(each, depth)

    def _write_fields(self, value: Any, depth: int) -> None:
        for index, (name, each) in enumerate(_fields_of(value)):
            if index:
                self._put(", ")
            key = name.value if isinstance(name, Enum) else name
            key = key[: self._left + 1] if isinstance(key, str) else _shown(key, self._left)
            self._put(json.dumps(key, ensure_ascii=False) + ": ")
            self.write(each, depth)


def _shown(value: object, most: int) -> str:
    """The `repr` of something inside of another thing: its fault is not that of the others."""
    try:
        return _repr(value, most + 1)[: most + 1]
    except BaseException as error:
        return _unshown(value, error)


def _plain(value: bool | float | str | None, left: int) -> str:
    if isinstance(value, str):
        return json.dumps(str.__str__(value[: left + 1]), ensure_ascii=False)
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    if isinstance(value, int):
        bits = value.bit_length()
        return int.__repr__(value) if bits <= MOST_BITS else f'"<integer of {bits:,} bits>"'
    if math.isfinite(value):
        return float.__repr__(value)
    return '"NaN"' if math.isnan(value) else '"Infinity"' if value > 0 else '"-Infinity"'


def _is_mapping(value: Any) -> TypeGuard[Mapping[Any, Any]]:
    return isinstance(value, Mapping)


def _fields_of(value: Any) -> Iterable[tuple[Any, Any]]:
    if _is_mapping(value):
        return value.items()
    if isinstance(value, BaseModel):
        fields = type(value).model_fields
        shown = [name for name, field in fields.items() if field.repr]
        return ((name, getattr(value, name)) for name in islice(shown, MOST_TEXT))
    return ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value) if f.repr)
