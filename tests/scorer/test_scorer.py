from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from service.domain import Events, ItemId, Partition
from service.model.inference import states_at
from service.model.ranking import MISSED
from service.registry.servable import Servable
from service.scorer import scorer as scorer_module
from service.scorer.scorer import RankedItems, Scored, Scorer
from service.settings import ScorerSettings
from service.state.histories import SLACK, HistorySlab
from service.state.popularity import Popularity
from tests.model.examples import PLACES, item_ids
from tests.scorer.examples import a_servable, events_of
from tests.state.examples import a_slab

IDS = item_ids(30)
KNOWN = set(IDS[:25])  # the champion does not know the rest
CHAMPION = a_servable(IDS[:25])
EVERYTHING = ScorerSettings(top_k=50)


def a_scorer(
    *slabs: HistorySlab,
    champion: Servable = CHAMPION,
    settings: ScorerSettings = EVERYTHING,
) -> Scorer:
    by_partition = {slab.address.partition: slab for slab in slabs}
    return Scorer(champion, by_partition, Popularity(1000), settings, PLACES)


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
    for ranking, scored, by_model in zip(batch.rankings, alone, known, strict=True):
        (other,) = scored.rankings
        assert ranking is not None
        assert other is not None
        if by_model:
            assert names(ranking) == names(other)
            assert [place for _, place in ranking] == pytest.approx(
                [place for _, place in other], abs=1e-5
            )
        else:  # by popularity, which a batch learns at its end
            assert set(names(ranking)) <= set(names(other))


def score_both_ways(
    users: list[int], items: list[int], settings: ScorerSettings, slots: int = 8
) -> None:
    """One batch, then one event at a time: same ranks, same rankings."""
    events = events_of(users, [IDS[item] for item in items])
    with closing(a_slab(slots, 16)) as one, closing(a_slab(slots, 16)) as other:
        one_by_one = a_scorer(other, settings=settings)
        yes = np.ones(1, np.bool_)
        alone, known = [], []
        for i in range(len(events)):
            alone.append(one_by_one.score(events.take(np.array([i], np.int64)), yes))
            place = alone[-1].places
            window = other.windows(place.slot, place.ordinal + 1, PLACES).item
            known.append(bool(CHAMPION.vocabulary.rows(window).any()))
        batch = a_scorer(one, settings=settings).score(events, np.ones(len(events), np.bool_))
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


def test_a_user_of_whom_nothing_is_known_is_shown_what_is_popular(slab: HistorySlab) -> None:
    scorer = a_scorer(slab, settings=ScorerSettings(top_k=2))
    score(scorer, [1, 2, 3, 1, 2, 1], [26, 26, 26, 3, 3, 4])
    scored = score(scorer, [0], [26])
    (ranking,) = scored.rankings
    assert names(ranking) == [IDS[3], IDS[4]]  # item 26 was seen
    assert scored.ranks.tolist() == []


def test_a_champion_without_items_shows_what_is_popular(slab: HistorySlab) -> None:
    scorer = a_scorer(slab, champion=a_servable([]))
    score(scorer, [1, 1], [3, 4])
    scored = score(scorer, [0], [4])
    assert names(scored.rankings[0]) == [IDS[3]]
    assert scored.ranks.tolist() == []


def test_every_event_is_applied_but_only_those_asked_for_are_answered(slab: HistorySlab) -> None:
    scorer = a_scorer(slab)
    events = events_of([0, 0, 0], IDS[:3])
    scored = scorer.score(events, np.array([False, True, False]))
    assert [ranking is not None for ranking in scored.rankings] == [False, True, False]
    assert scored.places.ordinal.tolist() == [0, 1, 2]
    assert len(scored.ranks) == 1


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
    assert len(names(after.rankings[0])) == 24


def test_partitions_do_not_mix() -> None:
    with closing(a_slab(8, 16, 0)) as one, closing(a_slab(8, 16, 1)) as other:
        events: Events = events_of([0, 0, 0], IDS[:3], partitions=[0, 1, 0])
        scored = a_scorer(one, other).score(events, np.ones(3, np.bool_))
        assert scored.places.ordinal.tolist() == [0, 0, 1]
        assert set(names(scored.rankings[1])) == KNOWN - {IDS[1]}
        assert other.address.partition == Partition(1)
