"""Where partitions are taken up, by what is on the storage."""

import threading
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import pytest

from service.app.serving import load_servable
from service.app.snapshotter import snapshots_of
from service.app.taking_up import Taker
from service.domain import Offset, Partition, Reached, Version
from service.metrics import Metrics
from service.model.recommender import Recommender
from service.registry.artifact import NO_ITEM, Artifact
from service.registry.manifest import Origin
from service.registry.registry import Registry
from service.registry.servable import first_blend
from service.settings import Settings, StorageSettings
from service.state.duplicates import Duplicates
from service.state.histories import HistorySlab
from service.state.popularity import Popularity
from service.stream.source import Assigned
from tests.state.examples import a_slab

PARTITION = Partition(0)


@pytest.fixture
def slab() -> Iterator[HistorySlab]:
    with closing(a_slab()) as made:
        yield made


@pytest.fixture
def settings(tmp_path: Path, slab: HistorySlab) -> Settings:
    """With a snapshot up to 900, when all before 880 was acknowledged."""
    made = Settings(storage=StorageSettings(root=tmp_path))
    reached = Reached(Offset(900), Offset(880))
    assert snapshots_of(made).write(slab, reached, threading.Event()) is not None
    return made


def taken_up(settings: Settings, start: int, committed: int | None) -> tuple[int, int, float]:
    """Where answering and reading begin, and how many records are told of as lost."""
    metrics, snapshots = Metrics(), snapshots_of(settings)
    taker = Taker(settings, metrics, snapshots, Popularity(100), None, Duplicates(0))
    group = None if committed is None else Offset(committed)
    assigned = Assigned(PARTITION, Offset(start), Offset(2000), group)
    with closing(a_slab()) as empty:
        taken = taker.take_up([assigned], {PARTITION: empty}, ())
    lost = metrics.offsets_lost._value.get()
    return taken.answer_from[PARTITION], taken.read_from[PARTITION], lost


def test_the_groups_offset_says_what_is_answered(settings: Settings) -> None:
    answer_from, _, lost = taken_up(settings, 0, 950)
    assert (answer_from, lost) == (950, 0)


def test_where_kafka_has_forgotten_it_the_snapshot_knows(settings: Settings) -> None:
    """Of a group without members Kafka keeps offsets for a week."""
    answer_from, _, lost = taken_up(settings, 100, None)
    assert (answer_from, lost) == (880, 0)


def test_what_retention_removed_meanwhile_is_told_then_too(settings: Settings) -> None:
    answer_from, read_from, lost = taken_up(settings, 1000, None)
    assert (answer_from, read_from, lost) == (1000, 1000, 120)


@pytest.mark.parametrize(("topic", "through"), [("another", 0), ("events", 950), (None, 950)])
def test_what_was_learned_of_another_topic_does_not_count(
    topic: str | None, through: int, settings: Settings
) -> None:
    """Nor does a recommendation say so."""
    registry = Registry.of(settings)
    model = Recommender.new(settings.model)
    registry.publish(
        Artifact(model.state_dict(), (NO_ITEM,), {}),
        parent=None,
        origin=Origin.TRAINED,
        trained_through={PARTITION: Offset(950)},
        topic=topic,
        model={**model.shape, "blend": asdict(first_blend(settings))},
        items=0,
        gate=None,
        now_ms=0,
    )
    snapshots = snapshots_of(settings)
    taker = Taker(settings, Metrics(), snapshots, Popularity(100), None, Duplicates(0))
    assigned = Assigned(PARTITION, Offset(0), Offset(2000), Offset(1000))
    with closing(a_slab()) as empty:
        taken = taker.take_up([assigned], {PARTITION: empty}, ())
    assert taken.trained == {PARTITION: through}
    assert taken.train_from == {PARTITION: through}
    served = load_servable(registry, Version(1), settings).trained_through
    assert served.get(PARTITION, 0) == through
