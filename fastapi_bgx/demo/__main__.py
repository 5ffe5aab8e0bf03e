"""`python -m fastapi_bgx.demo`: a real server, real requests, and what the library did.

It checks what it shows: the exit code is 0 only when everything happened as it should.
"""

import argparse
import contextlib
import importlib.util
import os
import sys

INTERRUPTED = 130
"""What a shell calls the end by Ctrl-C."""
NEEDED = ("httpx", "jinja2", "pyrate_limiter", "uvicorn")
"""The packages of the extra `demo`."""


def main() -> int:
    """Show the demo; gives the exit code."""
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            sys.exit(f"The demo needs {package}: pip install 'fastapi-bgx[demo]'")
    from fastapi_bgx.demo import acts
    from fastapi_bgx.demo.server import DemoFailed, Server, free_port
    from fastapi_bgx.demo.stage import Stage

    parser = argparse.ArgumentParser(prog="python -m fastapi_bgx.demo", description=__doc__)
    parser.add_argument("--port", type=int, help="default: 8000, or any that is free")
    parser.add_argument("--once", action="store_true", help="end after the acts: for CI")
    parser.add_argument("--open", action="store_true", help="open the dashboard in a browser")
    options = parser.parse_args()
    try:
        port = free_port(options.port)
    except (OSError, OverflowError) as error:
        parser.error(f"port {options.port} cannot be used ({error}); leave --port out")

    with Server(port) as server:
        stage = Stage(server)
        try:
            acts.introduce(stage)
            if options.open:
                acts.open_dashboard(stage)
            for act in acts.ACTS:
                act(stage)
            acts.conclude(stage)
            if not options.once:
                with contextlib.suppress(KeyboardInterrupt):
                    acts.keep_serving(stage)
            acts.shutdown(stage)
        except DemoFailed as failed:
            stage.write(f"\nThe demo failed: {failed}.")
            return 1
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader has left: `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
