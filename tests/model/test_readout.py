import pytest
import torch

from service.model.readout import Readout
from service.model.recommender import Recommender
from service.settings import ReadoutKind
from tests.model.examples import small_settings


@pytest.fixture
def readout() -> Readout:
    torch.manual_seed(0)
    return Readout(4, dropout=0.5).eval()


def some(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_state_is_a_mixture_of_the_items_so_far(readout: Readout) -> None:
    states, items = some(2, 3, 4), some(2, 3, 4, seed=1)
    mixed = readout(states, items)
    torch.testing.assert_close(mixed[:, 0], items[:, 0])
    query, key = states @ readout.query.weight.T, states @ readout.key.weight.T
    weight = (query[:, 2:] @ key.transpose(1, 2) / 4**0.5).softmax(dim=-1)  # [2, 1, 3]
    torch.testing.assert_close(mixed[:, 2:], weight @ items)


def test_what_comes_later_changes_nothing(readout: Readout) -> None:
    states, items = some(1, 4, 4), some(1, 4, 4, seed=1)
    later = items.clone()
    later[:, 2:] *= -1
    before, after = readout(states, items), readout(states, later)
    torch.testing.assert_close(before[:, :2], after[:, :2])
    assert not torch.isclose(before[:, 2:], after[:, 2:]).any()


def test_sequences_in_one_row_are_kept_apart(readout: Readout) -> None:
    states, items = some(1, 5, 4), some(1, 5, 4, seed=1)
    together = readout(states, items, torch.tensor([[0, 1, 0, 1, 2]]))
    apart = [readout(states[:, one], items[:, one]) for one in (slice(0, 2), slice(2, 5))]
    torch.testing.assert_close(together, torch.cat(apart, dim=1))


def test_items_are_left_out_in_training_alone(readout: Readout) -> None:
    states, items = some(1, 1, 4), torch.ones(1, 1, 4)
    assert readout(states, items).tolist() == [[[1.0] * 4]]
    read = [readout.train()(states, items).detach() for _ in range(20)]
    assert torch.cat(read).unique().tolist() == [0.0, 2.0]


@pytest.mark.parametrize("kind", list(ReadoutKind))
def test_a_model_is_rebuilt_with_its_readout(kind: ReadoutKind) -> None:
    model = _model(kind)
    again = Recommender.from_weights(model.shape, model.state_dict())
    assert (again.readout is None) == (kind is ReadoutKind.STATES)
    rows = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        torch.testing.assert_close(model(rows), again(rows))


def test_a_shape_from_before_there_were_readouts_has_none() -> None:
    model = _model(ReadoutKind.STATES)
    shape = {name: one for name, one in model.shape.items() if name != "readout"}
    assert Recommender.from_weights(shape, model.state_dict()).readout is None


def _model(kind: ReadoutKind) -> Recommender:
    model = Recommender.new(small_settings().model_copy(update={"readout": kind}))
    model.grow(6)
    return model.eval()
