import pytest
import torch
from torch.nn import functional

from service.model.losses import sampled_softmax

TEMPERATURE = 0.5


def an_example(items: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    states = torch.randn(6, 4, generator=random)
    table = torch.randn(items + 1, 4, generator=random)
    return states, torch.randint(1, items + 1, (6,), generator=random), table


def full_softmax(states: torch.Tensor, targets: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    cosine = functional.normalize(states, dim=-1) @ functional.normalize(table[1:], dim=-1).T
    return functional.cross_entropy(cosine / TEMPERATURE, targets - 1)


def test_a_small_catalogue_is_not_sampled() -> None:
    states, targets, table = an_example(items=9)
    loss = sampled_softmax(states, targets, table, negatives=9, temperature=TEMPERATURE)
    torch.testing.assert_close(loss, full_softmax(states, targets, table))


def test_the_sampled_sum_over_the_others_is_unbiased() -> None:
    """exp(loss) - 1 of one state is the sum over the others, relative to the target."""
    states, targets, table = an_example(items=9)
    states, targets = states[:1], targets[:1]
    random = torch.Generator().manual_seed(1)
    sums = [
        sampled_softmax(
            states, targets, table, negatives=8, temperature=TEMPERATURE, generator=random
        ).exp()
        - 1
        for _ in range(4000)
    ]
    truth = full_softmax(states, targets, table).exp() - 1
    assert torch.stack(sums).mean().item() == pytest.approx(truth.item(), rel=0.04)


@pytest.mark.parametrize("negatives", [3, 9])
def test_row_0_is_never_a_candidate(negatives: int) -> None:
    states, targets, table = an_example(items=9)
    losses = []
    for row_0 in (0.0, 100.0):
        table[0] = row_0
        random = torch.Generator().manual_seed(2)
        losses.append(
            sampled_softmax(
                states,
                targets,
                table,
                negatives=negatives,
                temperature=TEMPERATURE,
                generator=random,
            )
        )
    assert torch.equal(*losses)
