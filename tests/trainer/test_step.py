import copy
import math

import pytest
import torch

from service.errors import NonFiniteError
from service.trainer.challenger import Challenger
from service.trainer.step import train_step
from tests.trainer.examples import a_challenger, small_settings

SETTINGS = small_settings()
ROWS = torch.tensor([[1, 2, 3, 4, 0], [5, 6, 7, 8, 9]])
TARGET = torch.tensor([[False, True, True, True, False], [False, False, True, True, True]])


def step(challenger: Challenger) -> float:
    return train_step(
        challenger.model,
        challenger.optimizer,
        ROWS,
        TARGET,
        items=len(challenger.vocabulary),
        temperature=0.07,
        settings=SETTINGS.trainer,
    )


def test_steps_lower_the_loss() -> None:
    challenger = a_challenger(SETTINGS, items=9)
    losses = [step(challenger) for _ in range(20)]
    assert losses[-1] < losses[0] / 4


def test_row_0_stays_no_item() -> None:
    challenger = a_challenger(SETTINGS, items=9)
    step(challenger)
    assert not challenger.model.items.weight[0].any()


def test_only_rows_of_the_vocabulary_are_candidates() -> None:
    challenger = a_challenger(SETTINGS, items=9)
    challenger.model.grow(40)
    spare = challenger.model.items.weight[10:].detach().clone()
    step(challenger)
    assert torch.equal(challenger.model.items.weight[10:], spare)


def test_a_loss_that_is_not_finite_leaves_the_weights_alone() -> None:
    challenger = a_challenger(SETTINGS, items=9)
    with torch.no_grad():
        challenger.model.items.weight[3] = math.nan
    assert_refused(challenger, "loss")


def test_a_gradient_that_is_not_finite_leaves_the_weights_alone() -> None:
    challenger = a_challenger(SETTINGS, items=9)
    challenger.model.items.weight.register_hook(lambda gradient: gradient * math.inf)
    assert_refused(challenger, "gradient")


def assert_refused(challenger: Challenger, what: str) -> None:
    before = copy.deepcopy(challenger.model.state_dict())
    with pytest.raises(NonFiniteError, match=what):
        step(challenger)
    for name, weight in challenger.model.state_dict().items():
        torch.testing.assert_close(weight, before[name], rtol=0, atol=0, equal_nan=True)
    assert not challenger.optimizer.state
