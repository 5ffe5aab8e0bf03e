"""What it costs: memory, and the time of a request."""

import asyncio
import subprocess
import sys
import time
from statistics import median

from tests.benchmarks.compare.kit import PACKAGES, Wants
from tests.benchmarks.compare.lab import Lab
from tests.benchmarks.compare.situation import Facts, Situation
from tests.benchmarks.compare.situations.many import Many, run_tasks

WARM_UP = 20_000
MEASURED = 100_000
NOTHING: dict[str, str] = {}


class Memory(Many):
    """Memory of the process after 100,000 more tasks that succeeded.

    Resident memory, after 20,000 to warm up; records in memory where there are records, with the
    default bounds.
    """

    lacks = NOTHING
    wants = Wants(dashboard=True)

    def look(self, lab: Lab) -> Facts:
        with lab.serve() as server:
            run_tasks(server, WARM_UP)
            time.sleep(1)
            before = server.resident_mb()
            run_tasks(server, MEASURED)
            time.sleep(1)
            return {"mb": server.resident_mb() - before}

    def text(self, facts: Facts) -> str:
        return f"{facts['mb']:+,.0f} MB"


class Request(Situation):
    """Time of a request with one async task, called in this process, in terms of stock.

    The median of the ratios of 9 interleaved rounds, as W3 of the [page on
    performance](performance.md); in brackets with records in SQLite.
    """

    def look(self, lab: Lab) -> Facts:
        from tests.benchmarks.compare import requests  # most processes need none of it

        return asyncio.run(requests.ratios(lab.contestant))

    def text(self, facts: Facts) -> str:
        ratios = [value for name, value in facts.items() if name != "us"]
        words = " (SQLite: ".join(f"{ratio:.2f}\N{MULTIPLICATION SIGN}" for ratio in ratios)
        return words + (")" if len(ratios) > 1 else "")


class Import(Situation):
    """CPU time of the import, after that of FastAPI, in a new interpreter: median of 5."""

    verdict = "{ms:+,.0f} ms"

    def look(self, lab: Lab) -> Facts:
        code = f"import fastapi, time; b = time.process_time(); import {PACKAGES[lab.contestant]}"
        command = [sys.executable, "-c", f"{code}; print(time.process_time() - b)"]
        found = [float(subprocess.check_output(command)) for _ in range(5)]
        return {"ms": median(found) * 1e3}


ALL: tuple[Situation, ...] = (Request(), Import(), Memory())
