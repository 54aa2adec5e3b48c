import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from service.domain import Int64s
from service.trainer.labels import followed, labelled_from, no_rows


def events(*rows: tuple[int, int, int]) -> tuple[Int64s, Int64s, Int64s]:
    """Of (user, item, time)."""
    user, item, time = np.array(rows, np.int64).reshape(-1, 3).T
    return user, item, time


def test_an_act_follows_what_was_shown_to_the_same_user_within_the_time() -> None:
    shown = events((1, 7, 100), (1, 8, 100), (2, 7, 100), (1, 7, 40), (1, 7, 106), (1, 7, 105))
    is_followed = followed(shown, events((3, 7, 101), (1, 7, 105)), within_ms=50)
    assert is_followed.tolist() == [True, False, False, False, False, True]


ROWS = st.lists(st.tuples(*[st.integers(0, 2)] * 2, st.integers(0, 20)), max_size=20)


@given(ROWS, ROWS, st.integers(0, 9))
def test_what_is_followed_is_so_by_the_definition(
    shown: list[tuple[int, int, int]], acts: list[tuple[int, int, int]], within_ms: int
) -> None:
    expected = [
        any(act[:2] == row[:2] and 0 <= act[2] - row[2] <= within_ms for act in acts)
        for row in shown
    ]
    assert followed(events(*shown), events(*acts), within_ms).tolist() == expected


def test_rows_come_back_from_their_tensors_and_none_from_nothing() -> None:
    rows = no_rows(3)
    assert len(labelled_from({}, "click.held", 3)) == 0
    one = labelled_from(
        {**rows.joined(rows).tensors("click.held"), "other.label": rows.tensors("a")["a.label"]},
        "click.held",
        3,
    )
    assert one.context.shape == (0, 3)
