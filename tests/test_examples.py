"""The apps in docs/examples do what the pages that show them say, the tutorial's log included."""

import re
import runpy
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from structlog.testing import capture_logs

DOCS = Path(__file__).parent.parent / "docs"
EXAMPLES = DOCS / "examples"

STAMP = re.compile(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ")


def normal(line: str) -> str:
    """A log line without what differs from run to run, and from one machine to the other."""
    line = STAMP.sub("", line.rstrip())
    line = re.sub(r"(?<=_s=)[\d.e-]+", "<s>", line)
    line = re.sub(r"\b[0-9a-f]{12}-(?=\d)", "<prefix>-", line)
    line = re.sub(r'File ".*/(?=signup)', 'File "', line)
    return re.sub(r"127\.0\.0\.1:\d+", "<client>", line)


def shown_in_the_tutorial() -> list[str]:
    """The lines of the server in the tutorial, which leaves some out."""
    page = (DOCS / "tutorial" / "first-steps.md").read_text()
    fences = re.findall(r"^```text\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    lines = [line for fence in fences for line in fence.splitlines()]
    return [normal(line) for line in lines if line.strip() not in ("", "…") and line[0] != "{"]


class Server:
    """uvicorn with one of the examples, and what it has logged."""

    def __init__(self, module: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-u", "-m", "uvicorn", f"{module}:app", "--port", "0"],
            cwd=EXAMPLES,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self.log: list[str] = []
        address = re.search(r"http://\S+", self.read_until("Uvicorn running on"))
        assert address
        self.url = address[0]

    def read_until(self, text: str) -> str:
        assert self.process.stdout
        for line in self.process.stdout:
            self.log.append(line)
            if text in line:
                return line
        raise AssertionError(f"the server ended without {text!r}:\n{''.join(self.log)}")

    def post(self, path: str) -> Any:
        return httpx.post(self.url + path).raise_for_status().json()

    def stop(self) -> None:
        self.process.terminate()
        self.log += self.process.stdout or []


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server("signup")
    with server.process:
        yield server
        server.process.kill()


def test_the_tutorial_shows_what_the_server_logs(server: Server) -> None:
    assert server.post("/signup?email=ada@example.com") == {"signed_up": "ada@example.com"}
    server.read_until("task.succeeded")
    server.post("/cache")
    server.read_until("task.timed_out")
    server.post("/avatar")
    server.read_until("task.overran")
    task = server.post("/thumbnails?count=3")["task"]
    assert task in server.read_until("task.succeeded")
    server.stop()

    logged = iter([normal(line) for line in server.log])
    for line in shown_in_the_tutorial():
        assert line in logged, (
            f"not in the log, or not in this place: {line}\n{''.join(server.log)}"
        )


class Existing(NamedTuple):
    app: FastAPI
    audit: list[str]


@pytest.fixture
def existing() -> Existing:
    """The app that was adopted, loaded anew."""
    module = runpy.run_path(str(EXAMPLES / "existing.py"))
    return Existing(module["app"], module["audit"])


def ended(logs: list[Any]) -> list[str]:
    """The events that ended a task."""
    return [line["event"] for line in logs if "task" in line and "duration_s" in line]


@pytest.mark.parametrize(
    ("method", "path", "written"),
    [
        ("POST", "/orders", ["a visit", "an order"]),
        ("GET", "/reports/?size=3", ["a page of 3"]),
        ("GET", "/reports/", ["a page of 10"]),
    ],
)
def test_every_task_of_the_existing_app_is_supervised(
    existing: Existing, method: str, path: str, written: list[str]
) -> None:
    with capture_logs() as logs, TestClient(existing.app) as client:
        assert client.request(method, path).status_code == 200
    assert existing.audit == written
    assert ended(logs) == ["task.succeeded"] * len(written)


def test_the_tasks_of_a_failed_request_are_dropped_and_told(existing: Existing) -> None:
    with capture_logs() as logs, TestClient(existing.app) as client:
        assert client.post("/orders/unpaid").status_code == 402
    assert existing.audit == []
    assert ended(logs) == ["task.dropped", "task.dropped"]


def test_the_tasks_of_a_websocket_run(existing: Existing) -> None:
    with (
        capture_logs() as logs,
        TestClient(existing.app) as client,
        client.websocket_connect("/chat"),
    ):
        pass
    assert existing.audit == ["a visit", "a chat"]
    assert ended(logs) == ["task.succeeded", "task.succeeded"]


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> FastAPI:
    """The app with a dashboard, loaded anew."""
    monkeypatch.setenv("ADMIN_PASSWORD", "open sesame")
    app: FastAPI = runpy.run_path(str(EXAMPLES / "dashboard.py"))["app"]
    return app


def test_the_dashboard_of_the_example_asks_for_its_password(dashboard: FastAPI) -> None:
    with capture_logs(), TestClient(dashboard) as client:
        logins = [None, ("ada", "friend"), ("ada", "open sesame")]
        assert [client.get("/bgx/", auth=login).status_code for login in logins] == [401, 401, 200]


def test_the_dashboard_of_the_example_shows_the_attempts_of_a_failed_task(
    dashboard: FastAPI,
) -> None:
    with capture_logs(), TestClient(dashboard) as client:
        task = client.post("/orders").json()["task"]
        page = client.get(f"/bgx/ui/tasks/{task}", auth=("ada", "open sesame")).text
    assert "the bank does not answer about order 7" in page
    assert "attempt 3 failed" in page


def test_a_user_of_the_example_follows_an_export(dashboard: FastAPI) -> None:
    with capture_logs() as logs, TestClient(dashboard) as client:
        url = client.post("/exports?pages=3").json()["status"]
        assert client.get(url).json()["status"] in ("queued", "running", "succeeded")
    assert ended(logs) == ["task.succeeded"]
