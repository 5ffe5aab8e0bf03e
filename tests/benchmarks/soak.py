"""The soak: minutes of mixed load, every task accounted for. Ends with 1 when something is off.

`uv run --group bench python -m tests.benchmarks.soak --minutes 10`. The load comes in epochs. After
each one everything has to end; then no limit is held, every added task has had exactly one final
event and the calls that belong to it, and the memory is what it was. The last epoch is not waited
for: the application is shut down in the middle of it. The first epoch with a problem is the last.
"""

import argparse
import asyncio
import contextlib
import ctypes
import gc
import logging
import random
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from fastapi import FastAPI

from fastapi_bgx import Bgx, Settings
from tests.asgi import running
from tests.benchmarks.in_process import Refused, get
from tests.benchmarks.soak_app import (
    PATHS,
    everything,
    in_threads,
    ledger,
    make_app,
    narrow,
    smtp,
    tenants,
)

CLIENTS = 48
LONGEST_EPOCH_S = 30.0
SETTLE_S = 20.0
MORE_BLOCKS = 1.01, 3_000
MORE_USED = 1.05, 1_000_000
MORE_RSS = 1.10, 8_000_000


# Those who visit it.


async def visit(app: FastAPI, until: float) -> None:
    """One client: request after request, some of which it does not wait for."""
    while time.monotonic() < until:
        path = random.choices(list(PATHS), list(PATHS.values()))[0]
        request = asyncio.create_task(get(app, path))
        if random.random() < 0.05:
            await asyncio.sleep(random.uniform(0, 0.004))
            request.cancel()
        with contextlib.suppress(Refused, asyncio.CancelledError):
            await request
        await asyncio.sleep(random.uniform(0, 0.01))


async def load(app: FastAPI, seconds: float) -> None:
    """Every client, for so long; a request that never ends is a problem."""
    until = time.monotonic() + seconds
    clients = [asyncio.create_task(visit(app, until)) for _ in range(CLIENTS)]
    _, late = await asyncio.wait(clients, timeout=seconds + SETTLE_S)
    if late:
        ledger.report(f"{len(late)} clients wait for a request that does not end")
    for client in late:
        client.cancel()
    for client in clients:
        if client.done() and not client.cancelled() and client.exception() is not None:
            ledger.report(f"a request raised {client.exception()!r}")


async def settle(bgx: Bgx) -> None:
    """Wait until everything has ended, and close the books."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        gc.collect()  # what was forgotten is told of when it goes away
        stats = bgx.stats()
        if not (stats.running or stats.waiting or stats.overrunning):
            break
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.05)
    ledger.check_idle(bgx.stats())
    ledger.settle()


# Memory.


class Sample(NamedTuple):
    """What this process held after an epoch."""

    blocks: int
    """Python's own, of small objects."""
    used: int
    """Bytes of everything else: what the C library has given out."""
    resident: int
    """Bytes in memory, what is free and only kept for later included."""


class MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keepcost",
        )
    )


def sample() -> Sample:
    """Look now. What the system does not say is 0."""
    gc.collect()
    system, used = ctypes.CDLL(None), 0
    if hasattr(system, "mallinfo2"):
        system.malloc_trim(0)
        system.mallinfo2.restype = MallInfo
        info: Any = system.mallinfo2()
        used = info.uordblks + info.hblkhd
    status = Path("/proc/self/statm")
    resident = int(status.read_text().split()[1]) * 4096 if status.exists() else 0
    return Sample(sys.getallocatedblocks(), used, resident)


def check_memory(samples: list[Sample]) -> None:
    """The last sample against the first after everything was warm.

    What is in use is warm after the first epoch, and then flat. What Python keeps of it for later
    grows for longer, with the largest flood so far: that is held against a third of the run.
    """
    if len(samples) < 3:
        return
    first, last = samples[1], samples[-1]
    if last.blocks > first.blocks * MORE_BLOCKS[0] + MORE_BLOCKS[1]:
        ledger.report(f"{last.blocks - first.blocks:,} more blocks than the {first.blocks:,}")
    for what, now, then, more in (
        ("in use", last.used, first.used, MORE_USED),
        ("resident", last.resident, samples[len(samples) // 3].resident, MORE_RSS),
    ):
        if now > then * more[0] + more[1]:
            ledger.report(f"{(now - then) / 1e6:.1f} MB more {what} than the {then / 1e6:.1f} MB")


# The run.


async def soak(minutes: float) -> None:
    """Epoch after epoch; what was wrong is in the ledger."""
    epoch_s = min(LONGEST_EPOCH_S, minutes * 60 / 5)
    epochs = max(4, round(minutes * 60 / epoch_s) - 1)
    bgx = Bgx(
        Settings(
            max_concurrency=everything.limit,
            max_threads=in_threads.limit,
            max_processes=1,
            max_backlog=500,
            limits={"smtp": smtp.limit, "narrow": narrow.limit},
            timeout=5,
            drain_timeout=0.5,
        )
    )
    app = make_app(bgx)
    samples: list[Sample] = []
    async with running(app):
        for epoch in range(1, epochs + 1):
            await load(app, epoch_s)
            await settle(bgx)
            samples.append(sample())
            _print_epoch(f"{epoch}/{epochs}", samples[-1])
            if ledger.problems:
                break
        visitors = asyncio.create_task(load(app, epoch_s / 2))
        await asyncio.sleep(epoch_s / 4)
    await visitors  # shut down under load: the rest of the visits is refused
    await settle(bgx)
    _print_epoch("shut down under load", sample())
    check_memory(samples)
    _print_summary()


def _print_epoch(epoch: str, found: Sample) -> None:
    print(
        f"{epoch}: {ledger.totals['added']:,} tasks, {found.blocks:,} blocks, "
        f"{found.used / 1e6:.1f} MB beside them, {found.resident / 1e6:.0f} MB resident, "
        f"{len(ledger.problems)} problems",
        flush=True,
    )


def _print_summary() -> None:
    for gauge in (everything, in_threads, smtp, narrow, *tenants[:1]):
        print(f"{gauge.name}: at most {gauge.peak} of {gauge.limit} at once")
    for name, count in sorted(ledger.totals.items()):
        print(f"{name}: {count:,}")
    for problem in ledger.problems:
        print(f"PROBLEM: {problem}", flush=True)


def main() -> int:
    """Run for as long as the command line says; 1 when something was wrong."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.soak", description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000))
    arguments = parser.parse_args()
    random.seed(arguments.seed)
    print(f"seed {arguments.seed}")
    structlog.configure(
        processors=[ledger.hear],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
    )
    asyncio.run(soak(arguments.minutes))
    return 1 if ledger.problems else 0


if __name__ == "__main__":
    sys.exit(main())
