"""All situations, by subject, in the order of the page."""

from tests.benchmarks.compare.situation import Situation
from tests.benchmarks.compare.situations import (
    beyond,
    calls,
    cancels,
    cost,
    limits,
    many,
    restarts,
    retries,
    routes,
    trouble,
    visible,
)

GROUPS: dict[str, tuple[Situation, ...]] = {
    "One task and the others": trouble.ALL,
    "The call": calls.ALL,
    "Where tasks are added": routes.ALL,
    "Limits": (*limits.ALL, *cancels.ALL),
    "Retries": retries.ALL,
    "Shutdown and restart": restarts.ALL,
    "What can be seen": (*visible.ALL, *many.ALL),
    "Cost": cost.ALL,
    "What fastapi-taskflow has": beyond.ALL,
}
SITUATIONS: dict[str, Situation] = {each.key: each for group in GROUPS.values() for each in group}
