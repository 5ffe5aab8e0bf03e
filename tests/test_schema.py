"""A fuzzer holds the routes to their OpenAPI document: schemathesis, on a real server.

It sends what the document allows, and what it does not, and checks statuses, content types, bodies
and headers of the answers. `/events` is left out: an answer that never ends is none to check.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from fastapi_bgx.records import Answer
from tests.conftest import require
from tests.consoles import StandIn, api, every_status, store_with

EXAMPLES = 40
"""Random requests for each route, beside those that try each rule of the document."""
ROOT = Path(__file__).parent.parent


class Obliging(StandIn):
    """Does what it is asked with the task p-1, and refuses it with the others."""

    def _answer(self, action: str, task_id: str) -> Answer | None:
        if not task_id.startswith("p-"):
            return None
        return Answer(done=task_id == "p-1", detail="it has ended already: succeeded")


@pytest.fixture
def document() -> Iterator[str]:
    """The URL of the OpenAPI document of a server that holds a task in every status."""
    app = api(store_with(*every_status()), Obliging(), dashboard=False)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/openapi.json"
        server.should_exit = True
        thread.join()


def test_the_routes_do_what_their_document_says(document: str, tmp_path: Path) -> None:
    require(importlib.util.find_spec("schemathesis"), "schemathesis is not installed")
    command = [sys.executable, "-m", "schemathesis.cli", "run", document]
    command += ["--exclude-path", "/bgx/events", "--checks", "all", "--phases", "coverage,fuzzing"]
    command += ["--max-examples", str(EXAMPLES), "--seed", "1", "--suppress-health-check", "all"]
    command += ["--continue-on-failure", "--no-color"]
    hooks = {"SCHEMATHESIS_HOOKS": "tests.schema_hooks", "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        command, cwd=tmp_path, env=os.environ | hooks, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Tested: 6" in result.stdout
    assert "Missing test data" not in result.stdout
