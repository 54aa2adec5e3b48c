import torch

from service.model.recommender import Recommender, unit_rows
from tests.model.examples import a_recommender, small_settings


def test_same_settings_give_the_same_weights_and_leave_the_random_state_alone() -> None:
    before = torch.random.get_rng_state()
    one, other = Recommender.new(small_settings()), Recommender.new(small_settings())
    assert torch.equal(before, torch.random.get_rng_state())
    for name, weight in one.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name])


def test_growing_keeps_what_is_known_and_at_least_doubles() -> None:
    model = a_recommender(items=9)
    old = model.items.weight.detach().clone()
    model.grow(11)
    assert model.items.weight.shape == (20, 8)
    assert torch.equal(model.items.weight[:10], old)
    assert 0.3 < model.items.weight[10:].norm(dim=1).mean() < 2.0
    assert model.items.weight.requires_grad
    model.grow(100)
    assert model.items.weight.shape == (100, 8)


def test_growing_to_what_there_is_changes_nothing() -> None:
    model = a_recommender(items=9)
    before = model.items.weight
    model.grow(10)
    assert model.items.weight is before


def test_row_0_is_no_item() -> None:
    model = a_recommender(items=3)
    assert not model.items.weight[0].any()
    assert not unit_rows(model.items.weight)[0].any()


def test_renewing_leaves_the_rows_before_alone() -> None:
    model = a_recommender(items=5)
    old = model.items.weight.detach().clone()
    model.renew(4)
    changed = (model.items.weight != old).any(dim=1)
    assert changed.tolist() == [False] * 4 + [True] * 2


def test_shape_and_weights_give_the_same_states() -> None:
    model = a_recommender(items=9, dim=5)
    again = Recommender.from_weights(model.shape, model.state_dict())
    rows = torch.tensor([[1, 2, 3, 0]])
    assert not again.training
    with torch.inference_mode():
        torch.testing.assert_close(model(rows), again(rows))
