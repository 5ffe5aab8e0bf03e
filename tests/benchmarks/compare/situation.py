"""What a situation is: an application, what is seen of it from outside, and how that is said."""

import inspect
from typing import TYPE_CHECKING, Any, ClassVar

from tests.benchmarks.compare.kit import Kit, Wants

if TYPE_CHECKING:
    from tests.benchmarks.compare.lab import Lab

Facts = dict[str, Any]
"""What was seen: numbers and short words, ready for JSON."""


class Failed(Exception):
    """A server or a tool did not do its part: nothing was measured."""


class Missing(Exception):
    """The contestant has nothing that could be measured; the text says what it lacks."""


class Situation:
    """One row of the comparison. The first line of the docstring is its sentence."""

    wants: ClassVar[Wants] = Wants()
    verdict: ClassVar[str]
    """How the facts are said: a template."""
    lacks: ClassVar[dict[str, str]] = {}
    """Contestants that have nothing of the kind, and what is said of them."""

    @property
    def key(self) -> str:
        """Its name, on the command line and in the data."""
        name = type(self).__name__
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).lstrip("_")

    @property
    def says(self) -> str:
        """What is looked at."""
        return (inspect.getdoc(self) or "").partition("\n")[0].rstrip(".")

    @property
    def how(self) -> str:
        """How it is looked at: the rest of the docstring, in one line."""
        return " ".join((inspect.getdoc(self) or "").partition("\n")[2].split())

    def routes(self, kit: Kit) -> None:
        """Add routes and tasks to the application; called in the process of the server."""

    def look(self, lab: "Lab") -> Facts:
        """Run the situation, and give what was seen.

        Raises:
            Missing: there is nothing to look at.
        """
        raise NotImplementedError

    def text(self, facts: Facts) -> str:
        """The facts in words."""
        return self.verdict.format(**facts)
