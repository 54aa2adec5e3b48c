from hypothesis import given
from hypothesis import strategies as st

from service.domain import Version
from service.registry.policy import version_to_serve, versions_to_remove

numbers = st.integers(1, 30).map(Version)


def v(*values: int) -> list[Version]:
    return [Version(value) for value in values]


def test_serves_the_newest() -> None:
    assert version_to_serve(v(1, 2, 3), set(), None) == 3


def test_serves_the_one_before_a_refused_version() -> None:
    assert version_to_serve(v(1, 2, 3, 4), set(v(3, 4)), None) == 2


def test_serves_the_pin_whatever_is_newer() -> None:
    assert version_to_serve(v(1, 2, 3), set(), Version(1)) == 1


def test_serves_the_newest_when_the_pin_is_refused() -> None:
    assert version_to_serve(v(1, 2, 3), set(v(1)), Version(1)) == 3


def test_serves_the_newest_when_the_pin_does_not_exist() -> None:
    assert version_to_serve(v(1, 2), set(), Version(9)) == 2


def test_serves_nothing_when_there_is_no_version() -> None:
    assert version_to_serve([], set(), None) is None


def test_serves_nothing_when_every_version_is_refused() -> None:
    assert version_to_serve(v(1, 2), set(v(1, 2)), Version(2)) is None


@given(st.lists(numbers, unique=True), st.sets(numbers), st.none() | numbers)
def test_never_serves_a_version_that_is_refused_or_absent(
    versions: list[Version], refused: set[Version], pin: Version | None
) -> None:
    chosen = version_to_serve(versions, refused, pin)
    assert chosen is None or (chosen in versions and chosen not in refused)


def test_removes_the_oldest_beyond_the_number_kept() -> None:
    assert versions_to_remove(v(1, 2, 3, 4), keep=2, pin=None, newest_intact=Version(4)) == v(1, 2)


def test_removes_nothing_up_to_the_number_kept() -> None:
    assert versions_to_remove(v(1, 2), keep=2, pin=None, newest_intact=Version(2)) == []


def test_keeps_the_pin_however_old() -> None:
    removed = versions_to_remove(v(1, 2, 3, 4), keep=2, pin=Version(1), newest_intact=Version(4))
    assert removed == v(2)


def test_keeps_the_newest_intact_version_when_all_newer_ones_are_damaged() -> None:
    removed = versions_to_remove(v(1, 2, 3, 4), keep=2, pin=None, newest_intact=Version(2))
    assert removed == v(1)


def test_removes_nothing_when_no_version_is_intact() -> None:
    assert versions_to_remove(v(1, 2, 3, 4), keep=2, pin=None, newest_intact=None) == []


@given(st.lists(numbers, unique=True, min_size=1), st.integers(2, 5), st.data())
def test_never_removes_the_newest_the_pin_or_the_newest_intact(
    versions: list[Version], keep: int, data: st.DataObject
) -> None:
    intact = data.draw(st.sampled_from(versions))
    pin = data.draw(st.none() | numbers)
    removed = versions_to_remove(versions, keep=keep, pin=pin, newest_intact=intact)
    kept = set(versions) - set(removed)
    assert intact in kept
    assert set(sorted(versions)[-keep:]) <= kept
    assert pin not in removed
    assert len(kept) <= keep + 2
