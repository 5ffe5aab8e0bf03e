"""`GET /metrics` for Prometheus, where `prometheus_client` is installed."""

from fastapi import FastAPI, Response

from fastapi_bgx import Bgx


def add_metrics(app: FastAPI, bgx: Bgx) -> None:
    """Add the route; without the package, none."""
    try:
        from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

        from fastapi_bgx.listeners.prometheus import instrument
    except ImportError:
        return
    instrument(bgx)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(generate_latest(), media_type=CONTENT_TYPE_LATEST)
