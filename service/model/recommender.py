"""The recommender: an item table and a causal backbone, compared by cosine."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.initialization import no_init_weights

from service.model.added import added_from
from service.model.backbone import Backbone, backbone_from_config, make_backbone
from service.settings import ModelSettings


class Recommender(nn.Module):
    """Scores every item as the next of a sequence of items.

    Row 0 of the item table is no item: padding. The table may have more rows than the
    vocabulary; only the first `rows` count.
    """

    def __init__(self, backbone: Backbone, rows: int, dim: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.items = nn.Embedding(rows, dim)
        _init_rows(self.items.weight, 0)

    @classmethod
    def new(cls, settings: ModelSettings) -> "Recommender":
        """A model that knows no item yet. Same settings, same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            return cls(make_backbone(settings), rows=1, dim=settings.dim)

    @classmethod
    def from_weights(cls, shape: dict[str, Any], weights: dict[str, Tensor]) -> "Recommender":
        """The model that `shape` and `state_dict` describe.

        Built without storage and given `weights` as its own, so that it costs no
        initialisation: a hot swap does this beside live scoring.
        """
        table = weights["items.weight"]

        def build() -> "Recommender":
            backbone = backbone_from_config(shape["backbone"], table.shape[1])
            added = added_from(shape.get("added"))
            if added is not None:
                backbone.add(added)
            return cls(backbone, *table.shape)

        with torch.device("meta"):
            model = build()
        if any(buffer.is_meta for buffer in model.buffers()):
            # Rotary frequencies and the like are computed at construction and not saved.
            with no_init_weights():
                model = build()
        model.load_state_dict(weights, assign=True)
        return model.eval()

    @property
    def shape(self) -> dict[str, Any]:
        """What `from_weights` needs beside the weights, as plain data."""
        added = self.backbone.added
        return {
            "backbone": self.backbone.config,
            "added": None if added is None else added.model_dump(mode="json"),
        }

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the weights that are never trained."""
        trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        return frozenset(self.state_dict().keys() - trained)

    @property
    def device(self) -> torch.device:
        return self.items.weight.device

    def forward(self, rows: Tensor) -> Tensor:
        """States after each event. [batch, length, dim] from rows [batch, length]."""
        return self.states(self.items(rows))

    def states(self, vectors: Tensor, positions: Tensor | None = None) -> Tensor:
        """As `forward`, from item vectors; `positions` as in `Backbone`."""
        states: Tensor = self.backbone(vectors, positions)
        return states

    def grow(self, rows: int) -> None:
        """Give the item table `rows` rows at least; doubled, so that growing is rare."""
        old = self.items.weight
        if rows <= old.shape[0]:
            return
        capacity = max(rows, 2 * old.shape[0])
        larger = nn.Embedding(capacity, old.shape[1], device=old.device)
        _init_rows(larger.weight, old.shape[0])
        with torch.no_grad():
            larger.weight[: old.shape[0]] = old
        self.items = larger

    def renew(self, start: int) -> None:
        """Fresh vectors for the rows of the item table from `start` on."""
        _init_rows(self.items.weight, start)


def unit_rows(table: Tensor) -> Tensor:
    """Item vectors scaled to length 1; row 0 stays zero. [rows, dim]"""
    return functional.normalize(table, dim=-1)


def _init_rows(weight: Tensor, start: int) -> None:
    """Vectors of length about 1 from row `start` on; row 0 is zero."""
    with torch.no_grad():
        nn.init.normal_(weight[start:], std=weight.shape[1] ** -0.5)
        if start == 0:
            weight[0] = 0.0
