"""What `headwater doctor` says of storage, versions and model; Kafka is played."""

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from service.app import doctor
from service.app.doctor import examine
from service.settings import (
    Device,
    ItemsSettings,
    KafkaSettings,
    PretrainedBackbone,
    Section,
    Settings,
    TopicsSettings,
    TrackingSettings,
    TrainerSettings,
    VectorSettings,
)
from tests.app.test_serving import small
from tests.app.test_start_refusals import begun, changed
from tests.registry.examples import file_of, flip_a_bit

Examine = Callable[[Settings], tuple[int, list[str]]]


@pytest.fixture(name="examined")
def _examined(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Examine:
    async def none_missing(_kafka: KafkaSettings, _topics: TopicsSettings) -> list[str]:
        return []

    async def one_partition(_kafka: KafkaSettings, _topic: str) -> int:
        return 1

    monkeypatch.setattr(doctor, "missing_topics", none_missing)
    monkeypatch.setattr(doctor, "partitions_of", one_partition)

    def run(settings: Settings) -> tuple[int, list[str]]:
        """The exit code, and the findings after Kafka's."""
        code = asyncio.run(examine(settings, create=False))
        lines = capsys.readouterr().out.splitlines()
        return code, [
            line for line in lines if "Kafka" not in line and "all topics exist" not in line
        ]

    return run


def failures(lines: list[str]) -> list[str]:
    return [line for line in lines if line.startswith("FAIL  ")]


def test_a_fresh_folder_is_fine_and_nothing_is_published_there(
    tmp_path: Path, examined: Examine
) -> None:
    code, lines = examined(small(tmp_path / "new"))
    assert code == 0
    assert failures(lines) == []
    assert "ok    no version yet; `serve` begins with a new model" in lines
    assert any("training would run on" in line for line in lines)
    assert list((tmp_path / "new").iterdir()) == []


def test_it_names_the_version_that_would_serve(tmp_path: Path, examined: Examine) -> None:
    code, lines = examined(begun(tmp_path))
    assert code == 0
    assert "ok    version 1 would serve" in lines


def snapshots_at(root: Path, url: str) -> Settings:
    settings = small(root)
    storage = settings.storage.model_copy(update={"snapshots": url})
    return settings.model_copy(update={"storage": storage})


def test_it_tries_a_place_for_snapshots_and_leaves_nothing_there(
    tmp_path: Path, examined: Examine
) -> None:
    place = tmp_path / "elsewhere"
    code, lines = examined(snapshots_at(tmp_path / "root", str(place)))
    assert code == 0
    assert f"ok    state snapshots can be written to {place}" in lines
    assert list(place.iterdir()) == []


@pytest.mark.parametrize("url", ["nowhere://bucket", "/proc/there"])
def test_a_place_for_snapshots_that_takes_none_fails(
    url: str, tmp_path: Path, examined: Examine
) -> None:
    code, lines = examined(snapshots_at(tmp_path / "root", url))
    assert code == 1
    [line] = failures(lines)
    assert line.startswith(f"FAIL  storage.snapshots = {url}: ")


@pytest.mark.parametrize("name", ["backbone", "readout", "dim", "max_length"])
def test_a_changed_model_setting_fails_in_one_line(
    name: str, tmp_path: Path, examined: Examine
) -> None:
    code, lines = examined(changed(begun(tmp_path), name))
    assert code == 1
    [line] = failures(lines)
    assert f"made with another model.{name};" in line


def test_without_an_intact_version_it_fails(tmp_path: Path, examined: Examine) -> None:
    settings = begun(tmp_path)
    flip_a_bit(file_of(tmp_path / "registry", 1, "weights.safetensors"))
    code, lines = examined(settings)
    assert code == 1
    assert "is intact; move the folder away" in failures(lines)[0]


def test_an_unreadable_pin_fails(tmp_path: Path, examined: Examine) -> None:
    settings = begun(tmp_path)
    (tmp_path / "registry" / "pin.json").write_text("{")
    code, lines = examined(settings)
    assert code == 1
    assert "pin a version again" in failures(lines)[0]


def test_a_storage_root_that_is_a_file_fails(tmp_path: Path, examined: Examine) -> None:
    (tmp_path / "root").write_bytes(b"")
    code, lines = examined(small(tmp_path / "root"))
    assert code == 1
    assert "storage.root" in failures(lines)[0]


def test_a_model_that_cannot_be_loaded_fails(tmp_path: Path, examined: Examine) -> None:
    settings = small(tmp_path)
    absent = PretrainedBackbone(name=str(tmp_path / "absent"))
    model = settings.model.model_copy(update={"backbone": absent})
    code, lines = examined(settings.model_copy(update={"model": model}))
    assert code == 1
    [line] = failures(lines)
    assert absent.name in line


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"items": ItemsSettings(vectors=(VectorSettings(name="image", width=2),))},
            "topics.items",
        ),
        ({"tracking": TrackingSettings(wandb="shop")}, "tracking.wandb needs"),
    ],
)
def test_what_serve_refuses_fails(
    changes: dict[str, Section],
    told: str,
    tmp_path: Path,
    examined: Examine,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.extras.find_spec", lambda _: None)
    code, lines = examined(small(tmp_path).model_copy(update=changes))
    assert code == 1
    assert told in failures(lines)[0]


def test_histories_are_reckoned_by_the_topics_own_partitions(
    tmp_path: Path, examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def many(_kafka: KafkaSettings, _topic: str) -> int:
        return 1_000_000_000

    monkeypatch.setattr(doctor, "partitions_of", many)
    code, lines = examined(small(tmp_path))
    assert code == 1
    assert "of shared memory for histories" in failures(lines)[0]


def test_a_place_for_snapshots_that_nothing_can_write_to_fails_also_where_none_are_made(
    tmp_path: Path, examined: Examine
) -> None:
    settings = snapshots_at(tmp_path / "root", "nowhere://bucket")
    storage = settings.storage.model_copy(update={"snapshot_every_s": None})
    code, lines = examined(settings.model_copy(update={"storage": storage}))
    assert code == 1
    assert failures(lines)[0].startswith("FAIL  storage.snapshots = nowhere://bucket")


def test_a_device_that_is_not_there_fails(
    tmp_path: Path, examined: Examine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    trainer = TrainerSettings(device=Device.CUDA)
    code, lines = examined(small(tmp_path).model_copy(update={"trainer": trainer}))
    assert code == 1
    assert failures(lines) == ["FAIL  trainer.device = 'cuda', but no CUDA device is usable here"]
