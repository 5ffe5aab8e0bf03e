"""The time of a request with one async task, in this process: W3 of the benchmarks, in ratios."""

from statistics import median

from tests.benchmarks import apps, peers, workloads
from tests.benchmarks.compare.kit import OURS, STOCK, TASKFLOW
from tests.benchmarks.contestants import STOCK as STOCK_APP
from tests.benchmarks.measure import Effort, Series, Unit, measure

EFFORT = Effort(rounds=9)
APPS = {
    STOCK: (STOCK_APP,),
    TASKFLOW: (peers.TASKFLOW, apps.TASKFLOW_SQLITE),
    OURS: (apps.INSTALL, apps.RECORDED),
}


async def ratios(contestant: str) -> dict[str, float]:
    """The ratios to stock of each application of a contestant, and microseconds of stock."""
    names = APPS[contestant]
    series = {each.contestant: each for each in await _measured([STOCK_APP, *names])}
    base = series[STOCK_APP]
    found = {name: _ratio(series[name], base) for name in names}
    return {"us": median(base.values), **found}


def _ratio(series: Series, base: Series) -> float:
    return median(a / b for a, b in zip(series.values, base.values, strict=True))


async def _measured(names: list[str]) -> list[Series]:
    async with workloads.serving(dict.fromkeys(names)) as ready:
        units = [
            Unit(
                case=workloads.REQUEST,
                contestant=served.name,
                prepare=served.ready,
                run=workloads.requests_of(served),
            )
            for served in ready
        ]
        return await measure(units, EFFORT, lambda _: None)
