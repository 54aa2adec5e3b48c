import numpy as np
import pytest
import torch
from torch.nn import functional

from service.domain import Float32s, Int64s
from service.model.item_tower import ItemTower, Source
from service.model.recommender import Recommender
from tests.model.examples import small_settings

SOURCES = (Source("text", 48, "an encoder"), Source("image", 16))
WIDTH = 64


def a_tower_model(items: int) -> Recommender:
    model = Recommender.new(small_settings(dim=32), SOURCES)
    model.grow(items + 1)
    return model.eval()


def some_vectors(items: int, seed: int = 0) -> Float32s:
    vectors = np.random.default_rng(seed).normal(size=(items, WIDTH)).astype(np.float32)
    unit: Float32s = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def described(model: Recommender, rows: Int64s, vectors: Float32s, *, untaught: bool) -> None:
    digests = np.ones((len(rows), len(SOURCES)), np.int64)
    model.describe(rows, vectors, digests, np.full(len(rows), untaught))


def test_before_anything_is_learned_items_stand_as_their_descriptions_do() -> None:
    model, vectors = a_tower_model(3), some_vectors(3)
    vectors[1] = 0.9 * vectors[0] + 0.4 * vectors[2]
    described(model, np.array([1, 2, 3]), vectors, untaught=True)
    table = functional.normalize(model.table(4), dim=-1)
    assert table[1] @ table[2] > 0.5 > table[1] @ table[3]


def test_an_item_that_was_taught_keeps_its_vector_when_its_description_changes() -> None:
    model, rows = a_tower_model(4), np.array([2, 4])
    before = model.table(5)
    for seed in (1, 2):  # the first description, and another
        described(model, rows, some_vectors(2, seed), untaught=False)
        torch.testing.assert_close(model.table(5), before)
    assert model.tower is not None
    assert model.tower.is_described(0).tolist() == [False, False, True, False, True]


def test_the_folded_model_says_the_same_without_a_tower() -> None:
    model = a_tower_model(5)
    described(model, np.array([1, 3]), some_vectors(2), untaught=True)
    folded = model.folded()
    assert folded.tower is None
    torch.testing.assert_close(folded.items.weight.detach(), model.table(6))
    rows = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        torch.testing.assert_close(folded(rows), model(rows))


def test_a_model_without_a_tower_folds_to_itself() -> None:
    model = Recommender.new(small_settings())
    assert model.folded() is model


def test_a_version_gives_the_same_vectors_again() -> None:
    model = a_tower_model(5)
    described(model, np.array([1, 5]), some_vectors(2), untaught=True)
    assert model.tower is not None
    again = Recommender.from_weights(
        model.shape, model.state_dict(), model.tower.tensors(model.items.num_embeddings)
    )
    torch.testing.assert_close(again.table(6), model.table(6))
    assert not any("frozen" in name for name in model.state_dict())


def test_frozen_vectors_of_another_shape_are_refused() -> None:
    model = a_tower_model(5)
    assert model.tower is not None
    with pytest.raises(ValueError, match="frozen"):
        Recommender.from_weights(model.shape, model.state_dict(), model.tower.tensors(3))
    with pytest.raises(KeyError):
        Recommender.from_weights(model.shape, model.state_dict())


def test_renewed_rows_keep_what_is_known_of_them() -> None:
    model = a_tower_model(4)
    described(model, np.array([3]), some_vectors(1), untaught=True)
    model.renew(3)
    own = model.items.weight.detach().norm(dim=1)
    assert own[3] < 0.3 < own[4]  # faint where a description stands in for it


def test_id_vectors_are_left_out_of_described_rows_only() -> None:
    tower = ItemTower(SOURCES, rows=400, dim=8)
    tower.put(np.arange(200), some_vectors(200), np.ones((200, 2), np.int64))
    own = torch.ones(400, 8)
    joined = tower.join(own, torch.arange(400), dropout=0.5)
    plain = own + tower(torch.arange(400))
    left_out = (joined != plain).any(dim=1)
    assert 60 < left_out[:200].sum() < 140
    assert not left_out[200:].any()
    torch.testing.assert_close(joined[left_out], tower(torch.arange(400))[left_out])


def test_a_tower_that_is_added_or_changed_leaves_the_vectors_as_they_are() -> None:
    model = Recommender.new(small_settings())
    model.grow(5)
    before = model.table(5).clone()
    towered = model.with_tower(SOURCES)
    assert towered.tower is not None
    torch.testing.assert_close(towered.table(5), before)
    described(towered, np.array([1, 2]), some_vectors(2), untaught=False)
    assert towered.with_tower(SOURCES) is towered
    other = towered.with_tower((Source("text", 3, "another encoder"),))
    torch.testing.assert_close(other.table(5), before)
    gone = towered.with_tower(())
    assert gone.tower is None
    torch.testing.assert_close(gone.table(5), before)


def test_an_item_that_resembles_others_stands_between_them() -> None:
    model = a_tower_model(3)
    model.settle(np.array([3, 3]), np.array([1, 2]), own=0.0)
    table = functional.normalize(model.table(4), dim=-1)
    assert min(table[3] @ table[1], table[3] @ table[2]) > 0.5
    assert model.table(4)[3].norm().item() == pytest.approx(1.0, abs=1e-5)
