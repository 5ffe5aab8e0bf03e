"""Errors as problem details (RFC 9457): how every route of the router says what went wrong."""

from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.responses import JSONResponse

from fastapi_bgx.records import Frozen

MEDIA_TYPE = "application/problem+json"
UNPROCESSABLE = 422
"""A number: the name that `http` has for it differs between versions of Python."""


class Flaw(Frozen):
    """One thing that is wrong with a request."""

    place: str
    """Where it was found: `query`, `path`, `header` or `body`."""
    name: str
    """The name of the parameter."""
    detail: str
    """What is wrong with it."""


class Problem(Frozen):
    """What went wrong."""

    type: str = "about:blank"
    """The kind of problem: always what `status` says."""
    title: str
    """The status in words."""
    status: int
    """The status of the answer."""
    detail: str
    """What went wrong this time, and what can be done."""
    errors: tuple[Flaw, ...] = ()
    """With 422: everything that is wrong with the request."""


class ProblemRaised(Exception):
    """A request ends with this problem. Only the router's own routes raise it, and catch it."""

    def __init__(
        self, status: int, detail: str, flaws: Iterable[Flaw] = (), retry_after: float | None = None
    ) -> None:
        super().__init__(detail)
        self.problem: Problem = Problem(
            title=HTTPStatus(status).phrase, status=status, detail=detail, errors=tuple(flaws)
        )
        self.retry_after = retry_after
        """Seconds after which it may be tried again."""

    def answer(self) -> JSONResponse:
        """What is answered."""
        headers: dict[str, str] = {}
        if self.retry_after is not None:
            headers["Retry-After"] = str(max(1, round(self.retry_after)))
        hidden = set[str]() if self.problem.errors else {"errors"}
        content = self.problem.model_dump(mode="json", exclude=hidden)
        return JSONResponse(content, self.problem.status, headers, media_type=MEDIA_TYPE)


def unprocessable(flaws: Sequence[Flaw]) -> ProblemRaised:
    """The problem of a request that is wrong in itself."""
    detail = "; ".join(f"{flaw.place} {flaw.name}: {flaw.detail}" for flaw in flaws)
    return ProblemRaised(UNPROCESSABLE, detail, flaws)


def flaws_of(errors: Iterable[Mapping[str, Any]]) -> list[Flaw]:
    """What a failed validation found. What was sent is not repeated: it may be a secret."""
    return [_flaw(error) for error in errors]


def _flaw(error: Mapping[str, Any]) -> Flaw:
    place, *names = (str(part) for part in error["loc"])
    return Flaw(place=place, name=".".join(names), detail=str(error["msg"]))


DESCRIPTIONS = {
    403: "A browser sent it from a page of another origin.",
    404: "There is no such task.",
    409: "The task is not in a state in which that can be done.",
    422: "The request is wrong in itself; `errors` says where.",
    503: "The store of the records does not answer, or there is no room; try again later.",
}


def declared(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers with these statuses, for the OpenAPI document."""
    return {
        status: {
            "description": DESCRIPTIONS[status],
            "content": {MEDIA_TYPE: {"schema": _schema()}},
        }
        for status in statuses
    }


def _schema() -> dict[str, Any]:
    """The schema in one piece: FastAPI collects the schemas of `application/json` alone."""
    schema = Problem.model_json_schema(mode="serialization")
    schema["properties"]["errors"]["items"] = schema.pop("$defs")["Flaw"]
    return schema
