import copy
import math

import pytest
import torch
from torch import Tensor

from service.errors import NonFiniteError
from service.model.losses import candidates
from service.trainer import step as step_module
from service.trainer.challenger import Challenger
from service.trainer.packing import Packed
from service.trainer.step import train_step
from tests.trainer.examples import CPU, a_challenger, packed, small_settings

SETTINGS = small_settings()
BATCH = packed([1, 2, 3, 4], [5, 6, 7, 8, 9], together=False)


def step(challenger: Challenger, batch: Packed = BATCH) -> float:
    return train_step(challenger, batch, temperature=0.07, settings=SETTINGS.trainer)


def a_twin(challenger: Challenger) -> Challenger:
    model = copy.deepcopy(challenger.model)
    return Challenger(model, challenger.vocabulary, SETTINGS.trainer, CPU)


def everything(challenger: Challenger) -> dict[str, Tensor]:
    """Copies of weights, moments and counts of steps."""
    return copy.deepcopy(challenger.model.state_dict()) | challenger.optimizer_tensors()


def use_bf16(monkeypatch: pytest.MonkeyPatch, wanted: bool) -> None:
    monkeypatch.setattr(step_module, "has_fast_bf16", lambda _: wanted)


def test_steps_lower_the_loss() -> None:
    challenger = a_challenger(SETTINGS, items=9)
    losses = [step(challenger) for _ in range(20)]
    assert losses[-1] < losses[0] / 4


def test_row_0_stays_no_item() -> None:
    challenger = a_challenger(SETTINGS, items=9)
    assert (BATCH.item == 0).any()
    for _ in range(2):
        step(challenger)
    assert not challenger.model.items.weight[0].any()


def test_what_no_step_has_read_or_foretold_is_no_candidate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nobody could have taken it, and all that it would learn is to be far from everything."""
    challenger = a_challenger(SETTINGS, items=9)
    asked: list[list[int]] = []

    def spy(rows: Tensor, negatives: int) -> Tensor:
        asked.append(sorted(rows.tolist()))
        return candidates(rows, negatives)

    monkeypatch.setattr(step_module, "candidates", spy)
    before = challenger.model.items.weight.detach().clone()
    savepoint = challenger.savepoint()
    step(challenger, packed([1, 2, 3], [2, 5]))
    step(challenger, packed([7, 2]))
    assert asked == [[1, 2, 3, 5], [1, 2, 3, 5, 7]]
    changed = (challenger.model.items.weight != before).any(dim=1)  # [rows]
    assert changed.nonzero().flatten().tolist() == [1, 2, 3, 5, 7]
    challenger.undo(savepoint)
    step(challenger, packed([4, 2]))
    assert asked[-1] == [2, 4]
    again = Challenger(challenger.model, challenger.vocabulary, SETTINGS.trainer, CPU)
    again.load_optimizer(challenger.optimizer_tensors())
    assert sorted(again.taught.tolist()) == [2, 4]


def test_only_rows_of_the_vocabulary_are_candidates() -> None:
    challenger = a_challenger(SETTINGS, items=9)
    challenger.model.grow(40)
    challenger.item_optimizer.grow(40)
    spare = challenger.model.items.weight[10:].detach().clone()
    step(challenger)
    assert torch.equal(challenger.model.items.weight[10:], spare)
    assert not challenger.item_optimizer.steps[10:].any()


def test_only_the_rows_of_the_batch_and_its_negatives_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    challenger = a_challenger(SETTINGS, items=40)
    monkeypatch.setattr(step_module, "candidates", lambda *_: torch.tensor([30, 7, 30]))
    before = challenger.model.items.weight.detach().clone()
    step(challenger, packed([1, 2, 3], [2, 5]))
    changed = (challenger.model.items.weight != before).any(dim=1)  # [rows]
    assert changed.nonzero().flatten().tolist() == [1, 2, 3, 5, 7, 30]
    assert torch.equal(challenger.item_optimizer.steps != 0, changed)


def test_sequences_in_one_row_teach_the_same_as_one_to_a_row(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_bf16(monkeypatch, False)
    one = a_challenger(SETTINGS, items=9)
    other = a_twin(one)
    sequences = [[1, 2, 3], [4, 1], [6, 7, 8, 9], [9, 8, 7]]
    together, apart = packed(*sequences), packed(*sequences, together=False)
    assert (together.item.shape, apart.item.shape) == ((1, 8), (4, 3))
    assert step(one, together) == pytest.approx(step(other, apart))
    for kind in ("mean", "square"):  # of one gradient
        torch.testing.assert_close(
            getattr(one.item_optimizer, kind), getattr(other.item_optimizer, kind)
        )
    its = dict(other.model.backbone.named_parameters())
    for name, parameter in one.model.backbone.named_parameters():
        torch.testing.assert_close(parameter.grad, its[name].grad)


def test_products_in_bfloat16_leave_weights_and_moments_in_32_bits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    one = a_challenger(SETTINGS, items=9)
    other = a_twin(one)
    use_bf16(monkeypatch, False)
    exact = step(one)
    use_bf16(monkeypatch, True)
    loss = step(other)
    assert loss != exact
    assert loss == pytest.approx(exact, rel=0.02)
    kept = everything(other)
    del kept["items.met"]  # times
    assert {tensor.dtype for tensor in kept.values()} == {torch.float32}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_changes_nothing(bad: float) -> None:
    challenger = a_challenger(SETTINGS, items=9)
    step(challenger)
    with torch.no_grad():
        challenger.model.items.weight[3] = bad
    assert_refused(challenger, "loss")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_of_a_weight_that_is_not_finite_changes_nothing(bad: float) -> None:
    challenger = a_challenger(SETTINGS, items=9)
    step(challenger)
    weight = next(one for one in challenger.model.backbone.parameters() if one.grad is not None)
    weight.register_hook(lambda gradient: gradient * bad)
    assert_refused(challenger, "gradient")


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_of_an_item_vector_that_is_not_finite_changes_nothing(bad: float) -> None:
    challenger = a_challenger(SETTINGS, items=9)
    step(challenger)

    def spoil(_: object, read: tuple[Tensor, ...]) -> None:
        read[0].register_hook(lambda gradient: gradient * bad)

    challenger.model.backbone.register_forward_pre_hook(spoil)
    assert_refused(challenger, "gradient")


def assert_refused(challenger: Challenger, what: str) -> None:
    before = everything(challenger)
    with pytest.raises(NonFiniteError, match=what):
        step(challenger)
    after = everything(challenger)
    assert after.keys() == before.keys()
    for name, tensor in after.items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
