import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from service.model.context import ContextFeatures
from service.model.inference import states_after
from service.model.recommender import Recommender
from service.settings import (
    CategoryFeature,
    EventKindFeature,
    Feature,
    GapFeature,
    HourFeature,
    NumberFeature,
)
from service.state.features import number_codes
from tests.model.examples import a_recommender

DIM = 16
DEVICE, PRICE = CategoryFeature(name="device", buckets=8), NumberFeature(name="price")
ALL = (DEVICE, PRICE, EventKindFeature(), HourFeature(), GapFeature())


def taught(*features: Feature, dim: int = DIM) -> ContextFeatures:
    """With weights other than those it begins with."""
    context = ContextFeatures(features, dim)
    for weight in context.parameters():
        torch.nn.init.normal_(weight)
    return context


def added(context: ContextFeatures, *codes: int) -> Tensor:
    """By one feature, for each code. [codes, dim]"""
    with torch.inference_mode():
        found: Tensor = context(torch.tensor(codes, dtype=torch.int32)[:, None])
    return found


def states(model: Recommender, codes: np.ndarray[tuple[int, ...], np.dtype[np.int32]]) -> Tensor:
    rows = np.array([[1, 0, 2, 3, 0], [4, 2, 0, 0, 0]], np.int64)
    with torch.inference_mode():
        return states_after(model, rows, codes)[0]


def random_codes(features: int) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
    return np.random.default_rng(1).integers(0, 25, (2, 5, features)).astype(np.int32)


def test_a_feature_that_is_added_changes_no_bit_before_it_is_trained() -> None:
    model = a_recommender(6)
    before, none = states(model, random_codes(0)), states(model, random_codes(len(ALL)))
    anew = model.fit_context(ALL)
    assert torch.equal(states(model, random_codes(len(ALL))), before)
    assert torch.equal(none, before)
    assert {name for name, _ in model.named_parameters() if "context" in name} == set(anew)


def test_a_feature_that_was_trained_changes_states_but_not_item_vectors() -> None:
    model = a_recommender(6)
    before, table = states(model, random_codes(len(ALL))), model.table(7)
    model.context = taught(*ALL, dim=model.items.embedding_dim)
    assert not torch.allclose(states(model, random_codes(len(ALL))), before)
    assert torch.equal(model.table(7), table)
    assert torch.equal(states(model, np.zeros((2, 5, len(ALL)), np.int32)), before)


@pytest.mark.parametrize("feature", ALL, ids=[feature.kind for feature in ALL])
def test_what_is_absent_adds_nothing(feature: Feature) -> None:
    assert not added(taught(feature), 0).any()
    assert added(taught(feature), 1).any()


@given(st.integers(1, 2**31 - 1))
def test_a_category_falls_into_the_same_bucket_as_what_is_alike_modulo(code: int) -> None:
    context = taught(DEVICE)
    own, alike = added(context, code, (code - 1) % 8 + 1)
    assert torch.equal(own, alike)


@given(st.integers(0, 23), st.data())
def test_gaps_share_a_vector_until_they_double(doublings: int, data: st.DataObject) -> None:
    context, first = taught(GapFeature()), 2**doublings
    code = data.draw(st.integers(first, 2 * first - 1))
    own, same, next_one = added(context, code, first, 2 * first)
    assert torch.equal(own, same)
    assert not torch.equal(own, next_one)


def test_the_longest_gap_has_a_vector_of_its_own() -> None:
    longest, shortest = added(taught(GapFeature()), 2**31 - 1, 1)
    assert not torch.equal(longest, shortest)


@pytest.mark.parametrize(
    ("feature", "value", "same_as"),
    [
        (NumberFeature(name="n", mean=10, scale=2), 14.0, 2.0),
        (NumberFeature(name="n", clip=3), 99.0, 3.0),
        (NumberFeature(name="n", clip=3), -99.0, -3.0),
        (NumberFeature(name="n", log=True), float(np.expm1(2.0)), 2.0),
        (NumberFeature(name="n", log=True), -float(np.expm1(2.0)), -2.0),
    ],
)
def test_a_number_is_scaled_as_its_settings_say(
    feature: NumberFeature, value: float, same_as: float
) -> None:
    context, plain = taught(feature), taught(NumberFeature(name="n"))
    plain.load_state_dict(context.state_dict())
    own, other = number_codes([value]).tolist(), number_codes([same_as]).tolist()
    torch.testing.assert_close(added(context, *own), added(plain, *other))


def test_the_very_same_features_keep_what_they_learned() -> None:
    model = a_recommender(6)
    model.context = taught(DEVICE, PRICE, HourFeature(), dim=model.items.embedding_dim)
    old = {name: weight.clone() for name, weight in model.context.state_dict().items()}
    wider = CategoryFeature(name="device", buckets=9)
    anew = model.fit_context((GapFeature(), PRICE, wider))
    assert anew == ["context.parts.gap.weight", "context.parts.category:device.weight"]
    assert torch.equal(
        model.context.state_dict()["parts.number:price.weight"], old["parts.number:price.weight"]
    )
    assert not any(model.get_parameter(name).any() for name in anew)
    assert model.features == ("gap", "number:price", "category:device")


def test_without_features_nothing_is_left_of_them() -> None:
    model = a_recommender(6)
    shape, names = model.shape, set(model.state_dict())
    model.context = taught(*ALL, dim=model.items.embedding_dim)
    assert model.fit_context(()) == []
    assert (model.shape, set(model.state_dict()), model.features) == (shape, names, ())


def test_a_version_is_rebuilt_with_its_features() -> None:
    model = a_recommender(6)
    nested = CategoryFeature(name="geo.country", buckets=5)
    model.context = taught(*ALL, nested, dim=model.items.embedding_dim)
    again = Recommender.from_weights(model.shape, dict(model.state_dict()))
    codes = random_codes(len(ALL) + 1)
    assert torch.equal(states(again, codes), states(model.eval(), codes))
    assert again.features == model.features
