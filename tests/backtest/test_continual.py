"""The queries of a period, against the protocol's definition in plain Python."""

import math
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.backtest.continual import asked_events, known_before, popular, queries, rank
from service.domain import ItemId, Partition, stable_key
from service.model.ranking import MISSED
from service.scorer.scorer import Scorer
from service.settings import EventsSettings, ScorerSettings
from service.state.popularity import Popularity
from tests.backtest.examples import table_of
from tests.scorer.examples import a_reordering_champion
from tests.state.examples import a_slab

LENGTH = 4
KINDS = EventsSettings()
EVENTS = st.lists(
    st.tuples(st.sampled_from(["s", "t", "u"]), st.sampled_from(["a", "b", "c", "d", "e"])),
    max_size=30,
)


def by_definition(
    events: list[tuple[str, str]], known: set[str]
) -> list[tuple[int, str, list[str]]]:
    """Of every query: the event, its item, and the items of the session before it."""
    kept = [(place, *event) for place, event in enumerate(events) if event[1] in known]
    found = []
    for session in {user for _, user, _ in kept}:
        clicks = [(place, item) for place, user, item in kept if user == session]
        if len(clicks) < 2:
            continue
        for end in range(1, len(clicks)):
            place, item = clicks[end]
            found.append((place, item, [before for _, before in clicks[:end]][-LENGTH:]))
    return sorted(found)


@given(EVENTS, st.sets(st.sampled_from(["a", "b", "c", "d", "e"])))
def test_queries_are_those_of_the_definition(
    events: list[tuple[str, str]], known: set[str]
) -> None:
    table = table_of(events)
    keys = np.array(sorted(stable_key(item) for item in known), np.int64)
    rows, event = queries(table, keys, KINDS, LENGTH), asked_events(table, keys, KINDS)
    expected = {place: (item, before) for place, item, before in by_definition(events, known)}
    assert sorted(event.tolist()) == sorted(expected)
    for place, item, context in zip(event.tolist(), rows.item, rows.context, strict=True):
        wanted, before = expected[place]
        assert item == stable_key(wanted)
        padding = [0] * (LENGTH - len(before))
        assert context.tolist() == [stable_key(name) for name in before] + padding


def test_what_was_shown_or_turned_down_is_neither_asked_for_nor_context() -> None:
    kinds = EventsSettings(
        kinds=("view", "impression", "return", "buy"), negative=("return",), recommend_on=("view",)
    )
    table = table_of([("s", item) for item in "abcdef"])
    table.kind[:] = [0, 1, 2, 0, 3, 0]  # a, d and f are viewed, e is bought
    known = np.unique(table.item)
    rows = queries(table, known, kinds, LENGTH)
    assert asked_events(table, known, kinds).tolist() == [3, 5]
    wanted = [[stable_key(item) for item in before] for before in ("a", "ade")]
    assert [[key for key in row if key] for row in rows.context.tolist()] == wanted


def test_known_is_what_earlier_periods_had() -> None:
    tables = [table_of([("s", item) for item in items]) for items in ("ab", "bc", "d")]
    known = [set(keys.tolist()) for keys in known_before(tables)]
    assert known == [set(), {stable_key(i) for i in "ab"}, {stable_key(i) for i in "abc"}]


def test_queries_carry_the_codes_of_their_contexts() -> None:
    """The gap is that between events of a session, and of no meaning before its first."""
    features = ("gap", "hour")
    period = table_of([("a", "1"), ("b", "2"), ("a", "3"), ("a", "2"), ("b", "1")])
    codes = np.stack([np.zeros(5), np.arange(1, 6)], axis=1).astype(np.int32)
    period = replace(period, codes=codes)
    rows = queries(period, np.unique(period.item), KINDS, 3, features)
    assert (rows.codes[..., 1] != 0).tolist() == (rows.context != 0).tolist()
    assert rows.codes[1].tolist() == [[0, 1], [3, 3], [0, 0]]  # before the third event of a
    assert rows.codes[2].tolist() == [[0, 2], [0, 0], [0, 0]]


@given(st.lists(st.integers(0, 5), max_size=30), st.floats(0.5, 100.0) | st.just(math.inf))
def test_popular_items_are_those_with_the_most_decayed_events(
    items: list[int], half_life: float
) -> None:
    counts = [
        sum(
            0.5 ** ((len(items) - 1 - at) / half_life)
            for at, one in enumerate(items)
            if one == item
        )
        for item in range(6)
    ]
    found = popular(np.array(items, np.int64), half_life, np.arange(6))
    for item, place in enumerate(found.tolist()):
        # As near as this counts may come out alike or not.
        least = sum(count > counts[item] * (1 + 1e-9) for count in counts)
        most = sum(count >= counts[item] * (1 - 1e-9) for count in counts if count)
        assert place == MISSED if not counts[item] else least < place <= most


@pytest.mark.parametrize("rerank", [0.0, 0.5, 2.0])
def test_a_version_ranks_as_it_serves(rerank: float) -> None:
    """In the order that its click head wants, too: as a scorer does, event by event."""
    items = [f"item-{number}" for number in range(20)]
    champion = a_reordering_champion([ItemId(item) for item in items], rerank)
    session = table_of([("s", items[number * 7 % 20]) for number in range(8)])
    rows = queries(session, np.unique(session.item), KINDS, 8)
    with closing(a_slab(users=4, events=16)) as slab:
        scorer = Scorer(
            champion, {Partition(0): slab}, Popularity(100), None,
            ScorerSettings(exclude_seen=False), 8,
        )  # fmt: skip
        scored = scorer.score(session.events(0, 8, 0), np.ones(8, np.bool_))
    assert rank(champion, None, rows).live.tolist() == scored.ranks.tolist()
