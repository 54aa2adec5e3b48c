"""A servable: an immutable, loaded, warmed model version."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.domain import Offset, Offsets, Partition, Version
from service.errors import DamagedVersionError
from service.model.inference import states_at
from service.model.recommender import Recommender, unit_rows
from service.model.vocabulary import Vocabulary
from service.registry.artifact import Artifact
from service.registry.manifest import Manifest
from service.settings import ModelSettings

# Enough to take every code path; a full batch would take the scorer's core for half a second.
_WARM_ROWS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Servable:
    """What the scorer takes once per batch. Nothing in it changes after it was made."""

    version: Version
    published_ms: int
    trained_through: Offsets
    model: Recommender
    vocabulary: Vocabulary
    table: Tensor  # [rows, dim] item vectors of length 1; row 0 is zero


def model_identity(settings: ModelSettings) -> dict[str, Any]:
    """The settings without which a version's weights mean something else, as plain data."""
    return settings.model_dump(mode="json", include={"backbone", "dim", "max_length"})


def make_servable(manifest: Manifest, artifact: Artifact, *, batch: int, length: int) -> Servable:
    """Build a version and warm it with a single row and a batch of some rows.

    Raises DamagedVersionError when the weights do not fit the shape in the manifest.
    """
    try:
        model = Recommender.from_weights(manifest.model, dict(artifact.weights))
        vocabulary = Vocabulary(artifact.vocabulary)
        rows = artifact.weights["items.weight"].shape[0]
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DamagedVersionError(f"version {manifest.version} cannot be built: {reason}") from None
    if rows != len(vocabulary):
        raise DamagedVersionError(
            f"version {manifest.version} has {rows} item rows and {len(vocabulary)} item ids"
        )
    with torch.inference_mode():
        table = unit_rows(model.items.weight)
        for size in (1, min(batch, _WARM_ROWS)):
            sequences = np.zeros((size, length), np.int64)
            states_at(model, sequences, np.zeros((size, 2), np.int64))
    return Servable(
        version=Version(manifest.version),
        published_ms=manifest.created_at,
        trained_through={
            Partition(partition): Offset(offset)
            for partition, offset in manifest.trained_through.items()
        },
        model=model,
        vocabulary=vocabulary,
        table=table,
    )
