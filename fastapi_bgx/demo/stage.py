"""The stage: sends the requests, waits for the lines of the log, and prints both.

Whatever does not happen as an act expects it ends the demo with `DemoFailed`.
"""

import json
import os
import re
import shutil
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import structlog

from fastapi_bgx.demo.server import DemoFailed, Line, Server, ServerEnded

PATIENCE = 30.0
"""Seconds that anything may take on a slow machine before the demo calls it a failure."""
MOST_ALIKE = 2
"""Lines about the same thing that are shown; the others are counted."""
OWN = tuple(str(Path("demo", name)) for name in ("app.py", "tasks.py"))
"""The files of the shop, as tracebacks name them."""
CUSTOMER = "customer-"
"""How the id begins of a request of which the terminal shows nothing."""
BOLD, DIM, PLAIN = "\x1b[1m", "\x1b[2m", "\x1b[0m"


class Stage:
    """Where the acts play: one visitor of one server, and a terminal that shows both."""

    def __init__(self, server: Server) -> None:
        self.url: str = server.url
        self.dashboard: str = f"{server.url}/bgx/"
        self._server = server
        self._client = httpx.Client(
            base_url=server.url,
            timeout=PATIENCE,
            trust_env=False,  # no proxy stands between us and our own server
            transport=httpx.HTTPTransport(
                retries=3,  # the server says that it has started just before it listens
                verify=False,  # plain HTTP: no certificates have to be loaded
                # No connection is used twice: uvicorn closes one whose stock task has failed.
                limits=httpx.Limits(max_keepalive_connections=0),
            ),
        )
        self._requests = 0
        self._titles = 0
        self._colours = sys.stdout.isatty() and os.name == "posix" and not os.getenv("NO_COLOR")
        self._width = shutil.get_terminal_size((100, 24)).columns
        self._render = structlog.dev.ConsoleRenderer(16, colors=self._colours, sort_keys=False)

    # What acts do.

    def send(self, method: str, path: str) -> httpx.Response:
        """Send a request with an id of its own, and show nothing but what the log says."""
        return self._ask(method, path, {"X-Request-ID": self._next_id("demo-")})

    def send_unseen(self, method: str, path: str) -> httpx.Response:
        """Send a request of which not even the log is shown: the dashboard shows its tasks."""
        return self._ask(method, path, {"X-Request-ID": self._next_id(CUSTOMER)})

    def request(self, method: str, path: str, expect: int = 200) -> httpx.Response:
        """Send a request, show it and its answer, and check the answer's status."""
        response = self.send(method, path)
        self.show(response)
        self.check(response.status_code == expect, f"it should have been answered {expect}")
        return response

    def timed(self, method: str, path: str) -> float:
        """Send a request and show its answer; the seconds until it came."""
        started = time.perf_counter()
        response = self.send(method, path)
        seconds = time.perf_counter() - started
        self.show(response, remark=f"({seconds * 1000:.0f} ms)")
        return seconds

    def look(self, path: str, *fields: str) -> dict[str, Any]:
        """Show these fields of a record, or of the first one of a list; gives the record."""
        response = self.send("GET", path)
        self.check(response.status_code == 200, f"{path} should have been answered 200")
        records: list[dict[str, Any]] = response.json().get("records", [response.json()])
        self.check(records, f"{path} should have found a record")
        shown = json.dumps({name: records[0][name] for name in fields})
        self.show(response, text=f"{{..., {shown[1:-1]}, ...}}")
        return records[0]

    def stats(self) -> dict[str, Any]:
        """What `bgx.stats()` says in the server."""
        return dict(self._ask("GET", "/stats", {}).json())

    def log(self, *expected: str, by_request: bool = True) -> dict[str, Line]:
        """Show the log until each of the expected lines has come, in whatever order.

        A line is expected by its event and task: `"task.failed charge_card"`. Lines of tasks have
        the id of their request, unless no request has added them.

        Returns:
            The lines by that name; of several, the last.
        """
        missing, seen, found = Counter(expected), Counter[str](), dict[str, Line]()
        deadline = time.monotonic() + PATIENCE
        while +missing:
            line = self._server.next_line(deadline - time.monotonic())
            if line is None:
                raise DemoFailed(f"the log lacks {', '.join(+missing)}")
            if is_of_a_customer(line):
                continue
            name = name_of(line)
            lacks = by_request and "task" in line and "request_id" not in line
            self.check(not lacks, f"{name} lacks its request_id")
            missing[name] -= 1
            seen[name] += 1
            found[name] = line
            if seen[name] <= MOST_ALIKE:
                self.show_line(line)
        for name, times in seen.items():
            if times > MOST_ALIKE:
                self._show(f"... and {times - MOST_ALIKE} more: {name}")
        return found

    def follow(
        self, seconds: float = float("inf"), meanwhile: Callable[[], object] = lambda: None
    ) -> int:
        """Show the log until the server ends; gives the exit code of its process.

        `meanwhile` is called again and again, several times a second.
        """
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            meanwhile()
            try:
                # A short time: on Windows, Ctrl-C does not interrupt a wait without end.
                line = self._server.next_line(timeout=0.2)
            except ServerEnded as ended:
                return ended.exit_code
            if line is not None and not is_of_a_customer(line):
                self.show_line(line)
        raise DemoFailed("the server does not end")

    def interrupt(self) -> None:
        """Send SIGINT to the server."""
        self.write("> SIGINT")
        self._server.interrupt()

    def check(self, condition: object, otherwise: str) -> None:
        """End the demo unless what it shows has happened."""
        if not condition:
            raise DemoFailed(otherwise)

    # What the terminal shows.

    def title(self, text: str) -> None:
        """Begin an act."""
        self._titles += 1
        self.write(f"\n{self._styled(BOLD, f'{self._titles}. {text}')}")

    def say(self, text: str) -> None:
        """Explain, in plain words."""
        self.write(textwrap.fill(" ".join(text.split()), min(self._width, 88)))

    def show(self, *responses: httpx.Response, text: str = "", remark: str = "") -> None:
        """Show a request and its answer; of several that are alike, the first and their number.

        `text` is shown in the place of the answer.
        """
        request, response = responses[0].request, responses[0]
        retry = response.headers.get("Retry-After")
        parts = [
            f"> {request.method} {request.url.raw_path.decode()} -> {response.status_code}",
            f"Retry-After: {retry}" if retry else "",
            text or response.text if len(responses) == 1 else f"({len(responses)} times)",
            remark,
        ]
        self.write(self._styled(BOLD, " ".join(part for part in parts if part)))

    def show_line(self, line: Line) -> None:
        """Show a line of the log as structlog shows it."""
        shown = dict(line)
        if "exception" in shown:
            shown["exception"] = shortened(shown["exception"])
        event, *exception = str(self._render(None, "", shown)).splitlines()
        for text in [*wrapped(event, self._width), *exception]:
            self._show(text)

    def write(self, text: str) -> None:
        """Print at once: a reader follows."""
        print(text, flush=True)

    def _next_id(self, prefix: str) -> str:
        self._requests += 1
        return f"{prefix}{self._requests}"

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
        try:
            return self._client.request(method, path, headers=headers)
        except httpx.HTTPError as error:
            raise DemoFailed(f"{method} {path} got no answer: {error}") from None

    def _show(self, text: str) -> None:
        self.write(f"  {self._styled(DIM, '|')} {text}")

    def _styled(self, style: str, text: str) -> str:
        return f"{style}{text}{PLAIN}" if self._colours else text


def name_of(line: Line) -> str:
    """What acts call a line of the log: its event, and the task that it is about."""
    return " ".join([line["event"], *([line["task"]] if "task" in line else [])])


def is_of_a_customer(line: Line) -> bool:
    """True for what nobody has to read: it goes on all the time."""
    return str(line.get("request_id", "")).startswith(CUSTOMER)


def wrapped(text: str, width: int) -> list[str]:
    """A line of the log for a narrow terminal; its colours take no room."""
    first, *words = text.split(" ")
    lines = [first]
    for word in words:
        line = f"{lines[-1]} {word}"
        if len(re.sub(r"\x1b\[[\d;]*m", "", f"  | {line}")) <= width:
            lines[-1] = line
        else:
            lines.append(f"{' ' * 11} {word}")
    return lines


def shortened(traceback: str) -> str:
    """The frames of the application; dots for the others."""
    kept, keep = list[str](), True
    for text in traceback.splitlines():
        if text.startswith('  File "'):
            keep = any(name in text for name in OWN)
        elif not text.startswith(" "):
            keep = bool(text)
        if keep:
            kept.append(text)
        elif text and kept[-1] != "  ...":
            kept.append("  ...")
    return "\n".join(kept)
