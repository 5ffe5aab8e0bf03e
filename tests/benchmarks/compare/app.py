"""The application that uvicorn serves: `uvicorn --factory tests.benchmarks.compare.app:make`.

The environment says whose it is, and for which situation.
"""

import json
import os
from pathlib import Path

from fastapi import FastAPI

from tests.benchmarks.compare.kit import CONTESTANT, FOLDER, SITUATION, WANTS, Wants
from tests.benchmarks.compare.kits import make_kit
from tests.benchmarks.compare.situations import SITUATIONS


def make() -> FastAPI:
    """The application of this process."""
    wants = Wants(**json.loads(os.environ[WANTS]))
    kit = make_kit(os.environ[CONTESTANT], wants, Path(os.environ[FOLDER]))

    @kit.app.get("/up")
    async def up() -> int:
        return os.getpid()

    SITUATIONS[os.environ[SITUATION]].routes(kit)
    return kit.app
