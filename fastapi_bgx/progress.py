"""Progress that crosses the border of a process: a small file, which the worker writes.

The worker processes have a channel for a call and one for its result, and none for what comes in
between. The file is made when a function first tells of its progress, so that a call which tells
nothing pays nothing. It has two halves, written in turn, each with a checksum: a half that is read
while it is written, or whose writer was killed then, is known by that, and the other one is whole.
"""

import contextlib
import os
import secrets
import struct
import tempfile
import threading
import zlib
from mmap import ACCESS_READ, mmap
from pathlib import Path

from fastapi_bgx.outcome import Progress

PROGRESS_SECONDS = 1.0
"""How long no event tells of a task's progress once one did."""
MOST_NOTE = 200
"""Bytes of a note, in UTF-8, that leave a worker process; the first ones."""

_CHECKSUM = struct.Struct("<I")
_FIELDS = struct.Struct("<QdH")  # the number of the message, the fraction, the length of the note
_HALF = _CHECKSUM.size + _FIELDS.size + MOST_NOTE


def not_a_fraction(fraction: float) -> ValueError:
    """What is raised for a progress that is none."""
    return ValueError(f"progress is a fraction from 0 to 1, not {fraction!r}")


class ProgressWriter:
    """The worker's end. Any thread of it may write."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._shared: mmap | None = None
        self._number = 0
        self._note = ""
        self._encoded = b""

    def write(self, fraction: float, note: str | None) -> None:
        """Tell; with the last note when there is none. Nobody hears it where no file can be."""
        if note is not None and note != self._note:
            self._note, self._encoded = note, note.encode(errors="replace")[:MOST_NOTE]
        shared = self._shared or self._open()
        if shared is None:
            return
        self._number += 1
        encoded = self._encoded
        told = _FIELDS.pack(self._number, fraction, len(encoded)) + encoded
        start = _HALF * (self._number & 1)
        message = _CHECKSUM.pack(zlib.crc32(told)) + told
        shared[start : start + len(message)] = message

    def close(self) -> None:
        """Write no more. A thread that was left behind must not make the file anew."""
        self._path = ""
        self._shared = None  # closed with its last user, which may be such a thread

    def _open(self) -> mmap | None:
        if not self._path:
            return None
        with contextlib.suppress(OSError):
            file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                # Written, not only made longer: on a disk that is full, that is an error here, and
                # in the mapped memory a signal that kills.
                os.write(file, bytes(2 * _HALF))
                self._shared = mmap(file, 2 * _HALF)
            finally:
                os.close(file)
        return self._shared


class ProgressReader:
    """The server's end, on any thread. Nothing that happens to the file can hurt."""

    def __init__(self) -> None:
        self.path: str = os.path.join(  # noqa: PTH118 - 1 µs against 4, for each call
            tempfile.gettempdir(), f"fastapi-bgx-{secrets.token_hex(16)}"
        )
        """Of the file, which need not be there. Nobody else can know its name."""
        self._lock = threading.Lock()
        self._last: Progress | None = None

    def read(self) -> Progress | None:
        """What the worker told last; also after `close`."""
        with self._lock:
            return self._read()

    def close(self) -> Progress | None:
        """Remove the file, and give what the worker told last."""
        with self._lock:
            last = self._read()
            with contextlib.suppress(OSError):
                Path(self.path).unlink(missing_ok=True)
            return last

    def _read(self) -> Progress | None:
        # Opened each time: it is read at most a few times, and so needs no care when it is gone.
        # Mapped, since not every system shows to a plain `read` what was written in a map.
        with contextlib.suppress(OSError, ValueError):  # none, or not long enough yet
            with (
                Path(self.path).open("rb") as file,
                mmap(file.fileno(), 2 * _HALF, access=ACCESS_READ) as shared,
            ):
                data = shared[:]
            self._last = _newest(data) or self._last
        return self._last


def _newest(data: bytes) -> Progress | None:
    """The last message that is whole."""
    whole = [told for told in (_whole(data[:_HALF]), _whole(data[_HALF:])) if told is not None]
    return max(whole, key=lambda told: told[0])[1] if whole else None


def _whole(half: bytes) -> tuple[int, Progress] | None:
    (checksum,) = _CHECKSUM.unpack_from(half)
    number, fraction, length = _FIELDS.unpack_from(half, _CHECKSUM.size)
    told = half[_CHECKSUM.size : _CHECKSUM.size + _FIELDS.size + length]
    if zlib.crc32(told) != checksum:
        return None
    return number, Progress(fraction, told[_FIELDS.size :].decode(errors="ignore"))
