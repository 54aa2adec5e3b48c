import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from service.model.item_tower import Described, Source
from service.model.recommender import Recommender, unit_rows
from service.settings import (
    AdamWSettings,
    ClickSettings,
    Optimizer,
    Settings,
    SgdSettings,
    SmallBackbone,
    TrainAdapter,
    Trained,
    TrainFull,
    TrainHead,
    TrainLora,
    TrainTop,
)
from service.trainer.challenger import Challenger, Checkpoint
from service.trainer.step import train_step
from tests.trainer.examples import CPU, a_challenger, keys, known, packed, small_settings

SETTINGS = small_settings()
EVERY_KIND: list[Trained] = [
    TrainFull(),
    TrainHead(),
    TrainTop(n=1),
    TrainAdapter(width=2),
    TrainLora(rank=2),
]


def settings_with(**changes: object) -> Settings:
    """Small ones, with items narrower than the body so that there are projections."""
    backbone = SmallBackbone(dim=16, layers=2, heads=2)
    model = SETTINGS.model.model_copy(update={"backbone": backbone, "dim": 8})
    trainer = SETTINGS.trainer.model_copy(update=changes)
    return SETTINGS.model_copy(update={"model": model, "trainer": trainer})


def continued(one: Challenger, settings: Settings) -> Challenger:
    """As a restarted worker makes it of what a version holds."""
    weights = {name: tensor.clone() for name, tensor in one.weights().items()}
    model = Recommender.from_weights(one.model.shape, weights)
    other = Challenger(model, one.vocabulary, settings.trainer, CPU)
    other.load_optimizer(one.optimizer_tensors())
    return other


@pytest.mark.parametrize("trained", EVERY_KIND)
@pytest.mark.parametrize("optimizer", [AdamWSettings(), SgdSettings()])
def test_only_what_is_trained_moves_is_kept_and_goes_on_after_a_restart(
    trained: Trained, optimizer: Optimizer
) -> None:
    settings = settings_with(trained=trained, optimizer=optimizer)
    one = a_challenger(settings, items=6)
    start = one.weights()
    train(one, [1, 2, 3, 4])
    checkpoint = one.checkpoint()
    assert checkpoint.weights.keys() == start.keys() - one.model.frozen
    other = continued(one, settings)
    for challenger in (one, other):
        train(challenger, [4, 5, 6])
    for name, weight in one.weights().items():
        torch.testing.assert_close(other.weights()[name], weight)
        if name in one.model.frozen:
            assert torch.equal(weight, start[name])
    assert not torch.equal(one.weights()["backbone.enter.weight"], start["backbone.enter.weight"])
    one.restore(checkpoint)
    assert_at(one, checkpoint)


def test_frozen_weights_are_copied_neither_for_a_champion_nor_for_a_version() -> None:
    challenger = a_challenger(settings_with(trained=TrainLora(rank=2)), items=3)
    mine, copied = challenger.model.state_dict(), challenger.frozen_copy().state_dict()
    published = challenger.weights()
    for name, weight in mine.items():
        shared = name in challenger.model.frozen
        assert (weight.data_ptr() == copied[name].data_ptr()) is shared
        assert (weight.data_ptr() == published[name].data_ptr()) is shared


def test_added_weights_may_be_put_beside_what_was_trained_without_them() -> None:
    one = a_challenger(settings_with(trained=TrainFull()), items=4)
    train(one, [1, 2, 3])
    other = continued(one, settings_with(trained=TrainAdapter()))
    rows = torch.tensor([[1, 2, 3]])
    with torch.inference_mode():
        torch.testing.assert_close(other.model.eval()(rows), one.model.eval()(rows))


