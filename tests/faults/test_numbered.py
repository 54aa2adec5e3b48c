"""Which of the numbered events are broken off, and which come again."""

from tests.faults.numbered import _comes_again, _is_broken
from tests.integration.traffic import USERS, event

NUMBERS = range(10_000)


def test_what_comes_again_is_an_event_of_the_same_user_that_was_sent_whole() -> None:
    again = [number for number in NUMBERS if _comes_again(number)]
    assert len(again) > 200
    for number in again:
        first = number - USERS
        assert event(first)["user_id"] == event(number)["user_id"]
        assert not _is_broken(number)
        assert not _is_broken(first)
        assert not _comes_again(first)


def test_most_are_sent_for_the_first_time() -> None:
    odd = sum(_is_broken(number) or _comes_again(number) for number in NUMBERS)
    assert len(NUMBERS) / 20 < odd < len(NUMBERS) / 10
