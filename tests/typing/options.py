"""A misspelt option, or a value of the wrong type, is an error wherever options are given."""

from typing import assert_type

from fastapi_bgx import BackgroundTasks, Limit, task_options


@task_options(timeout=5, limit="smtp")
async def send(email: str) -> bytes:
    return email.encode()


def tenant_of(tenant: str, **_: object) -> str:
    return tenant


@task_options(limit=Limit("tenant", 2, key=tenant_of))
def write(tenant: str) -> int:
    return len(tenant)


async def decorated(tasks: BackgroundTasks) -> None:
    assert_type(await send("a@b.c"), bytes)
    assert_type(write("t"), int)
    await send(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tasks.add_task(send, 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


def right(tasks: BackgroundTasks) -> None:
    tasks.using()
    tasks.using(timeout=None)
    tasks.using(name="crm", timeout=2, queue_timeout=10, slow_after=1.5)
    tasks.using(limit=Limit("tenant", 2), executor="process", detached=True, concurrent=True)


def wrong(tasks: BackgroundTasks) -> None:
    tasks.using(timout=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    tasks.using(timeout="2")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tasks.using(executor="fork")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tasks.using(detached=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    tasks.using(timeout=2).using(retries=3)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    task_options(timout=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    Limit(slots=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
