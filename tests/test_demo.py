"""The demo, as a newcomer runs it: in a process of its own, with a real server and real signals."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import anyio
import httpx
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from starlette.types import Receive, Scope, Send
from structlog.testing import capture_logs

from fastapi_bgx import Bgx
from fastapi_bgx.demo import acts
from fastapi_bgx.demo import customers as customers_module
from fastapi_bgx.demo import server as server_module
from fastapi_bgx.demo import stage as stage_module
from fastapi_bgx.demo.__main__ import main
from fastapi_bgx.demo.acts.visibility import dashboard, metrics
from fastapi_bgx.demo.app import app as shop
from fastapi_bgx.demo.customers import Customers, Habit, changes_its_mind
from fastapi_bgx.demo.metrics import add_metrics
from fastapi_bgx.demo.server import DemoFailed, Server, ServerEnded, free_port
from fastapi_bgx.demo.stage import Stage, wrapped
from fastapi_bgx.demo.tasks import count_primes, send_flash_offer
from fastapi_bgx.outcome import Status

DEMO = ["-m", "fastapi_bgx.demo"]


def with_acts(change: str) -> str:
    """A script that runs the demo after a change to it."""
    return f"""
import runpy
from fastapi_bgx.demo import acts, stage
{textwrap.dedent(change)}
runpy.run_module("fastapi_bgx.demo", run_name="__main__")
"""


@contextmanager
def started(*command: str, **environment: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process that any SIGINT interrupts, even where a shell had it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, "COLUMNS": "300", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            yield process
        finally:
            process.kill()


def read_until(process: subprocess.Popen[str], marker: str) -> str:
    """Read the output up to a line with `marker`; gives that line."""
    assert process.stdout is not None
    seen = []
    for line in process.stdout:
        seen.append(line)
        if marker in line:
            return line.rstrip()
    raise AssertionError(f"{marker!r} is not in the output:\n{''.join(seen)}")


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Wait for the end of a process: exit code and errors."""
    _, errors = process.communicate()
    return process.returncode, errors


def ends_soon(url: str) -> bool:
    """Ask a server until it does not answer any more."""
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            httpx.get(url, trust_env=False)
        except httpx.TransportError:
            return True
    return False


def run(*command: str, **environment: str) -> tuple[int, str, str]:
    """Run a Python process to its end: exit code, output, errors."""
    with started(*command, **environment) as process:
        output, errors = process.communicate()
    return process.returncode, output, errors


@pytest.fixture(scope="module")
def demo() -> str:
    """The output of the whole demo, which ended well, with nonsense in its environment."""
    code, output, errors = run(*DEMO, "--once", BGX_NONSENSE="1")
    assert (code, errors) == (0, ""), output + errors
    return output


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that runs, for a stage of one's own."""
    with Server(free_port(0)) as server:
        Stage(server).log("bgx.started")
        yield server


def test_the_acts_come_in_order_before_the_summary_and_the_shutdown(demo: str) -> None:
    titles = [line for line in demo.splitlines() if line[:1].isdigit()]
    assert titles == [
        "1. A task succeeds",
        "2. A task raises",
        "3. A task hangs",
        "4. A task blocks its thread",
        "5. A task needs the CPU",
        "6. A task has a limit",
        "7. Sync tasks flood in",
        "8. Nothing vanishes in silence",
        "9. A task is detached",
        "10. A task is tried again",
        "11. A task waits for its time, and is cancelled",
        "12. A task has a rate, and an urgent one goes first",
        "13. A task tells how far it is",
        "14. A task blocks the event loop",
        "15. What failed, and why?",
        "16. What failed is run again, by hand",
        "17. Prometheus asks",
        "18. The dashboard, with tasks in every state",
        "19. What bgx.stats() has counted",
        "20. The server shuts down while tasks run",
    ]


@pytest.mark.parametrize(
    "line",
    [
        "task.succeeded   task=send_welcome",
        "task.failed      task=charge_card",
        "task.succeeded   task=send_receipt",
        "Exception in ASGI application",
        "task.timed_out   task=push_to_crm",
        "task.timed_out   task=resize_photo",
        "task.overran     task=resize_photo",
        "task.succeeded   task=count_primes",
        "task.timed_out   task=count_primes",
        "'slots': 2, 'taken': 2",
        "task.rejected    task=make_thumbnail",
        "task.retrying    task=notify_partner",
        "task.succeeded   task=send_sms",
        "task.succeeded   task=import_catalogue",
        "task.blocked_loop task=recount_stock",
        "task.succeeded   task=notify_partner",
        "task.delayed     task=send_reminder",
        "task.joined      task=send_reminder",
        "task.cancelled   task=send_reminder",
        "> POST /thumbnails -> 503 Retry-After:",
        "task.dropped     task=send_receipt",
        "task.succeeded   task=build_export",
        "task.cancelled   task=build_export",
        "card.charged     order=7",
        '"retry_of": "',
        "-> 409",
        'bgx_tasks_total{status="succeeded",task="send_welcome"} 1.0',
        "> GET /bgx/: cancelled, dropped, expired, failed, queued, rejected, retrying, running, ",
        "'build_export",
    ],
)
def test_the_real_lines_of_the_log_are_shown(demo: str, line: str) -> None:
    assert line in demo


