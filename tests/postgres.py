"""PostgreSQL for tests: schemas of their own on a running server, and one that may be killed."""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psycopg

from tests.conftest import require

ADDRESS = "postgresql://postgres@127.0.0.1:5432/test"
"""Where a server is expected; `TEST_POSTGRESQL` names another."""


def address() -> str:
    """The URL of a running server; without one the test cannot run."""
    url = os.environ.get("TEST_POSTGRESQL", ADDRESS)
    try:
        psycopg.connect(url, connect_timeout=2).close()
    except psycopg.OperationalError:
        require(False, f"no PostgreSQL answers at {url}")
    return url


@contextmanager
def schema(url: str) -> Iterator[str]:
    """The URL of an empty schema, which is gone afterwards."""
    name = f"bgx_{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f'CREATE SCHEMA "{name}"')  # type: ignore[call-overload,unused-ignore]
    try:
        yield f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3D{name}"
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f'DROP SCHEMA "{name}" CASCADE')  # type: ignore[call-overload,unused-ignore]


def binaries() -> Path | None:
    """Where `initdb` and `postgres` are, of the newest version."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name)
    found = shutil.which("initdb")
    return folders[-1] if folders else Path(found).parent if found else None


class Cluster:
    """A PostgreSQL server of the tests' own, which they may kill."""

    def __init__(self, programs: Path, folder: Path) -> None:
        self._programs = programs
        self._folder = folder
        self._user = "postgres" if os.geteuid() == 0 else None  # it refuses to run as root
        self._server: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        if self._user:
            shutil.chown(folder, self._user)
        options = ["-U", "postgres", "-A", "trust", "--no-sync"]
        command: list[str | Path] = [programs / "initdb", "-D", folder / "data", *options]
        subprocess.run(command, check=True, capture_output=True, user=self._user, cwd=folder)

    @property
    def url(self) -> str:
        """Its database."""
        return f"postgresql://postgres@127.0.0.1:{self._port}/postgres"

    def start(self) -> None:
        """Start it, and wait until it answers."""
        settings = {"port": self._port, "unix_socket_directories": self._folder, "fsync": "off"}
        options = [f"-c{name}={value}" for name, value in settings.items()]
        self._server = subprocess.Popen(
            [self._programs / "postgres", "-D", self._folder / "data", *options],
            user=self._user,
            cwd=self._folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        for _ in range(100):
            with suppress(psycopg.OperationalError):
                psycopg.connect(self.url, connect_timeout=5).close()
                return
            with suppress(subprocess.TimeoutExpired):
                self._server.wait(0.1)
        raise TimeoutError("PostgreSQL did not start")

    def kill(self) -> None:
        """Kill every process of it at once, as a power cut does."""
        if self._server is not None:
            with suppress(ProcessLookupError):
                for each in self._processes():
                    os.kill(each, signal.SIGKILL)
            self._server.wait()
            self._server = None

    def _processes(self) -> list[int]:
        """The server and its children, which are groups of their own."""
        assert self._server is not None
        pid = self._server.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        return [pid, *map(int, children)]


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A running server of the tests' own; without PostgreSQL's programs the test cannot run."""
    programs = binaries()
    require(programs, "no programs of PostgreSQL are installed")
    assert programs is not None
    with tempfile.TemporaryDirectory(prefix="bgxpg") as folder:  # short: sockets have no room
        running = Cluster(programs, Path(folder))
        running.start()
        try:
            yield running
        finally:
            running.kill()
