"""The comparison: `uv run --group bench python -m tests.benchmarks.compare`. Never run as a test.

Each *situation* is a small application and what is seen of it from outside, for each contestant: a
real uvicorn in a process of its own, real requests, signals, files that the tasks write, the log.

- `situation.py`: what a situation is. `situations/`: all of them, by subject.
- `kit.py`: what the application of a situation gets, and how each contestant is configured.
- `kits.py`, `our_kit.py`: the contestants.
- `server.py`, `lab.py`: a running server, and what a situation asks for.
- `page.py`: what was found, as docs/explanation/comparison.json and the tables of comparison.md.
"""
