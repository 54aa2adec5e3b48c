import numpy as np
import pytest
import torch

from service.model import inference
from service.model.inference import compact, hide, states_at
from service.model.recommender import unit_rows
from tests.model.examples import PLACES, a_recommender


def test_compact_moves_known_items_to_the_front_in_order() -> None:
    rows, lengths = compact(np.array([[0, 3, 0, 1], [2, 0, 0, 0], [0, 0, 0, 0]], np.int64))
    assert rows.tolist() == [[3, 1], [2, 0], [0, 0]]
    assert lengths.tolist() == [2, 1, 0]


def test_compact_keeps_one_place_where_nothing_is_known() -> None:
    assert compact(np.zeros((2, 3), np.int64))[0].shape == (2, 1)
    assert compact(np.zeros((0, 3), np.int64))[0].shape == (0, 1)


def test_states_are_unit_vectors_at_the_chosen_places() -> None:
    model = a_recommender(items=5)
    rows = np.array([[1, 2, 3], [4, 0, 0]], np.int64)
    with torch.inference_mode():
        states = states_at(model, rows, np.array([[1, 2], [-1, 0]], np.int64))
        alone = states_at(model, rows[:1, :2], np.array([[1]], np.int64))
    assert states.shape == (2, 2, 8)
    torch.testing.assert_close(states.norm(dim=-1), torch.ones(2, 2))
    torch.testing.assert_close(states[0, 0], alone[0, 0])  # later items and padding are not seen
    torch.testing.assert_close(states[1, 0], states[1, 1])


def test_bfloat16_in_the_body_leaves_unit_states_of_32_bits_and_hardly_moves_a_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = a_recommender(items=1000, dim=32)
    rows = np.random.default_rng(0).integers(1, 1001, (64, PLACES))
    places = np.full((64, 1), PLACES - 1)
    target = torch.from_numpy(rows[:, :1])
    states, rank = [], []
    with torch.inference_mode():
        for fast in (True, False):
            monkeypatch.setattr(inference, "has_fast_bf16", lambda _, fast=fast: fast)
            states.append(states_at(model, rows, places).squeeze(1))
            scores = states[-1] @ unit_rows(model.items.weight[:1001]).T
            rank.append((scores >= scores.gather(1, target)).sum(dim=1))
    assert states[0].dtype == torch.float32
    assert not torch.equal(*states)
    torch.testing.assert_close(*states, rtol=0, atol=0.02)
    torch.testing.assert_close(states[0].norm(dim=-1), torch.ones(64))
    assert int((rank[0] - rank[1]).abs().max()) <= 10


def test_hide_leaves_no_score_to_hidden_items_and_to_no_item() -> None:
    scores = hide(torch.ones(2, 4), np.array([[1, 0], [3, 3]], np.int64))
    assert (scores == -torch.inf).tolist() == [
        [True, True, False, False],
        [True, False, False, True],
    ]
