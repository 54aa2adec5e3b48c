import math

from service.trainer.early_stopping import EarlyStopping


def test_stops_after_as_many_passes_without_improvement_as_it_is_patient() -> None:
    stopping = EarlyStopping(patience=2).saw(0.5).saw(0.4)
    assert not stopping.stop
    assert stopping.saw(0.5).stop  # as good is not better


def test_an_improvement_starts_the_count_again() -> None:
    stopping = EarlyStopping(patience=2).saw(0.5).saw(0.4).saw(0.6)
    assert stopping.improved
    assert stopping.best == 0.6
    assert not stopping.saw(0.1).stop


def test_nan_never_improves() -> None:
    stopping = EarlyStopping(patience=1).saw(math.nan)
    assert stopping.stop
    assert not stopping.improved


def test_a_pass_does_not_change_the_state_before_it() -> None:
    before = EarlyStopping(patience=1)
    before.saw(1.0)
    assert before == EarlyStopping(patience=1)
