"""The benchmarks: `uv run --group bench python -m tests.benchmarks`. Never run as timed tests.

- `contestants.py`, `peers.py`: who is measured, in batches of tasks without a request.
- `apps.py`: the same as applications, for requests in this process and, by `server_app.py`, behind
  uvicorn.
- `workloads.py` (W1-W3), `served.py` (W4), `detached.py` (W5), `growth.py`: what is measured.
- `measure.py`: how; `targets.py`: what it is held against; `report.py`, `plot.py`: how it is shown.
- `soak.py`, with `soak_app.py` and `ledger.py`: minutes of mixed load, every task accounted for.
- `compare/`: stock, fastapi-taskflow and this library in the same situations.
"""
