"""Which share of the model the trials on the holdout speak for."""

import numpy as np
import pytest

from service.trainer.share_fit import SHARES, ShareFit

MANY = 1000


def gains(best: float) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
    """Of ten rows, as if a share did worse by its distance from the best one."""
    return np.tile((1 - np.abs(np.array(SHARES) - best))[:, None], 10).astype(np.float32)


def test_without_a_trial_it_is_the_one_of_the_settings() -> None:
    assert SHARES[ShareFit.new(0.4).best] == 0.4


def test_the_mean_of_the_first_trials_decides() -> None:
    fit = ShareFit.new(0.5)
    for best in (0.2, 0.2, 0.8):
        fit = fit.tried(gains(best), MANY)
    expected = np.mean([gains(best).mean(axis=1) for best in (0.2, 0.2, 0.8)], axis=0)
    np.testing.assert_allclose(fit.gains, expected, rtol=1e-6)
    assert SHARES[fit.best] == 0.2


def test_it_follows_a_stream_that_has_changed() -> None:
    fit = ShareFit.new(0.5)
    for best in [0.2] * 100 + [0.9] * 10:
        fit = fit.tried(gains(best), MANY)
    assert SHARES[fit.best] == 0.9


def test_a_trial_changes_none_but_the_next() -> None:
    fit = ShareFit.new(0.5).tried(gains(0.2), MANY)
    before = fit.gains.copy()
    fit.tried(gains(0.9), MANY)
    assert (fit.trials, fit.gains.tolist()) == (1, before.tolist())


@pytest.mark.parametrize("setting", [0.1, 0.7])
def test_it_goes_on_from_what_a_version_has(setting: float) -> None:
    fit = ShareFit.new(0.5).tried(gains(0.2), MANY).tried(gains(0.9), MANY)
    resumed = ShareFit.new(setting, fit.tensors())
    assert (resumed.setting, resumed.trials) == (setting, 2)
    assert resumed.gains.tolist() == fit.gains.tolist()
    assert ShareFit.new(setting, {}).trials == 0


def test_trials_on_much_the_same_rows_count_no_more_than_one_on_all_of_them() -> None:
    """In a slow stream the gate is asked again after every few events."""
    once = ShareFit.new(0.5).tried(gains(0.2), MANY).tried(gains(0.9), 50)
    often = ShareFit.new(0.5).tried(gains(0.2), MANY)
    for _ in range(50):
        often = often.tried(gains(0.9), 1)
    assert often.trials == pytest.approx(once.trials)
    np.testing.assert_allclose(often.gains, once.gains, atol=0.01)
