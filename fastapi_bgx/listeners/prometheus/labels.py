"""The values of labels: few, and such that they can be sent."""

MOST_NAMES = 200
"""How many tasks, and how many limiters, are told apart."""
OTHER = "other"
"""The name of all the rest of them."""


def printable(name: str) -> str:
    """A name that can be sent: half a surrogate pair would make every scrape fail."""
    return name.encode(errors="replace").decode()
