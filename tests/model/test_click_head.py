import numpy as np
import pytest
import torch

from service.model.click_head import ECHOES, STANDING, ClickHead, echoes
from service.model.clicks import foretold, ranks_after, reordered
from service.model.recommender import Recommender, unit_rows
from service.settings import ClickLoss, ClickSettings
from tests.model.examples import a_recommender, a_vocabulary

ON = ClickSettings(enabled=True)
SIGNS = ECHOES + STANDING


def with_head(items: int = 6) -> Recommender:
    model = a_recommender(items)
    model.fit_click_head(ON)
    assert model.click is not None
    torch.nn.init.constant_(model.click.weight, 0.5)
    model.click.begin(np.array([0, 0, 0, 1], np.float32))
    return model.eval()


def test_echoes_tell_how_often_how_near_and_how_long() -> None:
    context = np.array([[7, 8, 7, 0], [0, 0, 0, 0]], np.int64)
    found = echoes(context, np.array([[7, 8, 9, 0]] * 2, np.int64))
    assert found.shape == (2, 4, ECHOES)
    assert found[0, :, 0] == pytest.approx(np.log1p([2, 1, 0, 0]))
    assert found[0, :, 1] == pytest.approx([1.0, 0.5, 0.0, 0.0])
    assert (found[1] == 0).all()


def test_what_is_left_out_of_a_history_leaves_no_gap() -> None:
    item = np.array([[1, 2, 3, 4, 5, 6, 7, 8]] * 2, np.int64)
    with_holes = np.array([[1, 0, 2, 3, 3, 0, 0, 4], [0, 0, 5, 6, 0, 7, 8, 5]], np.int64)
    without = np.array([[1, 2, 3, 3, 4, 0, 0, 0], [5, 6, 7, 8, 5, 0, 0, 0]], np.int64)
    assert echoes(with_holes, item) == pytest.approx(echoes(without, item))


@pytest.mark.parametrize(
    ("loss", "labels", "expected"),
    [(ClickLoss.BINARY, [0, 0, 0, 1], 2 / 6), (ClickLoss.SQUARED, [1, 3, 5, 7] * 8, 4.0)],
)
def test_a_new_head_expects_what_the_first_labels_are_on_average(
    loss: ClickLoss, labels: list[float], expected: float
) -> None:
    head = ClickHead(6, loss)
    assert head.begin(np.array(labels, np.float32))
    assert head.begin(np.full(40, 9.0, np.float32))  # by then it has begun
    state = torch.randn(5, 8)
    found = head.expected(head(state, state, torch.zeros(5, SIGNS)))
    assert found.tolist() == pytest.approx([expected] * 5)


@pytest.mark.parametrize(
    ("labels", "begins"),
    [([12.0], False), ([5.0, 4.99], False), ([0.0] * 999, False), ([0.0] * 999 + [9.0], True)],
)
def test_a_few_numbers_tell_nothing_of_how_far_they_are_apart(
    labels: list[float], *, begins: bool
) -> None:
    head = ClickHead(6, ClickLoss.SQUARED)
    label = np.array(labels, np.float32)
    assert head.begin(label) == begins
    assert head.scale.item() == pytest.approx(label.std() if begins else 0.0, rel=1e-3)


def test_labels_that_are_all_alike_leave_room_for_doubt() -> None:
    head = ClickHead(6, ClickLoss.BINARY)
    head.begin(np.ones(10, np.float32))
    assert float(head.middle.sigmoid()) == pytest.approx(11 / 12)


def test_the_head_of_the_settings_is_kept_while_it_is_the_same() -> None:
    model = with_head()
    head = model.click
    assert model.fit_click_head(ON)
    assert model.click is head
    assert not model.fit_click_head(ON.model_copy(update={"loss": ClickLoss.SQUARED}))
    assert model.click is not None
    assert model.click.shape == {"weights": SIGNS + 2, "loss": "squared"}
    assert model.shape["click"] == model.click.shape
    model.fit_click_head(ClickSettings())
    assert model.shape["click"] is None


def test_a_model_comes_back_with_its_head() -> None:
    model = with_head()
    again = Recommender.from_weights(model.shape, model.state_dict())
    context, item = np.zeros((2, 4), np.int64), np.zeros(2, np.int64)
    vocabulary = a_vocabulary(6)
    context[0, :2], item[:] = vocabulary.keys[[1, 2]], vocabulary.keys[3]
    assert model.click is not None
    assert again.click is not None
    expected = foretold(model, model.click, vocabulary, context, item)
    assert foretold(again, again.click, vocabulary, context, item).tolist() == expected.tolist()
    assert expected[0] != expected[1]  # with and without a history


def test_a_version_from_before_heads_counted_items_has_none() -> None:
    model = a_recommender(6)
    weights = {**model.state_dict(), "click.enter.weight": torch.zeros(4, 27)}
    old = {**model.shape, "click": {"hidden": 4, "loss": "binary"}}
    assert Recommender.from_weights(old, weights).click is None


