"""The command: measure, print the table of targets, and write docs/explanation/performance.*."""

import argparse
import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markdown import Markdown
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.benchmarks import detached, growth, listeners, served, workloads
from tests.benchmarks.measure import Effort, Series, Tick
from tests.benchmarks.plot import draw
from tests.benchmarks.report import PLOT, Data, as_data, figures_of, section, target_row, update
from tests.benchmarks.targets import TARGETS, Figures

DOCS = Path(__file__).parents[2] / "docs" / "explanation"
FULL = Effort()
QUICK = Effort(rounds=5, block_s=0.02, quick=True)


@dataclass(frozen=True, slots=True)
class Workload:
    """One part of a run."""

    steps: Callable[[Effort], int]
    run: Callable[[Effort, Tick], Awaitable[list[Series]]]


WORKLOADS = {
    "W1": Workload(workloads.w1_steps, workloads.w1),
    "W2": Workload(workloads.w2_steps, workloads.w2),
    "W3": Workload(workloads.w3_steps, workloads.w3),
    "W4": Workload(served.steps, served.w4),
    "W5": Workload(detached.steps, detached.w5),
    "growth": Workload(growth.steps, growth.growth),
    "listeners": Workload(listeners.steps, listeners.listeners),
}


def main() -> None:
    """Run what the command line asks for."""
    arguments = _parser().parse_args()
    base = QUICK if arguments.quick else FULL
    effort = Effort(
        rounds=arguments.rounds or base.rounds, block_s=base.block_s, quick=arguments.quick
    )
    names = arguments.only or list(WORKLOADS)
    console = Console()
    measured = _measure(names, effort, console)
    output = arguments.output or (None if arguments.quick else DOCS)
    if output is not None:
        output.mkdir(parents=True, exist_ok=True)
        draw(update(output, measured), output / PLOT)
        console.print(f"written to {output}")
    _show(measured, console)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--only", action="append", choices=WORKLOADS, help="may be repeated")
    parser.add_argument("--rounds", type=_positive, help=f"default: {FULL.rounds}")
    parser.add_argument(
        "--quick", action="store_true", help="few and small rounds; nothing is written"
    )
    parser.add_argument(
        "--output", type=Path, help="the folder to write to (default: docs/explanation)"
    )
    return parser


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def _measure(names: list[str], effort: Effort, console: Console) -> Data:
    columns = (
        TextColumn("{task.fields[workload]}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
    )
    measured: Data = {}
    with Progress(*columns, console=console) as progress:
        for name in names:
            workload = WORKLOADS[name]
            bar = progress.add_task("", total=workload.steps(effort), workload=name)

            def tick(what: str, bar: int = bar) -> None:
                progress.update(bar, advance=1, description=what)

            series = asyncio.run(_awaited(workload.run(effort, tick)))
            progress.update(bar, description="")
            measured[name] = as_data(name, series, effort)
    return measured


async def _awaited(series: Awaitable[list[Series]]) -> list[Series]:
    return await series


def _show(measured: Data, console: Console) -> None:
    """The targets of what was measured; the tables of what has none."""
    figures = figures_of(measured)
    judged = {target.workload for target in TARGETS}
    for name in measured.keys() - judged:
        console.print(Markdown(section(name, measured[name], figures)))
    if measured.keys() & judged:
        console.print(_table(measured, figures))


def _table(measured: Data, figures: Figures) -> Table:
    table = Table("", "what", "target", "measured", "", title="in one run; ratios, medians")
    for target in TARGETS:
        if target.workload in measured:
            style = "green" if target.met(figures) else "red"
            table.add_row(*target_row(target, figures), style=style)
    return table


if __name__ == "__main__":
    main()
