"""The comparison is complete, its page says what was measured, and a situation can be run.

No time is judged here. A peer whose package is not installed is left out, as in a run.
"""

import json
import re
from pathlib import Path

import pytest

from tests.benchmarks.compare.kit import CONTESTANTS, OURS, STOCK, TASKFLOW, Kit, available
from tests.benchmarks.compare.lab import Lab, look
from tests.benchmarks.compare.page import DATA, PAGE, as_data, load, render, update
from tests.benchmarks.compare.situation import Facts, Situation
from tests.benchmarks.compare.situations import GROUPS, SITUATIONS
from tests.benchmarks.report import BEGIN, END

DOCS = Path(__file__).parents[1] / "docs" / "explanation"


# What is there.


def test_no_two_situations_have_the_same_key() -> None:
    assert len(SITUATIONS) == sum(map(len, GROUPS.values()))


@pytest.mark.parametrize("key", SITUATIONS)
def test_each_situation_says_what_is_looked_at(key: str) -> None:
    situation = SITUATIONS[key]
    assert re.fullmatch(r"[a-z_]+", key)
    assert situation.says
    assert "|" not in situation.says
    assert set(situation.lacks) <= set(CONTESTANTS)
    assert type(situation).look is not Situation.look


def test_the_data_has_a_verdict_of_each_situation_for_each_contestant() -> None:
    found = load(DOCS)["situations"]
    assert list(found) == list(SITUATIONS)
    assert all(set(each["verdicts"]) == set(CONTESTANTS) for each in found.values())


def test_the_page_is_made_of_the_data_and_of_the_situations_as_they_are() -> None:
    page = (DOCS / PAGE).read_text()
    assert render(load(DOCS)) in page
    assert "not measured yet" not in page


# A run.


@pytest.mark.parametrize("contestant", available())
def test_a_situation_is_seen_from_outside(contestant: str) -> None:
    facts = look(SITUATIONS["siblings"], contestant)
    assert facts == {"ran": {STOCK: 0, TASKFLOW: 3, OURS: 3}[contestant], "answers": True}


# The page.


class Silly(Situation):
    """How many.

    Counted
    twice.
    """

    verdict = "{count} of 3"

    def look(self, lab: Lab) -> Facts:
        return {"count": 3}

    def routes(self, kit: Kit) -> None:
        raise NotImplementedError


def test_a_situation_is_described_by_its_class() -> None:
    silly = Silly()
    assert (silly.key, silly.says, silly.how) == ("silly", "How many", "Counted twice.")


def test_facts_are_said_in_words_and_a_lack_as_it_is() -> None:
    data = as_data(Silly(), {STOCK: "no numbers", OURS: {"count": 2}})
    texts = {name: verdict["text"] for name, verdict in data["verdicts"].items()}
    assert texts == {STOCK: "no numbers", OURS: "2 of 3"}
    assert data["verdicts"][OURS]["facts"] == {"count": 2}


def test_a_run_of_one_situation_keeps_what_is_known_of_the_others(tmp_path: Path) -> None:
    (tmp_path / PAGE).write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    siblings, kill = SITUATIONS["siblings"], SITUATIONS["kill"]
    update(tmp_path, {"siblings": as_data(siblings, {STOCK: {"ran": 0}, OURS: {"ran": 3}})})
    update(tmp_path, {"kill": as_data(kill, {STOCK: {"ended": 7}})})
    update(tmp_path, {"siblings": as_data(siblings, {STOCK: {"ran": 1}})})
    text = (tmp_path / PAGE).read_text()
    assert text.startswith("before\n")
    assert text.endswith("\nafter\n")
    assert f"| {siblings.says} | 1 of 3 | *not measured yet* | 3 of 3 |" in text
    assert f"| {kill.says} | 7 of 100 |" in text
    assert list(json.loads((tmp_path / DATA).read_text())["situations"]) == ["siblings", "kill"]
