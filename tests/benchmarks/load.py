"""The load generator of W4, in a process of its own; one JSON line on its output.

`closed PORT PATH CONNECTIONS SECONDS` stands in for wrk where wrk is not installed: each connection
sends its next request when the last was answered. `flood PORT RATE SECONDS EVERY LIMIT` is open:
requests for blocking tasks arrive at a fixed rate whatever the server does, and so do the probes
of the innocent endpoint, whose latency counts from the moment when they were due.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

HOST = "127.0.0.1"
MOST_REQUESTS = 50_000


def request(path: str, *, last: bool = False) -> bytes:
    """The bytes of a GET request."""
    connection = "close" if last else "keep-alive"
    return f"GET {path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: {connection}\r\n\r\n".encode()


async def read_answer(reader: asyncio.StreamReader) -> int:
    """Read one answer to its end; its status."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = 0
    for line in head.split("\r\n"):
        if line.startswith("content-length:"):
            length = int(line.partition(":")[2])
    await reader.readexactly(length)
    return int(head.split(" ", 2)[1])


async def get_once(port: int, path: str) -> int:
    """One request on a connection of its own; its status."""
    reader, writer = await asyncio.open_connection(HOST, port)
    try:
        writer.write(request(path, last=True))
        return await read_answer(reader)
    finally:
        writer.close()


async def closed(port: int, path: str, connections: int, seconds: float) -> dict[str, Any]:
    """As many requests as can be answered in time."""
    answered, refused = 0, 0
    started = time.perf_counter()
    ends = started + seconds

    async def visit() -> None:
        nonlocal answered, refused
        reader, writer = await asyncio.open_connection(HOST, port)
        sent = request(path)
        while time.perf_counter() < ends:
            writer.write(sent)
            if await read_answer(reader) == 200:
                answered += 1
            else:
                refused += 1
        writer.close()

    await asyncio.gather(*(visit() for _ in range(connections)))
    took = time.perf_counter() - started
    return {"answered": answered, "refused": refused, "seconds": took}


async def flood(
    port: int, rate: float, seconds: float, every: float, limit: float
) -> dict[str, Any]:
    """The latencies of the innocent endpoint, in seconds, while blocking tasks arrive."""
    latencies: list[float] = []
    counts = {"flooded": 0, "refused": 0, "failed": 0, "too_late": 0}

    async def add_task(_: float) -> None:
        try:
            status = await get_once(port, "/blocking")
        except OSError:
            counts["failed"] += 1
        else:
            counts["flooded" if status == 200 else "refused"] += 1

    async def probe(due: float) -> None:
        try:
            async with asyncio.timeout(limit):
                await get_once(port, "/innocent")
        except TimeoutError:
            counts["too_late"] += 1
        latencies.append(time.perf_counter() - due)

    async with asyncio.TaskGroup() as group:
        group.create_task(at_a_rate(rate, seconds, add_task))
        group.create_task(at_a_rate(1 / every, seconds, probe))
    return {"latencies": latencies, **counts}


async def at_a_rate(rate: float, seconds: float, call: Callable[[float], Awaitable[None]]) -> None:
    """Call `rate` times a second, whether or not the calls before have ended; wait for all."""
    started = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(min(int(rate * seconds), MOST_REQUESTS)):
            due = started + number / rate
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(_called(call, due))


async def _called(call: Callable[[float], Awaitable[None]], due: float) -> None:
    await call(due)


def main() -> None:
    """Run what the arguments say."""
    gc.disable()  # its own pauses would count as the server's; it ends soon
    kind, port, *rest = sys.argv[1:]
    if kind == "closed":
        result = closed(int(port), rest[0], int(rest[1]), float(rest[2]))
    else:
        rate, seconds, every, limit = map(float, rest)
        result = flood(int(port), rate, seconds, every, limit)
    print(json.dumps(asyncio.run(result)))


if __name__ == "__main__":
    main()
