"""`app.py` with metrics for Prometheus, as an application would serve them: in all processes."""

import app as plain  # type: ignore[import-not-found]  # beside it, in the server's directory
from fastapi import FastAPI, Response
from prometheus_client import (
    CONTENT_TYPE_LATEST,
    REGISTRY,
    CollectorRegistry,
    generate_latest,
    multiprocess,
)

from fastapi_bgx.listeners.prometheus import instrument

app: FastAPI = plain.app
instrument(plain.bgx)
instrument(plain.bgx, registry=CollectorRegistry())  # there is one set for each process


@app.get("/metrics")
def metrics() -> Response:
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)


@app.get("/own-metrics")
def own_metrics() -> Response:
    """What the default registry of this process says by itself."""
    return Response(generate_latest(REGISTRY), media_type=CONTENT_TYPE_LATEST)


without_lifespan = plain.without_lifespan
