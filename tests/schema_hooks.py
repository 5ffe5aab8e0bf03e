"""What the fuzzer of `test_schema.py` cannot read in an OpenAPI document.

Ids of tasks that exist; that `since` is before `until`; and that a cursor comes from a page.
"""

from typing import Any

import schemathesis

THIS_YEAR = "2026"
IDS = 9
"""Tasks that the server of the test holds: `p-0` to `p-8`."""


def before_call(context: Any, case: Any, kwargs: Any) -> None:
    """Make a request that the document allows one that can be answered, every other time."""
    if not case.meta.generation.mode.is_positive:
        return
    query, path = case.query or {}, case.path_parameters or {}
    query.pop("cursor", None)
    if str(query.get("since", "")) > THIS_YEAR:
        del query["since"]
    if "since" in query:
        query.pop("until", None)
    number = sum(map(ord, str(path.get("task_id", ""))))
    if "task_id" in path and number % 2:
        path["task_id"] = f"p-{number % IDS}"


schemathesis.hook(before_call)
