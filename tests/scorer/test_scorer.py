from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.domain import Events, Int64s, ItemId, Partition, item_key
from service.model.inference import states_at
from service.model.memory import Memory
from service.model.mixture import Blend
from service.model.ranking import MISSED
from service.registry.servable import Servable
from service.scorer import scorer as scorer_module
from service.scorer.scorer import RankedItems, Scored, Scorer
from service.settings import (
    CategoryFeature,
    Feature,
    GapFeature,
    HistorySettings,
    MemorySettings,
    ScorerSettings,
)
from service.state.features import Features, keys_of
from service.state.histories import SLACK, HistorySlab
from service.state.popularity import Popularity
from service.trainer.sequences import strip
from tests.model.examples import PLACES, a_recommender, item_ids
from tests.scorer.examples import a_reordering_champion, a_servable, events_of
from tests.state.examples import a_slab

IDS = item_ids(30)
KNOWN = set(IDS[:25])  # the champion does not know the rest
CHAMPION = a_servable(IDS[:25])
EVERYTHING = ScorerSettings(top_k=50)


@pytest.fixture(autouse=True, scope="module")
def _in_32_bits() -> Iterator[None]:
    """What is computed at once and one by one would be equal to some bits only in bfloat16."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("service.model.inference.has_fast_bf16", lambda _: False)
        yield


def a_scorer(
    *slabs: HistorySlab,
    champion: Servable = CHAMPION,
    memory: Memory | None = None,
    settings: ScorerSettings = EVERYTHING,
    shown: Sequence[int] = (),
) -> Scorer:
    by_partition = {slab.address.partition: slab for slab in slabs}
    return Scorer(champion, by_partition, Popularity(1000), memory, settings, PLACES, shown)


def score(scorer: Scorer, users: Sequence[int], items: Sequence[int]) -> Scored:
    events = events_of(users, [IDS[item] for item in items])
    return scorer.score(events, np.ones(len(events), np.bool_))


def names(ranking: RankedItems | None) -> list[ItemId]:
    assert ranking is not None
    return [item for item, _ in ranking]


@pytest.fixture
def slab() -> Iterator[HistorySlab]:
    with closing(a_slab(users=8, events=16)) as made:
        yield made


def assert_same(batch: Scored, alone: list[Scored], known: list[bool]) -> None:
    assert batch.ranks.tolist() == [rank for scored in alone for rank in scored.ranks.tolist()]
    for ranking, scored, is_known in zip(batch.rankings, alone, known, strict=True):
        (other,) = scored.rankings
        assert ranking is not None
        assert other is not None
        if is_known:
            ranking, other = foreseen(ranking), foreseen(other)
            assert_probabilities(ranking)
            # A cosine's last bits, divided by the temperature, are a few millionths.
            assert dict(ranking) == pytest.approx(dict(other), abs=1e-5)
            # What the memory recalls equally well may change places.
            assert [chance for _, chance in ranking] == pytest.approx(
                [chance for _, chance in other], abs=1e-5
            )
        else:  # by popularity
            assert ranking == other


def foreseen(ranking: RankedItems) -> RankedItems:
    """Without what is popular, by which it was filled up."""
    return [(item, chance) for item, chance in ranking if chance > 0]


def assert_probabilities(ranking: RankedItems) -> None:
    """Of all items that may be shown, each once and the best first."""
    chances = [chance for _, chance in ranking]
    assert sum(chances) == pytest.approx(1.0, abs=1e-5)
    assert chances == sorted(chances, reverse=True)
    assert min(chances) > 0
    assert len(set(names(ranking))) == len(ranking)


def recalls(memory: Memory | None, window: Int64s, kept: Int64s, how: ScorerSettings) -> bool:
    """Whether the memory knows an item to show after the history in `window`."""
    if memory is None:
        return False
    hidden = set(kept.tolist()) if how.exclude_seen else set()
    found = memory.recall(strip(window)).kept()
    return not hidden.issuperset(found.key.tolist())


def score_both_ways(
    users: list[int],
    items: list[int],
    settings: ScorerSettings,
    slots: int = 8,
    *,
    champion: Servable = CHAMPION,
    memories: tuple[Memory, Memory] | tuple[None, None] = (None, None),
    partitions: int = 1,
) -> None:
    """One batch, then one event at a time: same ranks, same rankings."""
    spread = [user % partitions for user in users]
    events = events_of(users, [IDS[item] for item in items], spread)
    everyone, yes = np.ones(len(events), np.bool_), np.ones(1, np.bool_)
    with ExitStack() as stack:
        one, other = (
            [
                stack.enter_context(closing(a_slab(slots, 16, number)))
                for number in range(partitions)
            ]
            for _ in "12"
        )
        memory = memories[1]
        one_by_one = a_scorer(*other, champion=champion, memory=memory, settings=settings)
        alone, known = [], []
        for i, partition in enumerate(spread):
            alone.append(one_by_one.score(events.take(np.array([i], np.int64)), yes))
            slab, place = other[partition], alone[-1].places
            window = slab.windows(place.slot, place.ordinal + 1, PLACES).item
            kept, _, _ = slab.remembered(place.slot, place.ordinal + 1)
            by_model = bool(champion.vocabulary.rows(window).any())
            known.append(by_model or recalls(memory, window[0], kept[0], settings))
        at_once = a_scorer(*one, champion=champion, memory=memories[0], settings=settings)
        batch = at_once.score(events, everyone)
    assert_same(batch, alone, known)


@pytest.mark.parametrize("exclude_seen", [True, False])
@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 29)), min_size=1, max_size=40))
def test_the_order_of_test_then_train_does_not_depend_on_batching(
    exclude_seen: bool, history: list[tuple[int, int]]
) -> None:
    users, items = zip(*history, strict=True)
    how = ScorerSettings(top_k=50, exclude_seen=exclude_seen)
    score_both_ways(list(users), list(items), how)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 29)), min_size=1, max_size=40),
    st.booleans(),
    st.sampled_from([0.0, 0.6, 1.0]),
    st.sampled_from([1, 2]),
)
def test_nor_does_it_with_a_memory_that_learns_within_the_batch(
    history: list[tuple[int, int]], exclude_seen: bool, share: float, partitions: int
) -> None:
    users, items = zip(*history, strict=True)
    score_both_ways(
        list(users),
        list(items),
        ScorerSettings(top_k=50, exclude_seen=exclude_seen),
        champion=a_servable(IDS[:25], blend=Blend(0.07, share)),
        memories=(Memory(MemorySettings()), Memory(MemorySettings())),
        partitions=partitions,
    )


def test_a_user_with_more_events_than_the_slack_is_scored_in_portions() -> None:
    random = np.random.default_rng(0)
    users = (random.random(2 * SLACK + 20) < 0.1).astype(int).tolist()
    score_both_ways(users, random.integers(0, 30, len(users)).tolist(), EVERYTHING)


def test_more_users_in_a_batch_than_the_slab_has_room_for() -> None:
    users = [0, 1, 2, 0, 1, 2, 2, 2, 1, 0]
    score_both_ways(users, list(range(10)), EVERYTHING, slots=2)


def test_an_event_is_ranked_among_all_before_anything_has_seen_it(slab: HistorySlab) -> None:
    scorer = a_scorer(slab)
    ranking = names(score(scorer, [0, 0], [1, 2]).rankings[-1])
    foreseen = IDS.index(ranking[4])
    assert score(scorer, [0], [foreseen]).ranks.tolist() == [5]


def test_unknown_and_excluded_events_are_missed(slab: HistorySlab) -> None:
    scored = score(a_scorer(slab), [0, 0, 0], [1, 29, 1])
    assert scored.ranks.tolist() == [MISSED, MISSED]  # the first has nothing before it


def test_an_event_after_a_history_of_unknown_items_is_missed(slab: HistorySlab) -> None:
    scored = score(a_scorer(slab), [0, 0, 1], [28, 1, 2])
    assert scored.ranks.tolist() == [MISSED]


def test_seen_items_are_left_out_but_not_what_is_met_later_in_the_batch(
    slab: HistorySlab,
) -> None:
    first, second, third = map(names, score(a_scorer(slab), [0, 0, 1], [1, 2, 2]).rankings)
    assert set(first) == KNOWN - {IDS[1]}
    assert set(second) == KNOWN - {IDS[1], IDS[2]}
    assert set(third) == KNOWN - {IDS[2]}


def test_seen_items_may_be_shown_again(slab: HistorySlab) -> None:
    settings = ScorerSettings(top_k=50, exclude_seen=False)
    scored = score(a_scorer(slab, settings=settings), [0, 0], [1, 2])
    assert set(names(scored.rankings[1])) == KNOWN


def test_rankings_are_best_first_and_as_long_as_asked(slab: HistorySlab) -> None:
    (ranking,) = score(a_scorer(slab, settings=ScorerSettings(top_k=3)), [0], [1]).rankings
    assert ranking is not None
    assert len(ranking) == 3
    scores = [place for _, place in ranking]
    assert scores == sorted(scores, reverse=True)
    (whole,) = score(a_scorer(slab), [1], [1]).rankings
    assert whole is not None
    assert_probabilities(whole)
    assert [item for item, _ in whole[:3]] == names(ranking)


def test_a_user_of_whom_nothing_is_known_is_shown_what_is_popular(slab: HistorySlab) -> None:
    scorer = a_scorer(slab, settings=ScorerSettings(top_k=2))
    score(scorer, [1, 2, 3, 1, 2, 1], [26, 26, 26, 3, 3, 4])
    scored = score(scorer, [0], [26])
    (ranking,) = scored.rankings
    assert names(ranking) == [IDS[3], IDS[4]]  # item 26 was seen
    assert scored.ranks.tolist() == []  # nothing stands before it


def test_what_is_popular_is_counted_event_by_event_within_a_batch(slab: HistorySlab) -> None:
    scored = score(a_scorer(slab, champion=a_servable([])), [0, 0, 1, 2], [3, 4, 3, 5])
    assert [names(ranking) for ranking in scored.rankings] == [
        [],
        [],
        [IDS[4]],
        [IDS[3], IDS[4]],
    ]


def test_withdrawn_items_are_not_recommended(slab: HistorySlab) -> None:
    scorer = a_scorer(slab, settings=ScorerSettings(top_k=26))
    score(scorer, [1, 2, 3, 1, 2, 1], [26, 26, 26, 3, 3, 4])
    scorer.withdraw(np.sort(np.array([item_key(IDS[3]), item_key(IDS[5])])))
    popular, foretold = score(scorer, [0, 4], [26, 1]).rankings
    for ranking in (popular, foretold):
        assert not {IDS[3], IDS[5]} & set(names(ranking))
    assert IDS[4] in names(popular)
    scorer.withdraw(np.zeros(0, np.int64))
    (ranking,) = score(scorer, [5], [1]).rankings
    assert {IDS[3], IDS[5]} <= set(names(ranking))


def test_a_champion_without_items_shows_what_is_popular(slab: HistorySlab) -> None:
    scorer = a_scorer(slab, champion=a_servable([]))
    score(scorer, [1, 1], [3, 4])
    scored = score(scorer, [0], [4])
    assert names(scored.rankings[0]) == [IDS[3]]
    assert scored.ranks.tolist() == []


def test_a_short_ranking_is_filled_up_with_what_is_popular(slab: HistorySlab) -> None:
    few = a_servable(IDS[:4])  # items 0 to 3
    scorer = a_scorer(slab, champion=few, settings=ScorerSettings(top_k=5))
    score(scorer, [1, 2, 3, 1, 2, 1, 1], [26, 26, 26, 27, 27, 2, 28])
    (ranking,) = score(scorer, [0], [27]).rankings
    assert ranking is not None
    assert min(chance for _, chance in ranking) > 0  # nobody knows 27: all is by popularity
    (ranking,) = score(scorer, [0], [1]).rankings
    assert ranking is not None
    assert_probabilities(foreseen(ranking))
    assert set(names(ranking[:3])) == {IDS[0], IDS[2], IDS[3]}
    assert ranking[3:] == [(IDS[26], 0.0), (IDS[28], 0.0)]  # 27 was seen, 2 stands already


def test_it_is_filled_up_with_what_was_seen_where_that_may_be_shown(slab: HistorySlab) -> None:
    few = a_servable(IDS[:2])
    how = ScorerSettings(top_k=3, exclude_seen=False)
    scorer = a_scorer(slab, champion=few, settings=how)
    score(scorer, [0], [26])
    (ranking,) = score(scorer, [0], [1]).rankings
    assert set(names(ranking)[:2]) == {IDS[0], IDS[1]}
    assert names(ranking)[2:] == [IDS[26]]


def test_every_event_is_applied_but_only_those_asked_for_are_answered(slab: HistorySlab) -> None:
    scorer = a_scorer(slab)
    events = events_of([0, 0, 0], IDS[:3])
    scored = scorer.score(events, np.array([False, True, False]))
    assert [ranking is not None for ranking in scored.rankings] == [False, True, False]
    assert scored.places.ordinal.tolist() == [0, 1, 2]
    assert len(scored.ranks) == 1


def test_what_was_shown_is_part_of_nothing(slab: HistorySlab) -> None:
    """The same answers as without it: histories, memory and popularity have not seen it."""
    memories = Memory(MemorySettings()), Memory(MemorySettings())
    events = events_of([0, 0, 1, 0], [IDS[0], IDS[26], IDS[27], IDS[1]])
    events.kind[1:3] = 5
    done = events.kind != 5
    scored = a_scorer(slab, memory=memories[0], shown=[5]).score(events, done)
    with closing(a_slab(users=8, events=16)) as other:
        alone = a_scorer(other, memory=memories[1]).score(
            events.take(np.flatnonzero(done)), np.ones(2, np.bool_)
        )
    assert [one for one in scored.rankings if one is not None] == alone.rankings
    assert scored.ranks.tolist() == alone.ranks.tolist()
    assert scored.places.ordinal.tolist() == [0, 1, 0, 1]


def test_a_click_head_reorders_the_best_of_a_ranking_and_is_tested_so(slab: HistorySlab) -> None:
    everyone = np.ones(4, np.bool_)
    events = events_of([0, 0, 0, 0], IDS[:4])
    scored, orders = [], []
    for rerank in (0.0, 0.5, 2.0):
        with closing(a_slab(users=8, events=16)) as own:
            one = a_scorer(
                own,
                champion=a_reordering_champion(IDS[:25], rerank),
                memory=Memory(MemorySettings()),
                settings=ScorerSettings(top_k=8),
            ).score(events, everyone)
        scored.append(one)
        orders.append([names(ranking) for ranking in one.rankings])
    for plain, some, much in zip(*orders, strict=True):
        assert set(plain) == set(some) == set(much)
    assert orders[0] != orders[2]
    for one in scored[1:]:  # the rank is that of the reordered ranking before the event
        for rank, item, before in zip(one.ranks, IDS[1:4], one.rankings, strict=False):
            if item in names(before):
                assert rank == names(before).index(item) + 1


def test_reordering_does_not_depend_on_batching() -> None:
    users, items = [0, 1, 0, 1, 0, 2], [1, 2, 3, 27, 4, 5]
    score_both_ways(
        users,
        items,
        ScorerSettings(top_k=50),
        champion=a_reordering_champion(IDS[:25], 1.0),
        memories=(Memory(MemorySettings()), Memory(MemorySettings())),
    )


def test_nothing_to_score_gives_nothing(slab: HistorySlab) -> None:
    scored = a_scorer(slab).score(events_of([], []), np.zeros(0, np.bool_))
    assert (scored.rankings, scored.ranks.tolist()) == ([], [])


def test_a_swap_does_not_change_the_batch_under_way(monkeypatch: pytest.MonkeyPatch) -> None:
    newer = a_servable([ItemId(f"new-{number}") for number in range(25)], version=2)
    with ExitStack() as stack:
        slabs = [stack.enter_context(closing(a_slab(8, 16, partition))) for partition in (0, 1)]
        scorer = a_scorer(*slabs)

        def swap_then_read(*arguments: object) -> Tensor:
            scorer.champion = newer
            return states_at(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(scorer_module, "states_at", swap_then_read)
        events = events_of([0, 1, 0, 1], IDS[:4], partitions=[0, 1, 0, 1])
        scored = scorer.score(events, np.ones(4, np.bool_))
        assert scored.servable is CHAMPION
        assert all(set(names(ranking)) <= KNOWN for ranking in scored.rankings)
        after = scorer.score(events_of([0], [ItemId("new-3")]), np.ones(1, np.bool_))
    assert after.servable is newer
    (ranking,) = after.rankings
    assert ranking is not None
    assert len(foreseen(ranking)) == 24


def test_partitions_do_not_mix() -> None:
    with closing(a_slab(8, 16, 0)) as one, closing(a_slab(8, 16, 1)) as other:
        events: Events = events_of([0, 0, 0], IDS[:3], partitions=[0, 1, 0])
        scored = a_scorer(one, other).score(events, np.ones(3, np.bool_))
        assert scored.places.ordinal.tolist() == [0, 0, 1]
        assert set(names(scored.rankings[1])) == KNOWN - {IDS[1]}
        assert other.address.partition == Partition(1)


HALF = a_servable(IDS[:25], blend=Blend(0.07, 0.5))


class TestMemory:
    """Items 25 to 29 came after the champion was published."""

    @pytest.fixture
    def memory(self) -> Memory:
        return Memory(MemorySettings())

    @pytest.fixture
    def scorer(self, slab: HistorySlab, memory: Memory) -> Scorer:
        return a_scorer(slab, champion=HALF, memory=memory)

    def test_a_new_item_is_recommended_after_its_first_transition(self, scorer: Scorer) -> None:
        score(scorer, [1, 1], [3, 27])
        (ranking,) = score(scorer, [0], [3]).rankings
        assert ranking is not None
        assert_probabilities(ranking)
        (item, chance), *_ = ranking
        assert item == IDS[27]
        assert chance == pytest.approx(0.5)  # all that is recalled

    def test_it_is_recommended_within_the_batch_of_its_first_transition(
        self, scorer: Scorer
    ) -> None:
        first, *_, last = score(scorer, [0, 1, 1, 2], [3, 3, 27, 3]).rankings
        assert IDS[27] not in names(first)
        assert names(last)[0] == IDS[27]

    def test_an_event_is_ranked_before_the_memory_has_learned_it(self, scorer: Scorer) -> None:
        scored = score(scorer, [1, 1, 0, 0], [3, 27, 3, 27])
        assert scored.ranks.tolist() == [MISSED, 1]  # by its own transition alone; by another's

    def test_and_answered_after_the_memory_has_learned_it(
        self, slab: HistorySlab, memory: Memory
    ) -> None:
        again = ScorerSettings(top_k=50, exclude_seen=False)
        scorer = a_scorer(slab, champion=HALF, memory=memory, settings=again)
        ranking = score(scorer, [0, 0], [3, 27]).rankings[-1]
        assert ranking is not None
        assert dict(ranking)[IDS[27]] > 0  # led to from item 3, just now

    def test_what_was_seen_is_left_out_of_what_is_recalled(self, scorer: Scorer) -> None:
        score(scorer, [1, 1, 1], [3, 27, 28])
        (_, ranking) = score(scorer, [0, 0], [27, 3]).rankings
        assert ranking is not None
        assert_probabilities(ranking)
        assert set(names(ranking)) == KNOWN - {IDS[3]} | {IDS[28]}
        assert dict(ranking)[IDS[28]] == pytest.approx(0.5)

    def test_a_history_that_only_the_memory_knows_is_its_alone(self, scorer: Scorer) -> None:
        score(scorer, [1, 1], [26, 27])
        scored = score(scorer, [0, 0], [26, 27])
        assert scored.ranks.tolist() == [1]
        assert scored.rankings[0] is not None
        assert dict(scored.rankings[0]) == pytest.approx({IDS[27]: 1.0})

    def test_a_history_that_only_the_champion_knows_is_its_alone(
        self, slab: HistorySlab, scorer: Scorer
    ) -> None:
        (ranking,) = score(scorer, [0], [3]).rankings
        (alone,) = score(a_scorer(slab), [1], [3]).rankings
        assert ranking is not None
        assert alone is not None
        assert dict(ranking) == pytest.approx(dict(alone))

    def test_a_history_that_neither_knows_is_shown_what_is_popular(
        self, slab: HistorySlab, memory: Memory
    ) -> None:
        settings = ScorerSettings(top_k=2)
        scorer = a_scorer(slab, champion=HALF, memory=memory, settings=settings)
        score(scorer, [1, 2, 3], [4, 4, 5])
        (ranking,) = score(scorer, [0], [26]).rankings  # all that it recalls is item 26 itself
        assert names(ranking) == [IDS[4], IDS[5]]

    def test_learns_from_events_that_are_not_answered(self, scorer: Scorer) -> None:
        scorer.score(events_of([1, 1], [IDS[26], IDS[27]]), np.zeros(2, np.bool_))
        (ranking,) = score(scorer, [0], [26]).rankings
        assert names(ranking) == [IDS[27]]

    def test_learns_the_same_whatever_was_asked_for(self) -> None:
        events = events_of([0, 1, 0, 1, 0], [IDS[item] for item in (1, 1, 26, 2, 3)])
        recalled = []
        for answer in (np.zeros(5, np.bool_), np.ones(5, np.bool_), np.arange(5) % 2 == 0):
            memory = Memory(MemorySettings())
            with closing(a_slab(8, 16)) as other:
                a_scorer(other, champion=HALF, memory=memory).score(events, answer)
            recalled.append(memory.recall(np.array([item_key(IDS[1])], np.int64)).value.tolist())
        assert recalled[0]
        assert recalled[0] == recalled[1] == recalled[2]

    @pytest.mark.parametrize("forgotten", [True, False])
    def test_an_item_that_is_forgotten_within_the_batch_is_left_out(
        self, slab: HistorySlab, forgotten: bool
    ) -> None:
        memory = Memory(MemorySettings(items=2 if forgotten else 10))
        scorer = a_scorer(slab, champion=HALF, memory=memory)
        ranking = score(scorer, [1, 1, 0, 2, 3], [3, 27, 3, 5, 6]).rankings[2]
        expected = KNOWN - {IDS[3]}
        assert ranking is not None
        chosen = set(names(foreseen(ranking)))
        assert chosen == (expected if forgotten else expected | {IDS[27]})

    def test_transitions_without_weight_recall_nothing(self, slab: HistorySlab) -> None:
        memory = Memory(MemorySettings(backward=0.0, repeat=0.0))
        scorer = a_scorer(slab, champion=HALF, memory=memory)
        score(scorer, [1, 1], [26, 3])
        (ranking,) = score(scorer, [0], [3]).rankings
        assert ranking is not None
        assert_probabilities(foreseen(ranking))
        assert set(names(foreseen(ranking))) == KNOWN - {IDS[3]}


def test_counts_the_answered_events_of_items_that_the_servable_does_not_know(
    slab: HistorySlab,
) -> None:
    assert score(a_scorer(slab), [0, 1, 2], [1, 28, 29]).unknown == 2


class TestContext:
    """Versions read the columns that they know, whatever else the histories keep."""

    SHOP, PAGE, GAP = CategoryFeature(name="shop"), CategoryFeature(name="page"), GapFeature()

    def servable(self, *features: Feature) -> Servable:
        model = a_recommender(25)
        model.fit_context(features)
        for number, weight in enumerate(model.context.parameters() if model.context else ()):
            torch.nn.init.normal_(weight, generator=torch.Generator().manual_seed(number))
        return replace(CHAMPION, model=model)

    def rankings(self, champion: Servable, present: Sequence[Feature]) -> list[RankedItems | None]:
        items = [1, 2, 3, 4, 5, 6, 2]
        events = events_of([1, 2, 1, 1, 2, 2, 1], [IDS[item] for item in items])
        shop = [{"shop": f"s{item % 3}", "page": f"p{item}"} for item in items]
        codes = Features(present).codes(shop, events.kind, events.timestamp)
        events = replace(events, codes=codes, timestamp=events.offset**2 * 1000)
        keys = keys_of(present)
        with closing(a_slab(users=8, events=16, features=keys)) as slab:
            scorer = a_scorer(slab, champion=champion)
            return scorer.score(events, np.ones(len(events), np.bool_)).rankings

    def test_columns_are_found_by_name(self) -> None:
        champion = self.servable(self.SHOP, self.GAP)
        alone = self.rankings(champion, (self.SHOP, self.GAP))
        assert self.rankings(champion, (self.GAP, self.PAGE, self.SHOP)) == alone
        assert self.rankings(champion, (self.GAP,)) != alone
        assert self.rankings(champion, (self.SHOP,)) != alone

    def test_an_older_version_passes_over_columns_that_it_does_not_know(self) -> None:
        without = self.rankings(CHAMPION, ())
        assert self.rankings(CHAMPION, (self.SHOP, self.PAGE)) == without
        assert self.rankings(self.servable(self.SHOP), ()) == without

    def test_buckets_belong_to_the_version(self) -> None:
        wide = self.servable(CategoryFeature(name="shop", buckets=9))
        assert self.rankings(wide, (self.SHOP,)) == self.rankings(
            wide, (CategoryFeature(name="shop", buckets=9),)
        )

    def test_the_gap_goes_to_the_trainer_with_the_event(self) -> None:
        with closing(a_slab(users=8, events=16, features=keys_of([self.GAP]))) as kept:
            events = events_of([1, 2, 1], [IDS[0]] * 3)
            events = replace(
                events, codes=np.zeros((3, 1), np.int32), timestamp=events.offset * 4000
            )
            scored = a_scorer(kept).score(events, np.zeros(3, np.bool_))
        assert scored.events.codes.tolist() == [[0], [0], [9]]


DISLIKE = 3


@pytest.mark.parametrize("exclude_seen", [True, False])
def test_what_was_turned_down_is_hidden_and_part_of_nothing_else(exclude_seen: bool) -> None:
    """The same answers as without it, but for the item: nothing has learned from it."""
    how = ScorerSettings(top_k=50, exclude_seen=exclude_seen)
    memories = Memory(MemorySettings()), Memory(MemorySettings())
    events = events_of([0, 0, 0, 0, 1], [IDS[item] for item in (0, 7, 26, 1, 2)])
    events.kind[1:3] = DISLIKE
    with ExitStack() as stack:
        histories = HistorySettings(users=8, events=16)
        slab = HistorySlab.create(Partition(0), histories, negative=(DISLIKE,))
        other = stack.enter_context(closing(a_slab(events=16)))
        stack.enter_context(closing(slab))
        scorer = a_scorer(slab, memory=memories[0], settings=how)
        scored = scorer.score(events, np.ones(5, np.bool_))
        without = a_scorer(other, memory=memories[1], settings=how)
        liked = without.score(events.take(np.array([0, 3, 4])), np.ones(3, np.bool_))
        assert slab.counts(np.array([0], np.int32)) == [4]
    assert len(scored.ranks) == len(liked.ranks) == 1
    assert liked.ranks[0] - 2 <= scored.ranks[0] <= liked.ranks[0]  # two more are hidden
    for answer, its in zip([scored.rankings[i] for i in (0, 4)], liked.rankings[::2], strict=True):
        assert names(answer) == names(its)
    for answer, downs in zip(scored.rankings[1:4], ({7}, {7, 26}, {7, 26}), strict=True):
        assert not {IDS[down] for down in downs} & set(names(answer))
    last, its_last = scored.rankings[3], liked.rankings[1]
    assert last is not None
    assert its_last is not None
    assert names(last) == [item for item in names(its_last) if item not in (IDS[7], IDS[26])]
    assert all(
        torch.equal(one, another)
        for one, another in zip(
            memories[0].tensors().values(), memories[1].tensors().values(), strict=True
        )
    )


def test_who_only_turned_items_down_gets_popular_ones_but_for_those() -> None:
    slab = HistorySlab.create(
        Partition(0), HistorySettings(users=8, events=16), negative=(DISLIKE,)
    )
    with closing(slab):
        scorer = a_scorer(slab, settings=ScorerSettings(top_k=2, exclude_seen=False))
        score(scorer, [1, 2, 3, 1, 2, 1], [3, 3, 3, 4, 4, 5])
        events = events_of([0, 0], [IDS[3], IDS[9]])
        events.kind[0] = DISLIKE
        scored = scorer.score(events, np.ones(2, np.bool_))
    assert names(scored.rankings[0]) == [IDS[4], IDS[5]]
    assert len(scored.ranks) == 0
