"""The challenger: model, vocabulary and optimizer, which change, grow and return together."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import SGD, AdamW, Optimizer

from service.domain import Bools, Int64s, ItemId, ItemKey
from service.model.item_tower import Described
from service.model.precision import all_finite
from service.model.recommender import TALLY, Recommender
from service.model.vocabulary import NO_ROW, Vocabulary
from service.settings import (
    AdamWSettings,
    ClickSettings,
    ModelSettings,
    SgdSettings,
    TrainerSettings,
)
from service.trainer.row_adam import RowAdam
from service.trainer.sequences import pairs
from service.trainer.undo_log import UndoLog

_ITEMS = "items.weight"
_PROJECTION = "tower.projection.weight"
_STEPS = "optimizer.steps"
_MET = "items.met"
_CLICK = "click.weight"
_OF_BODY = ("backbone.body.", "backbone.adapters.")
# A step of Adam moves every weight alike. Those few stand for more than the many of a network do.
_CLICK_STRIDE = 10.0
_MOMENTUM = "momentum_buffer"
_STRIDE = "stride"  # of a group of weights, beside the others
_OWN = 0.5  # of a new item's random direction, beside that of the items it is met with
_BESIDE = 2  # places from an item within which others tell a new one where to begin
# What the optimizers keep of a weight; another one's is of no use.
_KEPT: dict[type[Optimizer], tuple[str, ...]] = {
    AdamW: ("step", "exp_avg", "exp_avg_sq"),
    SGD: (_MOMENTUM,),
}


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything `Challenger.restore` needs, in memory; nothing is shared with the model."""

    weights: dict[str, Tensor]  # those that are trained
    optimizer: dict[str, Any]
    items: dict[str, Tensor]  # the item table's moments, to the end of the vocabulary
    steps: int
    # Rows since, whose items begin as the mean of others, and their vectors.
    begun: list[tuple[int, Tensor]] = field(default_factory=list)


@dataclass(frozen=True, slots=True, eq=False)
class Savepoint:
    """As a checkpoint, but of the item table only what has moved since, until it is released. It
    is of no use once an item has got or lost its row."""

    weights: dict[str, Tensor]  # those that are trained, but the item table
    optimizer: dict[str, Any]
    items: UndoLog
    steps: int


