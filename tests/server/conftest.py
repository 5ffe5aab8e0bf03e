"""Real servers in processes of their own: real sockets, real signals, everything they printed."""

import contextlib
import importlib.util
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

import httpx
import pytest

from tests.conftest import require

HERE = Path(__file__).parent
PATIENCE = 15.0
"""Seconds after which a condition that did not come true fails the test."""
START_PATIENCE = 60.0
"""The same, until a server answers: on a busy machine its processes import for long."""
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


class Server:
    """A server process that serves an application file of this directory."""

    def __init__(self, command: list[str], directory: Path, **settings: str) -> None:
        self.directory = directory
        """Where the application and the test leave files for each other."""
        self.output: list[str] = []
        """Every line it printed."""
        self.logs: list[dict[str, Any]] = []
        """Those lines that are JSON objects: log events, and what the application says."""
        self._ended = False
        self._news = threading.Condition()
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("BGX_")}
        self._process = subprocess.Popen(
            [sys.executable, *command],
            cwd=HERE,
            env={**inherited, "HOME": str(directory), "DIRECTORY": str(directory), **settings},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,  # a signal for the tests is none for the server
        )
        self.pid = self._process.pid
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    # Talking to it.

    def connect(self) -> None:
        """Find out where it listens, and wait until it answers."""
        address = ADDRESS.search(self.line(ADDRESS.pattern))
        assert address is not None
        self.client = httpx.Client(base_url=address[0], timeout=PATIENCE, trust_env=False)
        self.until(self._answers, "it does not answer", START_PATIENCE)

    def add(self, task: str, **query: Any) -> list[str]:
        """Have a route add a task; the ids."""
        params = {name: value for name, value in query.items() if value is not None}
        response = self.client.post(f"/add/{task}", params=params).raise_for_status()
        ids: list[str] = response.json()
        return ids

    def release(self) -> None:
        """Let the tasks end that wait for it, also when the server takes no request any more."""
        (self.directory / "release").touch()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the server's first process alone."""
        self._process.send_signal(number)

    def send_all(self, number: signal.Signals) -> None:
        """Send a signal to every process of the server, as a process manager does."""
        os.killpg(self.pid, number)

    # What it printed.

    def line(self, pattern: str, count: int = 1) -> str:
        """The first line that matches, once there are so many."""
        lines = self._wait(
            lambda: [line for line in self.output if re.search(pattern, line)],
            count,
            f"lines like {pattern!r}",
        )
        return str(lines[0])

    def log(self, event: str, **fields: Any) -> dict[str, Any]:
        """The first log line of this event with these fields, once there is one."""
        return self.all_logs(1, event, **fields)[0]

    def all_logs(self, count: int, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The log lines of this event with these fields, once there are so many."""
        return self._wait(lambda: self.logged(event, **fields), count, f"{event} {fields}")

    def logged(self, event: str, **fields: Any) -> list[dict[str, Any]]:
        """The log lines of this event with these fields, until now."""
        wanted = {"event": event, **fields}.items()
        return [log for log in self.logs if wanted <= log.items()]

    def report(self) -> dict[str, Any]:
        """What the drain reported: tasks by their names. There is exactly one report."""
        reports = self.all_logs(1, "bgx.drained")
        assert len(reports) == 1
        return reports[0]

    def until(
        self, condition: Callable[[], object], otherwise: str, patience: float = PATIENCE
    ) -> None:
        """Poll a condition that the output does not show."""
        deadline = time.monotonic() + patience
        while not condition():
            if time.monotonic() > deadline:
                self.fail(otherwise)
            time.sleep(0.02)

    # Its end.

    def end(self) -> int:
        """Wait until it has ended by itself; its exit code."""
        try:
            code = self._process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.fail("it still runs")
        self._reader.join(PATIENCE)
        return code

    def kill(self) -> None:
        """End it and its children, however they are."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._reader.join(PATIENCE)
        assert self._process.stdout is not None
        self._process.stdout.close()
        if hasattr(self, "client"):
            self.client.close()

    def fail(self, reason: str) -> NoReturn:
        """Fail the test, with the last of what the server printed."""
        pytest.fail("\n".join([f"{reason}; the server printed:", *self.output[-200:]]))

    def _answers(self) -> bool:
        try:
            return self.client.get("/up").is_success
        except httpx.ConnectError:  # with several workers the address comes before they listen
            return False

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._news:
                self.output.append(line.rstrip())
                if line.startswith("{"):
                    self.logs.append(json.loads(line))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    def _wait(self, look: Callable[[], list[Any]], count: int, what: str) -> list[Any]:
        deadline = time.monotonic() + PATIENCE
        with self._news:
            while len(found := look()) < count:
                if self._ended or not self._news.wait(deadline - time.monotonic()):
                    self.fail(f"{len(found)} instead of {count} {what}")
        return found


@contextlib.contextmanager
def serving(command: list[str], directory: Path, **settings: str) -> Iterator[Server]:
    """A server that answers; killed at the end, if it still runs."""
    server = Server(command, directory, **settings)
    try:
        server.connect()
        yield server
    finally:
        server.kill()


def uvicorn(*options: str, app: str = "app:app", loop: str = "asyncio") -> list[str]:
    """The command that starts uvicorn."""
    require(loop == "asyncio" or importlib.util.find_spec(loop), f"{loop} is not installed")
    return ["-m", "uvicorn", app, "--port", "0", "--loop", loop, *options]


Serve = Callable[..., Server]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """Start uvicorn: `serve("--workers", "2", BGX_DRAIN_TIMEOUT="0.3")`."""
    with contextlib.ExitStack() as stack:

        def start(
            *options: str, app: str = "app:app", loop: str = "asyncio", **settings: str
        ) -> Server:
            command = uvicorn(*options, app=app, loop=loop)
            return stack.enter_context(serving(command, tmp_path, **settings))

        yield start


@pytest.fixture(params=["asyncio", "uvloop"], scope="module")
def loop(request: pytest.FixtureRequest) -> str:
    """The event loops that uvicorn runs on."""
    name: str = request.param
    return name
