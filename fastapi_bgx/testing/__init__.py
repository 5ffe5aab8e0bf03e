"""For the tests of applications: capture tasks, own the clock, and let no failure pass unseen.

pytest has all of it as fixtures (`bgx_tasks`, `bgx_clock`, `bgx_failures`), without any import. The
context managers here are what the fixtures are made of, for other test runners.
"""

from fastapi_bgx.testing.captured import Captured, CapturedView, capturing_tasks
from fastapi_bgx.testing.clock import Clock, owning_clock
from fastapi_bgx.testing.failures import Failures, watching_failures

__all__ = [
    "Captured",
    "CapturedView",
    "Clock",
    "Failures",
    "capturing_tasks",
    "owning_clock",
    "watching_failures",
]
