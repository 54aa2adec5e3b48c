"""The challenger: model, vocabulary and optimizer, which change, grow and return together."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW

from service.domain import ItemId, ItemKey
from service.model.recommender import Recommender
from service.model.vocabulary import Vocabulary
from service.settings import ModelSettings, TrainerSettings
from service.trainer.row_adam import RowAdam

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything `Challenger.restore` needs, in memory; nothing is shared with the model."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]
    items: dict[str, Tensor]  # the item table's moments, to the end of the vocabulary


class Challenger:
    """The candidate that the trainer fine-tunes."""

    def __init__(
        self,
        model: Recommender,
        vocabulary: Vocabulary,
        settings: TrainerSettings,
        device: torch.device,
    ) -> None:
        self.model = model.to(device).train()
        self.vocabulary = vocabulary
        self._settings = settings
        self.optimizer = self._new_optimizer()
        rows, dim = self.model.items.weight.shape
        self.item_optimizer = RowAdam(rows, dim, device)
        self._item_rate = settings.item_learning_rate

    @classmethod
    def new(
        cls, model_settings: ModelSettings, settings: TrainerSettings, device: torch.device
    ) -> "Challenger":
        return cls(Recommender.new(model_settings), Vocabulary(), settings, device)

    def _new_optimizer(self) -> AdamW:
        """AdamW for all but the item vectors; gains and biases are not decayed."""
        parameters = list(self.model.backbone.parameters())
        return AdamW(
            [
                {
                    "params": [one for one in parameters if one.ndim > 1],
                    "weight_decay": self._settings.weight_decay,
                },
                {"params": [one for one in parameters if one.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=self._settings.learning_rate,
            fused=True,
        )

    @property
    def items(self) -> int:
        """Items with a row; these are 1 .. `items`."""
        return len(self.vocabulary) - 1

    def set_learning_rates(self, rate: float, item_rate: float) -> None:
        self._item_rate = item_rate
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def move_items(self, rows: Tensor, gradient: Tensor) -> None:
        """Change the vectors of `rows` [n] against `gradient` [n, dim]."""
        self.item_optimizer.step(self.model.items.weight.data, rows, gradient, self._item_rate)

    def learn_items(self, items: list[tuple[ItemKey, ItemId]]) -> None:
        """Give unknown items rows; the table and its moments grow with them."""
        self.vocabulary = self.vocabulary.extended(items)
        self.model.grow(len(self.vocabulary))
        self.item_optimizer.grow(self.model.items.weight.shape[0])

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()},
            copy.deepcopy(self.optimizer.state_dict()),
            self.item_optimizer.tensors(len(self.vocabulary)),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint of this model. Items learned since keep fresh rows."""
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                kept = checkpoint.weights[name]
                tensor[: len(kept)].copy_(kept) if tensor.ndim else tensor.copy_(kept)
        self.model.renew(len(checkpoint.weights["items.weight"]))
        # load_state_dict adopts what it is given; the checkpoint may be restored again.
        self.optimizer.load_state_dict(copy.deepcopy(checkpoint.optimizer))
        self.item_optimizer.load(checkpoint.items)

    def is_finite(self) -> bool:
        return all(bool(torch.isfinite(weight).all()) for weight in self.model.parameters())

    def weights(self) -> dict[str, Tensor]:
        """Copies of the weights on the CPU, the item table cut to the vocabulary."""
        weights = {
            name: tensor.detach().cpu().clone() for name, tensor in self.model.state_dict().items()
        }
        weights["items.weight"] = weights["items.weight"][: len(self.vocabulary)].clone()
        return weights

    def optimizer_tensors(self) -> dict[str, Tensor]:
        """Copies of the optimizers' moments and step counts, on the CPU."""
        tensors = {
            f"optimizer.{kind}.{name}": tensor.detach().cpu().clone()
            for name, parameter in self.model.backbone.named_parameters("backbone")
            for kind, tensor in self.optimizer.state.get(parameter, {}).items()
        }
        items = self.item_optimizer.tensors(len(self.vocabulary))
        return tensors | {f"optimizer.items.{kind}": kept.cpu() for kind, kept in items.items()}

    def load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `optimizer_tensors` gave. Parameters it does not name start anew."""
        for name, parameter in self.model.backbone.named_parameters("backbone"):
            kinds = {
                kind: tensors[f"optimizer.{kind}.{name}"]
                for kind in ("step", *_MOMENTS)
                if f"optimizer.{kind}.{name}" in tensors
            }
            if kinds:
                self.optimizer.state[parameter] = {
                    kind: tensor.to(parameter.device).clone() for kind, tensor in kinds.items()
                }
        of_items = "optimizer.items."
        items = {
            name.removeprefix(of_items): tensor
            for name, tensor in tensors.items()
            if name.startswith(of_items)
        }
        if items:
            self.item_optimizer.load(items)
