"""A believable shop at night: records in every state, processes, and a control that acts on them.

`Scene(now)` is the same for the same moment, so that screenshots can be compared. `Scene.console`
is what the router is built with; cancelling and retrying change the records in its store.
"""

import random
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from fastapi_bgx.console import Console
from fastapi_bgx.outcome import Status
from fastapi_bgx.records import Answer, FullRecord, LimiterReading, ProcessReading, Step
from fastapi_bgx.stores import MemoryStore

NOW = datetime(2026, 3, 14, 3, 7, 21, tzinfo=UTC)
"""A moment for whoever wants the same scene each time."""
HERE, THERE = "k3f9", "p8d2"
"""The two processes."""
BASE = "shop.tasks"


class Kind(NamedTuple):
    """The tasks of one name."""

    name: str
    function: str
    executor: str
    seconds: float
    weight: int
    limit: str | None = None
    timeout_s: float | None = None
    attempts: int = 1
    value: str = "null"
    arguments: dict[str, str] = {}  # noqa: RUF012 - a default that nobody changes


KINDS = (
    Kind("send_receipt", "mail.send_receipt", "async", 0.21, 30, "smtp", 10, 3, '"250 OK"'),
    Kind("send_welcome", "mail.send_welcome", "async", 0.18, 14, "smtp", 10, 3, '"250 OK"'),
    Kind("resize_photo", "photos.resize", "thread", 1.9, 18, None, 5),
    Kind("push_to_crm", "crm.push", "async", 0.6, 14, "crm", 2, 4, '{"crm_id": 88213}'),
    Kind("charge_card", "billing.charge", "async", 0.9, 10, None, 15),
    Kind("count_stock", "stock.count", "process", 6.4, 5, None, 60, 1, '{"articles": 18204}'),
    Kind("build_export", "exports.build", "thread", 24.0, 4, None, 300),
    Kind("send_sms", "sms.send", "async", 0.3, 12, "sms", 5),
)


class Trouble(NamedTuple):
    """An error that the tasks of one name end with."""

    name: str
    type: str
    message: str
    place: str
    fingerprint: str
    status: Status = Status.FAILED


TROUBLES = (
    Trouble(
        "charge_card",
        "httpx.ConnectError",
        "[Errno 111] Connection refused: https://api.bank.example/v2/charges",
        "shop/billing.py:88 in charge",
        "b41f09c2d7",
    ),
    Trouble(
        "send_receipt",
        "smtplib.SMTPRecipientsRefused",
        "{'ann@exmaple.org': (550, b'5.1.1 no such user here')}",
        "shop/mail.py:31 in deliver",
        "5e02aa7c13",
    ),
    Trouble(
        "push_to_crm",
        "TimeoutError",
        "an attempt took longer than 2 s",
        "shop/crm.py:19 in push",
        "0c77d3f9be",
        Status.TIMED_OUT,
    ),
    Trouble(
        "resize_photo",
        "PIL.UnidentifiedImageError",
        "cannot identify image file <_io.BytesIO object at 0x7f0c2a1b3d80>",
        "shop/photos.py:54 in resize",
        "91d6be0042",
    ),
    Trouble(
        "build_export",
        "KeyError",
        "'vat_rate'",
        "shop/exports.py:112 in row",
        "7ac3e1580f",
    ),
)
TRACEBACK = """\
Traceback (most recent call last):
  File "/srv/shop/{file}", line {above}, in {function}
    answer = client.request(payload, timeout=self.timeout)
             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/usr/lib/python3.13/site-packages/httpx/_client.py", line 1014, in send
    response = self._send_handling_auth(
        request, auth=auth, follow_redirects=follow_redirects, history=[]
    )
OSError: [Errno 111] Connection refused

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "/srv/shop/{file}", line {line}, in {function}
    raise {short}({message!r}) from error
{type}: {message}
"""
LINES = (
    ("info", "mail.sent to=ann@example.org size=18204"),
    ("info", "photo.read width=4032 height=3024"),
    ("warning", "crm.slow seconds=1.8"),
    ("debug", "cache.miss key=customer:4711"),
)


def seconds(number: float) -> timedelta:
    """So many seconds."""
    return timedelta(seconds=number)


def traceback_of(trouble: Trouble) -> str:
    """What Python would print."""
    file, _, rest = trouble.place.partition(":")
    line, _, function = rest.partition(" in ")
    return TRACEBACK.format(
        file=file,
        above=int(line) - 4,
        line=line,
        function=function,
        type=trouble.type,
        short=trouble.type.rpartition(".")[2],
        message=trouble.message,
    )


