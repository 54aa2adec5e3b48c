from collections import Counter
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.domain import ItemId, ItemKey
from service.model.memory import Memory
from service.settings import AugmentSettings, MemorySettings
from service.trainer.augmenting import Augmenter, crop, mask, reorder, substitute
from service.trainer.sequences import MASKED, Stretch, from_lists
from tests.state.examples import a_slab
from tests.trainer.examples import Stream, a_challenger, a_learner, quick_training, small_settings

LENGTH = 12
SOME = st.integers(2, 30)
PARTS = st.floats(0.05, 0.95)
SEEDS = st.integers(0, 9)
EVERYTHING = AugmentSettings(crop=1, mask=1, reorder=1, substitute=1, part=0.4)


def a_stretch(count: int, first: int = 1) -> Stretch:
    """Different items, of which the codes are twice the keys."""
    item = np.arange(first, first + count, dtype=np.int64)
    return Stretch(item, 2 * item[:, None].astype(np.int32), np.ones(count, np.float32))


def random(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@given(SOME, PARTS, SEEDS)
def test_a_crop_is_a_stretch_of_what_it_was(count: int, part: float, seed: int) -> None:
    found = crop(a_stretch(count), part, random(seed))
    assert len(found) == max(round(count * (1 - part)), 1)
    assert (np.diff(found.item) == 1).all()
    assert (found.codes[:, 0] == 2 * found.item).all()


@given(SOME, PARTS, SEEDS)
def test_a_mask_leaves_the_others_in_their_places(count: int, part: float, seed: int) -> None:
    past = a_stretch(count)
    found = mask(past, part, random(seed))
    blotted = found.item == MASKED
    assert blotted.sum() == max(round(count * part), 1)
    assert (found.item[~blotted] == past.item[~blotted]).all()
    assert not found.codes[blotted].any()
    assert MASKED not in past.item


@given(SOME, PARTS, SEEDS)
def test_a_reorder_keeps_all_items_and_most_in_their_places(
    count: int, part: float, seed: int
) -> None:
    past = a_stretch(count)
    found = reorder(past, part, random(seed))
    assert Counter(found.item.tolist()) == Counter(past.item.tolist())
    assert (found.codes[:, 0] == 2 * found.item).all()
    moved = np.flatnonzero(found.item != past.item)
    if len(moved):
        assert moved[-1] - moved[0] < max(round(count * part), 2)


@given(SOME, PARTS, SEEDS)
def test_a_substitute_is_the_nearest_where_there_is_one(count: int, part: float, seed: int) -> None:
    past = a_stretch(count)
    found = substitute(past, part, random(seed), lambda key: key + 100 if key % 2 else None)
    changed = found.item != past.item
    assert (found.item[changed] == past.item[changed] + 100).all()
    assert (past.item[changed] % 2 == 1).all()
    assert changed.sum() <= max(round(count * part), 1)


@given(st.lists(st.tuples(st.integers(1, LENGTH), st.integers(1, LENGTH)), max_size=6), SEEDS)
def test_a_copy_foretells_the_last_target_from_what_came_before_it(
    shapes: list[tuple[int, int]], seed: int
) -> None:
    memory = Memory(MemorySettings())
    for key in range(1, 1000):
        memory.learn(ItemKey(key), ItemId(str(key)), np.array([key - 1]))
    rows = [
        (a_stretch(count, 20 * n + 1), min(count, end)) for n, (count, end) in enumerate(shapes)
    ]
    sequences = from_lists(rows, LENGTH)
    before = sequences.item.copy()
    copies = Augmenter(EVERYTHING, memory, seed).copies(sequences)
    assert (sequences.item == before).all()
    lasts = {row[0].item[-1]: row[0].item[0] for row in rows if len(row[0]) > 2}
    assert len(copies) == 4 * len(lasts)
    for item, target in zip(copies.item, copies.target, strict=True):
        (place,) = np.flatnonzero(target)
        assert item[place] in lasts
        assert not item[place + 1 :].any()
        first = lasts[item[place]]
        known = item[:place][item[:place] != MASKED]
        # Neighbours in the memory are one apart, and its own neighbour may be the target.
        assert ((first - 1 <= known) & (known <= item[place])).all()


def test_chances_of_0_make_no_copy_and_of_1_one_each() -> None:
    sequences = from_lists([(a_stretch(8), 3)] * 50, LENGTH)
    memory = Memory(MemorySettings())
    assert len(Augmenter(AugmentSettings(), memory, 0).copies(sequences)) == 0
    assert len(Augmenter(AugmentSettings(crop=1), memory, 0).copies(sequences)) == 50
    some = len(Augmenter(AugmentSettings(mask=0.3), memory, 0).copies(sequences))
    assert 5 <= some <= 25


@pytest.mark.parametrize("way", ["crop", "mask", "reorder", "substitute"])
def test_copies_are_taught_beside_what_they_were_made_of(way: str) -> None:
    """More is learned of rows that are few, and row 0 stays no item."""
    trainer = quick_training(fraction=0, max_epochs=1)
    augment = AugmentSettings(crop=0, mask=0, reorder=0, substitute=0).model_copy(update={way: 1.0})
    tree = small_settings(trainer.model_copy(update={"augment": augment}))
    with closing(a_slab(users=200, events=16)) as slab:
        stream, challenger = Stream(slab), a_challenger(tree)
        learner = a_learner(slab, tree, challenger, MemorySettings())
        reports = [learner.learn([stream.walk(20, 20, steps=4)]) for _ in range(9)]
    assert reports[-1].loss < reports[0].loss / 2
    assert not challenger.model.items.weight[0].any()
