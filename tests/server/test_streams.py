"""Streams on real sockets: clients that come, leave and come back, and servers that end."""

import contextlib
import json
import signal
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.server.conftest import Serve, Server

PROMPT = 10.0
"""Seconds that a shutdown may take with streams open: far less than its grace period."""


class Stream:
    """An open stream, read line by line."""

    def __init__(self, response: httpx.Response) -> None:
        self._lines = response.iter_lines()
        self.last_id = ""

    def message(self) -> dict[str, str]:
        """The next one; a comment is the field without a name."""
        fields: dict[str, str] = {}
        for line in self._lines:
            if not line:
                self.last_id = fields.get("id", self.last_id)
                return fields
            name, _, value = line.partition(": ")
            fields[name] = value
        raise EOFError

    def ended(self, task_id: str) -> str:
        """When it has told that a task has succeeded; the number of that change."""
        while True:
            message = self.message()
            if message.get("event") == "task":
                record = json.loads(message["data"])
                if (record["id"], record["status"]) == (task_id, "succeeded"):
                    return self.last_id

    def read_to_end(self) -> None:
        """Returns when the server has ended it as it should; else httpx raises."""
        for _ in self._lines:
            pass

    def known(self) -> "Stream":
        """When it has told where changes stand."""
        while not self.last_id:
            self.message()
        return self


@contextlib.contextmanager
def stream(server: Server, **headers: str) -> Iterator[Stream]:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    with server.client.stream("GET", "/bgx/events", headers=named) as response:
        assert response.status_code == 200
        yield Stream(response)


def add(server: Server) -> str:
    """Have a task added; its id."""
    task_id: str = server.client.post("/add").raise_for_status().json()
    return task_id


def test_a_stream_tells_changes_and_goes_on_where_the_client_left(serve: Serve) -> None:
    server = serve(app="streams:app")
    with stream(server) as first:
        first.known()
        known = first.ended(add(server))
    missed = add(server)
    with stream(server, last_event_id=known) as second:
        second.ended(missed)
        second.ended(add(server))


def test_those_who_have_left_take_no_room(serve: Serve) -> None:
    server = serve(app="streams:app")
    for _ in range(120):  # there is room for 100
        with stream(server) as each:
            each.message()
    with stream(server) as last:
        last.known()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_open_streams_do_not_keep_the_server_from_ending(
    serve: Serve, number: signal.Signals
) -> None:
    server = serve(app="streams:app", BGX_DRAIN_TIMEOUT="60")
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(stream(server)).known() for _ in range(20)]
        began = time.monotonic()
        server.send(number)
        for each in streams:
            each.read_to_end()
        server.end()
    assert time.monotonic() - began < PROMPT
    assert not [line for line in server.output if "Traceback" in line or "ERROR" in line]
