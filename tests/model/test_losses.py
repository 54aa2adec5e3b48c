import pytest
import torch
from torch import Tensor
from torch.nn import functional

from service.model import losses
from service.model.losses import candidates, sampled_softmax

TEMPERATURE = 0.5
CPU = torch.device("cpu")


def an_example(items: int) -> tuple[Tensor, Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    states = torch.randn(6, 4, generator=random)
    table = torch.randn(items + 1, 4, generator=random)
    return states, torch.randint(1, items + 1, (6,), generator=random), table


def sampled(
    states: Tensor, targets: Tensor, table: Tensor, negatives: int, weight: Tensor | None = None
) -> Tensor:
    items = len(table) - 1
    drawn = candidates(torch.arange(1, items + 1), negatives)
    return sampled_softmax(
        states,
        targets,
        table[targets],
        drawn,
        table[drawn],
        items=items,
        temperature=TEMPERATURE,
        weight=weight,
    )


def full_softmax(states: Tensor, targets: Tensor, table: Tensor) -> Tensor:
    cosine = functional.normalize(states, dim=-1) @ functional.normalize(table[1:], dim=-1).T
    return functional.cross_entropy(cosine / TEMPERATURE, targets - 1)


@pytest.mark.parametrize("negatives", [9, 20])
def test_a_small_catalogue_is_not_sampled(negatives: int) -> None:
    states, targets, table = an_example(items=9)
    loss = sampled(states, targets, table, negatives)
    torch.testing.assert_close(loss, full_softmax(states, targets, table))


def test_the_sampled_sum_over_the_others_is_unbiased() -> None:
    """exp(loss) - 1 of one state is the sum over the others, relative to the target."""
    states, targets, table = an_example(items=9)
    states, targets = states[:1], targets[:1]
    torch.manual_seed(1)
    sums = [sampled(states, targets, table, negatives=8).exp() - 1 for _ in range(4000)]
    truth = full_softmax(states, targets, table).exp() - 1
    assert torch.stack(sums).mean().item() == pytest.approx(truth.item(), rel=0.04)


def test_every_row_is_a_candidate() -> None:
    torch.manual_seed(2)
    rows = torch.tensor([3, 5, 8, 9, 11])
    drawn = [candidates(rows, 4) for _ in range(200)]
    assert {len(one) for one in drawn} == {4}
    assert set(torch.cat(drawn).tolist()) == {3, 5, 8, 9, 11}
    assert candidates(rows, 5) is rows


def test_without_another_item_there_is_nothing_to_lose() -> None:
    states, _, table = an_example(items=1)
    states.requires_grad_()
    loss = sampled(states, torch.ones(6, dtype=torch.int64), table, negatives=4)
    assert loss == 0.0
    assert torch.autograd.grad(loss, states)[0].count_nonzero() == 0


@pytest.mark.parametrize("logits_at_once", [1, 20, 1000])
def test_gradients_are_those_of_the_full_softmax_however_it_is_cut(
    logits_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "_LOGITS_AT_ONCE", logits_at_once)
    states, targets, table = (one.requires_grad_(one.is_floating_point()) for one in an_example(9))
    in_portions = torch.autograd.grad(sampled(states, targets, table, 9), [states, table])
    whole = torch.autograd.grad(full_softmax(states, targets, table), [states, table])
    torch.testing.assert_close(in_portions, whole)


def test_in_bfloat16_loss_and_gradients_are_nearly_the_same() -> None:
    states, targets, table = (one.requires_grad_(one.is_floating_point()) for one in an_example(9))
    with torch.autocast("cpu", torch.bfloat16):
        rough = sampled(states, targets, table, 9)
    exact = full_softmax(states, targets, table)
    assert rough.item() == pytest.approx(exact.item(), rel=0.02)
    torch.testing.assert_close(
        torch.autograd.grad(rough, [states, table]),
        torch.autograd.grad(exact, [states, table]),
        rtol=0.1,
        atol=0.01,
    )


def test_what_is_not_a_number_is_seen() -> None:
    states, targets, table = an_example(items=9)
    table[3] = torch.nan
    assert sampled(states, targets, table, negatives=9).isnan()


def test_the_mean_is_by_weight_and_only_ratios_matter() -> None:
    states, targets, table = an_example(items=9)
    each = torch.stack([sampled(states[i, None], targets[i, None], table, 9) for i in range(6)])
    weight = torch.tensor([1.0, 4.0, 0.5, 1.0, 2.0, 1.0])
    for scale in (1.0, 7.0):
        loss = sampled(states, targets, table, 9, scale * weight)
        torch.testing.assert_close(loss, (each * weight).sum() / weight.sum())
    torch.testing.assert_close(sampled(states, targets, table, 9, torch.ones(6)), each.mean())


def test_nor_where_the_only_item_is_turned_down() -> None:
    states, _, table = an_example(items=1)
    states.requires_grad_()
    down = torch.tensor([-1.0] * 6)
    loss = sampled(states, torch.ones(6, dtype=torch.int64), table, negatives=4, weight=down)
    assert loss == 0.0
    assert torch.autograd.grad(loss, states)[0].count_nonzero() == 0


def test_what_was_turned_down_loses_by_how_likely_it_is() -> None:
    states, targets, table = an_example(items=9)
    likely = (-full_softmax(states[:1], targets[:1], table)).exp()
    loss = sampled(states[:1], targets[:1], table, 9, torch.tensor([-3.0]))
    torch.testing.assert_close(loss, -torch.log(1 - likely))
