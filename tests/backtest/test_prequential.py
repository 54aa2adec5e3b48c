"""Every event is ranked before anything learns from it; and a run says what it found."""

import io
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from service.backtest.engine import Engine
from service.backtest.options import Options, Protocol
from service.backtest.preparing import prepared
from service.backtest.prequential import _Run, queries, run_prequential, slices
from service.backtest.progress import Progress
from service.backtest.results import SeedResult
from service.backtest.retrain import retrain
from service.backtest.table import Table, join
from service.domain import Bools, Events, Int64s
from service.errors import ConfigurationError
from service.model.ranking import MISSED
from service.scorer.scorer import Scored, Scorer
from service.settings import BatchSettings, Settings
from service.state.histories import slab_bytes
from tests.backtest.examples import quick_settings, table_of, walks

CPU = torch.device("cpu")
UNSEEN = Progress(io.StringIO())
OPTIONS = Options(
    files=(Path("events.csv"),), start=0.5, parts=4, gate_every=2, retrain_every=100,
    retrain_epochs=2,
)  # fmt: skip
ALL = {
    "live", "transformer", "memory", "frozen", "popularity", "recent_popularity", "retrain",
}  # fmt: skip


def settings_for(table: Table) -> Settings:
    return prepared(quick_settings(), [table], Protocol.PREQUENTIAL)[0]


def run(table: Table, options: Options = OPTIONS) -> SeedResult:
    return run_prequential(table, settings_for(table), options, CPU, UNSEEN)


def ranks(table: Table, settings: Settings) -> dict[str, Int64s]:
    run = _Run(table, settings, OPTIONS, CPU, UNSEEN)
    try:
        for _ in run.stream():
            pass
        return {name: np.concatenate(found) for name, found in run._ranks.items()}
    finally:
        run.close()


@pytest.fixture(scope="module")
def found() -> SeedResult:
    return run(walks(600))


def test_every_contestant_ranks_the_same_queries(found: SeedResult) -> None:
    assert set(found.models) == ALL
    asked = int(queries(walks(600), quick_settings(), 300).sum())
    assert found.queries == asked == sum(part.queries for part in found.parts)
    for model in found.models.values():
        assert model.queries == asked == model.cold.queries + model.warm.queries


def test_what_learns_beats_popularity_on_what_can_be_learned(found: SeedResult) -> None:
    models = found.models
    assert models["live"].ndcg_at_10 > 1.5 * models["popularity"].ndcg_at_10
    assert models["retrain"].ndcg_at_10 > 1.5 * models["popularity"].ndcg_at_10


def test_training_is_counted_where_it_happens(found: SeedResult) -> None:
    models = found.models
    assert models["live"].train_seconds > 0
    assert models["transformer"].train_seconds == models["live"].train_seconds
    assert models["retrain"].train_seconds > 0
    for name in ("memory", "frozen", "popularity", "recent_popularity"):
        assert models[name].train_seconds == 0
    assert found.train_seconds_before["live"] > 0
    for name, model in models.items():
        parts = [part.models[name].train_seconds for part in found.parts]
        assert sum(parts) == pytest.approx(model.train_seconds)


def test_the_gate_was_asked(found: SeedResult) -> None:
    assert found.decisions
    assert {one.verdict for one in found.decisions} <= {"promote", "hold", "reject"}


def test_parts_cover_the_counted_stream(found: SeedResult) -> None:
    places = [part.events for part in found.parts]
    assert places == [(301, 375), (376, 450), (451, 525), (526, 600)]


def test_nobody_knows_an_item_before_its_first_event() -> None:
    """Were anything learned before an event was ranked, its item would have a rank."""
    plain = walks(300)
    odd = [("user-1", f"odd-{number}") for number in range(8)]
    table = join([plain, table_of(odd, first_ms=10**6)])
    for name, found in ranks(table, settings_for(table)).items():
        assert (found[-8:] == MISSED).all(), name
        assert not (found[:-8] == MISSED).all(), name


def test_all_have_ranked_a_batch_before_the_weights_learn_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []
    learn, score = Engine.learn_if_due, Scorer.score

    def noted_learn(engine: Engine) -> None:
        done.append("learn")
        learn(engine)

    def noted_score(scorer: Scorer, events: Events, answer: Bools) -> Scored:
        done.append(f"rank {len(events)} by {scorer.champion.version}")
        return score(scorer, events, answer)

    monkeypatch.setattr(Engine, "learn_if_due", noted_learn)
    monkeypatch.setattr(Scorer, "score", noted_score)
    run(walks(300), Options(files=OPTIONS.files, start=0.5, parts=2, gate_every=1))
    versions = set()
    while done:
        live, transformer, *others, learned = done[:5]
        del done[:5]
        assert live == transformer  # the same events by the same version
        assert len(others) == 2
        assert all(other.startswith("rank") for other in others)
        assert learned == "learn"
        versions.add(live.split()[-1])
    assert len(versions) > 3


def test_no_rank_depends_on_what_comes_later() -> None:
    """The first 430 events are the same in both; a batch ends at neither 430 nor a part's end."""
    one = walks(600)
    other = join([one.until(430), walks(170, seed=5)])
    settings = settings_for(one)  # the same bounds for both
    asked = int(queries(one, settings, 300)[:430].sum())
    first, second = ranks(one, settings), ranks(other, settings)
    for name in ALL:
        assert first[name][:asked].tolist() == second[name][:asked].tolist(), name
        assert first[name].tolist() != second[name].tolist(), name


