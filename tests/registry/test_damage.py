"""Wherever a version's files are cut off or altered, it is refused and the one before serves."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from service.domain import Version
from service.errors import DamagedVersionError
from service.registry.artifact import (
    DESCRIBED_FILE,
    FROZEN_FILE,
    TRAINER_FILE,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    Artifact,
)
from service.registry.manifest import MANIFEST_FILE, Origin
from tests.registry.examples import (
    MODEL,
    NOW_MS,
    a_registry,
    an_artifact,
    file_of,
    mark_of,
    publish,
)
from tests.storage.damage import Harm, cut, flipped, harmed

FILES = [
    MANIFEST_FILE,
    WEIGHTS_FILE,
    FROZEN_FILE,
    VOCABULARY_FILE,
    DESCRIBED_FILE,
    TRAINER_FILE,
]


def a_large_artifact(mark: float) -> Artifact:
    """With every file, and a hundredth of each is a byte or more."""
    artifact = an_artifact(mark, rows=50)
    return replace(
        artifact,
        weights={**artifact.weights, "body": torch.full((50,), mark)},
        frozen=frozenset({"body"}),
        described={"frozen": torch.full((50, 3), mark)},
    )


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("harm", [cut, flipped])
def test_harm_at_every_hundredth_of_a_file_is_found(tmp_path: Path, name: str, harm: Harm) -> None:
    publish(a_registry(tmp_path), 1.0)
    a_registry(tmp_path).publish(
        a_large_artifact(2.0),
        parent=Version(1),
        origin=Origin.TRAINED,
        trained_through={},
        model=MODEL,
        items=49,
        gate=None,
        now_ms=NOW_MS,
    )
    file = file_of(tmp_path, 2, name)
    whole = file.read_bytes()
    for data in harmed(whole, harm):
        file.write_bytes(data)
        registry = a_registry(tmp_path)
        with pytest.raises(DamagedVersionError, match="version 2"):
            registry.load(Version(2), with_trainer=True)
        assert mark_of(registry.load_newest(with_trainer=True)) == 1.0
    file.write_bytes(whole)
    assert mark_of(a_registry(tmp_path).load_newest(with_trainer=True)) == 2.0
