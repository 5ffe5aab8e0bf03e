"""The fixtures in the test suites of users: each test here is a project of its own."""

import pytest

APP = """
import anyio
from fastapi import FastAPI
from fastapi_bgx import Bgx, Tasks

app = FastAPI()
Bgx().install(app)


async def send(to: str) -> str:
    await anyio.sleep(0)
    return to


async def broken() -> None:
    raise ValueError("of the task")


async def stuck() -> None:
    await anyio.sleep_forever()


@app.post("/send")
async def add(tasks: Tasks, to: str) -> None:
    tasks.add_task(send, to)


@app.post("/broken")
def add_broken(tasks: Tasks) -> None:
    tasks.add_task(broken)


@app.post("/stuck")
def add_stuck(tasks: Tasks) -> None:
    tasks.using(detached=True, timeout=3600).add_task(stuck)
"""

PYTEST_ASYNCIO = ("-o", "asyncio_default_fixture_loop_scope=function", "--asyncio-mode")

ASYNC_TESTS = """
import httpx
import pytest
from app import app, send


def client():
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


{mark}
async def test_capture(bgx_tasks):
    async with client() as http:
        await http.post("/send?to=a@b.c")
    bgx_tasks.added(send, "a@b.c")
    assert [outcome.value for outcome in await bgx_tasks.run_async()] == ["a@b.c"]


{mark}
async def test_clock(bgx_clock, bgx_tasks):
    before = bgx_clock.now()
    async with client() as http:
        await http.post("/stuck")
    bgx_clock.patience = 0.01
    [outcome] = await bgx_tasks.run_async(raises=False)
    assert outcome.status == "timed_out"
    await bgx_clock.advance_async(5)
    assert bgx_clock.now() > before + 3604


{mark}
async def test_failures(bgx_failures):
    async with client() as http:
        await http.post("/broken")
    assert [str(error) for error in bgx_failures.expect()] == ["of the task"]


{mark}
async def test_unexpected(bgx_failures):
    async with client() as http:
        await http.post("/broken")
"""


# Warnings are errors, but for those of an older Starlette that meets packages of today.
INI = """
[pytest]
filterwarnings =
    error
    ignore:Please use .import python_multipart:PendingDeprecationWarning
    ignore:The anyio.abc.BlockingPortal alias is deprecated:DeprecationWarning
"""


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A project with an app; its pytest finds the plugin as that of a user does."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    pytester.makepyfile(app=APP)
    pytester.makeini(INI)
    return pytester


def run(project: pytest.Pytester, *options: str) -> pytest.RunResult:
    """In a process of its own, with the given options."""
    return project.runpytest_subprocess("-p", "no:cacheprovider", *options)


def test_sync_tests_with_a_client(project: pytest.Pytester) -> None:
    project.makepyfile("""
        import sys

        import pytest
        from app import app, send, stuck
        from fastapi.testclient import TestClient


        def test_without_it():
            assert "fastapi_bgx.testing" not in sys.modules

        def test_capture(bgx_tasks):
            TestClient(app).post("/send?to=a@b.c")
            bgx_tasks.added(send, to="a@b.c")
            assert bgx_tasks.run()[0].value == "a@b.c"

        def test_clock(bgx_clock):
            with TestClient(app) as client:
                client.post("/stuck")
                bgx_clock.advance(3600)

        def test_wrong(bgx_tasks):
            TestClient(app).post("/send?to=x@y.z")
            bgx_tasks.added(send, to="a@b.c")

        def test_hangs(bgx_clock):
            bgx_clock.hang_after = 0.05
            with TestClient(app) as client:
                client.post("/stuck")  # and the drain waits for it

        @pytest.fixture
        def client(bgx_failures):
            with TestClient(app) as client:
                yield client

        def test_causes_a_failure(client):
            client.post("/broken")

        def test_fails_otherwise(client):
            client.post("/broken")
            assert False, "of the test"

        def test_innocent(client):
            pass
    """)
    result = run(project, "-p", "no:asyncio")
    # Of test_fails_otherwise, both errors are told: the task's at the end of the test.
    result.assert_outcomes(passed=4, failed=4, errors=1)
    result.stdout.fnmatch_lines(
        [
            "E *AssertionError: send(to='a@b.c') was not added.",
            "E *Added, the most alike first:",
            "E *send(to='x@y.z')  <- to is 'x@y.z', not 'a@b.c'",
            "FAILED *::test_wrong - *",
            "FAILED *::test_hangs - AssertionError: nothing happened for 0.05 s*",
            "FAILED *::test_causes_a_failure - ValueError: of the task",
            "FAILED *::test_fails_otherwise - AssertionError: of the test*",
        ]
    )


@pytest.mark.parametrize(
    ("mark", "options"),
    [
        pytest.param("@pytest.mark.anyio", ("-p", "no:asyncio"), id="anyio"),
        pytest.param("@pytest.mark.asyncio", (*PYTEST_ASYNCIO, "strict"), id="asyncio-strict"),
        pytest.param("", (*PYTEST_ASYNCIO, "auto"), id="asyncio-auto"),
        pytest.param("@pytest.mark.anyio", (*PYTEST_ASYNCIO, "strict"), id="both"),
    ],
)
def test_async_tests_with_httpx(
    project: pytest.Pytester, mark: str, options: tuple[str, ...]
) -> None:
    project.makepyfile(ASYNC_TESTS.format(mark=mark))
    loops = 2 if "anyio" in mark else 1  # anyio's plugin runs each on asyncio and on trio
    result = run(project, *options)
    result.assert_outcomes(passed=3 * loops, failed=loops)
    result.stdout.fnmatch_lines(["E *ValueError: of the task"])


def test_one_line_of_configuration_watches_every_test(project: pytest.Pytester) -> None:
    project.makeini("[pytest]\nbgx_raise_failures = true\n")
    project.makepyfile("""
        from app import app
        from fastapi.testclient import TestClient

        def test_causes_it():
            TestClient(app).post("/broken")

        def test_innocent():
            TestClient(app).post("/send?to=a@b.c")

        def test_expects_it(bgx_failures):
            TestClient(app).post("/broken")
            assert len(bgx_failures.expect()) == 1
    """)
    result = run(project, "-p", "no:asyncio")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["FAILED *::test_causes_it - ValueError: of the task"])


# In this very suite, where the plugin is loaded by conftest.py.


def test_the_fixtures_are_here(bgx_tasks: object, bgx_clock: object, bgx_failures: object) -> None:
    names = [type(each).__name__ for each in (bgx_tasks, bgx_clock, bgx_failures)]
    assert names == ["Captured", "Clock", "Failures"]


def test_the_option_is_read_for_each_test(request: pytest.FixtureRequest) -> None:
    assert request.config.getini("bgx_raise_failures") is False
