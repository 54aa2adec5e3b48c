"""The learning loop on a CUDA device; without one these tests are skipped.

The others of the trainer name the CPU, so that they say the same on every machine.
"""

import math
from contextlib import closing

import pytest
import torch

from service.domain import Version
from service.model.memory import Memory
from service.registry.servable import Servable, first_blend
from service.settings import (
    AdversarialSettings,
    AugmentSettings,
    ClickSettings,
    EventKindFeature,
    GapFeature,
    GruBackbone,
    HerdingReplay,
    ItemsSettings,
    KeepSettings,
    RecencyReplay,
    ReplaySettings,
    Settings,
    SgdSettings,
    TrainAdapter,
    TrainHead,
    TrainLora,
    TrainTop,
)
from service.state.histories import HistorySlab
from service.trainer.challenger import Challenger
from service.trainer.clicks import Clicks
from service.trainer.evaluation import questions
from service.trainer.gate import Verdict
from service.trainer.holdout import empty_rows
from service.trainer.learner import Learner
from tests.state.examples import a_slab
from tests.trainer.examples import (
    CPU,
    IMPRESSION,
    PARTITION,
    Stream,
    described_items,
    quick_training,
    small_settings,
)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")

CUDA = torch.device("cuda")
USERS, CATALOGUE = 40, 20
TOLERANCE = 0.05  # of cosines: products are made in bfloat16 on CUDA and on some CPUs
CONTEXT = (EventKindFeature(), GapFeature())


def with_training(**changes: object) -> Settings:
    """Small settings with other ones of the trainer."""
    return small_settings(quick_training(fraction=0.2).model_copy(update=changes))


def with_model(**changes: object) -> Settings:
    settings = with_training()
    model = settings.model.model_copy(update=changes)
    return settings.model_copy(update={"model": model})


SETTINGS = {
    "default": with_training(),
    "sgd": with_training(optimizer=SgdSettings()),
    "head": with_training(trained=TrainHead()),
    "top_n": with_training(trained=TrainTop()),
    "adapter": with_training(trained=TrainAdapter()),
    "lora": with_training(trained=TrainLora()),
    "herding": with_training(replay=ReplaySettings(min_sequences=8, choice=HerdingReplay(of=2))),
    "recency": with_training(replay=ReplaySettings(min_sequences=8, choice=RecencyReplay(of=2))),
    "distil": with_training(keep=KeepSettings(distil=1.0, l2=0.1)),
    "augment": with_training(augment=AugmentSettings(crop=0.3, mask=0.3, reorder=0.3)),
    "adversarial": with_training(adversarial=AdversarialSettings(epsilon=0.1)),
    "gru": with_model(backbone=GruBackbone(dim=16)),
    "context": with_model(context=CONTEXT),
    "dropout": with_model(dropout=0.2),
    "click": with_training().model_copy(
        update={"click": ClickSettings(enabled=True, batch_rows=64)}
    ),
    "expiry": with_training().model_copy(update={"items": ItemsSettings(max_rows=15)}),
}


def a_learner(settings: Settings, slab: HistorySlab, device: torch.device) -> Learner:
    torch.manual_seed(0)
    return Learner(
        settings,
        {PARTITION: slab},
        Challenger.new(
            settings.model, settings.trainer, device, described_items(5), settings.click
        ),
        empty_rows(settings.model.max_length, len(settings.model.context)),
        {},
        Memory.of(settings.memory),
        first_blend(settings),
        Clicks.of(settings, {}),
    )


def taught(settings: Settings, slab: HistorySlab, device: torch.device) -> Learner:
    """A learner after four rounds and a word of the gate."""
    learner, stream = a_learner(settings, slab, device), Stream(slab)
    for _ in range(4):
        report = learner.learn([stream.walk(USERS, CATALOGUE, steps=4)])
        assert math.isfinite(report.loss)
        assert not report.diverged
    if settings.click.enabled:
        pairs = [(user, item) for user in range(USERS) for item in range(3)]
        shown = stream.batch(
            [user for user, _ in pairs],
            [item for _, item in pairs],
            kinds=[IMPRESSION] * len(pairs),
            values=[float(item == 1) for _, item in pairs],
        )
        assert learner.learn([shown]).labels
    return learner


def served(learner: Learner) -> Servable:
    return learner.servable(Version(1))


@pytest.mark.parametrize("name", SETTINGS)
def test_what_is_learned_on_cuda_is_served_on_the_cpu(name: str) -> None:
    settings = SETTINGS[name]
    with closing(HistorySlab.of(PARTITION, settings)) as slab:
        learner = taught(settings, slab, CUDA)
    report, _ = learner.judge()
    assert report.verdict in (Verdict.PROMOTE, Verdict.REJECT)
    there = learner._challenger.frozen_copy()
    servable = served(learner)
    assert all(weight.device == CPU for weight in servable.model.parameters())
    (here,) = questions(
        servable.model, servable.vocabulary, learner.held, iter([]), exclude_seen=False
    )
    if name == "expiry":
        assert len(servable.vocabulary) == 16
        return  # rows have moved
    with torch.inference_mode():
        (asked,) = questions(there, servable.vocabulary, learner.held, iter([]), exclude_seen=False)
    assert torch.allclose(asked.cosines.cpu(), here.cosines, atol=TOLERANCE)


def test_cuda_learns_as_well_as_a_cpu(slab: HistorySlab) -> None:
    with closing(a_slab(users=200, events=16)) as other:
        there = taught(with_training(), slab, CUDA)
        here = taught(with_training(), other, CPU)
    gained = [learner.judge()[0].mean_gain for learner in (there, here)]
    assert gained[0] == pytest.approx(gained[1], abs=0.15)
    assert min(gained) > 0.1


def test_a_rejected_challenger_goes_back_on_cuda_too(slab: HistorySlab) -> None:
    learner, stream = taught(with_training(), slab, CUDA), Stream(slab)
    before = {name: kept.clone() for name, kept in learner.artifact().weights.items()}
    learner.promoted()
    stream.events = 10_000
    learner.learn([stream.walk(USERS, CATALOGUE, steps=2, stride=7)])
    learner.settle()
    after = learner.artifact().weights
    assert all(torch.equal(after[name], kept) for name, kept in before.items())


def test_moments_return_to_a_learner_on_cuda(slab: HistorySlab) -> None:
    settings = with_training()
    learner = taught(settings, slab, CUDA)
    artifact = learner.artifact()
    servable = served(learner)
    again = Challenger(servable.model, servable.vocabulary, settings.trainer, CUDA)
    again.load_optimizer(artifact.trainer)
    kept = again.optimizer_tensors()
    assert kept
    for name, tensor in kept.items():
        assert torch.equal(tensor, artifact.trainer[name]), name
