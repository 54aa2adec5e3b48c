"""Context features: what is known of an event beside its item, as part of what the backbone reads.

    input = item vector + what each feature adds

A feature adds a vector of the bucket that a value falls into, or a line over a number. Both begin
at zero: a model that is given a feature scores as before, bit for bit, until steps have taught it.
A value that was never met, and one that is absent, add nothing. Item vectors that are ranked are
left alone.
"""

from collections.abc import Sequence
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn
from torch.nn import functional

from service.settings import (
    CategoryFeature,
    EventKindFeature,
    Feature,
    GapFeature,
    HourFeature,
    NumberFeature,
)

_PLAIN = TypeAdapter[tuple[Feature, ...]](tuple[Feature, ...])
_KIND_BUCKETS = 1021  # six kinds share one once in 70 times
_HOURS = 24
_GAPS = 32  # doublings of a second that a code can hold
# A vector moves only in the steps that meet its value, so each has to count for more.
_GAIN = 5.0


class ContextFeatures(nn.Module):
    """What is added to the inputs, of features in the order of the codes."""

    def __init__(self, features: Sequence[Feature], dim: int) -> None:
        super().__init__()
        self.features = tuple(features)
        self.keys = tuple(feature.key for feature in features)
        # The names of modules hold no dots.
        self.parts = nn.ModuleDict(
            {name: _part(feature, dim) for name, feature in zip(self._names, features, strict=True)}
        )

    @classmethod
    def from_plain(cls, plain: list[dict[str, Any]], dim: int) -> "ContextFeatures":
        """Raises ValueError where `plain` is no list of features."""
        return cls(_PLAIN.validate_python(tuple(plain)), dim)

    @property
    def plain(self) -> list[dict[str, Any]]:
        return [feature.model_dump(mode="json") for feature in self.features]

    @property
    def _names(self) -> list[str]:
        return [key.replace(".", "/") for key in self.keys]

    def forward(self, codes: Tensor) -> Tensor:
        """[any, dim] from codes [any, features]."""
        parts = [part(codes[..., place]) for place, part in enumerate(self.parts.values())]
        return torch.stack(parts).sum(dim=0)

    def adopt(self, other: "ContextFeatures") -> list[str]:
        """Take over what `other` has of the very same features; the names of those it has not."""
        anew = []
        for name, feature in zip(self._names, self.features, strict=True):
            if feature in other.features:
                self.parts[name] = other.parts[name]
            else:
                anew.append(name)
        return anew


class Buckets(nn.Module):
    """A vector for each bucket of a code; none for 0."""

    def __init__(self, buckets: int, dim: int) -> None:
        super().__init__()
        self.buckets = buckets
        self.weight = nn.Parameter(torch.zeros(buckets, dim))

    def forward(self, codes: Tensor) -> Tensor:
        vectors = functional.embedding((codes - 1).clamp(min=0) % self.buckets, self.weight)
        added: Tensor = vectors * (_GAIN * (codes != 0)[..., None])
        return added


class Doublings(Buckets):
    """Of codes that count: those of which the logarithm has the same whole part share a vector."""

    def forward(self, codes: Tensor) -> Tensor:
        vectors: Tensor = super().forward(torch.frexp(codes.float()).exponent)
        return vectors


class Line(nn.Module):
    """A number's part: an offset, and a direction in which it counts."""

    def __init__(self, feature: NumberFeature, dim: int) -> None:
        super().__init__()
        self.feature = feature
        self.weight = nn.Parameter(torch.zeros(2, dim))

    def forward(self, codes: Tensor) -> Tensor:
        feature, number = self.feature, codes.contiguous().view(torch.float32)
        if feature.log:
            number = number.sign() * number.abs().log1p()
        number = ((number - feature.mean) / feature.scale).clamp(-feature.clip, feature.clip)
        offset, direction = self.weight
        added: Tensor = (offset + number[..., None] * direction) * (codes != 0)[..., None]
        return added  # [any, dim]


def _part(feature: Feature, dim: int) -> nn.Module:
    match feature:
        case CategoryFeature(buckets=buckets):
            return Buckets(buckets, dim)
        case EventKindFeature():
            return Buckets(_KIND_BUCKETS, dim)
        case HourFeature():
            return Buckets(_HOURS, dim)
        case GapFeature():
            return Doublings(_GAPS, dim)
        case NumberFeature():
            return Line(feature, dim)
