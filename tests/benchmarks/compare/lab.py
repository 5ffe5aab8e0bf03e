"""What a situation works with: servers of its application, for one contestant, in one folder."""

import json
import socket
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.benchmarks.compare.kit import CONTESTANT, DATABASE, FOLDER, SITUATION, WANTS
from tests.benchmarks.compare.server import Server, running
from tests.benchmarks.compare.situation import Facts, Situation


@dataclass(frozen=True, slots=True)
class Lab:
    """One situation of one contestant."""

    situation: Situation
    contestant: str
    folder: Path

    def serve(self, *options: str, **wants: Any) -> AbstractContextManager[Server]:
        """Serve the application; a second server in the same lab finds what the first left."""
        return running(self.start(*options, **wants))

    def start(self, *options: str, **wants: Any) -> Server:
        """Start a server, without waiting until it answers."""
        wanted = replace(self.situation.wants, **wants)
        environment = {
            SITUATION: self.situation.key,
            CONTESTANT: self.contestant,
            WANTS: json.dumps(wanted.plain()),
            FOLDER: str(self.folder),
            "HOME": str(self.folder),
        }
        return Server(self.folder, _free_port(), environment, *options)

    def stored(self) -> bytes:
        """Everything that is on the disk of the store."""
        return b"".join(path.read_bytes() for path in self.folder.glob(f"{DATABASE}*"))

    def forget(self) -> None:
        """Remove the notes that were written so far."""
        for path in self.folder.glob("notes"):
            path.unlink()


def look(situation: Situation, contestant: str) -> Facts:
    """Run a situation for one contestant, in a new folder."""
    with _folder() as folder:
        return situation.look(Lab(situation, contestant, folder))


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="bgx-compare-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port: int = listening.getsockname()[1]
    return port
