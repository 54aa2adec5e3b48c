import copy

import pytest
import torch
from torch import Tensor

from service.trainer.row_adam import RowAdam
from tests.trainer.examples import CPU

ROWS, DIM, RATE = 6, 4, 0.05


def a_table() -> Tensor:
    return torch.randn(ROWS, DIM)


def trained(table: Tensor, rows: list[int], steps: int = 3) -> RowAdam:
    adam = RowAdam(len(table), DIM, CPU)
    for _ in range(steps):
        adam.step(table, torch.tensor(rows), torch.randn(len(rows), DIM), RATE)
    return adam


@pytest.mark.parametrize("share", [1.0, 0.5])
def test_each_row_moves_as_adam_would_move_it_by_the_gradients_that_reach_it(share: float) -> None:
    random = torch.Generator().manual_seed(0)
    table = a_table()
    parameters = [torch.nn.Parameter(row.clone()) for row in table]
    reference = torch.optim.Adam(parameters, lr=RATE)
    adam = RowAdam(ROWS, DIM, CPU)
    for _ in range(30):
        rows = (torch.rand(ROWS, generator=random) < share).nonzero().flatten()
        gradient = torch.randn(len(rows), DIM, generator=random)
        adam.step(table, rows, gradient, RATE)
        reference.zero_grad()
        for row, its in zip(rows.tolist(), gradient, strict=True):
            parameters[row].grad = its
        reference.step()
    torch.testing.assert_close(table, torch.stack(list(parameters)), rtol=1e-4, atol=1e-5)


def test_rows_without_a_gradient_stand_still_with_their_moments() -> None:
    table = a_table()
    adam = trained(table, [0, 1, 2])
    before, moments = table.clone(), adam.tensors(ROWS)
    adam.step(table, torch.tensor([5, 1]), torch.randn(2, DIM), RATE)
    still = [0, 2, 3, 4]
    assert torch.equal(table[still], before[still])
    for kind, tensor in adam.tensors(ROWS).items():
        assert torch.equal(tensor[still], moments[kind][still])
    assert adam.steps.tolist() == [3, 4, 3, 0, 0, 1]


@pytest.mark.parametrize("rows", [ROWS, ROWS + 3])
def test_growing_keeps_the_moments_and_starts_new_rows_anew(rows: int) -> None:
    adam = trained(a_table(), [1, 5])
    before = adam.tensors(ROWS)
    adam.grow(rows)
    for kind, tensor in adam.tensors(rows).items():
        assert len(tensor) == rows
        assert torch.equal(tensor[:ROWS], before[kind])
        assert not tensor[ROWS:].any()


def test_growing_by_nothing_copies_nothing() -> None:
    adam = RowAdam(ROWS, DIM, CPU)
    mean = adam.mean
    adam.grow(ROWS)
    assert adam.mean is mean


def test_goes_on_from_tensors_as_it_would_have() -> None:
    table = a_table()
    one = trained(table, [0, 1, 2])
    other = RowAdam(ROWS, DIM, CPU)
    other.load(one.tensors(ROWS))
    copied = table.clone()
    rows, gradient = torch.tensor([2, 3]), torch.randn(2, DIM)
    one.step(table, rows, gradient, RATE)
    other.step(copied, rows, gradient, RATE)
    assert torch.equal(table, copied)
    for kind, tensor in one.tensors(ROWS).items():
        assert torch.equal(tensor, other.tensors(ROWS)[kind])


def test_rows_beyond_what_is_loaded_are_as_new() -> None:
    adam = trained(a_table(), list(range(ROWS)))
    first = adam.tensors(2)
    adam.load(first)
    for kind, tensor in adam.tensors(ROWS).items():
        assert torch.equal(tensor[:2], first[kind])
        assert not tensor[2:].any()


def test_tensors_are_copies() -> None:
    table, row = a_table(), torch.tensor([1])
    adam = trained(table, [1])
    taken = adam.tensors(ROWS)
    kept = copy.deepcopy(taken)
    for _ in range(2):
        adam.step(table, row, torch.randn(1, DIM), RATE)
        for kind, tensor in taken.items():
            assert torch.equal(tensor, kept[kind])
        adam.load(taken)