@pytest.mark.parametrize("optimizer", [AdamWSettings(), SgdSettings()])
def test_more_may_be_trained_after_a_restart(optimizer: Optimizer) -> None:
    one = a_challenger(settings_with(trained=TrainHead(), optimizer=optimizer), items=4)
    train(one, [1, 2, 3])
    other = continued(one, settings_with(trained=TrainFull(), optimizer=optimizer))
    start = other.weights()
    train(other, [1, 2, 3])
    moved = other.weights()
    for names in (one.trained.keys(), other.trained.keys() - one.trained.keys()):
        assert any(not torch.equal(moved[name], start[name]) for name in names)


def test_moments_of_another_optimizer_are_left_alone() -> None:
    one = a_challenger(settings_with(), items=4)
    train(one, [1, 2, 3])
    other = continued(one, settings_with(optimizer=SgdSettings()))
    assert not other.optimizer.state
    train(other, [1, 2, 3])


def test_the_rates_rise_over_the_first_steps_of_a_model_and_of_no_other() -> None:
    settings = settings_with(warmup_steps=4)
    one = a_challenger(settings, items=4)
    rates = []
    for number in range(6):
        if number == 2:
            one = continued(one, settings)
        train(one, [1, 2, 3])
        rates.append(one.optimizer.param_groups[0]["lr"] / settings.trainer.learning_rate)
    assert rates == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def train(challenger: Challenger, rows: list[int]) -> None:
    train_step(challenger, packed(rows), temperature=0.07, settings=SETTINGS.trainer)


def train_few(challenger: Challenger, rows: list[int]) -> None:
    """With so few negatives that most rows of a large table stay as they are."""
    settings = SETTINGS.trainer.model_copy(update={"negatives": 8})
    train_step(challenger, packed(rows), temperature=0.07, settings=settings)


def learn_items(challenger: Challenger, first: int, last: int) -> None:
    challenger.learn_items([known(number) for number in range(first, last)])


def assert_at(challenger: Challenger, checkpoint: Checkpoint) -> None:
    now = challenger.checkpoint()
    for name, weight in checkpoint.weights.items():
        assert torch.equal(now.weights[name][: len(weight)] if weight.ndim else weight, weight)
    for number, moments in checkpoint.optimizer["state"].items():
        for kind, tensor in moments.items():
            kept = now.optimizer["state"][number][kind]
            assert torch.equal(kept[: len(tensor)] if tensor.ndim else kept, tensor)
    assert now.optimizer["state"].keys() == checkpoint.optimizer["state"].keys()
    for kind, tensor in checkpoint.items.items():
        assert torch.equal(now.items[kind][: len(tensor)], tensor)
        assert not now.items[kind][len(tensor) :].any()


def test_growing_keeps_weights_and_moments() -> None:
    challenger = a_challenger(SETTINGS, items=4)
    train(challenger, [1, 2, 3, 4])
    before = challenger.checkpoint()
    learn_items(challenger, 2, 20)
    assert len(challenger.vocabulary) == 21
    assert_at(challenger, before)
    train(challenger, [1, 20, 3])
    assert challenger.item_optimizer.mean[20].any()


def test_known_items_change_nothing() -> None:
    challenger = a_challenger(SETTINGS, items=4)
    table, vocabulary = challenger.model.items.weight, challenger.vocabulary
    learn_items(challenger, 0, 4)
    assert challenger.model.items.weight is table
    assert challenger.vocabulary is vocabulary


def test_restoring_is_exact_and_can_be_repeated() -> None:
    challenger = a_challenger(SETTINGS, items=4)
    train(challenger, [1, 2, 3, 4])
    checkpoint = challenger.checkpoint()
    untouched = copy.deepcopy(checkpoint)
    for _ in range(2):
        train(challenger, [4, 3, 2, 1])
        challenger.restore(checkpoint)
        assert_at(challenger, untouched)


def test_restoring_to_before_the_first_step_forgets_the_moments() -> None:
    challenger = a_challenger(SETTINGS, items=4)
    checkpoint = challenger.checkpoint()
    train(challenger, [1, 2, 3, 4])
    challenger.restore(checkpoint)
    assert_at(challenger, checkpoint)


