"""Whether anybody records: until the application sets a provider, what is told reaches nobody.

OpenTelemetry's API answers with providers of its own meanwhile. They may be told everything, which
costs a short task three times its own time, and do nothing with it.
"""

from collections.abc import Callable

API = ("opentelemetry.trace", "opentelemetry.metrics")
"""The modules of the providers that record nothing."""


class Demand:
    """Whether the provider that `ask` answers with records."""

    def __init__(self, ask: Callable[[], object]) -> None:
        self._ask = ask
        self.there: bool = _records(ask())
        """True from the moment that such a provider was seen."""

    def arises(self) -> bool:
        """Look again; True when it is `there` now and was not before."""
        if self.there:
            return False
        self.there = _records(self._ask())
        return self.there


def _records(provider: object) -> bool:
    # By its module: the class that waits for a provider of meters has no public name. A provider
    # that nobody knows is told everything.
    return not type(provider).__module__.startswith(API)
