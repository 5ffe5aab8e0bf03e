"""Other servers than uvicorn: all drain with the lifespan, gunicorn's workers with the signal."""

import importlib.util
from pathlib import Path
from signal import SIGTERM

import pytest

from tests.conftest import require
from tests.server.conftest import serving
from tests.server.test_shutdown import names
from tests.server.test_workers import WORKERS, add_in_every_worker

BIND = ["--bind", "127.0.0.1:0"]


@pytest.mark.parametrize("worker", ["asyncio", "trio"])
def test_hypercorn_drains_with_the_lifespan(tmp_path: Path, worker: str) -> None:
    require(importlib.util.find_spec("hypercorn"), "hypercorn is not installed")
    command = ["-m", "hypercorn", "app:app", *BIND, "-k", worker]
    with serving(command, tmp_path, BGX_DRAIN_TIMEOUT="0.1") as server:
        server.add("endless", detached=True)
        server.add("blocked", detached=True)
        server.log("blocked.starts")
        server.send(SIGTERM)
        assert server.end() == 0
        assert names(server.report()["cancelled"]) == ["blocked", "endless"]
        assert names(server.report()["in_thread"]) == ["blocked"]


def test_workers_of_gunicorn_drain_and_have_ids_of_their_own(tmp_path: Path) -> None:
    require(importlib.util.find_spec("uvicorn_worker"), "uvicorn-worker is not installed")
    kind = ["-k", "uvicorn_worker.UvicornWorker", "--preload", "--workers", str(WORKERS)]
    command = ["-m", "gunicorn", "app:app", *BIND, *kind]
    with serving(command, tmp_path, BGX_DRAIN_TIMEOUT="0.1") as server:
        ids = add_in_every_worker(server, "endless")
        server.send(SIGTERM)
        assert server.end() == 0
        assert len(ids) == len(set(ids))
        reports = server.logged("bgx.drained")
        cancelled = [ref for report in reports for ref in report["cancelled"]]
        assert sorted(ref.split()[1] for ref in cancelled) == sorted(ids)