def test_restoring_after_growth_keeps_the_items_and_gives_them_fresh_rows() -> None:
    challenger = a_challenger(SETTINGS, items=4)
    train(challenger, [1, 2, 3, 4])
    checkpoint = challenger.checkpoint()
    learn_items(challenger, 4, 30)
    train(challenger, [1, 20, 3])
    with torch.no_grad():
        challenger.model.items.weight[20] = torch.nan
    challenger.restore(checkpoint)
    assert_at(challenger, checkpoint)
    assert len(challenger.vocabulary) == 31
    assert challenger.is_finite()
    train(challenger, [1, 20, 3])


def test_optimizer_tensors_continue_where_they_were_taken() -> None:
    one = a_challenger(SETTINGS, items=6)
    train(one, [1, 2, 3, 4])
    model = Recommender.from_weights(one.model.shape, one.weights())
    other = Challenger(model, one.vocabulary, SETTINGS.trainer, CPU)
    other.load_optimizer(one.optimizer_tensors())
    for challenger in (one, other):
        train(challenger, [4, 5, 6])
    for name, weight in one.weights().items():
        torch.testing.assert_close(other.weights()[name], weight)
    taken, given = one.optimizer_tensors(), other.optimizer_tensors()
    assert taken.keys() == given.keys()
    for name, tensor in taken.items():
        torch.testing.assert_close(given[name], tensor)


def test_parameters_without_saved_moments_start_anew() -> None:
    challenger = a_challenger(SETTINGS, items=3)
    challenger.load_optimizer({})
    assert not challenger.optimizer.state
    assert not challenger.item_optimizer.steps.any()
    train(challenger, [1, 2, 3])


def test_moments_of_a_weight_that_had_another_shape_start_anew() -> None:
    challenger = a_challenger(SETTINGS, items=3)
    train(challenger, [1, 2, 3])
    saved, (first, *others) = challenger.optimizer_tensors(), challenger.trained
    for kind in ("exp_avg", "exp_avg_sq"):
        saved[f"optimizer.{kind}.{first}"] = torch.zeros(1, 2, 3)
    other = a_challenger(SETTINGS, items=3)
    other.load_optimizer(saved)
    assert other.trained[first] not in other.optimizer.state
    assert all(other.trained[name] in other.optimizer.state for name in others)
    train(other, [1, 2, 3])


def test_saved_moments_reach_only_to_the_end_of_the_vocabulary() -> None:
    challenger = a_challenger(SETTINGS, items=5)
    challenger.learn_items([known(5)])  # the table doubles
    train(challenger, [1, 2, 3])
    tensors = challenger.optimizer_tensors()
    assert len(tensors["optimizer.items.mean"]) == len(tensors["optimizer.items.steps"]) == 7


def test_weights_are_copies_cut_to_the_vocabulary() -> None:
    challenger = a_challenger(SETTINGS)
    for number in range(5):
        learn_items(challenger, number, number + 1)  # the table doubles
    weights = challenger.weights()
    assert len(challenger.model.items.weight) > 6
    assert weights["items.weight"].shape == (6, 16)
    weights["items.weight"].zero_()
    assert challenger.model.items.weight[1:6].any()


def test_a_weight_that_is_not_finite_is_noticed() -> None:
    challenger = a_challenger(SETTINGS, items=3)
    assert challenger.is_finite()
    with torch.no_grad():
        challenger.model.items.weight[2, 0] = torch.inf
    assert not challenger.is_finite()


