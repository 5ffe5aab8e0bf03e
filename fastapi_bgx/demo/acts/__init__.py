"""The acts: the requests of the demo, what has to happen then, and why that is good."""

from fastapi_bgx.demo.acts.crowds import blocking, flood, limit, rates
from fastapi_bgx.demo.acts.endings import blocked_thread, failure, hang, process, success
from fastapi_bgx.demo.acts.frame import conclude, introduce, keep_serving, open_dashboard, shutdown
from fastapi_bgx.demo.acts.life import control, detached, nothing_lost, progress, retries
from fastapi_bgx.demo.acts.visibility import by_hand, dashboard, metrics, records

__all__ = ["ACTS", "conclude", "introduce", "keep_serving", "open_dashboard", "shutdown"]

ACTS = (
    success,
    failure,
    hang,
    blocked_thread,
    process,
    limit,
    flood,
    nothing_lost,
    detached,
    retries,
    control,
    rates,
    progress,
    blocking,
    records,
    by_hand,
    metrics,
    dashboard,
)
