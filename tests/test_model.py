"""Random programs of adds, cancels, drains and time, against the laws of `model.py`."""

import os
from contextlib import ExitStack
from typing import Any

import pytest
import trio
from anyio.from_thread import BlockingPortal, start_blocking_portal
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fastapi_bgx import Retry
from tests.model import Case, Spec, Visit, World
from tests.supervision import PATIENCE

# The same programs each time, so that a change is what makes a difference; `MODEL_EXAMPLES=5000`
# looks for new ones.
EXAMPLES = int(os.environ.get("MODEL_EXAMPLES", "0"))

ACTS = [
    "return",
    "wait",
    "wait",
    "wait",
    "yield",
    "sleep",
    "swallow",
    "clean up",
    "add",
    "cancel itself",
]
FAILURES = ["fail", "fail", "fail", "leak", "exit", "group"]


def maybe(*values: Any) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), st.sampled_from(values))


retries = st.builds(
    Retry,
    attempts=st.integers(1, 3),
    wait_initial=st.sampled_from([0.0, 1.0, 2.0]),
    wait_jitter=st.just(0.0),
    total_timeout=maybe(3.0),
    on_timeout=st.booleans(),
)
options = st.fixed_dictionaries(
    {},
    optional={
        "limit": maybe("a", "b", "k"),
        "detached": st.booleans(),
        "concurrent": st.booleans(),
        "timeout": maybe(1.0, 2.0),
        "queue_timeout": maybe(1.0, 2.0),
        "retry": st.one_of(st.none(), retries),
        "delay": maybe(0.0, 1.0, 3.0),
        "expires": maybe(3.5, 5.0),
        "priority": st.sampled_from([-1, 0, 0, 5]),
        "unique": maybe("u", "v"),
    },
)
anything = st.builds(
    Spec,
    acts=st.lists(st.sampled_from(ACTS + FAILURES), min_size=1, max_size=3).map(tuple),
    thread=st.sampled_from([False, False, True]),
    options=options,
    key=st.sampled_from("xy"),
)
at_once = Retry(attempts=2, wait_initial=0.0, wait_jitter=0.0)
# Chance alone seldom has several tasks meet at one limiter, or a thread outlive its timeout.
crowded = st.builds(
    Spec,
    acts=st.sampled_from([("wait",), ("fail", "wait")]),
    thread=st.booleans(),
    options=st.sampled_from(
        [
            {"concurrent": True, "limit": "a"},
            {"concurrent": True, "limit": "b", "retry": at_once},
            {"concurrent": True, "timeout": 1.0, "retry": at_once},
        ]
    ),
    key=st.just("x"),
)
specs = st.one_of(anything, crowded)
one_of_many = st.integers(0, 1000)


class Machine(RuleBasedStateMachine):
    """One world, and what happens in it."""

    backend = "asyncio"

    def __init__(self) -> None:
        super().__init__()
        self.stack = ExitStack()
        self.portal: BlockingPortal = self.stack.enter_context(start_blocking_portal(self.backend))
        self.world: World | None = None
        self.failed = False

    @initialize(
        max_concurrency=maybe(1, 2, 3),
        max_threads=st.integers(1, 2),
        max_backlog=maybe(3, 20),
        mode=st.sampled_from(["inline", "detached"]),
    )
    def begin(self, **settings: Any) -> None:
        self.world = World(**settings)
        self.life, _ = self.portal.start_task(self.world.live)

    def then(self, *steps: Any) -> None:
        """Do something on the loop, let happen what follows, and look."""
        try:
            if steps:
                self.portal.call(*steps)
            self.portal.call(self.the_world.settle)
            self.the_world.check()
        except BaseException:
            self.failed = True
            raise

    @property
    def the_world(self) -> World:
        assert self.world is not None
        return self.world

    def pick(self, cases: list[Any], number: int) -> Any:
        return cases[number % len(cases)]

    def unfinished(self) -> list[Case]:
        return [case for case in self.the_world.cases.values() if not case.task.done]

    def uncalled(self) -> list[Visit]:
        return [visit for visit in self.the_world.visits if not visit.called]

    def running(self) -> list[Visit]:
        visits = self.the_world.visits
        return [visit for visit in visits if visit.called and not visit.over and visit.scope]

    @rule(
        added=st.lists(specs, min_size=1, max_size=4),
        websocket=st.sampled_from([False, False, False, True]),
        elsewhere=st.booleans(),
        at_once=st.sampled_from([True, True, True, False]),
    )
    def request(self, added: list[Spec], websocket: bool, elsewhere: bool, at_once: bool) -> None:
        """A request adds tasks, in the loop or in a thread; it may take its time to end."""
        world = self.the_world
        visit = self.portal.call(lambda: world.visit(websocket=websocket))
        for spec in added:
            case = self.portal.call(world.case, visit, spec)
            where = (world.elsewhere,) if elsewhere else ()
            self.portal.call(*where, world.add, visit, case)
        if at_once:
            self.portal.call(world.respond, visit)
        self.then()

    @precondition(lambda self: self.uncalled())
    @rule(number=one_of_many, fate=st.sampled_from(["respond", "respond", "drop", "forget"]))
    def end_route(self, number: int, fate: str) -> None:
        """A route returns, or fails, or its list is lost."""
        self.then(getattr(self.the_world, fate), self.pick(self.uncalled(), number))

    @precondition(lambda self: self.running())
    @rule(number=one_of_many)
    def cancel_request(self, number: int) -> None:
        self.then(self.the_world.cancel_request, self.pick(self.running(), number))

    @precondition(lambda self: self.unfinished())
    @rule(number=one_of_many, elsewhere=st.booleans())
    def cancel(self, number: int, elsewhere: bool) -> None:
        case = self.pick(self.unfinished(), number)
        where = (self.the_world.elsewhere,) if elsewhere else ()
        self.then(*where, self.the_world.cancel, case)

    @precondition(lambda self: self.unfinished())
    @rule(number=one_of_many)
    def open_gate(self, number: int) -> None:
        """What waits for the test goes on."""
        self.then(self.the_world.open, self.pick(self.unfinished(), number))

    @rule(seconds=st.sampled_from([0.25, 1.0, 1.0, 2.0, 5.0]))
    def advance(self, seconds: float) -> None:
        self.then(self.the_world.advance, seconds)

    @precondition(lambda self: not self.the_world.draining)
    @rule(grace=st.sampled_from([0.0, 1.0, 3.0]), really=st.integers(0, 5))
    def drain(self, grace: float, really: int) -> None:
        if not really:
            self.then(self.the_world.drain, grace)

    def teardown(self) -> None:
        try:
            if self.world is not None and not self.failed:
                self.portal.call(self.world.finish)
        finally:
            if self.world is not None:
                self.portal.call(self.world.give_up)
                self.life.result(PATIENCE)
            self.stack.close()


class OnTrio(Machine):
    """The same. trio shuffles what is ready, in an order that is the same for each example."""

    backend = "trio"

    def __init__(self) -> None:
        trio._core._run._r.seed(0)
        super().__init__()


@pytest.mark.parametrize("machine", [Machine, OnTrio], ids=["asyncio", "trio"])
def test_whatever_happens_the_laws_hold(
    machine: type[Machine], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio._core._run._ALLOW_DETERMINISTIC_SCHEDULING", True)
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES or 100,
            derandomize=not EXAMPLES,
            stateful_step_count=20,
            deadline=None,
            database=None,
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
