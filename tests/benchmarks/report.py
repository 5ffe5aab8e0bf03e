"""What was measured, as JSON and as the tables of docs/explanation/performance.md.

The page is written from the JSON alone, so that a run of one workload replaces its figures only.
"""

import json
import os
import platform
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from tests.benchmarks import listeners
from tests.benchmarks.contestants import NOBODY, STOCK
from tests.benchmarks.lacks import LACKS
from tests.benchmarks.measure import Effort, Series
from tests.benchmarks.served import FLOOD_GC, GC_LONGEST, GC_SHARE, cores, generator
from tests.benchmarks.targets import TARGETS, Figures, Target

PAGE = "performance.md"
DATA = "performance.json"
PLOT = "performance.svg"
BEGIN = "<!-- benchmarks: begin -->"
END = "<!-- benchmarks: end -->"
TIMES = "\N{MULTIPLICATION SIGN}"
PACKAGES = (
    "fastapi",
    "starlette",
    "anyio",
    "structlog",
    "orjson",
    "uvicorn",
    "uvloop",
    "fastapi-taskflow",
    "aiojobs",
    "taskiq",
)
OF_LISTENERS = (
    "structlog",
    "orjson",
    "prometheus-client",
    "opentelemetry-sdk",
    "sentry-sdk",
    "sqlalchemy",
    "psycopg",
)
TITLES = {
    "W1": "W1: async tasks in a list, without a request",
    "W2": "W2: sync tasks in a list, without a request",
    "W3": "W3: a request in this process, with one task",
    "W4": "W4: a real uvicorn under load",
    "W5": "W5: tasks that outlive their requests",
    "growth": "Growth",
    "listeners": "What each listener costs",
}
BESIDE = {"listeners": ("what it does", listeners.DOES)}
"""What the first table of a workload says beside its rows, where not what they leave out."""
NOTES = {"listeners": listeners.NOTE}
"""What has to be known to read the tables of a workload."""
NO_RATIO = {GC_SHARE, GC_LONGEST, FLOOD_GC}
"""Cases that say more by themselves than in terms of stock, where stock may have none."""

Data = dict[str, Any]


# The data.


def as_data(workload: str, series: Iterable[Series], effort: Effort) -> Data:
    """One workload, ready for JSON."""
    return {
        "measured": datetime.now(UTC).strftime("%Y-%m-%d %H:%M"),
        "quick": effort.quick,
        "machine": _machine(),
        "versions": dict(_versions(OF_LISTENERS if workload == "listeners" else PACKAGES)),
        "load": generator() if workload == "W4" else None,
        "series": [asdict(each) for each in series],
    }


def figures_of(data: Data) -> Figures:
    """Everything that the data holds."""
    return Figures(each for workload in data.values() for each in series_of(workload))


def series_of(workload: Data) -> list[Series]:
    """The series of one workload, made of JSON again."""
    return [Series(**each | {"values": tuple(each["values"])}) for each in workload["series"]]


def _machine() -> str:
    pinned = "pinned to different cores" if cores()[0] is not None else "not pinned"
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {platform.system()} {platform.machine()}, {os.cpu_count()} cores ({pinned})"


def _versions(packages: Iterable[str]) -> Iterator[tuple[str, str]]:
    for package in packages:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


# The page.


def update(folder: Path, measured: Data) -> Data:
    """Put what was measured in the place of what was there, in the data and in the page."""
    path = folder / DATA
    known: Data = json.loads(path.read_text()) if path.exists() else {}
    data = {name: (known | measured)[name] for name in TITLES if name in known | measured}
    path.write_text(json.dumps(data, indent=1) + "\n")
    page = folder / PAGE
    text = page.read_text() if page.exists() else f"{BEGIN}\n{END}\n"
    page.write_text(replaced(text, render(data)))
    return data


def replaced(page: str, tables: str) -> str:
    """The page with other tables between its markers."""
    before, _, rest = page.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        raise ValueError(f"the page has no {BEGIN} … {END}")
    return f"{before}{BEGIN}\n\n{tables.strip()}\n\n{END}{after}"


def render(data: Data) -> str:
    """The part of the page that is measured."""
    figures = figures_of(data)
    parts = [_warning(data), _targets(data, figures)]
    parts += [section(name, workload, figures) for name, workload in data.items()]
    return "\n\n".join(part for part in parts if part)


