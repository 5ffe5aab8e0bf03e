"""The server of W4: `python -m tests.benchmarks.server_app NAME` serves one of the contestants.

On a free port of the loopback interface, which it prints, until its input ends.
"""

import gc
import os
import signal
import socket
import sys
import threading
import time
from dataclasses import dataclass, field

import uvicorn
from fastapi import FastAPI

from tests.benchmarks.apps import build, work


@dataclass(slots=True)
class GcWatch:
    """How long the garbage collector stopped everything."""

    pauses: list[float] = field(default_factory=list)
    _began: float = 0.0

    def __call__(self, phase: str, _: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.perf_counter()
        else:
            self.pauses.append(time.perf_counter() - self._began)


def add_questions(app: FastAPI) -> None:
    """The innocent endpoint, and what the benchmark asks the server."""
    watch = GcWatch()
    gc.callbacks.append(watch)

    @app.get("/innocent")
    def innocent() -> dict[str, bool]:
        return {"innocent": True}

    @app.get("/report")
    async def report() -> dict[str, float]:
        return {
            "ran": work.ran,
            "gc_pauses": len(watch.pauses),
            "gc_total_s": sum(watch.pauses),
            "gc_longest_s": max(watch.pauses, default=0.0),
        }


def main() -> None:
    """Serve one contestant until the input ends: the benchmark is over, however it ended."""
    served = build(sys.argv[1])
    served.ready()
    add_questions(served.app)
    threading.Thread(target=_stop_at_end_of_input, daemon=True).start()
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listening:
        print(listening.getsockname()[1], flush=True)
        config = uvicorn.Config(
            served.app, access_log=False, log_level="error", timeout_graceful_shutdown=1
        )
        uvicorn.Server(config).run(sockets=[listening])


def _stop_at_end_of_input() -> None:
    os.read(sys.stdin.fileno(), 1)
    os.kill(os.getpid(), signal.SIGKILL)  # a flood of tasks is not waited for


if __name__ == "__main__":
    main()