@pytest.mark.parametrize("optimizer", [AdamWSettings(), SgdSettings()])
def test_undoing_is_exact_can_be_repeated_and_goes_further_back(optimizer: Optimizer) -> None:
    challenger = a_challenger(settings_with(optimizer=optimizer), items=500)
    train_few(challenger, [1, 2, 3])
    first, at_first = challenger.savepoint(), challenger.checkpoint()
    train_few(challenger, [3, 4, 5])
    second, at_second = challenger.savepoint(), challenger.checkpoint()
    for rows in ([3, 4, 5], [5, 6, 7]):
        train_few(challenger, rows)
        challenger.undo(second)
        assert_at(challenger, at_second)
    train_few(challenger, [1, 8])
    challenger.undo(first)
    assert_at(challenger, at_first)
    assert challenger.checkpoint().steps == at_first.steps
    with pytest.raises(ValueError, match="not in list"):
        challenger.undo(second)


def test_a_savepoint_keeps_the_rows_that_moved_and_is_kept_up_until_it_is_released() -> None:
    challenger = a_challenger(SETTINGS, items=500)
    savepoint = challenger.savepoint()
    assert savepoint.items.rows.tolist() == []
    before = challenger.model.items.weight.detach().clone()
    for rows in ([1, 2, 3], [2, 3, 4]):
        train_few(challenger, rows)
    moved = (challenger.model.items.weight != before).any(dim=1).nonzero().flatten()
    kept = savepoint.items.rows.tolist()
    assert {1, 2, 3, 4} <= set(moved.tolist()) <= set(kept)
    assert len(kept) == len(set(kept)) < 30
    challenger.savepoint()
    challenger.release(savepoint)
    train(challenger, [5, 6, 7])
    assert savepoint.items.rows.tolist() == kept


def test_what_is_not_finite_is_seen_where_a_step_has_moved_it() -> None:
    challenger = a_challenger(SETTINGS, items=4)
    savepoint = challenger.savepoint()
    train(challenger, [1, 2, 3])
    assert challenger.is_finite(savepoint)
    challenger.model.items.weight.data[2] = torch.nan
    assert not challenger.is_finite(savepoint)
    challenger.undo(savepoint)
    assert challenger.is_finite(savepoint)


def test_the_learning_rate_reaches_every_weight_and_vector() -> None:
    challenger = a_challenger(SETTINGS, items=3)
    before = challenger.weights()
    challenger.set_learning_rates(0.0, 0.0)
    train(challenger, [1, 2, 3])
    for name, weight in challenger.weights().items():
        assert torch.equal(weight, before[name])


def test_a_checkpoint_shares_nothing_with_the_model() -> None:
    challenger = a_challenger(SETTINGS, items=3)
    checkpoint = challenger.checkpoint()
    copied = copy.deepcopy(checkpoint)
    train(challenger, [1, 2, 3])
    for name, weight in checkpoint.weights.items():
        assert torch.equal(weight, copied.weights[name])
    for kind, tensor in checkpoint.items.items():
        assert torch.equal(tensor, copied.items[kind])


def some_described(first: int, last: int, seed: int = 0) -> Described:
    items = tuple(known(number) for number in range(first, last))
    frozen = np.random.default_rng(seed).normal(size=(len(items), 6)).astype(np.float32)
    return Described((Source("text", 6),), items, frozen, np.ones((len(items), 1), np.int64))


def a_describing_challenger() -> Challenger:
    return Challenger.new(SETTINGS.model, SETTINGS.trainer, CPU, some_described(0, 9))


def test_described_items_have_rows_before_any_event() -> None:
    challenger = a_describing_challenger()
    assert challenger.items == 9
    assert len(challenger.described()["frozen"]) == len(challenger.vocabulary)
    assert challenger.described()["digests"][1:].all()


def test_the_projection_is_trained_and_comes_back_with_its_moments() -> None:
    challenger = a_describing_challenger()
    before = challenger.checkpoint()
    train(challenger, [1, 2, 3, 4])
    name = "tower.projection.weight"
    assert not torch.equal(challenger.weights()[name], before.weights[name])
    assert challenger.optimizer_tensors()[f"optimizer.exp_avg.{name}"].any()
    challenger.restore(before)
    assert_at(challenger, before)