def test_a_pipe_gets_no_colours(demo: str) -> None:
    assert "\x1b" not in demo


def test_what_stock_fastapi_drops_is_not_shown_as_sent(demo: str) -> None:
    _, _, after = demo.partition("POST /stock/orders")
    assert "mail.sent" not in after.partition("3. A task hangs")[0]


def test_tracebacks_show_the_frames_of_the_shop_only(demo: str) -> None:
    frames = [line for line in demo.splitlines() if 'File "' in line]
    assert frames
    files = str(Path("demo", "app.py")), str(Path("demo", "tasks.py"))
    assert [frame for frame in frames if not any(file in frame for file in files)] == []


def test_the_lines_for_ones_own_app_work(demo: str) -> None:
    _, _, rest = demo.partition("Your own app needs three lines:")
    code = textwrap.dedent(rest.partition("Where to look next:")[0])
    app = FastAPI()
    exec(code, {"app": app})
    assert app.user_middleware


def test_what_it_says_to_look_at_exists(demo: str) -> None:
    _, _, rest = demo.partition("Where to look next:")
    paths = [line.strip() for line in rest.splitlines() if line.startswith("    ")][:4]
    assert [Path(__file__).parents[1].joinpath(path).exists() for path in paths] == [True] * 4


def test_an_act_that_fails_is_the_end_of_the_demo_and_of_its_server(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    urls = []

    def fail(stage: Stage) -> None:
        urls.append(stage.url)
        stage.check(False, "the sky should be blue")

    monkeypatch.setattr(acts, "ACTS", (fail,))
    monkeypatch.setattr(sys, "argv", ["demo", "--once", "--port", "0"])
    assert main() == 1
    assert capsys.readouterr().out.endswith("The demo failed: the sky should be blue.\n")
    assert ends_soon(urls[0])


def test_of_lines_that_are_alike_the_first_are_shown(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter([{"event": "alike", "level": "info"}] * 5 + [{"event": "last", "level": "info"}])
    monkeypatch.setattr(server, "next_line", lambda timeout: next(lines))
    Stage(server).log("last")
    shown = capsys.readouterr().out
    assert shown.count("alike") == 3
    assert "... and 3 more: alike" in shown


def test_a_silent_server_is_followed_until_it_ends(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    silences = iter([None, None])

    def next_line(timeout: float) -> None:
        for silence in silences:
            return silence
        raise ServerEnded(7)

    monkeypatch.setattr(server, "next_line", next_line)
    assert Stage(server).follow() == 7


def test_a_line_that_does_not_come_is_a_failure(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stage_module, "PATIENCE", 0.1)
    with pytest.raises(DemoFailed, match=r"the log lacks task\.failed nobody"):
        Stage(server).log("task.failed nobody")


def test_ctrl_c_ends_the_acts_at_once_and_quietly() -> None:
    with started(*DEMO, "--once") as process:
        read_until(process, "> POST /contacts")  # now it waits for a task that hangs
        process.send_signal(signal.SIGINT)
        assert end(process) == (130, "")


def test_without_once_it_serves_until_ctrl_c() -> None:
    with started("-c", with_acts("acts.ACTS = ()"), "--port", "0") as process:
        url = read_until(process, "or all of it in a browser").rpartition(" ")[2]
        patient = httpx.HTTPTransport(retries=5)  # it says that it has started, then listens
        with httpx.Client(transport=patient) as client:
            client.post(f"{url.removesuffix('/docs')}/orders")
        read_until(process, "task.failed      task=charge_card")
        process.send_signal(signal.SIGINT)
        assert "'build_export" in read_until(process, "bgx.drained")
        assert end(process) == (0, "")


def test_the_server_ends_with_a_demo_that_is_killed() -> None:
    with started("-c", with_acts("acts.ACTS = ()"), "--port", "0") as process:
        url = read_until(process, "or all of it in a browser").rpartition(" ")[2]
    assert ends_soon(url)


def test_a_reader_that_leaves_gets_no_traceback() -> None:
    with started(*DEMO, "--once") as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        assert process.stderr.read() == ""
    assert process.returncode == 1


@pytest.mark.parametrize("package", ["httpx", "jinja2", "pyrate_limiter", "uvicorn"])
def test_a_missing_package_says_which_extra_to_install(package: str) -> None:
    script = f"""
import runpy, sys
sys.modules[{package!r}] = None
runpy.run_module("fastapi_bgx.demo", run_name="__main__")
"""
    code, output, errors = run("-c", script)
    assert (code, output) == (1, "")
    assert errors == f"The demo needs {package}: pip install 'fastapi-bgx[demo]'\n"


def test_a_port_that_is_taken_is_refused(server: Server) -> None:
    code, output, errors = run(*DEMO, "--port", server.url.rpartition(":")[2])
    assert (code, output) == (2, "")
    assert "cannot be used" in errors
    assert "leave --port out" in errors


def test_port_8000_is_taken_when_it_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    free = free_port(0)
    monkeypatch.setattr(server_module, "USUAL_PORT", free)
    assert free_port(None) == free


def test_another_port_is_taken_when_8000_is_not_free(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    busy = int(server.url.rpartition(":")[2])
    monkeypatch.setattr(server_module, "USUAL_PORT", busy)
    assert free_port(None) != busy


def test_a_server_that_cannot_start_shows_why(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    with (
        Server(int(server.url.rpartition(":")[2])) as second,
        pytest.raises(DemoFailed, match="the server has ended"),
    ):
        Stage(second).log("no such line")
    assert "address already in use" in capsys.readouterr().out


def test_what_the_server_prints_beside_its_log_is_shown_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONWARNINGS", "nonsense")
    with Server(free_port(0)) as server:
        Stage(server).log("bgx.started")
    assert "Invalid -W option ignored" in capsys.readouterr().out


def test_a_server_that_ends_by_itself_is_a_failure() -> None:
    with Server(free_port(0)) as server:
        stage = Stage(server)
        stage.log("bgx.started")  # an interrupt in the middle of an import may be swallowed there
        server.interrupt()
        with pytest.raises(DemoFailed, match="the server has ended"):
            acts.keep_serving(stage)
        with pytest.raises(DemoFailed, match="GET /hello got no answer"):
            stage.send("GET", "/hello")


def test_a_server_that_does_not_end_is_a_failure(server: Server) -> None:
    with pytest.raises(DemoFailed, match="does not end"):
        Stage(server).follow(seconds=0)


def test_an_answer_that_is_not_the_expected_one_is_a_failure(server: Server) -> None:
    with pytest.raises(DemoFailed, match="answered 402"):
        Stage(server).request("GET", "/hello", expect=402)


def test_a_terminal_gets_colours_unless_it_says_no(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.delenv("NO_COLOR", raising=False)
    Stage(server).title("bright")
    monkeypatch.setenv("NO_COLOR", "1")
    Stage(server).title("plain")
    assert capsys.readouterr().out == "\n\x1b[1m1. bright\x1b[0m\n\n1. plain\n"


def test_long_lines_of_the_log_are_wrapped_and_colours_take_no_room() -> None:
    colour = "\x1b[32m"
    assert wrapped(f"[info     ] {colour}event a=1 b=2", width=28) == [
        f"[info     ] {colour}event a=1",
        "            b=2",
    ]


def test_the_primes_are_right() -> None:
    assert count_primes(30) == 10  # in a worker process this is not seen by coverage


def test_the_dashboard_comes_first_and_is_opened_when_asked() -> None:
    change = """
    import webbrowser
    webbrowser.open = lambda url: print("opened", url)
    acts.ACTS = ()
    """
    with started("-c", with_acts(change), "--open", "--port", "0") as process:
        url = read_until(process, "Open this first").rpartition(" ")[2]
        assert read_until(process, "opened") == f"opened {url}"
        assert httpx.get(url, trust_env=False).status_code == 200
        read_until(process, "or all of it in a browser")
        process.send_signal(signal.SIGINT)
        assert end(process) == (0, "")


def test_nobody_opens_a_browser_unasked(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    monkeypatch.setattr(acts, "ACTS", ())
    monkeypatch.setattr(sys, "argv", ["demo", "--once", "--port", "0"])
    assert main() == 0
    assert opened == []


def from_address(host: str) -> TestClient:
    """A client of the shop that sits at that address."""

    async def moved(scope: Scope, receive: Receive, send: Send) -> None:
        await shop({**scope, "client": (host, 4711)}, receive, send)

    return TestClient(moved)


def test_the_dashboard_is_for_this_machine_alone() -> None:
    paths = ["/bgx/", "/bgx/ui/tasks", "/bgx/tasks", "/bgx/events"]
    for path in paths:
        assert from_address("192.0.2.7").get(path).status_code == 403, path
    assert from_address("127.0.0.1").get("/bgx/").status_code == 200


def test_without_prometheus_client_there_are_no_metrics(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    app = FastAPI()
    add_metrics(app, Bgx())
    assert TestClient(app).get("/metrics").status_code == 404


def test_a_server_without_metrics_is_no_failure(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stage = Stage(server)
    monkeypatch.setattr(stage, "send", lambda method, path: stage.send_unseen("GET", "/nothing"))
    metrics(stage)
    assert "-> 404 (prometheus-client is not installed)" in capsys.readouterr().out


class Watch:
    """A clock in the hands of the test."""

    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


def test_customers_come_when_it_is_time(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    came: list[str] = []
    habits = (Habit(2, lambda _: came.append("often")), Habit(5, lambda _: came.append("rarely")))
    watch = Watch()
    monkeypatch.setattr(customers_module, "HABITS", habits)
    monkeypatch.setattr(customers_module, "time", watch)
    customers = Customers(Stage(server))
    for _ in range(10):
        watch.now += 1
        customers.come_in_time()
    assert (came.count("often"), came.count("rarely")) == (5, 2)


def test_customers_who_were_asleep_do_not_come_in_a_crowd(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[str] = []
    watch = Watch()
    monkeypatch.setattr(customers_module, "HABITS", (Habit(2, lambda _: came.append("once")),))
    monkeypatch.setattr(customers_module, "time", watch)
    customers = Customers(Stage(server))
    watch.now += 3600  # the lid of the laptop was closed
    customers.come_in_time()
    customers.come_in_time()
    assert came == ["once"]


def test_customers_who_get_no_answer_do_not_end_the_demo(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    came: list[str] = []

    def in_vain(stage: Stage) -> None:
        came.append("in vain")
        raise DemoFailed("no answer")

    watch = Watch()
    monkeypatch.setattr(customers_module, "HABITS", (Habit(2, in_vain),))
    monkeypatch.setattr(customers_module, "time", watch)
    customers = Customers(Stage(server))
    watch.now += 2
    customers.come_in_time()
    assert came == ["in vain"]


def test_the_terminal_shows_nothing_of_what_customers_do(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = iter(
        [
            {"event": "theirs", "request_id": "customer-1"},
            {"event": "ours", "request_id": "demo-1"},
            {"event": "theirs", "request_id": "customer-2"},
            {"event": "last", "request_id": "demo-2"},
        ]
    )

    def next_line(timeout: float) -> dict[str, str]:
        for line in lines:
            return line
        raise ServerEnded(0)

    monkeypatch.setattr(server, "next_line", next_line)
    stage = Stage(server)
    stage.log("ours")
    stage.follow()
    shown = capsys.readouterr().out
    assert "ours" in shown
    assert "last" in shown
    assert "theirs" not in shown


def test_customers_whom_a_full_shop_refuses_go_away(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def refuse(method: str, path: str) -> httpx.Response:
        asked.append(path.partition("?")[0])
        return httpx.Response(503, json={"detail": "20 tasks are waiting already"})

    stage = Stage(server)
    monkeypatch.setattr(stage, "send_unseen", refuse)
    changes_its_mind(stage)
    assert asked == ["/reminders", "/bgx/tasks/refused/cancel"]


def test_a_flash_offer_is_sent_when_there_is_a_slot() -> None:
    with capture_logs() as logs:
        anyio.run(send_flash_offer)  # those of the demo always come too late
    assert [line["event"] for line in logs] == ["mail.sent"]


def test_the_overview_is_asked_again_until_it_lists_every_state(
    server: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    badges = [f'<a class="badge s-{status}" href="">' for status in Status]
    badges.append('<script src="./static/app.js?1"></script>')
    pages = iter([badges[:3], badges])
    assets: list[str] = []

    def send(method: str, path: str) -> httpx.Response:
        if path == "/bgx/":
            return httpx.Response(200, text="".join(next(pages)))
        assets.append(path)
        return httpx.Response(200)

    stage = Stage(server)
    monkeypatch.setattr(customers_module, "HABITS", ())
    monkeypatch.setattr(stage, "send", send)
    dashboard(stage)
    assert not list(pages)
    assert assets == ["/bgx/static/app.js?1"]
    assert "cancelled, dropped, expired" in capsys.readouterr().out