def _warning(data: Data) -> str:
    quick = [name for name, workload in data.items() if workload["quick"]]
    if not quick:
        return ""
    return (
        '!!! warning "Not to be cited"\n\n'
        f"    {', '.join(quick)}: from a `--quick` run, which shows the form and not the figures."
    )


def _targets(data: Data, figures: Figures) -> str:
    head = "## Targets\n\n| | what | target | measured | |\n|---|---|---|---|---|\n"
    rows = (target_row(target, figures) for target in TARGETS if target.workload in data)
    return head + "\n".join(f"| {' | '.join(row)} |" for row in rows)


def target_row(target: Target, figures: Figures) -> tuple[str, str, str, str, str]:
    """Workload, what, target, measured and verdict."""
    sign = "\N{GREATER-THAN OR EQUAL TO}" if target.at_least else "\N{LESS-THAN OR EQUAL TO}"
    shown = [
        f"{label}: {times(value)}" if label else times(value)
        for label, value in target.values(figures).items()
    ]
    verdicts = {True: "met", None: "not measured", False: "**not met**"}
    verdict = verdicts[target.met(figures)]
    if target.met(figures) is False:
        verdict += f": {target.explanation or 'not explained yet'}"
    bound = f"{sign} {times(target.bound)}"
    return target.workload, target.says, bound, "; ".join(shown), verdict


def times(value: float) -> str:
    """A ratio; a small one as a fraction."""
    if value < 0.05:
        return f"1/{1 / value:.0f}"
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:.{digits}f}{TIMES}"


def section(name: str, workload: Data, figures: Figures) -> str:
    """What was measured of one workload."""
    versions = ", ".join(f"{package} {number}" for package, number in workload["versions"].items())
    load = f"; load from {workload['load']}" if workload["load"] else ""
    series = series_of(workload)
    rounds = " or ".join(str(count) for count in sorted({len(each.values) for each in series}))
    note = f"{workload['measured']} UTC, {rounds} rounds; {workload['machine']}; {versions}{load}."
    tables = _tables(series, figures, *BESIDE.get(name, ("what it does not do", LACKS)))
    parts = [f"## {TITLES[name]}", NOTES.get(name, ""), note, *tables]
    return "\n\n".join(part for part in parts if part)


def _tables(
    series: list[Series], figures: Figures, beside: str, texts: dict[str, str]
) -> Iterator[str]:
    """The first one says something beside each row."""
    groups: dict[str, list[Series]] = defaultdict(list)
    for each in series:
        groups[_group(each.case)].append(each)
    for number, (title, members) in enumerate(groups.items()):
        rows = _rows(members, figures)
        if number == 0:
            more = [beside, "---", *(texts.get(row[0], "") for row in rows[2:])]
            rows = [[*row, text] for row, text in zip(rows, more, strict=True)]
        table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
        yield f"**{title}**, in {members[0].unit}\n\n{table}"


def _group(case: str) -> str:
    """The cases that share a table: the sizes of a batch, the points of a curve."""
    name, found, size = case.rpartition(": ")
    if found and size.isdigit():
        return name
    name, found, size = case.rpartition(", ")
    return name if found and size.endswith(" in a list") else case


def _rows(members: list[Series], figures: Figures) -> list[list[str]]:
    cases = list(dict.fromkeys(each.case for each in members))
    rows = [["", *map(_column, cases)], ["---", *("---:" for _ in cases)]]
    for name in dict.fromkeys(each.contestant for each in members):
        rows.append([name, *(_cell(case, name, figures) for case in cases)])
    return rows


def _column(case: str) -> str:
    size = case.removeprefix(_group(case)).strip(":, ")
    return f"{int(size):,}" if size.isdigit() else size


def _cell(case: str, name: str, figures: Figures) -> str:
    found = figures.find(case, name)
    if found is None:
        return ""
    value = amount(found.median)
    base = NOBODY if figures.find(case, STOCK) is None else STOCK
    ratio = figures.ratio(case, name, base)
    spread = figures.spread(case, name, base)
    if name == base or ratio is None or spread is None or case in NO_RATIO:
        low, high = found.spread
        return f"{value} ({amount(low)} to {amount(high)})"
    return f"{value}: **{times(ratio)}** ({times(spread[0])} to {times(spread[1])})"


def amount(value: float) -> str:
    """A number with three figures or so."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