def test_a_restored_challenger_still_knows_what_was_described_since() -> None:
    challenger = a_describing_challenger()
    before = challenger.checkpoint()
    challenger.describe(some_described(9, 30))
    challenger.restore(before)
    assert challenger.described()["digests"][1:].all()
    assert len(challenger.described()["digests"]) == 31


def assert_near_descriptions(challenger: Challenger, rows: torch.Tensor) -> None:
    assert challenger.model.tower is not None
    with torch.no_grad():
        added = challenger.model.tower(rows)
        table = challenger.model.table(int(rows[-1]) + 1)[rows]
    assert torch.cosine_similarity(table, added).min() > 0.9


def test_and_stays_near_what_describes_it() -> None:
    challenger = a_describing_challenger()
    before = challenger.checkpoint()  # of a table with room for more
    challenger.describe(some_described(9, 12))
    challenger.restore(before)
    assert_near_descriptions(challenger, torch.arange(10, 13))


def test_also_where_the_checkpoint_had_a_row_that_no_step_had_moved() -> None:
    challenger = a_describing_challenger()
    challenger.learn_items([known(number) for number in range(9, 12)])
    before = challenger.checkpoint()
    challenger.describe(some_described(9, 12), before)
    challenger.restore(before)
    assert_near_descriptions(challenger, torch.arange(10, 13))


def test_items_of_which_nothing_is_said_begin_as_their_category_told_of_beside_them() -> None:
    challenger = a_describing_challenger()
    described = some_described(9, 12)
    described.frozen[2], described.digests[2] = 0.0, 0
    alike = {2: keys([9, 10])}
    challenger.describe(replace(described, alike=alike))
    table = challenger.model.table(13).detach()
    mean = torch.nn.functional.normalize(table[10:12], dim=-1).mean(dim=0)
    assert torch.cosine_similarity(table[12], mean, dim=0) > 0.99


def test_an_item_that_begins_as_a_mean_does_so_again_after_a_rejection() -> None:
    challenger = a_describing_challenger()
    train(challenger, [1, 2, 3, 4])
    champion = challenger.checkpoint()
    described = some_described(9, 12)
    described.frozen[2], described.digests[2] = 0.0, 0
    challenger.describe(replace(described, alike={2: keys([1, 2])}), champion)
    begun = challenger.model.table(13)[12].clone()
    train(challenger, [1, 2, 3, 12])
    assert not torch.equal(challenger.model.table(13)[12], begun)
    challenger.restore(champion)
    assert torch.equal(challenger.model.table(13)[12], begun)


def test_taught_items_keep_their_vectors_in_a_checkpoint_when_their_texts_change() -> None:
    challenger = a_describing_challenger()
    train(challenger, [1, 2, 3, 4])
    champion = challenger.checkpoint()
    table = challenger.model.table(10).clone()
    taught = challenger.item_optimizer.steps[:10] > 0
    train(challenger, [1, 2, 3, 4])
    challenger.describe(some_described(0, 9, seed=1), champion)
    train(challenger, [4, 3, 2, 1])
    challenger.restore(champion)
    assert taught.sum() >= 4
    torch.testing.assert_close(challenger.model.table(10)[taught], table[taught], atol=1e-5, rtol=0)


def test_a_description_goes_to_the_row_of_its_item() -> None:
    one = a_describing_challenger()
    backwards = some_described(0, 9, seed=1)
    turned = Described(
        backwards.sources, backwards.items[::-1], backwards.frozen[::-1].copy(), backwards.digests
    )
    one.describe(turned)
    rows = one.vocabulary.rows(turned.keys)
    kept = one.described()["frozen"][torch.from_numpy(rows)]
    torch.testing.assert_close(kept, torch.tensor(turned.frozen).half())


