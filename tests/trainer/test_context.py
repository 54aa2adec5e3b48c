"""Features of the context, from the histories to a challenger that has learned from them."""

import multiprocessing
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from service.app.serving import first_servable
from service.domain import MicroBatch, Version
from service.registry.manifest import Origin
from service.registry.registry import Registry
from service.registry.servable import first_blend
from service.settings import (
    CategoryFeature,
    ClickLoss,
    ClickSettings,
    Feature,
    GapFeature,
    HerdingReplay,
    KeepSettings,
    NumberFeature,
    ReplaySettings,
    ScorerSettings,
    Settings,
    StorageSettings,
    TrainAdapter,
    Trained,
    TrainFull,
    TrainHead,
    TrainLora,
    TrainTop,
)
from service.state.features import hashed, keys_of
from service.state.histories import HistorySlab
from service.trainer.challenger import Challenger
from service.trainer.clicks import Clicks
from service.trainer.holdout import empty_rows
from service.trainer.learner import Learner
from service.trainer.sequences import Sequences
from service.trainer.worker import Worker, WorkerArguments
from tests.state.examples import a_slab
from tests.trainer.examples import CPU, PARTITION, Stream, quick_training, small_settings

PAGE, PRICE = CategoryFeature(name="page", buckets=50), NumberFeature(name="price")
GROUPS, ITEMS, USERS = 5, 30, 40
SIZE = ITEMS // GROUPS


@pytest.fixture(autouse=True)
def _same_weights_every_time() -> None:
    torch.manual_seed(0)


@pytest.fixture
def slab() -> Iterator[HistorySlab]:
    with closing(a_slab(users=200, events=16, features=keys_of([PAGE]))) as made:
        yield made


def settings_of(*features: Feature, root: Path = Path("unused")) -> Settings:
    tree = small_settings(quick_training(fraction=0.2))
    model = tree.model.model_copy(update={"context": features})
    return tree.model_copy(
        update={
            "model": model,
            "scorer": ScorerSettings(exclude_seen=False),
            "memory": tree.memory.model_copy(update={"enabled": False}),
            "storage": StorageSettings(root=root),
        }
    )


def a_learner(slab: HistorySlab, settings: Settings) -> Learner:
    return Learner(
        settings,
        {PARTITION: slab},
        Challenger.new(settings.model, settings.trainer, CPU, click=settings.click),
        empty_rows(settings.model.max_length, len(settings.model.context)),
        {},
        None,
        first_blend(settings),
        Clicks.of(settings, {}),
    )


class Shoppers:
    """Each goes next to some item of the group that the page of the event before tells."""

    def __init__(self, slab: HistorySlab) -> None:
        self._stream = Stream(slab)
        self._random = np.random.default_rng(3)
        self._page = self._random.integers(0, GROUPS, USERS)

    def batch(self, steps: int) -> MicroBatch:
        items: list[int] = []
        pages: list[int] = []
        for _ in range(steps):
            items += (self._page * SIZE + self._random.integers(0, SIZE, USERS)).tolist()
            self._page = self._random.integers(0, GROUPS, USERS)
            pages += self._page.tolist()
        codes = np.array([[hashed(f"page-{page}")] for page in pages], np.int32)
        features = len(self._stream.slab.address.features)
        return self._stream.batch(list(range(USERS)) * steps, items, codes=codes[:, :features])


def ndcg_after(slab: HistorySlab, settings: Settings, rounds: int = 6) -> float:
    learner, shoppers = a_learner(slab, settings), Shoppers(slab)
    for _ in range(rounds):
        learner.learn([shoppers.batch(steps=6)])
    report, _ = learner.judge()
    return report.challenger


def test_what_comes_next_is_learned_from_the_context(slab: HistorySlab) -> None:
    with closing(a_slab(users=200, events=16)) as plain:
        without = ndcg_after(plain, settings_of())
    # A guess within the group against one among all.
    assert ndcg_after(slab, settings_of(PAGE)) > without + 0.2


@pytest.mark.parametrize(
    "trained", [TrainFull(), TrainHead(), TrainTop(n=1), TrainAdapter(width=2), TrainLora(rank=2)]
)
def test_features_are_trained_whatever_else_is(trained: Trained, slab: HistorySlab) -> None:
    settings = settings_of(PAGE)
    trainer = settings.trainer.model_copy(update={"trained": trained})
    learner = a_learner(slab, settings.model_copy(update={"trainer": trainer}))
    learner.learn([Shoppers(slab).batch(steps=6)])
    artifact = learner.artifact()
    assert artifact.weights["context.parts.category:page.weight"].any()
    assert "context.parts.category:page.weight" not in artifact.frozen


def test_what_leaves_the_holdout_keeps_its_context(slab: HistorySlab) -> None:
    learner, shoppers = a_learner(slab, settings_of(PAGE)), Shoppers(slab)
    taught: list[Sequences] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(learner, "_remember", taught.append)
        for _ in range(4):  # more than fit into the window
            learner.learn([shoppers.batch(steps=6)])
    (some,) = taught[-1:]
    inputs = (some.item != 0) & ~some.target
    assert (some.target.sum(axis=1) == 1).any()  # released
    assert some.codes[inputs].all()


