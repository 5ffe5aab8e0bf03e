"""A uvicorn in a process of its own: started, asked, signalled, measured, and always ended."""

import contextlib
import http.client
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.benchmarks.compare.kit import NOTES
from tests.benchmarks.compare.situation import Failed

START_S = 60.0
ANSWER_S = 15.0
POLL_S = 0.02
APP = "tests.benchmarks.compare.app:make"


def until(condition: Callable[[], object], seconds: float) -> bool:
    """Poll a condition; false when it did not come true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


class Server:
    """A running server, and what its tasks write into its folder."""

    def __init__(self, folder: Path, port: int, environment: dict[str, str], *options: str) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self._log = folder / f"log-{port}-{time.monotonic_ns()}"
        command = [sys.executable, "-m", "uvicorn", "--factory", APP, "--port", str(port), *options]
        inherited = {k: v for k, v in os.environ.items() if not k.startswith("BGX_")}
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=inherited | environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    # Asking.

    def wait_until_up(self) -> None:
        """Return once it answers.

        Raises:
            Failed: it never does.
        """
        if not until(self._answers_or_ended, START_S) or self._process.poll() is not None:
            raise Failed(f"the server does not answer:\n{self.log[-500:]}")

    def answers(self) -> bool:
        """True when it serves requests now."""
        with contextlib.suppress(httpx.HTTPError):
            return self.get("/up").is_success
        return False

    def connect(self, timeout: float = ANSWER_S) -> httpx.Client:
        """A client of its own: nobody waits for the tasks of somebody else's request."""
        return httpx.Client(base_url=self.url, timeout=timeout, trust_env=False, verify=False)

    def get(self, path: str, **query: Any) -> httpx.Response:
        """Ask for something, on a new connection; an answer of any status."""
        with self.connect() as client:
            return client.get(path, params=query)

    def post(self, path: str, **query: Any) -> httpx.Response:
        """Have something done, on a new connection; an answer of any status."""
        with self.connect() as client:
            return client.post(path, params=query)

    def post_soon(self, path: str, **query: Any) -> None:
        """Have something done, and do not wait long for the answer."""
        with contextlib.suppress(httpx.HTTPError), self.connect(timeout=0.5) as client:
            client.post(path, params=query)

    def post_many(
        self, path: str, times: int, at_once: int = 20, pause_s: float = 0.0
    ) -> list[int | None]:
        """Many requests, with their number as `n`; their statuses, `None` for no answer."""
        with ThreadPoolExecutor(at_once) as pool:
            asked = []
            for number in range(times):
                asked.append(pool.submit(self._post, path, number))
                time.sleep(pause_s)
            return [each.result() for each in asked]

    # What can be seen.

    @property
    def log(self) -> str:
        """Everything that it printed."""
        return self._log.read_text(errors="replace")

    def notes(self, word: str) -> list[str]:
        """The lines of its tasks that begin with this word, without it."""
        file = self.folder / NOTES
        lines = file.read_text().splitlines() if file.exists() else []
        return [line.partition(" ")[2] for line in lines if line.partition(" ")[0] == word]

    def count(self, word: str) -> int:
        """How many such lines."""
        return len(self.notes(word))

    def wait_for(self, word: str, count: int = 1, seconds: float = 5.0) -> int:
        """How many such lines there are, once there are enough or the time is over."""
        until(lambda: self.count(word) >= count, seconds)
        return self.count(word)

    def resident_mb(self) -> float:
        """Memory of the serving process, in MB."""
        pid = self.get("/up").json()
        status = Path(f"/proc/{pid}/status").read_text()
        line = next(line for line in status.splitlines() if line.startswith("VmRSS"))
        return int(line.split()[1]) / 1024

    # Its end.

    def send(self, number: signal.Signals) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def stop(self, seconds: float = 15.0) -> float | None:
        """SIGTERM; the seconds until it has ended, or `None` when it has not in that time."""
        began = time.monotonic()
        self.send(signal.SIGTERM)
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        return time.monotonic() - began

    def kill(self) -> None:
        """End it and its children at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _post(self, path: str, number: int) -> int | None:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=ANSWER_S)
        try:
            connection.request("POST", f"{path}?n={number}")
            return connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()

    def _answers_or_ended(self) -> bool:
        return self._process.poll() is not None or self.answers()


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """A server that answers; killed at the end, if it still runs."""
    try:
        server.wait_until_up()
        yield server
    finally:
        server.kill()
