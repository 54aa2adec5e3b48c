import math

import numpy as np

from service.trainer.early_stopping import EarlyStopping, Scores


def rows(*scores: float) -> Scores:
    """Each of a dozen rows."""
    return (np.repeat(np.array(scores, np.float32), 12),)


def test_stops_after_as_many_passes_without_improvement_as_it_is_patient() -> None:
    stopping = EarlyStopping(patience=2).saw(rows(0.5)).saw(rows(0.4))
    assert not stopping.stop
    assert stopping.saw(rows(0.5)).stop  # as good is not better


def test_an_improvement_starts_the_count_again() -> None:
    stopping = EarlyStopping(patience=2).saw(rows(0.5)).saw(rows(0.4)).saw(rows(0.6))
    assert stopping.since_best == 0
    assert stopping.best is not None
    assert stopping.best[0][0] == np.float32(0.6)
    assert not stopping.saw(rows(0.1)).stop


def test_a_pass_is_undone_only_where_it_is_worse_by_more_than_chance() -> None:
    first = EarlyStopping(patience=3).saw(rows(0.5, 0.5, 0.5, 0.5))
    by_chance = first.saw(rows(1.0, 0.0, 0.0, 0.9))
    assert by_chance.keeps
    assert by_chance.since_best == 1
    assert not first.saw(rows(0.4, 0.45, 0.4, 0.45)).keeps
    # It is measured by the best pass, not by the last that was kept.
    step = np.where(np.arange(12) % 2, 0.4, -0.47).astype(np.float32)  # -0.035 ± 0.13
    (start,) = rows(0.5)
    assert first.best is not None
    slowly = EarlyStopping(patience=3).saw((start,)).saw((start + step,))
    assert slowly.keeps
    assert not slowly.saw((start - 0.1,)).keeps


def test_kinds_of_rows_count_alike_and_one_without_rows_not_at_all() -> None:
    many, few = np.full(90, 0.5, np.float32), np.full(10, 0.5, np.float32)
    first = EarlyStopping(patience=3).saw((many, few, few[:0]))
    assert first.saw((many + 0.1, few - 0.05, few[:0])).since_best == 0
    assert not first.saw((many + 0.1, few - 0.2, few[:0])).keeps


def test_a_handful_of_rows_decides_nothing() -> None:
    targets, few = np.full(90, 0.5, np.float32), np.full(1, -0.2, np.float32)
    found = EarlyStopping(patience=1).saw((targets, few)).saw((targets, few - 0.1))
    assert found.keeps


def test_a_pass_after_one_that_was_not_a_number_is_kept() -> None:
    found = EarlyStopping(patience=2).saw(rows(math.nan)).saw(rows(0.5))
    assert found.keeps
    assert found.saw(rows(0.6)).since_best == 0


def test_nan_never_improves() -> None:
    stopping = EarlyStopping(patience=1).saw(rows(0.5)).saw(rows(math.nan))
    assert stopping.stop
    assert not stopping.keeps


def test_a_pass_does_not_change_the_state_before_it() -> None:
    before = EarlyStopping(patience=1)
    before.saw(rows(1.0))
    assert before == EarlyStopping(patience=1)