def test_all_that_reads_histories_reads_their_context(slab: HistorySlab) -> None:
    """Herding, distillation and the click head run over features."""
    settings = settings_of(PAGE)
    replay = ReplaySettings(ratio=1.0, choice=HerdingReplay(of=2))
    keep = KeepSettings(distil=0.5, l2=0.1)
    click = ClickSettings(enabled=True, kinds=("view",), loss=ClickLoss.BINARY)
    settings = settings.model_copy(
        update={
            "trainer": settings.trainer.model_copy(update={"replay": replay, "keep": keep}),
            "click": click,
        }
    )
    learner, shoppers = a_learner(slab, settings), Shoppers(slab)
    batches = [shoppers.batch(steps=6) for _ in range(3)]
    values = np.random.default_rng(0).integers(0, 2, len(batches[0])).astype(np.float32)
    for batch in batches:
        report = learner.learn([replace(batch, value=values)])
        assert report.labels
        assert np.isfinite(report.loss)
        learner.judge()
        learner.promoted()
    restored = Clicks(settings, dict(learner.artifact().trainer))
    assert restored.held.codes.any()


class TestRestart:
    """A worker that begins over versions made with other settings."""

    def published(self, slab: HistorySlab, settings: Settings) -> tuple[Learner, Registry]:
        registry = Registry.of(settings)
        learner, shoppers = a_learner(slab, settings), Shoppers(slab)
        for _ in range(3):
            batch = shoppers.batch(steps=6)
            learner.learn([replace(batch, value=np.arange(len(batch), dtype=np.float32) % 2)])
        registry.publish(
            learner.artifact(),
            parent=None,
            origin=Origin.TRAINED,
            trained_through=learner.trained_through,
            model=learner.shape,
            items=learner.items,
            gate=None,
            now_ms=0,
        )
        return learner, registry

    def resumed(self, slab: HistorySlab, settings: Settings) -> Learner:
        connection, _ = multiprocessing.Pipe()
        worker = Worker(connection, WorkerArguments(settings, (slab.address,)))
        learner, _ = worker._resume(())  # what a spawned worker does first
        return learner

    @pytest.mark.parametrize("loss", ClickLoss)
    def test_a_click_head_goes_on_only_with_the_same_loss(
        self, slab: HistorySlab, loss: ClickLoss, tmp_path: Path
    ) -> None:
        settings = settings_of(PAGE, root=tmp_path)
        click = ClickSettings(enabled=True, kinds=("view",), loss=ClickLoss.BINARY)
        learned, _ = self.published(slab, settings.model_copy(update={"click": click}))
        click = click.model_copy(update={"loss": loss})
        learner = self.resumed(slab, settings.model_copy(update={"click": click}))
        before, now = learned.artifact(), learner.artifact()
        assert before.weights["click.tally"].any()
        assert len(before.trainer["click.held.label"])
        keeps = loss is ClickLoss.BINARY
        assert torch.equal(before.weights["click.tally"], now.weights["click.tally"]) == keeps
        assert (len(now.trainer["click.held.label"]) > 0) == keeps
        assert ("optimizer.exp_avg.click.weight" in now.trainer) == keeps

    @pytest.mark.parametrize(
        "after",
        [(PAGE, PRICE), (PRICE, PAGE), (PAGE,), (), (PAGE.model_copy(update={"buckets": 7}),)],
        ids=["added", "added before", "same", "removed", "other buckets"],
    )
    def test_all_that_did_not_change_stays(
        self, after: tuple[Feature, ...], tmp_path: Path
    ) -> None:
        page = "context.parts.category:page.weight"
        settings = settings_of(*after, root=tmp_path)
        with closing(a_slab(users=200, events=16, features=keys_of([PAGE]))) as slab:
            learned, _ = self.published(slab, settings_of(PAGE, root=tmp_path))
        with closing(a_slab(users=200, events=16, features=keys_of(after))) as slab:
            learner = self.resumed(slab, settings)
            before, now = learned.artifact(), learner.artifact()
            keeps = PAGE in after
            for name, weight in before.weights.items():
                if name != page or keeps:
                    assert torch.equal(now.weights[name], weight)
            for name, tensor in before.trainer.items():
                if page not in name or keeps:
                    if "codes" not in name:
                        assert torch.equal(now.trainer[name], tensor), name
                else:
                    assert name not in now.trainer
            for name in now.weights.keys() - before.weights.keys():
                assert not now.weights[name].any()
            if after and not keeps:
                assert not now.weights[page].any()
            # What is held out knows its context by name.
            if keeps:
                own = learner.held.codes[..., keys_of(after).index(PAGE.key)]
                assert own.tolist() == learned.held.codes[..., 0].tolist()
                assert own.any()
            shoppers = Shoppers(slab)
            codes = np.zeros((USERS * 6, len(after)), np.int32)
            batch = shoppers.batch(steps=6)
            assert np.isfinite(learner.learn([replace(batch, codes=codes)]).loss)

    def test_a_feature_that_is_added_changes_no_score(self, tmp_path: Path) -> None:
        with closing(a_slab(users=200, events=16, features=keys_of([PAGE]))) as slab:
            learned, _ = self.published(slab, settings_of(PAGE, root=tmp_path))
        with closing(a_slab(users=200, events=16, features=keys_of([PAGE, PRICE]))) as slab:
            learner = self.resumed(slab, settings_of(PAGE, PRICE, GapFeature(), root=tmp_path))
            assert learner.fit_blend().tolist() == learned.fit_blend().tolist()

    def test_serving_goes_on_over_changed_features(self, tmp_path: Path) -> None:
        with closing(a_slab(users=200, events=16, features=keys_of([PAGE]))) as slab:
            self.published(slab, settings_of(PAGE, root=tmp_path))
        for features in ((), (PRICE,), (PAGE, PRICE)):
            settings = settings_of(*features, root=tmp_path)
            registry = Registry(tmp_path / "registry", settings.registry)
            servable = first_servable(registry, settings)
            assert (servable.version, servable.model.features) == (Version(1), (PAGE.key,))
