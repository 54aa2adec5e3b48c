"""A servable: an immutable, loaded, warmed model version."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from service.domain import Offsets, Version
from service.errors import DamagedVersionError
from service.model.inference import states_at
from service.model.mixture import Blend
from service.model.recommender import Recommender, unit_rows
from service.model.temperature import temperature_for
from service.model.vocabulary import Vocabulary
from service.registry.artifact import Artifact
from service.registry.manifest import Manifest
from service.settings import ModelSettings, Settings

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
    blend: Blend  # with the memory


def model_identity(settings: ModelSettings) -> dict[str, Any]:
    """The settings without which a version's weights mean something else, as plain data."""
    return settings.model_dump(mode="json", include={"backbone", "readout", "dim", "max_length"})


def first_blend(settings: Settings) -> Blend:
    """Before the holdout has fitted anything; the model alone where there is no memory."""
    share = settings.memory.model_share if settings.memory.enabled else 1.0
    return Blend(temperature_for(0, settings.model.temperature), share)


def make_servable(manifest: Manifest, artifact: Artifact, *, batch: int, length: int) -> Servable:
    """Build a version and warm it with a single row and a batch of some rows.

    Raises DamagedVersionError when the weights do not fit the shape in the manifest.
    """
    try:
        servable = build_servable(
            manifest.model,
            artifact,
            Version(manifest.version),
            manifest.created_at,
            manifest.trained_through,
        )
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise DamagedVersionError(f"version {manifest.version} cannot be built: {reason}") from None
    with torch.inference_mode():
        for size in (1, min(batch, _WARM_ROWS)):
            sequences = np.zeros((size, length), np.int64)
            codes = np.zeros((size, length, len(servable.model.features)), np.int32)
            states_at(servable.model, sequences, np.zeros((size, 2), np.int64), codes)
    return servable


def build_servable(
    shape: Mapping[str, Any],
    artifact: Artifact,
    version: Version,
    published_ms: int,
    trained_through: Offsets,
) -> Servable:
    """A version that is not warm yet. `shape` is a manifest's `model`.

    Raises KeyError, RuntimeError, TypeError or ValueError where shape, weights and vocabulary do
    not fit each other.
    """
    model = Recommender.from_weights(
        dict(shape), dict(artifact.weights), dict(artifact.described)
    ).folded()
    vocabulary = Vocabulary(artifact.vocabulary)
    rows = artifact.weights["items.weight"].shape[0]
    if rows != len(vocabulary):
        raise ValueError(f"{rows} item rows and {len(vocabulary)} item ids")
    with torch.inference_mode():
        table = unit_rows(model.items.weight)
    return Servable(
        version,
        published_ms,
        dict(trained_through),
        model,
        vocabulary,
        table,
        Blend(**shape["blend"]),
    )
