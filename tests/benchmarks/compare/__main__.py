"""The command: run the situations, and write docs/explanation/comparison.*."""

import argparse
import sys
import traceback
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.benchmarks.compare.kit import CONTESTANTS, available
from tests.benchmarks.compare.lab import look
from tests.benchmarks.compare.page import Data, as_data, update
from tests.benchmarks.compare.situation import Facts, Missing, Situation
from tests.benchmarks.compare.situations import SITUATIONS

DOCS = Path(__file__).parents[3] / "docs" / "explanation"


def main() -> int:
    """Run what the command line asks for; 1 when something could not be measured."""
    arguments = _parser().parse_args()
    console = Console()
    names = [each for each in arguments.contestant or CONTESTANTS if each in available()]
    failed: list[str] = []
    for key in arguments.only or SITUATIONS:
        situation = SITUATIONS[key]
        found = {name: measure(situation, name, failed) for name in names}
        data = as_data(situation, {n: facts for n, facts in found.items() if facts is not None})
        console.print(_lines(situation, data))
        if not arguments.dry:
            update(arguments.output, {key: data})
    for each in failed:
        console.print(each, style="red")
    return 1 if failed else 0


def measure(situation: Situation, contestant: str, failed: list[str]) -> Facts | str | None:
    """One situation for one contestant: what was seen, what is lacking, or `None` if it failed."""
    if contestant in situation.lacks:
        return situation.lacks[contestant]
    try:
        return look(situation, contestant)
    except Missing as missing:
        return str(missing)
    except Exception as error:
        said = "".join(traceback.format_exception_only(error)).strip()
        failed.append(f"{situation.key}, {contestant}: not measured; {said}")
        return None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.compare", description=__doc__)
    parser.add_argument("--only", action="append", choices=SITUATIONS, help="may be repeated")
    parser.add_argument(
        "--contestant", action="append", choices=CONTESTANTS, help="may be repeated"
    )
    parser.add_argument("--dry", action="store_true", help="print, and write nothing")
    parser.add_argument("--output", type=Path, default=DOCS, help="the folder of the page")
    return parser


def _lines(situation: Situation, found: Data) -> Table:
    table = Table(title=situation.says, title_justify="left", show_header=False, box=None)
    for name, verdict in found["verdicts"].items():
        table.add_row(f"  {name}", verdict["text"])
    return table


if __name__ == "__main__":
    sys.exit(main())
