"""docs/reference/events.md says what the code does."""

from tests import reference


def test_the_page_of_events_is_what_the_code_says() -> None:
    written = reference.PAGE.read_text()
    assert written == reference.page(), "run `uv run python -m tests.reference`"


def test_every_field_has_a_meaning_and_every_meaning_a_field() -> None:
    assert list(reference.MEANINGS) == reference._used()


def test_every_notice_has_a_meaning_and_every_meaning_a_notice() -> None:
    assert set(reference.NOTICES) == set(reference.notices())
