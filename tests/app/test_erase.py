"""For whom `headwater erase` waits, and what it says that stays."""

import pytest

from service.app.erase import behind, what_stays
from service.domain import Offset, Partition
from service.settings import (
    EventsSettings,
    MemorySettings,
    RegistrySettings,
    Settings,
    StorageSettings,
    TopicsSettings,
)

DAY_MS = 86_400_000


def said(settings: Settings, kept_ms: dict[str, int] | None = None) -> str:
    through = {Partition(1): Offset(30), Partition(0): Offset(20)}
    return "\n".join(what_stays(settings, through, kept_ms or {}))


def test_the_figures_are_those_of_the_settings_and_of_kafka() -> None:
    settings = Settings(
        registry=RegistrySettings(keep_versions=4),
        memory=MemorySettings(half_life_events=123_456),
        topics=TopicsSettings(events="e", recommendations="r", dead_letter="d"),
    )
    text = said(settings, {"e": 7 * DAY_MS, "r": -1})
    assert (
        "trained_through is not yet at 0: 20, 1: 30, or whose topic is another: held-out rows, "
        in text
    )
    assert "until 4 newer ones are published (registry.keep_versions)" in text
    assert "only a registry that begins anew is without it" in text
    assert "halve every 123,456 events (memory.half_life_events)" in text
    assert "halves every 20,000 events (scorer.popularity_half_life_events)" in text
    assert "until 100,000 more offsets have been read (events.deduplicate)" in text
    assert "'e': the user's events, and the erasure, for 7 days" in text
    assert "'r': earlier recommendations, until compaction or for ever" in text
    assert "'d': records of the user that were no events, until its retention" in text


def test_what_is_not_there_is_not_named() -> None:
    off = Settings(memory=MemorySettings(enabled=False), events=EventsSettings(deduplicate=0))
    assert "the memory" not in said(off)
    assert "event_id" not in said(off)


def test_without_snapshots_old_ones_are_the_operators_to_remove() -> None:
    settings = Settings(storage=StorageSettings(snapshot_every_s=None, snapshots="s3://there"))
    assert "older ones under s3://there stay until you remove them" in said(settings)


@pytest.mark.parametrize(
    ("answering", "training", "late"),
    [
        ({}, {}, ["g"]),
        ({0: 20, 1: 29}, {}, ["g"]),
        ({0: 20, 1: 30}, {}, []),
        ({0: 20, 1: 31}, {0: 20}, ["g.train"]),
        ({0: 19, 1: 31}, {0: 20, 1: 29}, ["g", "g.train"]),
        ({0: 20, 1: 30}, {0: 20, 1: 30}, []),
    ],
)
def test_it_waits_for_who_answers_and_for_who_trains_apart(
    answering: dict[int, int], training: dict[int, int], late: list[str]
) -> None:
    def offsets(of: dict[int, int]) -> dict[Partition, Offset]:
        return {Partition(one): Offset(at) for one, at in of.items()}

    found = {"g": offsets(answering), "g.train": offsets(training)}
    assert behind(found, offsets({0: 20, 1: 30}), "g") == late