class TestStanding:
    rows = torch.tensor([1, 2, 3])

    def head(self, loss: ClickLoss = ClickLoss.BINARY) -> ClickHead:
        return ClickHead(4, loss)

    def test_nothing_counted_says_nothing(self) -> None:
        assert self.head().standing(self.rows).tolist() == [[0.0, 0.0]] * 3

    def test_more_events_and_better_labels_stand_higher(self) -> None:
        head = self.head()
        head.meet(np.array([1, 1, 1, 2, 3]), 1000)
        head.hear(np.array([1, 2, 2, 3]), np.array([0.0, 1.0, 0.0, 1.0], np.float32))
        met, liked = head.standing(self.rows).T.tolist()
        assert met[0] > 0 > met[1] == met[2]
        assert liked[2] > liked[1] == 0.0 > liked[0]
        # 1 label of 1 beside 20 like the mean, which is a half
        assert liked[2] == pytest.approx(np.log((1 + 10) / 21 / 0.5), rel=1e-4)

    def test_numbers_are_told_in_units_of_their_spread(self) -> None:
        head = self.head(ClickLoss.SQUARED)
        label = np.array([2.0, 2.0, 4.0, 4.0], np.float32)
        head.begin(np.tile(label, 8))
        head.hear(np.array([1, 1, 2, 2]), label)
        assert head.standing(self.rows)[:, 1].tolist() == pytest.approx(
            [-2 / 22, 2 / 22, 0.0], rel=1e-4
        )

    def test_one_wild_number_does_not_stand_for_all(self) -> None:
        head = self.head(ClickLoss.SQUARED)
        wild = np.array([2.0, 4.0, 2.0, 4.0, 2.0, 4.0, 3.0, 3e38], np.float32)
        head.begin(np.tile(wild, 4))
        assert 2.0 <= float(head.middle) <= 4.0
        assert 0.5 < float(head.scale) < 2.0
        assert head.within_reach(wild)[:7].tolist() == wild[:7].tolist()
        assert head.within_reach(wild)[7] < 25.0

    def test_what_was_long_ago_counts_less(self) -> None:
        head = self.head()
        head.meet(np.array([1, 1]), 2)
        head.meet(np.array([2, 2]), 2)
        assert head.tally[:, 0].tolist() == pytest.approx([0.0, 1.0, 2.0, 0.0])

    def test_no_item_is_not_counted(self) -> None:
        head = self.head()
        head.meet(np.array([0, 1]), 1000)
        head.hear(np.array([0]), np.ones(1, np.float32))
        assert head.tally[0].tolist() == [0.0, 0.0, 0.0]

    def test_rows_come_and_go_with_the_table(self) -> None:
        model = with_head()
        assert model.click is not None
        model.click.meet(np.array([1, 2, 2]), 10**6)
        model.grow(40)
        assert len(model.click.tally) == model.items.num_embeddings
        model.keep(torch.tensor([0, 2]))
        assert model.click.tally[:, 0].tolist() == pytest.approx([0.0, 2.0])


def test_reading_a_head_leaves_a_model_in_training() -> None:
    model = with_head().train()
    assert model.click is not None
    none = np.zeros(0, np.int64)
    foretold(model, model.click, a_vocabulary(6), none.reshape(0, 4), none)
    assert model.training


class TestReordering:
    def scores(self, *weights: float, column: list[list[int]]) -> torch.Tensor:
        model = with_head()
        assert model.click is not None
        state = torch.nn.functional.normalize(torch.ones(1, 8), dim=-1)
        chance = torch.tensor([[0.4, 0.2, 0.1, 0.0]])
        with torch.inference_mode():
            return reordered(
                model.click,
                a_vocabulary(6),
                unit_rows(model.items.weight),
                state,
                np.zeros((1, 4), np.int64),
                chance,
                torch.tensor(column),
                weights,
            )

    def test_a_weight_of_0_changes_nothing(self) -> None:
        (score,) = self.scores(0.0, column=[[1, 2, 3, 0]])
        assert score[0].tolist() == pytest.approx([0.4, 0.2, 0.1, 0.0])

    def test_a_large_weight_goes_by_the_head_alone(self) -> None:
        _, heavy = self.scores(0.0, 1e4, column=[[1, 2, 3, 0]])
        model = with_head()
        assert model.click is not None
        with torch.inference_mode():
            table = unit_rows(model.items.weight)[[1, 2, 3]]
            state = torch.nn.functional.normalize(torch.ones(3, 8), dim=-1)
            liked = model.click(state, table, torch.zeros(3, SIGNS))
        assert int(heavy[0].argmax()) == int(liked.argmax())
        assert float(heavy.sum()) == pytest.approx(0.7)
        assert heavy[0, 3] == 0

    def test_an_item_without_a_vector_is_as_likely_as_the_mean(self) -> None:
        (score,) = self.scores(1.0, column=[[1, 2, 99, 0]])
        plain, liked = torch.tensor([0.4, 0.2, 0.1]), (score[0, :3] / 0.7).log()
        gain = liked - plain.log()
        assert float(gain[2]) == pytest.approx(float(gain[:2].mean()), abs=1e-5)


def test_ranks_follow_the_new_scores_within_the_best_and_ties_count_against() -> None:
    score = torch.tensor([[0.1, 0.3, 0.3], [0.5, 0.2, 0.1], [0.2, 0.1, 0.0]])
    column = torch.tensor([[4, 5, 6], [4, 5, 6], [4, 5, 0]])
    rank = ranks_after(score, column, torch.tensor([5, 9, 0]), torch.tensor([1, 17, 1 << 40]))
    assert rank.tolist() == [2, 17, 1 << 40]