class Scene:
    """Records and processes as they are at `now`."""

    def __init__(self, now: datetime = NOW, ended: int = 260, seed: int = 7) -> None:
        self.now = now
        self.random = random.Random(seed)
        self.numbers = iter(range(18_200, 10_000_000))
        self.store = MemoryStore()
        self.records: tuple[FullRecord, ...] = tuple(
            sorted((*self._ended(ended), *self._special()), key=lambda record: record.added_at)
        )
        self.store.write(self.records)
        for process in processes(now, self.records):
            self.store.beat(process)
        self.control = SceneControl(self)
        self.console = Console(self.store, self.control)

    def first(self, status: Status, name: str | None = None) -> FullRecord:
        """The record of that status (and name) that was added last."""
        return next(
            record
            for record in reversed(self.records)
            if record.status is status and name in (None, record.name)
        )

    def change(self, task_id: str, **update: Any) -> FullRecord:
        """Let something happen to a task."""
        before = self.store.get(task_id)
        assert before is not None
        after = before.model_copy(update=update)
        self.store.write([after])
        return after

    def add(self, name: str = "send_receipt", at: datetime | None = None) -> FullRecord:
        """A task that has just begun to run. `at`: now, when not given."""
        kind = next(kind for kind in KINDS if kind.name == name)
        added = at or datetime.now(UTC)
        record = self._record(
            kind,
            Status.RUNNING,
            added,
            started_at=added,
            queued_s=0.0,
            attempt=1,
            steps=(Step(at=added, kind="started", attempt=1),),
        )
        self.store.write([record])
        return record

    def end(self, task_id: str, status: Status = Status.SUCCEEDED) -> FullRecord:
        """Let a task end now."""
        record = self.store.get(task_id)
        assert record is not None
        now = datetime.now(UTC)
        started = record.started_at or record.added_at
        return self.change(
            task_id, status=status, ended_at=now, duration_s=(now - started).total_seconds()
        )

    # ---- what the records are made of

    def _record(self, kind: Kind, status: Status, added: datetime, **more: Any) -> FullRecord:
        process = more.pop("process", self.random.choice((HERE, HERE, THERE)))
        return FullRecord.model_validate(
            {
                "id": f"{process}-{next(self.numbers)}",
                "name": kind.name,
                "status": status,
                "function": f"{BASE}.{kind.function}",
                "executor": kind.executor,
                "process": process,
                "limit": kind.limit,
                "timeout_s": kind.timeout_s,
                "attempts": kind.attempts,
                "added_at": added,
                "arguments": {"order": str(self.random.randint(40_000, 49_999)), "locale": "'en'"},
                **more,
            }
        )

    def _ended(self, many: int) -> Iterator[FullRecord]:
        weights = [kind.weight for kind in KINDS]
        for _ in range(many):
            ago = self.random.expovariate(1 / 9_000) % 86_000 + 4
            kind = self.random.choices(KINDS, weights)[0]
            yield self._one_ended(kind, self.now - seconds(ago + kind.seconds * 3))

    def _one_ended(self, kind: Kind, added: datetime) -> FullRecord:
        waited = self.random.expovariate(1 / (0.4 if kind.limit else 0.02))
        took = kind.seconds * self.random.lognormvariate(0, 0.45)
        trouble = next((each for each in TROUBLES if each.name == kind.name), None)
        if trouble is not None and self.random.random() < 0.14:
            return self._failed(kind, trouble, added, waited)
        started = added + seconds(waited)
        steps = [Step(at=started, kind="started", attempt=1)]
        attempt = 1
        if kind.attempts > 1 and trouble is not None and self.random.random() < 0.12:
            steps += self._failed_attempt(trouble, started, 1, took)
            steps.append(Step(at=started + seconds(took * 2 + 1), kind="started", attempt=2))
            attempt, took = 2, took * 3 + 1
        level, text = self.random.choice(LINES)
        steps.append(
            Step(
                at=started + seconds(took * 0.9),
                kind="log",
                attempt=attempt,
                level=level,
                text=text,
            )
        )
        return self._record(
            kind,
            Status.SUCCEEDED,
            added,
            attempt=attempt,
            started_at=started,
            ended_at=started + seconds(took),
            queued_s=waited,
            duration_s=took,
            value=kind.value,
            steps=steps,
        )

    def _failed_attempt(
        self, trouble: Trouble, at: datetime, attempt: int, took: float
    ) -> list[Step]:
        return [
            Step(
                at=at + seconds(took),
                kind="failed",
                attempt=attempt,
                level="warning",
                text=f"{trouble.type}: {trouble.message}",
                seconds=took,
            ),
            Step(
                at=at + seconds(took),
                kind="retrying",
                attempt=attempt,
                text=f"attempt {attempt + 1} begins later",
                seconds=2.0**attempt,
            ),
        ]

    def _failed(self, kind: Kind, trouble: Trouble, added: datetime, waited: float) -> FullRecord:
        started = at = added + seconds(waited)
        steps: list[Step] = []
        took = kind.timeout_s if trouble.status is Status.TIMED_OUT else kind.seconds
        assert took is not None
        for attempt in range(1, kind.attempts + 1):
            steps.append(Step(at=at, kind="started", attempt=attempt))
            steps.append(
                Step(
                    at=at + seconds(took / 2),
                    kind="log",
                    attempt=attempt,
                    text=f"request.sent attempt={attempt}",
                )
            )
            failed = self._failed_attempt(trouble, at, attempt, took)
            steps += failed if attempt < kind.attempts else failed[:1]
            at += seconds(took + (2.0**attempt if attempt < kind.attempts else 0))
        return self._record(
            kind,
            trouble.status,
            added,
            attempt=kind.attempts,
            started_at=started,
            ended_at=at,
            queued_s=waited,
            duration_s=(at - started).total_seconds(),
            error_type=trouble.type,
            error_message=trouble.message,
            error_place=trouble.place,
            fingerprint=trouble.fingerprint,
            traceback=traceback_of(trouble),
            retryable=self.random.random() < 0.7,
            steps=steps,
        )

    def _special(self) -> Iterator[FullRecord]:
        yield from self._alive()
        yield from self._overrunning()
        yield from self._ended_otherwise()

    def _running(self, name: str, ago: float, **more: Any) -> FullRecord:
        kind = next(kind for kind in KINDS if kind.name == name)
        added = self.now - seconds(ago)
        steps = more.pop("steps", ())
        return self._record(
            kind,
            Status.RUNNING,
            added,
            attempt=1,
            started_at=added + seconds(0.02),
            queued_s=0.02,
            steps=(Step(at=added + seconds(0.02), kind="started", attempt=1), *steps),
            **more,
        )

    def _alive(self) -> Iterator[FullRecord]:
        yield self._running("build_export", 74, progress=0.62, note="row 124,000 of 200,000")
        yield self._running("build_export", 12, progress=0.08, note="reading orders")
        yield self._running("count_stock", 5.1)
        yield self._running("send_receipt", 0.15)
        yield self._running("send_receipt", 0.1)
        late = Step(
            at=self.now - seconds(8),
            kind="slow",
            attempt=1,
            level="warning",
            text="it runs longer than most of its name",
            seconds=10.0,
        )
        yield self._running("charge_card", 18, steps=(late,))
        for number in range(9):
            yield self._record(KINDS[0], Status.QUEUED, self.now - seconds(0.3 * number + 0.2))
        yield self._record(
            KINDS[7],
            Status.QUEUED,
            self.now - seconds(40),
            due_at=self.now + seconds(560),
            steps=(
                Step(at=self.now - seconds(40), kind="delayed", text="until later", seconds=600),
            ),
        )
        trouble = TROUBLES[2]
        for ago in (4.0, 9.0, 11.0):
            started = self.now - seconds(ago)
            yield self._record(
                KINDS[3],
                Status.RETRYING,
                started,
                attempt=1,
                started_at=started,
                queued_s=0.0,
                due_at=self.now + seconds(14 - ago),
                error_type=trouble.type,
                error_message=trouble.message,
                error_place=trouble.place,
                fingerprint=trouble.fingerprint,
                traceback=traceback_of(trouble),
                steps=[
                    Step(at=started, kind="started", attempt=1),
                    *self._failed_attempt(trouble, started, 1, 2.0),
                ],
            )

    def _overrunning(self) -> Iterator[FullRecord]:
        for ago in (95.0, 31.0):
            started = self.now - seconds(ago)
            yield self._record(
                KINDS[2],
                Status.TIMED_OUT,
                started,
                process=HERE,
                attempt=1,
                started_at=started,
                ended_at=started + seconds(5),
                queued_s=0.0,
                duration_s=5.0,
                error_type="TimeoutError",
                error_message="an attempt took longer than 5 s",
                error_place="shop/photos.py:54 in resize",
                fingerprint="f00d51aa07",
                overrunning=True,
                steps=[
                    Step(at=started, kind="started", attempt=1),
                    Step(
                        at=started + seconds(5),
                        kind="overran",
                        attempt=1,
                        level="warning",
                        text="its thread still runs: a thread cannot be stopped",
                        seconds=5.0,
                    ),
                ],
            )

    def _ended_otherwise(self) -> Iterator[FullRecord]:
        ends = (
            (Status.CANCELLED, 6, 340.0, "cancelled by an operator", True),
            (Status.CANCELLED, 1, 5_400.0, "the server shut down", True),
            (Status.EXPIRED, 7, 900.0, "it waited longer than its queue_timeout of 30 s", False),
            (Status.EXPIRED, 7, 1_900.0, "it waited longer than its queue_timeout of 30 s", False),
            (Status.REJECTED, 0, 2_500.0, "1,000 tasks were waiting already", False),
            (Status.REJECTED, 0, 2_501.0, "1,000 tasks were waiting already", False),
            (Status.DROPPED, 1, 3_300.0, "its request failed: 500", False),
        )
        for status, kind, ago, reason, began in ends:
            added = self.now - seconds(ago)
            waited = 0.0 if status is Status.REJECTED else 30.0
            yield self._record(
                KINDS[kind],
                status,
                added,
                attempt=int(began),
                started_at=added + seconds(1) if began else None,
                ended_at=added + seconds(waited),
                queued_s=1.0 if began else waited,
                duration_s=waited - 1 if began else None,
                reason=reason,
                retryable=status is not Status.REJECTED,
                steps=[Step(at=added + seconds(1), kind="started", attempt=1)] if began else [],
            )


