"""Small artifacts and versions for the registry's tests."""

from dataclasses import replace
from pathlib import Path

import torch

from service.domain import ItemId, Offset, Partition, Version
from service.registry.artifact import NO_ITEM, Artifact
from service.registry.manifest import Manifest, Origin
from service.registry.registry import Registry
from service.settings import RegistrySettings

NOW_MS = 1_700_000_000_000
MODEL = {"dim": 4, "backbone": {"kind": "small", "layers": 2}, "dropout": 0.2}


def an_artifact(mark: float = 0.0, rows: int = 3) -> Artifact:
    """Every weight is `mark`, so that a version can be told by its content."""
    vocabulary = (NO_ITEM, *(ItemId(f"item-{row}") for row in range(1, rows)))
    return Artifact(
        weights={"items": torch.full((rows, 4), mark), "head.bias": torch.full((), mark)},
        vocabulary=vocabulary,
        trainer={"moment": torch.full((rows, 4), -mark), "rows": torch.arange(5)},
    )


def a_half_frozen_artifact(mark: float = 0.0, frozen: float = 5.0) -> Artifact:
    """One whose body is never trained."""
    artifact = an_artifact(mark)
    weights = {**artifact.weights, "body": torch.full((8,), frozen)}
    return replace(artifact, weights=weights, frozen=frozenset({"body"}))


def a_registry(root: Path, keep_versions: int = 10) -> Registry:
    return Registry(root, RegistrySettings(keep_versions=keep_versions))


def publish(
    registry: Registry, mark: float = 0.0, *, parent: int | None = None, offset: int = 0
) -> Version:
    """Publishes `an_artifact(mark)`, trained through `offset` of partition 0."""
    manifest = registry.publish(
        an_artifact(mark),
        parent=None if parent is None else Version(parent),
        origin=Origin.INITIAL if parent is None else Origin.TRAINED,
        trained_through={Partition(0): Offset(offset)},
        model=MODEL,
        items=2,
        gate=None,
        now_ms=NOW_MS,
    )
    return manifest.version


def mark_of(loaded: tuple[Manifest, Artifact] | None) -> float:
    assert loaded is not None
    return float(loaded[1].weights["head.bias"])


def file_of(root: Path, version: int, name: str) -> Path:
    return root / "versions" / f"{version:08d}" / name


def flip_a_bit(file: Path, at: int = -1) -> None:
    """In place, as a disk does: a hard link of the file is altered with it."""
    data = bytearray(file.read_bytes())
    data[at] ^= 0b0000_0100
    with file.open("r+b") as stream:
        stream.write(data)


def truncate(file: Path) -> None:
    data = file.read_bytes()
    with file.open("r+b") as stream:
        stream.truncate(len(data) // 2)
