"""Weights that are never trained, over the versions of one registry."""

from pathlib import Path

import pytest

from service.domain import Version
from service.errors import DamagedVersionError
from service.registry.artifact import FROZEN_FILE, Artifact
from service.registry.manifest import Origin
from service.registry.registry import Registry
from tests.registry.examples import (
    MODEL,
    NOW_MS,
    a_half_frozen_artifact,
    a_registry,
    an_artifact,
    file_of,
    flip_a_bit,
)


def publish(
    registry: Registry, artifact: Artifact, parent: int | None, *, same: bool = True
) -> Version:
    return registry.publish(
        artifact,
        parent=None if parent is None else Version(parent),
        origin=Origin.TRAINED,
        trained_through={},
        model=MODEL,
        items=2,
        gate=None,
        now_ms=NOW_MS,
        same_frozen=same and parent is not None,
    ).version


def body_of(registry: Registry, version: int) -> float:
    return float(registry.load(Version(version))[1].weights["body"][0])


def test_a_version_shares_the_file_of_its_parent_and_outlives_it(tmp_path: Path) -> None:
    registry = a_registry(tmp_path, keep_versions=2)
    for version in range(1, 4):
        publish(registry, a_half_frozen_artifact(mark=version), version - 1 or None)
    one, other = (file_of(tmp_path, version, FROZEN_FILE) for version in (1, 3))
    assert one.samefile(other)
    registry.prune()
    assert registry.versions() == [2, 3]
    manifest, artifact = a_registry(tmp_path).load(Version(3), with_trainer=True)
    assert FROZEN_FILE in manifest.files
    assert artifact.weights["body"].eq(5.0).all()
    assert artifact.weights["head.bias"] == 3.0


def test_other_weights_than_the_parents_are_written(tmp_path: Path) -> None:
    registry = a_registry(tmp_path)
    publish(registry, a_half_frozen_artifact(frozen=1.0), None)
    publish(registry, a_half_frozen_artifact(frozen=2.0), 1, same=False)
    assert [body_of(registry, version) for version in (1, 2, 1)] == [1.0, 2.0, 1.0]


def test_without_the_parents_file_it_is_written_again(tmp_path: Path) -> None:
    registry = a_registry(tmp_path)
    publish(registry, an_artifact(), None)
    publish(registry, a_half_frozen_artifact(), 1)
    file_of(tmp_path, 2, FROZEN_FILE).unlink()
    publish(registry, a_half_frozen_artifact(), 2)
    assert body_of(registry, 3) == 5.0


def test_servables_share_it_in_memory_and_a_trainer_has_its_own(tmp_path: Path) -> None:
    registry = a_registry(tmp_path)
    publish(registry, a_half_frozen_artifact(), None)
    publish(registry, a_half_frozen_artifact(), 1)
    one, other = (registry.load(Version(version))[1].weights["body"] for version in (1, 2))
    own = registry.load(Version(2), with_trainer=True)[1].weights["body"]
    assert one.data_ptr() == other.data_ptr() != own.data_ptr()


def test_a_rollback_shares_it_too(tmp_path: Path) -> None:
    registry = a_registry(tmp_path)
    publish(registry, a_half_frozen_artifact(), None)
    publish(registry, a_half_frozen_artifact(), 1)
    registry.rollback(None, NOW_MS)
    assert file_of(tmp_path, 3, FROZEN_FILE).samefile(file_of(tmp_path, 1, FROZEN_FILE))


def test_damage_to_it_is_found_by_whoever_reads_it(tmp_path: Path) -> None:
    registry = a_registry(tmp_path)
    publish(registry, a_half_frozen_artifact(), None)
    flip_a_bit(file_of(tmp_path, 1, FROZEN_FILE))
    with pytest.raises(DamagedVersionError, match=r"frozen\.safetensors was altered"):
        registry.load(Version(1))
