"""What was found, as docs/explanation/comparison.json and the tables of comparison.md.

The page is written from the JSON alone, so that a run of one situation replaces its rows only.
"""

import json
import os
import platform
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.benchmarks.compare.kit import CONTESTANTS, STOCK, TASKFLOW
from tests.benchmarks.compare.situation import Facts, Situation
from tests.benchmarks.compare.situations import GROUPS
from tests.benchmarks.report import replaced

PAGE = "comparison.md"
DATA = "comparison.json"
PACKAGES = ("fastapi", "starlette", "uvicorn", "fastapi-taskflow", "pydantic", "mypy")
NOT_MEASURED = "*not measured yet*"

Data = dict[str, Any]


# The data.


def as_data(situation: Situation, found: dict[str, Facts | str]) -> Data:
    """What was found of one situation, ready for JSON; a text stands for a lack."""
    return {
        "says": situation.says,
        "how": situation.how,
        "measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "verdicts": {name: _verdict(situation, facts) for name, facts in found.items()},
    }


def _verdict(situation: Situation, facts: Facts | str) -> Data:
    if isinstance(facts, str):
        return {"text": facts, "facts": {}}
    return {"text": situation.text(facts), "facts": facts}


def load(folder: Path) -> Data:
    """What is known already."""
    path = folder / DATA
    known: Data = json.loads(path.read_text()) if path.exists() else {}
    return known


def update(folder: Path, measured: Data) -> Data:
    """Put what was measured in the place of what was there, in the data and in the page."""
    known = load(folder).get("situations", {})
    for key, found in measured.items():
        verdicts = known.get(key, {}).get("verdicts", {}) | found["verdicts"]
        known[key] = found | {"verdicts": verdicts}
    keys = [situation.key for group in GROUPS.values() for situation in group]
    data = {
        "measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "machine": _machine(),
        "versions": dict(_versions()),
        "situations": {key: known[key] for key in keys if key in known},
    }
    (folder / DATA).write_text(json.dumps(data, indent=1) + "\n")
    page = folder / PAGE
    page.write_text(replaced(page.read_text(), render(data)))
    return data


def _machine() -> str:
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores"


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


# The page.


def render(data: Data) -> str:
    """The part of the page that is measured."""
    versions = ", ".join(f"{package} {number}" for package, number in data["versions"].items())
    head = f"{data['measured']} UTC; {data['machine']}; {versions}."
    parts = [head]
    parts += [_group(name, group, data) for name, group in GROUPS.items()]
    return "\n\n".join([*parts, _method()])


def _group(name: str, group: tuple[Situation, ...], data: Data) -> str:
    names = [_column(each, data) for each in CONTESTANTS]
    rows = [["", *names], ["---"] * 4]
    rows += [_row(situation, data["situations"].get(situation.key)) for situation in group]
    return f"### {name}\n\n" + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _column(contestant: str, data: Data) -> str:
    package = {STOCK: "fastapi", TASKFLOW: "fastapi-taskflow"}.get(contestant)
    number = data["versions"].get(package)
    return f"{contestant} {number}" if number else contestant


def _row(situation: Situation, found: Data | None) -> list[str]:
    verdicts = {} if found is None else found["verdicts"]
    cells = [verdicts.get(each, {"text": NOT_MEASURED})["text"] for each in CONTESTANTS]
    return [situation.says, *cells]


def _method() -> str:
    lines = [
        f"- `{situation.key}`: {situation.how}"
        for group in GROUPS.values()
        for situation in group
        if situation.how
    ]
    head = "In their order, where a row does not say it all; the name is that for `--only`."
    return f"### How the rows were measured\n\n{head}\n\n" + "\n".join(lines)
