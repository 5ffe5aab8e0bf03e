"""Functions for worker processes: a module of its own, which is imported there, and light."""

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

calls = 0


def pid() -> int:
    return os.getpid()


def add(one: int, *, two: int) -> int:
    return one + two


def count() -> int:
    global calls
    calls += 1
    return calls


class Unsendable(Exception):
    """Cannot be unpickled: it needs two arguments and passes on one."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def fail() -> None:
    raise LookupError("lost", 3)


def fail_unsendable() -> None:
    raise Unsendable("one", "two")


def fail_with(kind: type[BaseException]) -> None:
    raise kind("from far away")


def leak_a_cancellation() -> None:
    raise asyncio.CancelledError


def give_back_a_lambda() -> Any:
    return lambda: None


class Unwelcome:
    """Can be sent home, and not be taken in there."""

    def __reduce__(self) -> Any:
        return refuse_at_home, (os.getpid(),)


def refuse_at_home(sender: int) -> None:
    if os.getpid() != sender:
        raise ValueError("not at home")


def give_back_unwelcome() -> Unwelcome:
    return Unwelcome()


def print_and_write() -> None:
    print("printed")
    print("to stderr", file=sys.stderr)
    os.write(1, b"to descriptor 1\n")
    subprocess.run([sys.executable, "-c", "print('from a child')"], check=True)


def print_and_fail() -> None:
    print("before it failed")
    raise ValueError


def write_very_much() -> None:
    """More than a pipe holds, by a process of the function's own."""
    subprocess.run(
        [sys.executable, "-c", "import sys; sys.stderr.write('x' * 300_000 + 'the end')"],
        check=True,
    )


def read() -> bytes:
    """What a child process finds on its standard input."""
    return subprocess.run(["cat"], capture_output=True, check=True, timeout=5).stdout


def look() -> tuple[Any, ...]:
    from fastapi_bgx import current_task

    inside = current_task()
    assert inside is not None
    left = inside.remaining()
    return inside.id, inside.name, inside.attempt, left, inside.timed_out, inside.cancelled


def survive_signals_to_the_group() -> str:
    for number in signal.SIGINT, signal.SIGTERM:
        os.kill(os.getpid(), number)
    return "alive"


def terminate_a_child() -> int:
    child = subprocess.Popen(["sleep", "60"])
    child.terminate()
    return child.wait(5)


def hang(note: str) -> None:
    Path(note).write_text(str(os.getpid()))
    time.sleep(60)


def exit_at_once() -> None:
    os._exit(3)


def kill_itself() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


class HangsInTheWorker:
    """An argument that takes for ever to unpickle, anywhere but where it was made."""

    def __reduce__(self) -> Any:
        return sleep_elsewhere, (os.getpid(),)


def sleep_elsewhere(sender: int) -> None:
    if os.getpid() != sender:
        time.sleep(60)


def take(_: object) -> None: ...


def span(folder: str) -> tuple[float, float, int]:
    """When it ran, on a clock that all processes share, and where.

    It does not end before another process has begun, so that there is more than one.
    """
    start = time.monotonic()
    Path(folder, str(os.getpid())).touch()
    while len(list(Path(folder).iterdir())) < 2 and time.monotonic() < start + 60:
        time.sleep(0.001)
    time.sleep(0.05)
    return start, time.monotonic(), os.getpid()


def tell(*told: tuple[float, str | None]) -> None:
    from fastapi_bgx import current_task

    inside = current_task()
    assert inside is not None
    inside.check_cancelled()
    for fraction, note in told:
        inside.progress(fraction, note)


def tell_and_wait(gate: str) -> None:
    """Half done until there is a file `gate`, and then done."""
    tell((0.25, "loading"), (0.5, None))
    end = time.monotonic() + 60
    while not Path(gate).exists() and time.monotonic() < end:
        time.sleep(0.001)
    tell((1, "done"))


def tell_and_hang() -> None:
    tell((0.75, "hanging"))
    time.sleep(60)


def log_lines() -> None:
    from fastapi_bgx import current_task

    inside = current_task()
    assert inside is not None
    assert inside.log is inside.log
    inside.log.warning("one line", size=3)


def leave_a_thread_that_tells(folder: str) -> None:
    """It tells once there is a file `ended`, and makes a file `told`."""
    from fastapi_bgx import current_task

    inside = current_task()
    assert inside is not None

    def tell_late() -> None:
        end = time.monotonic() + 60
        while not Path(folder, "ended").exists() and time.monotonic() < end:
            time.sleep(0.001)
        inside.progress(0.5)
        Path(folder, "told").touch()

    threading.Thread(target=tell_late, daemon=True).start()


def see_span() -> tuple[int, int, object]:
    """Which trace and span it is in, and the baggage that is named `tenant`."""
    from opentelemetry import baggage, trace

    here = trace.get_current_span().get_span_context()
    return here.trace_id, here.span_id, baggage.get_baggage("tenant")