class Challenger:
    """The candidate that the trainer fine-tunes."""

    def __init__(
        self,
        model: Recommender,
        vocabulary: Vocabulary,
        settings: TrainerSettings,
        device: torch.device,
    ) -> None:
        """Raises ConfigurationError where this model cannot be trained as the settings say."""
        model.backbone.train_only(settings.trained)
        self.model = model.to(device).train()
        self.vocabulary = vocabulary
        self._settings = settings
        self.trained = {
            name: weight
            for name, weight in self.model.named_parameters()
            if weight.requires_grad and name != _ITEMS
        }
        self.optimizer = self._new_optimizer()
        rows, dim = self.model.items.weight.shape
        self.item_optimizer = RowAdam(rows, dim, device)
        self._rates = settings.learning_rate, settings.item_learning_rate
        self._steps = 0
        self._savepoints: list[Savepoint] = []
        self._taught: Tensor | None = None  # `taught`; None: to be looked up
        self._is_taught = torch.zeros(0, dtype=torch.bool)  # and row 0, as far as it is known
        # When each row's item was last met, epoch ms; 0: not known. What was met stays so when a
        # checkpoint is restored. [rows]
        self.met = np.zeros(len(vocabulary), np.int64)

    @classmethod
    def new(
        cls,
        model_settings: ModelSettings,
        settings: TrainerSettings,
        device: torch.device,
        described: Described | None = None,
        click: ClickSettings | None = None,
    ) -> "Challenger":
        """One that has learned nothing, and of the items knows what is `described`; with the
        click head that `click` asks for."""
        sources = described.sources if described else ()
        model = Recommender.new(model_settings, sources)
        if click is not None:
            model.fit_click_head(click)
        challenger = cls(model, Vocabulary(), settings, device)
        if described:
            challenger.describe(described)
        return challenger

    def _new_optimizer(self) -> Optimizer:
        """For all that is trained but the item vectors; gains and biases are not decayed."""
        settings = self._settings
        of_body = (settings.backbone_learning_rate or settings.learning_rate) / (
            settings.learning_rate
        )
        of_click = _CLICK_STRIDE if isinstance(settings.optimizer, AdamWSettings) else 1.0
        # By stride, and whether they are decayed; all of these may stand still.
        trained: dict[tuple[float, bool], list[Tensor]] = {(1.0, True): []}
        for name, weight in self.trained.items():
            is_click = name == _CLICK
            stride = of_click if is_click else of_body if name.startswith(_OF_BODY) else 1.0
            trained.setdefault((stride, weight.ndim > 1 and not is_click), []).append(weight)
        groups = [
            {
                "params": weights,
                "weight_decay": settings.weight_decay if is_decayed else 0.0,
                _STRIDE: stride,
            }
            for (stride, is_decayed), weights in trained.items()
        ]
        match settings.optimizer:
            case AdamWSettings():
                return AdamW(groups, lr=settings.learning_rate, fused=True)
            case SgdSettings(momentum=momentum):
                return SGD(groups, lr=settings.learning_rate, momentum=momentum, fused=True)

    @property
    def items(self) -> int:
        """Items with a row; these are 1 .. `items`."""
        return len(self.vocabulary) - 1

    @property
    def taught(self) -> Tensor:
        """Rows of the items that steps have read or foretold, or are about to. [items]"""
        if self._taught is None:
            self._is_taught = self.item_optimizer.steps > 0
            self._is_taught[NO_ROW] = True
            self._taught = 1 + self._is_taught[1:].nonzero().squeeze(1)
        return self._taught

    def about_to_teach(self, rows: Tensor) -> None:
        """Steps to come read or foretell `rows` [any]; what is undone is forgotten again."""
        taught = self.taught
        new = rows[~self._is_taught[rows]].unique()
        if len(new):
            self._is_taught[new] = True
            self._taught = torch.cat([taught, new])

    def set_learning_rates(self, rate: float, item_rate: float) -> None:
        """From the next step on, and less than that in the first steps of a model."""
        self._rates = rate, item_rate

    def move(self, rows: Tensor, gradient: Tensor) -> None:
        """One step: change what is trained against its gradients, and the item vectors of
        `rows` [n] against `gradient` [n, dim]."""
        for savepoint in self._savepoints:
            savepoint.items.keep(rows, self._of_items)
        self._steps += 1
        warmth = min(self._steps / max(self._settings.warmup_steps, 1), 1.0)
        rate, item_rate = self._rates
        for group in self.optimizer.param_groups:
            group["lr"] = rate * warmth * group[_STRIDE]
        self.optimizer.step()
        self.item_optimizer.step(self.model.items.weight.data, rows, gradient, item_rate * warmth)

    def learn_items(self, items: list[tuple[ItemKey, ItemId]]) -> None:
        """Give unknown items rows; the table and its moments grow with them."""
        self.vocabulary = self.vocabulary.extended(items)
        self.model.grow(len(self.vocabulary))
        capacity = self.model.items.weight.shape[0]
        if capacity > len(self.item_optimizer.steps):
            self.item_optimizer.grow(capacity)
            self._taught = None
        more = len(self.vocabulary) - len(self.met)
        self.met = np.pad(self.met, (0, more)) if more else self.met

    def meet(self, keys: Int64s, time_ms: Int64s) -> None:
        """The items with these keys, all of which have rows, were met at these times."""
        np.maximum.at(self.met, self.vocabulary.rows(keys), time_ms)

    def keep(self, rows: Int64s) -> None:
        """Let all items go but those of `rows` (rising, row 0 first), which move together with all
        that is known of them. Checkpoints from before are of no use after."""
        at = torch.from_numpy(rows).to(self.model.device)
        self.vocabulary = self.vocabulary.kept(rows)
        self.model.keep(at)
        self.item_optimizer.keep(at)
        self._taught = None
        self.met = self.met[rows]

    def describe(self, described: Described, checkpoint: Checkpoint | None = None) -> None:
        """Give items of the catalogue rows, and what is known of them. New ones of which nothing
        is begin as the mean of those in their category. In `checkpoint`, too, those that were
        taught keep their vectors, and those that begin as a mean begin so again."""
        before = len(self.vocabulary)
        self.learn_items(list(described.items))
        rows = self.vocabulary.rows(described.keys)
        known = self._frozen_of(rows)
        self.model.describe(rows, described.frozen, described.digests, ~self._are_taught(rows))
        if checkpoint is not None:
            self._keep_vectors(checkpoint, rows, known)
        for place, keys in described.alike.items():
            alike = self.vocabulary.rows(keys)
            is_described = self.digests(keys).any(axis=1)
            alike = alike[(alike != NO_ROW) & ((alike < before) | is_described)]
            if rows[place] >= before and len(alike):
                self.model.settle(np.full(len(alike), rows[place]), alike, own=0.0)
                if checkpoint is not None:
                    row = int(rows[place])
                    checkpoint.begun.append((row, self.model.items.weight[row].detach().clone()))

    def _frozen_of(self, rows: Int64s) -> Tensor | None:
        """Frozen vectors of `rows`. [rows, width]"""
        tower = self.model.tower
        return tower.frozen[torch.from_numpy(rows)].float() if tower else None

    @torch.no_grad()
    def _keep_vectors(self, checkpoint: Checkpoint, rows: Int64s, known: Tensor | None) -> None:
        """What its projection says otherwise of `rows` than when they were `known` so is taken off
        the checkpoint's id vectors, if a step had moved them; the others become what their
        description says."""
        now = self._frozen_of(rows)
        if known is None or now is None:
            return
        steps = checkpoint.items["steps"]
        at = torch.from_numpy(rows)
        known, now, at = (one[at < len(steps)] for one in (known, now, at))
        taught = (steps[at] > 0).cpu()
        projection = checkpoint.weights.get(_PROJECTION, self.model.state_dict()[_PROJECTION])
        change = (known - now)[taught] @ projection.T  # [taught, dim]
        table = checkpoint.weights[_ITEMS]
        table[at[taught]] += change
        table[at[~taught]] = self.model.unmoved(table[at[~taught]], at[~taught])

    def settle(self, items: Int64s) -> None:
        """Let items that no step has moved begin beside those they are met with.

        items [sequences, length] are item keys. An item that is described stays where its
        description puts it.
        """
        rows = self.vocabulary.rows(items)
        is_taught = self._are_taught(rows)
        is_new = ~is_taught
        if self.model.tower:
            is_new &= ~self.model.tower.digests[rows].any(axis=-1)
        is_item = rows != NO_ROW
        new, near = pairs(rows, is_new & is_item, is_taught & is_item, _BESIDE)
        at = torch.from_numpy(np.unique(new)).to(self.model.device)
        for savepoint in self._savepoints:
            savepoint.items.keep(at, self._of_items)
        self.model.settle(new, near, own=_OWN)

    def _are_taught(self, rows: Int64s) -> Bools:
        """Which rows a step has moved. Same shape."""
        steps = self.item_optimizer.steps
        return (steps[torch.from_numpy(rows).to(steps.device)] > 0).cpu().numpy()

    def digests(self, keys: Int64s) -> Int64s:
        """Of what each source says of items, as far as it was told. [keys, sources]"""
        tower = self.model.tower
        rows = self.vocabulary.rows(keys)
        return tower.digests[rows] if tower else np.zeros((len(rows), 0), np.int64)

    def knows(self, keys: Int64s) -> Bools:
        """Which items have a row."""
        known: Bools = self.vocabulary.rows(keys) != NO_ROW
        return known

    @property
    def _of_items(self) -> tuple[Tensor, ...]:
        """The item table and its moments, a row an item."""
        moments = self.item_optimizer
        return self.model.items.weight.data, moments.mean, moments.square, moments.steps

    def savepoint(self) -> Savepoint:
        """Where `undo` comes back to. The caller releases it."""
        table = self.model.items.weight
        log = UndoLog(len(table), table.device)
        made = Savepoint(self._copied_weights(), self._copied_optimizer(), log, self._steps)
        self._savepoints.append(made)
        return made

    def release(self, savepoint: Savepoint) -> None:
        """It and those made after it are needed no more."""
        del self._savepoints[self._savepoints.index(savepoint) :]

    def undo(self, to: Savepoint) -> None:
        """Go back to a savepoint, from which steps and `settle` alone have led here. It stays one;
        those made after it are none any more."""
        del self._savepoints[self._savepoints.index(to) + 1 :]
        to.items.put_back(self._of_items)
        self._taught = None
        self._put_back(to.weights, to.optimizer, to.steps)

    def checkpoint(self) -> Checkpoint:
        """A copy of all. It takes as long as the catalogue is large."""
        weights = self._copied_weights() | {_ITEMS: self.model.items.weight.detach().clone()}
        moments = self.item_optimizer.tensors(len(self.vocabulary))
        return Checkpoint(weights, self._copied_optimizer(), moments, self._steps)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint of this model. Items learned since keep fresh rows."""
        items = checkpoint.weights[_ITEMS]
        self.model.items.weight.data[: len(items)] = items
        self.model.renew(len(checkpoint.items["steps"]))
        tower = self.model.tower
        for row, vector in checkpoint.begun:
            if tower is None or not tower.digests[row].any():  # else it is described by now
                self.model.items.weight.data[row] = vector
        self.item_optimizer.load(checkpoint.items)
        self._taught = None
        self._put_back(checkpoint.weights, checkpoint.optimizer, checkpoint.steps)

    def _copied_weights(self) -> dict[str, Tensor]:
        return {name: weight.detach().clone() for name, weight in self.trained.items()}

    def _copied_optimizer(self) -> dict[str, Any]:
        return _copied(self.optimizer.state_dict())

    def _put_back(
        self, weights: Mapping[str, Tensor], optimizer: dict[str, Any], steps: int
    ) -> None:
        """All that is trained but the item table."""
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.copy_(weights[name])
        # load_state_dict adopts what it is given, which may have to be put back again.
        self.optimizer.load_state_dict(_copied(optimizer))
        self._steps = steps

    def frozen_copy(self) -> Recommender:
        """The model as it is now, to be read; what is never trained is not copied."""
        shared: dict[int, Any] = {
            id(weight): weight for weight in self.model.parameters() if not weight.requires_grad
        }
        return copy.deepcopy(self.model.folded(), shared).eval()

    def is_finite(self, since: Savepoint | None = None) -> bool:
        """Whether all weights are, or all that steps have moved since."""
        items = self.model.items.weight
        moved = items if since is None else items[since.items.rows]
        return all(map(all_finite, (*self.trained.values(), moved)))

    def weights(self, rows: Int64s | None = None) -> dict[str, Tensor]:
        """The weights on the CPU, what is of items cut to `rows` or the vocabulary; copies of those
        that change."""
        frozen = self.model.frozen
        weights = {
            name: tensor.detach().cpu() if name in frozen else tensor.detach().cpu().clone()
            for name, tensor in self.model.state_dict().items()
        }
        items = {
            name: weights[name][: len(self.vocabulary)].clone()
            for name in (_ITEMS, TALLY)
            if name in weights
        }
        return weights | _only(items, rows)

    def described(self, rows: Int64s | None = None) -> dict[str, Tensor]:
        """What is known of the items of `rows` or the vocabulary, on the CPU; empty without a
        tower."""
        tower = self.model.tower
        return _only(tower.tensors(len(self.vocabulary)), rows) if tower else {}

    def optimizer_tensors(self, rows: Int64s | None = None) -> dict[str, Tensor]:
        """Copies of the optimizers' moments and step counts, on the CPU, and of when items were
        met; of the items those of `rows` or the vocabulary."""
        tensors = {
            f"optimizer.{kind}.{name}": tensor.detach().cpu().clone()
            for name, weight in self.trained.items()
            for kind, tensor in self.optimizer.state.get(weight, {}).items()
            if tensor is not None
        }
        tensors[_STEPS] = torch.tensor(float(self._steps))
        moments = self.item_optimizer.tensors(len(self.vocabulary))
        items = {f"optimizer.items.{kind}": kept.cpu() for kind, kept in moments.items()}
        items[_MET] = torch.from_numpy(self.met.copy())
        return tensors | _only(items, rows)

    def load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `optimizer_tensors` gave. What it does not name, has another shape, or was
        another kind of optimizer's, starts anew."""
        kept = _KEPT[type(self.optimizer)]
        for name, weight in self.trained.items():
            kinds = {kind: tensors.get(f"optimizer.{kind}.{name}") for kind in kept}
            found = {kind: each for kind, each in kinds.items() if each is not None}
            fits = all(each.shape in (weight.shape, ()) for each in found.values())
            if fits and found.keys() == kinds.keys():
                self.optimizer.state[weight] = {
                    kind: tensor.to(weight.device).clone() for kind, tensor in found.items()
                }
        if isinstance(self.optimizer, SGD) and self.optimizer.state:
            # It takes momentum for all weights or for none; 0 is what a first step begins with.
            for weight in self.trained.values():
                if weight not in self.optimizer.state:
                    self.optimizer.state[weight] = {_MOMENTUM: torch.zeros_like(weight)}
        if _STEPS in tensors:
            self._steps = int(tensors[_STEPS])
        of_items = "optimizer.items."
        items = {
            name.removeprefix(of_items): tensor
            for name, tensor in tensors.items()
            if name.startswith(of_items)
        }
        if items:
            self.item_optimizer.load(items)
            self._taught = None
        if _MET in tensors:  # versions from before it was kept have none
            self.met = tensors[_MET].numpy().copy()


def _only(tensors: dict[str, Tensor], rows: Int64s | None) -> dict[str, Tensor]:
    """Of each tensor `rows`; all where these are None."""
    if rows is None:
        return tensors
    at = torch.from_numpy(rows)
    return {name: tensor[at] for name, tensor in tensors.items()}


def _copied(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state dict, which nothing else moves. `deepcopy` takes ten times as long."""
    moments = {
        weight: {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in of_weight.items()
        }
        for weight, of_weight in state["state"].items()
    }
    return {"state": moments, "param_groups": [dict(group) for group in state["param_groups"]]}
