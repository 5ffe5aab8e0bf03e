"""The plot of docs/explanation/performance.md. matplotlib is imported when there is one to draw."""

from io import StringIO
from pathlib import Path
from typing import Any

from tests.benchmarks import growth, served, workloads
from tests.benchmarks.contestants import NOBODY, ONE_EVENT, STOCK
from tests.benchmarks.measure import Series
from tests.benchmarks.report import Data, amount, series_of
from tests.benchmarks.workloads import batch_of

OURS, THEIRS, BASE = "#00796b", "#9e9e9e", "#424242"
BARS = {
    "W1: an async no-op, ten in a list; µs": workloads.NO_OP + batch_of(10),
    "W2: a sync no-op, ten in a list; µs": workloads.SYNC + batch_of(10),
    "W3: a request with one async task; µs": workloads.REQUEST,
    "W4: requests/s (more is better)": served.RATE,
    "W4: innocent endpoint in a flood, p99; ms": served.P99,
}
CURVES = {
    "a task among so many pending ones; µs": growth.PENDING,
    "a task among so many in its request; µs": growth.IN_A_REQUEST,
    "a task, so many named limiters in use; µs": growth.LIMITERS,
    "a blocking task, so many threads; CPU µs": growth.THREADS,
}
COLUMNS = 3


def draw(data: Data, path: Path) -> None:
    """Draw everything that the data holds."""
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    mpl.rcParams |= {"svg.hashsalt": "fastapi-bgx", "font.size": 8, "svg.fonttype": "none"}
    series = [each for workload in data.values() for each in series_of(workload)]
    panels = [(title, _of_case(series, case), _bars) for title, case in BARS.items()]
    panels += [(title, _of_curve(series, case), _curve) for title, case in CURVES.items()]
    panels = [panel for panel in panels if panel[1]]
    rows = -(-len(panels) // COLUMNS)
    figure, grid = pyplot.subplots(
        rows, COLUMNS, figsize=(13, 2.9 * rows), layout="constrained", squeeze=False
    )
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, shown, drawn) in zip(grid.flat, panels, strict=False):
        axes.set_title(title)
        drawn(axes, shown)
    drawn_as_text = StringIO()
    figure.savefig(drawn_as_text, format="svg", metadata={"Date": None})
    pyplot.close(figure)
    lines = drawn_as_text.getvalue().splitlines()
    path.write_text("".join(f"{line.rstrip()}\n" for line in lines))


def _of_case(series: list[Series], case: str) -> list[Series]:
    return [each for each in series if each.case == case]


def _of_curve(series: list[Series], curve: str) -> list[Series]:
    return [each for each in series if each.case.rpartition(": ")[0] == curve]


def _color(name: str) -> str:
    if name == STOCK:
        return BASE
    return OURS if name.startswith("bgx") else THEIRS


def _bars(axes: Any, shown: list[Series]) -> None:
    names = [each.contestant for each in shown]
    values = [each.median for each in shown]
    spreads = [each.spread for each in shown]
    errors = [
        [value - low for value, (low, _) in zip(values, spreads, strict=True)],
        [high - value for value, (_, high) in zip(values, spreads, strict=True)],
    ]
    bars = axes.barh(names, values, xerr=errors, color=[_color(name) for name in names])
    axes.bar_label(bars, [amount(value) for value in values], padding=4)
    axes.set_xscale("log")
    axes.set_xlim(min(values) / 2, max(values) * 2.5)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("")
    axes.invert_yaxis()


def _curve(axes: Any, shown: list[Series]) -> None:
    for name in dict.fromkeys(each.contestant for each in shown):
        points = sorted((each.x or 0, each.median) for each in shown if each.contestant == name)
        style = {NOBODY: "-", ONE_EVENT: "--"}.get(name, "-")
        axes.plot(*zip(*points, strict=True), style, marker="o", color=_color(name), label=name)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_ylim(0, 1.2 * max(each.median for each in shown))
    axes.legend()
