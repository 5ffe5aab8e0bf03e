"""The server of the demo: uvicorn in a process of its own, and its log, line by line.

`Server` is the side of the visitor; `main` is what the server's process runs. The log travels as
JSON, so that the demo can check what it says, and is shown as structlog shows it in a terminal.
"""

import contextlib
import json
import logging
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from types import TracebackType
from typing import Any

import structlog
import uvicorn

HOST = "127.0.0.1"
USUAL_PORT = 8000

Line = dict[str, Any]
"""One line of the server's log: the name of the event, its level, its fields."""


class DemoFailed(Exception):
    """Something did not happen as it should have."""


class ServerEnded(DemoFailed):
    """The server has ended: there is nothing more to read."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(f"the server has ended, with exit code {exit_code}")
        self.exit_code = exit_code


def free_port(wanted: int | None) -> int:
    """The port that was asked for; without one, 8000 or any that is free.

    Raises:
        OSError, OverflowError: the port that was asked for cannot be had.
    """
    if wanted is not None:
        return _bindable(wanted)
    with contextlib.suppress(OSError):
        return _bindable(USUAL_PORT)
    return _bindable(0)


def _bindable(port: int) -> int:
    with socket.create_server((HOST, port)) as listening:
        return int(listening.getsockname()[1])


class Server:
    """A running server, as seen from outside."""

    def __init__(self, port: int) -> None:
        self.url: str = f"http://{HOST}:{port}"
        # Out of the terminal's process group: Ctrl-C is for the demo, which passes it on.
        self._process = subprocess.Popen(
            [sys.executable, "-u", "-m", __name__, str(port)],
            env={name: value for name, value in os.environ.items() if name[:4] != "BGX_"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            start_new_session=True,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )
        self._lines: queue.Queue[Line | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Server":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._process.kill()  # nothing happens if it has ended
        self._reader.join()
        with self._process:  # closes its pipes
            pass

    def next_line(self, timeout: float) -> Line | None:
        """The next line of the log; `None` when none came in time.

        Raises:
            ServerEnded: none will come.
        """
        try:
            line = self._lines.get(timeout=max(0.0, timeout))
        except queue.Empty:
            return None
        if line is None:
            raise ServerEnded(self._process.wait())
        return line

    def interrupt(self) -> None:
        """Have the server receive SIGINT, as from Ctrl-C."""
        assert self._process.stdin is not None
        self._process.stdin.close()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for text in self._process.stdout:
            try:
                self._lines.put(dict(json.loads(text)))
            except (TypeError, ValueError):  # not of the log: something was printed
                self._lines.put({"event": text.rstrip()})
        self._lines.put(None)


# What follows runs in the server's process.


class ToStructlog(logging.Handler):
    """The log of uvicorn, in the same format as that of the application."""

    def emit(self, record: logging.LogRecord) -> None:
        structlog.get_logger(record.name).log(
            record.levelno, record.getMessage().strip(), exc_info=record.exc_info
        )


def main() -> None:
    """Serve until the input ends: that is Ctrl-C, or the end of the demo, however it ended."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
    )
    logging.basicConfig(level=logging.WARNING, handlers=[ToStructlog()])
    threading.Thread(target=_raise_signal_at_end_of_input, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again when it is done
        uvicorn.run(
            "fastapi_bgx.demo.app:app",
            host=HOST,
            port=int(sys.argv[1]),
            access_log=False,
            log_config=None,
            log_level="warning",
        )


def _raise_signal_at_end_of_input() -> None:
    os.read(sys.stdin.fileno(), 1)
    signal.raise_signal(signal.SIGINT)


if __name__ == "__main__":
    main()
