"""Versions with random weights and a whole catalogue: they cost what learned ones cost."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from service.domain import ItemId, Version
from service.model.recommender import Recommender
from service.registry.artifact import NO_ITEM, Artifact
from service.registry.manifest import Origin
from service.registry.registry import Registry
from service.registry.servable import first_blend
from service.settings import ModelSettings, RegistrySettings, Settings


def publish_random(root: Path, items: Sequence[ItemId], seed: int) -> Version:
    """Publish a default model that knows `items` into the storage at `root`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Recommender.new(ModelSettings(seed=seed))
        model.grow(len(items) + 1)
    manifest = Registry(root / "registry", RegistrySettings()).publish(
        Artifact(model.state_dict(), (NO_ITEM, *items), {}),
        parent=None,
        origin=Origin.INITIAL,
        trained_through={},
        model={**model.shape, "blend": asdict(first_blend(Settings()))},
        items=len(items),
        gate=None,
        now_ms=time.time_ns() // 1_000_000,
    )
    return Version(manifest.version)
