"""The recommender: an item table and a causal backbone, compared by cosine."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.initialization import no_init_weights

from service.domain import Bools, Float32s, Int64s
from service.errors import ConfigurationError
from service.model.added import added_from
from service.model.backbone import (
    Backbone,
    backbone_from_config,
    make_backbone,
    with_dropout,
)
from service.model.click_head import ClickHead, head_from
from service.model.context import ContextFeatures
from service.model.item_tower import ItemTower, Source
from service.model.readout import Readout, readout_from
from service.settings import ClickSettings, Feature, ModelSettings, PretrainedBackbone

TALLY = "click.tally"  # where there is a click head; its rows are those of the item table
# Length of the id vector of a new item that is described: enough to have a direction.
_FAINT = 0.1
_SAME = 1e-4  # noise of arithmetic


class Recommender(nn.Module):
    """Scores every item as the next of a sequence of items.

    Row 0 of the item table is no item: padding. The table may have more rows than the
    vocabulary; only the first `rows` count. A `tower`, where there is one, adds to its vectors.
    `click` is None where no clicks are learned, `context` where nothing but items is read,
    `readout` where the backbone's own states are compared with the items.
    """

    def __init__(
        self,
        backbone: Backbone,
        rows: int,
        dim: int,
        click: ClickHead | None = None,
        readout: Readout | None = None,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.readout = readout
        self.click = click
        self.items = nn.Embedding(rows, dim)
        self.tower: ItemTower | None = None
        self.context: ContextFeatures | None = None
        _init_rows(self.items.weight, 0)

    @classmethod
    def new(cls, settings: ModelSettings, sources: Sequence[Source] = ()) -> "Recommender":
        """A model that knows no item yet. Same settings, same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.seed)
            backbone = make_backbone(settings)
            model = cls(backbone, rows=1, dim=settings.dim, readout=Readout.of(settings))
            model.tower = ItemTower(sources, 1, settings.dim) if sources else None
            model.fit_context(settings.context)
        if isinstance(settings.backbone, PretrainedBackbone):
            model.require_versions(settings.max_length)
        return model

    @torch.no_grad()
    def require_versions(self, length: int) -> None:
        """Raises ConfigurationError where a body built again from shape and weights, as that of
        each version is, does not read a history of `length` as this one does."""
        vectors = torch.randn(1, length, self.items.embedding_dim)
        was_training = self.training
        states = self.eval().backbone(vectors)
        self.train(was_training)
        reason = "it gives other states then"
        try:
            described = self.tower.tensors(self.items.num_embeddings) if self.tower else None
            built = Recommender.from_weights(self.shape, self.state_dict(), described)
            again = built.backbone(vectors)
            if torch.allclose(again, states, atol=_SAME):
                return
        except Exception as error:  # noqa: BLE001  # each family breaks in its own way
            reason = str(error).partition("\n")[0]
        raise ConfigurationError(
            "model.backbone: this kind of model cannot be built again from its configuration, as "
            f"each version has to be ({reason}); choose another"
        )

    @classmethod
    def from_weights(
        cls,
        shape: dict[str, Any],
        weights: dict[str, Tensor],
        described: dict[str, Tensor] | None = None,
    ) -> "Recommender":
        """The model that `shape`, `state_dict` and the `tensors` of its tower describe.

        Built without storage and given `weights` as its own, so that it costs no
        initialisation: a hot swap does this beside live scoring.
        """
        table = weights["items.weight"]

        def build() -> "Recommender":
            backbone = backbone_from_config(shape["backbone"], table.shape[1])
            added = added_from(shape.get("added"))
            if added is not None:
                backbone.add(added)
            rows, dim = table.shape
            # Versions from before there were any have no head and no readout.
            click = head_from(shape.get("click"), rows)
            model = cls(backbone, rows, dim, click, readout_from(shape.get("readout"), dim))
            if "tower" in shape:
                model.tower = ItemTower.from_plain(shape["tower"], *table.shape)
            if "context" in shape:
                model.context = ContextFeatures.from_plain(shape["context"], dim)
            return model

        with torch.device("meta"):
            model = build()
        if any(buffer.is_meta for buffer in model.backbone.buffers()):
            # Rotary frequencies and the like are computed at construction and not saved.
            with no_init_weights():
                model = build()
        if model.click is None:
            weights = {
                name: kept for name, kept in weights.items() if not name.startswith("click.")
            }
        model.load_state_dict(weights, assign=True)
        if model.tower:
            model.tower.load(described or {})
        return model.eval()

    @staticmethod
    def with_dropout(shape: dict[str, Any], settings: ModelSettings) -> dict[str, Any]:
        """A shape with the dropout of the settings."""
        readout = shape.get("readout")
        return {
            **shape,
            "backbone": with_dropout(shape["backbone"], settings),
            "readout": readout and {**readout, "dropout": settings.own_dropout},
        }

    @property
    def shape(self) -> dict[str, Any]:
        """What `from_weights` needs beside the weights, as plain data."""
        added = self.backbone.added
        tower = {"tower": self.tower.plain} if self.tower else {}
        context = {"context": self.context.plain} if self.context else {}
        return {
            "backbone": self.backbone.config,
            "added": None if added is None else added.model_dump(mode="json"),
            "click": None if self.click is None else self.click.shape,
            "readout": None if self.readout is None else self.readout.plain,
            **tower,
            **context,
        }

    @property
    def frozen(self) -> frozenset[str]:
        """Names of the weights that never change."""
        trained = {name for name, weight in self.named_parameters() if weight.requires_grad}
        counted = {name for name, _ in self.click.named_buffers("click")} if self.click else set()
        return frozenset(self.state_dict().keys() - trained - counted)

    def fit_click_head(self, settings: ClickSettings) -> bool:
        """Have the click head of the settings: the same, a new one, or none. Whether it is the
        same."""
        wanted = ClickHead.of(settings, self.items.num_embeddings)
        if (wanted and wanted.shape) == (self.click and self.click.shape):
            return True
        self.click = wanted.to(self.device) if wanted else None
        return False

    def fit_context(self, features: Sequence[Feature]) -> list[str]:
        """Read these features of the context: what was learned of the very same ones stays, others
        begin without effect. Gives the names of the weights that begin so."""
        wanted = ContextFeatures(features, self.items.embedding_dim).to(self.device)
        anew = wanted.adopt(self.context) if self.context else list(wanted.parts)
        self.context = wanted if features else None
        return [f"context.parts.{name}.weight" for name in anew]

    @property
    def features(self) -> tuple[str, ...]:
        """Keys of the columns of codes that it reads."""
        return self.context.keys if self.context else ()

    @property
    def device(self) -> torch.device:
        return self.items.weight.device

    def forward(self, rows: Tensor, codes: Tensor | None = None) -> Tensor:
        """States after each event. [batch, length, dim] from rows [batch, length] and codes
        [batch, length, features]; without codes nothing is known of the context."""
        return self.states(self.vectors(rows), codes=codes)

    def vectors(self, rows: Tensor) -> Tensor:
        """Item vectors. [any, dim] from rows [any]."""
        own: Tensor = self.items(rows)
        return own + self.tower(rows) if self.tower else own

    def states(
        self, vectors: Tensor, positions: Tensor | None = None, codes: Tensor | None = None
    ) -> Tensor:
        """As `forward`, from item vectors; `positions` as in `Backbone`."""
        read = vectors
        if self.context is not None and codes is not None:
            read = vectors + self.context(codes)
        states: Tensor = self.backbone(read, positions)
        return self.readout(states, read, positions) if self.readout else states

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
        for of_rows in (self.tower, self.click):
            if of_rows:
                of_rows.grow(capacity)

    @torch.no_grad()
    def keep(self, rows: Tensor) -> None:
        """Only `rows` of the item table, in this order, row 0 first."""
        self.items = nn.Embedding.from_pretrained(self.items.weight[rows], freeze=False)
        for of_rows in (self.tower, self.click):
            if of_rows:
                of_rows.keep(rows)

    @torch.no_grad()
    def renew(self, start: int) -> None:
        """Fresh id vectors for the rows of the item table from `start` on."""
        _init_rows(self.items.weight, start)
        if self.tower:
            faint = torch.where(self.tower.is_described(start), _FAINT, 1.0)
            self.items.weight[start:] *= faint[:, None]

    @torch.no_grad()
    def describe(self, rows: Int64s, frozen: Float32s, digests: Int64s, untaught: Bools) -> None:
        """Other frozen vectors for `rows`, none of them twice.

        Those that are `untaught` become what their description says. The others keep their
        vectors for now: what the projection says of them otherwise is taken off the id vectors.
        """
        if self.tower is None:
            return
        at = torch.from_numpy(rows).to(self.device)
        kept = self.vectors(at)
        self.tower.put(rows, frozen, digests)
        fresh = self.unmoved(self.items.weight[at], at)
        new = torch.from_numpy(untaught).to(self.device)
        self.items.weight[at] = torch.where(new[:, None], fresh, kept - self.tower(at))

    def unmoved(self, own: Tensor, at: Tensor) -> Tensor:
        """Id vectors [n, dim] of the rows `at` [n], which no step has moved, as these are: short
        where the item is described."""
        fresh = functional.normalize(own, dim=-1)
        if self.tower:
            fresh = fresh * torch.where(self.tower.is_described(0)[at], _FAINT, 1.0)[:, None]
        return fresh

    @torch.no_grad()
    def settle(self, rows: Int64s, near: Int64s, own: float) -> None:
        """Turn the id vectors of `rows` [pairs] toward the items `near` [pairs] them, all of them
        together. So much as `own` of its direction stays beside theirs, so that no two become
        the same."""
        found, place = np.unique(rows, return_inverse=True)
        at, beside = (torch.from_numpy(one).to(self.device) for one in (found, near))
        kept = functional.normalize(self.items.weight[at], dim=-1)  # [items, dim]
        toward = torch.zeros_like(kept)
        toward.index_add_(
            0, torch.from_numpy(place).to(self.device), unit_rows(self.vectors(beside))
        )
        toward = functional.normalize(toward, dim=-1)
        self.items.weight[at] = functional.normalize(toward + own * kept, dim=-1)

    def table(self, rows: int) -> Tensor:
        """Item vectors of the first `rows` rows; not for training. [rows, dim]"""
        table = self.items.weight.detach()[:rows]
        return table + self.tower.added(rows) if self.tower else table

    def with_tower(self, sources: Sequence[Source]) -> "Recommender":
        """The same with a tower of these sources, in which nothing is described yet; the backbone
        is shared. With the tower that it has, or none where there are no sources, it is this very
        model. A model that knows items keeps their vectors."""
        if tuple(sources) == (self.tower.sources if self.tower else ()):
            return self
        changed = self.folded()
        if sources:
            rows, dim = changed.items.weight.shape
            changed.tower = ItemTower(sources, rows, dim)
        return changed

    def folded(self) -> "Recommender":
        """The same without a tower: what it adds stands in the item table. The backbone is shared,
        and without a tower it is this very model."""
        if self.tower is None:
            return self
        table = self.table(self.items.num_embeddings)
        folded = Recommender(self.backbone, 1, self.items.embedding_dim).train(self.training)
        folded.items = nn.Embedding.from_pretrained(table, freeze=False)
        folded.click, folded.context, folded.readout = self.click, self.context, self.readout
        return folded


def unit_rows(table: Tensor) -> Tensor:
    """Item vectors scaled to length 1; row 0 stays zero. [rows, dim]"""
    return functional.normalize(table, dim=-1)


def _init_rows(weight: Tensor, start: int) -> None:
    """Vectors of length about 1 from row `start` on; row 0 is zero."""
    with torch.no_grad():
        nn.init.normal_(weight[start:], std=weight.shape[1] ** -0.5)
        if start == 0:
            weight[0] = 0.0
