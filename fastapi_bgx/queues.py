"""The queue of one limiter: first come, first served, and who is more urgent goes first.

As long as nobody in it has a priority, a queue is a plain deque of places. The first that has one
turns it into a `Ranked`, which is used like that deque.
"""

import heapq
from collections import deque
from collections.abc import Iterable
from typing import Protocol, TypeAlias

FAIR_SHARE = 8
"""Of so many slots in a row, handed out while others wait, at least one goes to the place that has
waited longest of all, whatever its priority."""
FEW = 64


class Place(Protocol):
    """A place in the queue of one limiter."""

    waits: bool
    """False once it was granted or given up: what is left of it in the queue is skipped."""

    @property
    def priority(self) -> int:
        """The highest goes first."""
        ...

    def grant(self) -> None:
        """The slot is taken for it."""
        ...


class Ranked:
    """A queue that the highest priority leaves first, and within a priority who came first.

    Nobody starves: see `FAIR_SHARE`. Whoever leaves is taken out of one of the two orders in which
    all stand; what is left in the other is skipped there.
    """

    __slots__ = ("_by_age", "_by_rank", "_number", "_overtaken")

    def __init__(self, places: Iterable[Place]) -> None:
        self._by_age: deque[_Entry] = deque()
        self._by_rank: list[_Entry] = []
        self._number = 0
        self._overtaken = 0
        for place in places:
            self.append(place)

    def __len__(self) -> int:
        """How much is in it, that which is to be skipped included."""
        return max(len(self._by_age), len(self._by_rank))

    def append(self, place: Place) -> None:
        """Have one more wait."""
        self._number += 1
        entry = _Entry(place, (-place.priority, self._number))
        self._by_age.append(entry)
        heapq.heappush(self._by_rank, entry)

    def popleft(self) -> Place:
        """Who is next. At least one has to wait."""
        while not self._by_age[0].waits:
            self._by_age.popleft()
        while not self._by_rank[0].waits:
            heapq.heappop(self._by_rank)
        entry = self._choose()
        place, entry.place = entry.place, None
        assert place is not None, "it waits"
        return place

    def purge(self) -> None:
        """Forget what is to be skipped."""
        self._by_age = deque(entry for entry in self._by_age if entry.waits)
        self._by_rank = sorted(self._by_age)  # which is a heap

    def _choose(self) -> "_Entry":
        first, oldest = self._by_rank[0], self._by_age[0]
        if first is not oldest and self._overtaken < FAIR_SHARE - 1:
            self._overtaken += 1
            return heapq.heappop(self._by_rank)
        self._overtaken = 0
        return self._by_age.popleft()


class _Entry:
    """One place, as it stands in both orders."""

    __slots__ = ("place", "rank")

    def __init__(self, place: Place, rank: tuple[int, int]) -> None:
        self.place: Place | None = place
        self.rank = rank

    def __lt__(self, other: "_Entry") -> bool:
        return self.rank < other.rank

    @property
    def waits(self) -> bool:
        return self.place is not None and self.place.waits


Queue: TypeAlias = deque[Place] | Ranked


def fitting(queue: Queue, place: Place, waiting: int) -> Queue:
    """The queue in the form that it needs when `place` joins the `waiting` others."""
    if not isinstance(queue, Ranked):
        return Ranked(each for each in queue if each.waits) if place.priority else queue
    if not waiting and not place.priority:
        return deque()
    return purged(queue, waiting)


def purged(queue: Queue, waiting: int) -> Queue:
    """The queue, without what is to be skipped if that has become too much."""
    if len(queue) <= 2 * waiting + FEW:
        return queue
    if not isinstance(queue, Ranked):
        return deque(each for each in queue if each.waits)
    queue.purge()
    return queue