def test_a_seed_gives_the_same_again(found: SeedResult) -> None:
    again = run(walks(600))
    for name, model in found.models.items():
        assert again.models[name].ndcg_at_10 == model.ndcg_at_10


def test_only_kinds_that_are_answered_are_queries() -> None:
    settings = quick_settings()
    events = settings.events.model_copy(update={"recommend_on": ("buy",)})
    assert not queries(walks(50), settings.model_copy(update={"events": events}), 0).any()


def test_what_was_shown_is_no_query_and_no_history() -> None:
    table = walks(300)
    table.kind[::3] = quick_settings().events.kinds.index("impression")
    found = ranks(table, settings_for(table))
    asked = queries(table, quick_settings(), int(300 * OPTIONS.start))
    assert not asked[::3].any()
    assert {len(rank) for rank in found.values()} == {asked.sum()}


def test_what_was_turned_down_is_no_query() -> None:
    table = walks(300)
    table.kind[::3] = quick_settings().events.kinds.index("cart")
    given = quick_settings()
    events = given.events.model_copy(update={"negative": ("cart",)})
    found = ranks(table, settings_for(table).model_copy(update={"events": events}))
    asked = queries(table, given.model_copy(update={"events": events}), 150)
    assert not asked[::3].any()
    assert {len(rank) for rank in found.values()} == {asked.sum()}


@pytest.mark.parametrize("between", [6, 7])
def test_who_has_turned_down_all_that_a_history_holds_has_none(between: int) -> None:
    """Of a history of eight places, one is the event's own."""
    table = table_of([("a", "x"), *[("a", f"{i}") for i in range(between)], ("a", "y")] * 20)
    kinds = quick_settings().events.kinds
    table.kind[:] = kinds.index("cart")
    table.kind[:: between + 2] = table.kind[between + 1 :: between + 2] = kinds.index("view")
    given = settings_for(table)
    settings = given.model_copy(
        update={
            "events": given.events.model_copy(update={"negative": ("cart",)}),
            "history": given.history.model_copy(update={"events": 8}),
        }
    )
    found = ranks(table, settings)
    asked = queries(table, settings, int(len(table) * OPTIONS.start))
    # The first of each sequence follows upon the last of the one before.
    assert asked.sum() == (20 if between == 6 else 10)
    assert {len(rank) for rank in found.values()} == {asked.sum()}


def test_without_a_period_of_it_there_is_no_retrain() -> None:
    options = Options(files=OPTIONS.files, start=0.0, parts=2)
    models = run(walks(200), options).models
    assert set(models) == ALL - {"retrain"}
    assert models["frozen"].ndcg_at_10 == 0  # frozen before it knew anything


def test_a_retrain_that_diverges_is_no_baseline() -> None:
    table = walks(200)
    settings = settings_for(table)
    trainer = settings.trainer.model_copy(update={"learning_rate": 1e38})
    settings = settings.model_copy(update={"trainer": trainer})
    with pytest.raises(ConfigurationError, match="a full retrain diverged"):
        retrain(table, settings, CPU, epochs=1, patience=1, share=0.5)


def test_micro_batches_have_the_size_of_the_settings_whatever_is_scored_at_once() -> None:
    batch = BatchSettings(score_max_events=256, train_max_events=300)
    found = list(slices(1000, batch, {420}))
    assert [end for _, end in found] == [256, 300, 420, 512, 600, 768, 900, 1000]
    assert all(start < end for start, end in found)


def test_what_is_reported_or_retrained_beside_it_changes_nothing_of_the_live_model() -> None:
    table = walks(400)
    settings = settings_for(table)
    batch = BatchSettings(score_max_events=32, train_max_events=48)
    settings = settings.model_copy(update={"batch": batch})
    alone = replace(OPTIONS, retrain_every=None, parts=1)
    found = [
        run_prequential(table, settings, options, CPU, UNSEEN).models["live"]
        for options in (alone, replace(OPTIONS, parts=7, retrain_every=37))
    ]
    assert found[0].ndcg_at_10 == found[1].ndcg_at_10


def test_room_for_all_histories_is_asked_for_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    table = walks(100)
    settings = settings_for(table)
    room = slab_bytes(settings.history)
    monkeypatch.setattr(
        "service.state.histories.shutil.disk_usage", lambda _: SimpleNamespace(free=4 * room - 1)
    )
    with pytest.raises(ConfigurationError, match="--events"):
        _Run(table, settings, replace(OPTIONS, retrain_every=None), CPU, UNSEEN)


def test_no_slice_has_more_events_of_a_user_than_stand_beside_a_history() -> None:
    table = join([table_of([("ann", f"i-{n}") for n in range(200)]), walks(200)])
    settings = settings_for(table).model_copy(update={"batch": BatchSettings()})
    found = _Run(table, settings, replace(OPTIONS, parts=1, retrain_every=None), CPU, UNSEEN)
    try:
        ends = [end for _, end in found._slices()]
    finally:
        found.close()
    assert ends == [64, 128, 192, 200, 256, 400]