def processes(now: datetime, records: Sequence[FullRecord]) -> Iterator[ProcessReading]:
    """Two processes of one server, of which the second was last heard of a while ago."""
    for number, (name, silent) in enumerate(((HERE, 0.8), (THERE, 9.0))):
        mine = [record for record in records if record.process == name]
        yield ProcessReading(
            id=name,
            host="web-1",
            pid=4_711 + number,
            started_at=now - timedelta(days=2, hours=3 + number),
            seen_at=now - seconds(silent),
            running=sum(record.status is Status.RUNNING for record in mine),
            waiting=sum(record.status in (Status.QUEUED, Status.RETRYING) for record in mine),
            overrunning=sum(record.overrunning for record in mine),
            lost=12 * number,
            limiters={
                "threads": LimiterReading(slots=8, taken=4 - number, waiting=0),
                "smtp": LimiterReading(slots=2, taken=2, waiting=6 - 3 * number),
                "crm": LimiterReading(slots=4, taken=0, waiting=0),
                "sms": LimiterReading(slots=None, taken=0, waiting=1, rate="2/second", spent=2),
                "processes": LimiterReading(slots=2, taken=1 - number, waiting=0),
            },
        )


class SceneControl:
    """Stops and repeats tasks as the real one would, only at once."""

    process = HERE

    def __init__(self, scene: Scene) -> None:
        self.scene = scene
        self.asked: list[tuple[str, str]] = []
        """What was asked for: `("cancel", id)`."""

    def flush(self) -> None:
        """Everything is in the store."""

    def live(self, task_id: str) -> FullRecord | None:
        """The store knows it."""
        return None

    def is_held(self, task_id: str) -> bool:
        """As its record says."""
        record = self.scene.store.get(task_id)
        return record is not None and record.retryable

    def cancel(self, task_id: str) -> Answer | None:
        """Stop a task."""
        self.asked.append(("cancel", task_id))
        record = self.scene.store.get(task_id)
        if record is None:
            return None
        if record.final:
            return Answer(done=False, detail=f"it has ended already: {record.status}")
        ended = self.scene.end(task_id, Status.CANCELLED)
        self.scene.change(ended.id, reason="cancelled by an operator")
        return Answer(done=True)

    def retry(self, task_id: str) -> Answer | None:
        """Run a task again."""
        self.asked.append(("retry", task_id))
        record = self.scene.store.get(task_id)
        if record is None:
            return None
        if not record.retryable:
            return Answer(done=False, detail="its arguments are not held any more")
        again = self.scene.add(record.name)
        self.scene.change(again.id, retry_of=task_id)
        return Answer(done=True, task_id=again.id)
