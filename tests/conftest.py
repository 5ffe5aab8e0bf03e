"""What every test shares: both event loops, an environment without `BGX_*`, and `require`."""

import os

import pytest

pytest_plugins = ["fastapi_bgx.pytest_plugin", "pytester"]


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    """Run each `@pytest.mark.anyio` test, and whoever asks for this, on asyncio and on trio."""
    backend: str = request.param
    return backend


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("BGX_"):
            monkeypatch.delenv(name)


def require(condition: object, reason: str) -> None:
    """Skip the running test unless `condition` holds; with `CI_NO_SKIP=1`, fail it instead.

    For whatever a machine may lack: a service, an interpreter, a signal. `.ci/run` sets
    `CI_NO_SKIP`, so that a test that cannot run there is an error and not a quiet hole.
    """
    if condition:
        return
    if os.environ.get("CI_NO_SKIP"):
        pytest.fail(f"{reason}, and CI_NO_SKIP allows no skips", pytrace=False)
    pytest.skip(reason)