def test_a_new_item_without_a_text_begins_as_the_mean_of_its_category() -> None:
    challenger = a_describing_challenger()
    new = known(50)
    like = np.array([known(number)[0] for number in (1, 2)], np.int64)
    nothing = np.zeros((1, 6), np.float32)
    untold = Described((Source("text", 6),), (new,), nothing, np.zeros((1, 1), np.int64), {0: like})
    challenger.describe(untold)
    table = unit_rows(challenger.model.table(len(challenger.vocabulary)))
    row = int(challenger.vocabulary.rows(np.array([new[0]]))[0])
    mean = table[torch.from_numpy(challenger.vocabulary.rows(like))].mean(dim=0)
    torch.testing.assert_close(table[row], torch.nn.functional.normalize(mean, dim=0))
    kept = challenger.model.table(row + 1)[row].clone()
    challenger.describe(untold)  # told again: it is not new any more
    torch.testing.assert_close(challenger.model.table(row + 1)[row], kept)


def test_a_new_item_begins_beside_those_it_is_met_with_and_others_stay() -> None:
    challenger = a_challenger(SETTINGS, items=5)
    train(challenger, [1, 2, 3])
    challenger.learn_items([known(50), known(60)])
    before = challenger.model.items.weight.clone()
    met = keys([0, 50, 1])[None]
    challenger.settle(met)
    after = challenger.model.items.weight.clone()
    row = int(challenger.vocabulary.rows(keys([50]))[0])
    assert (after != before).any(dim=1).nonzero().flatten().tolist() == [row]
    near = unit_rows(before[challenger.vocabulary.rows(keys([0, 1]))])
    assert ((unit_rows(after) - unit_rows(before))[row] @ near.T > 0.2).all()
    train(challenger, [row, 1])
    trained = challenger.model.items.weight.clone()
    challenger.settle(met)  # it is not new any more
    assert torch.equal(challenger.model.items.weight, trained)


def test_a_described_item_stays_where_its_description_puts_it() -> None:
    challenger = a_challenger(SETTINGS, items=5)
    train(challenger, [1, 2, 3])
    described = some_described(50, 52)
    model = challenger.model.with_tower(described.sources)
    challenger = Challenger(model, challenger.vocabulary, SETTINGS.trainer, CPU)
    train(challenger, [1, 2, 3])
    challenger.describe(described)
    challenger.learn_items([known(60)])
    before = challenger.model.items.weight.clone()
    challenger.settle(keys([0, 50, 1, 60])[None])
    moved = (challenger.model.items.weight != before).any(dim=1).nonzero().flatten()
    assert moved.tolist() == challenger.vocabulary.rows(keys([60])).tolist()


def test_the_backbone_may_have_a_rate_of_its_own() -> None:
    settings = settings_with(backbone_learning_rate=1e-5, learning_rate=1e-3, warmup_steps=0)
    one = a_challenger(settings, items=4)
    one.set_learning_rates(5e-4, 0.0)  # a small round
    one.move(torch.zeros(0, dtype=torch.int64), torch.zeros(0, settings.model.dim))
    rates = {
        id(weight): group["lr"]
        for group in one.optimizer.param_groups
        for weight in group["params"]
    }
    assert rates.keys() == {id(weight) for weight in one.trained.values()}
    for name, weight in one.trained.items():
        wanted = 5e-6 if name.startswith("backbone.body.") else 5e-4
        assert rates[id(weight)] == pytest.approx(wanted)


@pytest.mark.parametrize(("optimizer", "stride"), [(AdamWSettings(), 10.0), (SgdSettings(), 1.0)])
def test_adam_moves_the_click_head_further(optimizer: Optimizer, stride: float) -> None:
    settings = settings_with(optimizer=optimizer, warmup_steps=0)
    one = Challenger.new(settings.model, settings.trainer, CPU, click=ClickSettings(enabled=True))
    one.move(torch.zeros(0, dtype=torch.int64), torch.zeros(0, settings.model.dim))
    rates = {group["lr"] / settings.trainer.learning_rate for group in one.optimizer.param_groups}
    assert rates == {1.0, stride}
