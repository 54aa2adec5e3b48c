"""The challenger: model, vocabulary and optimizer, which change, grow and return together."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from service.domain import ItemId, ItemKey
from service.model.recommender import Recommender
from service.model.vocabulary import Vocabulary
from service.settings import ModelSettings, TrainerSettings

_MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Everything `Challenger.restore` needs, in memory; nothing is shared with the model."""

    weights: dict[str, Tensor]
    optimizer: dict[str, Any]


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

    @classmethod
    def new(
        cls, model_settings: ModelSettings, settings: TrainerSettings, device: torch.device
    ) -> "Challenger":
        return cls(Recommender.new(model_settings), Vocabulary(), settings, device)

    def _new_optimizer(self) -> AdamW:
        """AdamW; gains, biases and item vectors are not decayed: it would only shrink them."""
        decayed: list[nn.Parameter] = []
        free: list[nn.Parameter] = []
        for name, parameter in self.model.named_parameters():
            is_matrix = parameter.ndim > 1 and not name.startswith("items.")
            (decayed if is_matrix else free).append(parameter)
        return AdamW(
            [
                {"params": decayed, "weight_decay": self._settings.weight_decay},
                {"params": free, "weight_decay": 0.0},
            ],
            lr=self._settings.learning_rate,
        )

    def set_learning_rate(self, rate: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = rate

    def learn_items(self, items: list[tuple[ItemKey, ItemId]]) -> None:
        """Give unknown items rows; the table and the optimizer's moments grow with them."""
        self.vocabulary = self.vocabulary.extended(items)
        before = self.model.items.weight
        self.model.grow(len(self.vocabulary))
        after = self.model.items.weight
        if after is before:
            return
        state = self.optimizer.state.pop(before, None)
        for group in self.optimizer.param_groups:
            group["params"] = [after if old is before else old for old in group["params"]]
        if state:
            extra = after.shape[0] - before.shape[0]
            for moment in _MOMENTS:
                state[moment] = torch.nn.functional.pad(state[moment], (0, 0, 0, extra))
            self.optimizer.state[after] = state

    def checkpoint(self) -> Checkpoint:
        return Checkpoint(
            {name: tensor.detach().clone() for name, tensor in self.model.state_dict().items()},
            copy.deepcopy(self.optimizer.state_dict()),
        )

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint of this model. Items learned since keep fresh rows."""
        table = checkpoint.weights["items.weight"]
        with torch.no_grad():
            for name, tensor in self.model.state_dict().items():
                kept = checkpoint.weights[name]
                tensor[: len(kept)].copy_(kept) if tensor.ndim else tensor.copy_(kept)
        self.model.renew(len(table))
        # load_state_dict adopts what it is given; the checkpoint may be restored again.
        state = copy.deepcopy(checkpoint.optimizer)
        extra = self.model.items.weight.shape[0] - table.shape[0]
        moments = state["state"].get(self._place_of_table())
        for moment in _MOMENTS if moments else ():
            moments[moment] = torch.nn.functional.pad(moments[moment], (0, 0, 0, extra))
        self.optimizer.load_state_dict(state)

    def _place_of_table(self) -> int:
        """The number by which the optimizer's state dict knows the item table."""
        groups = self.optimizer.param_groups
        places = [id(parameter) for group in groups for parameter in group["params"]]
        return places.index(id(self.model.items.weight))

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
        """Copies of the optimizer's moments and step counts by parameter name, on the CPU."""
        tensors = {}
        for name, parameter in self.model.named_parameters():
            for kind, tensor in self.optimizer.state.get(parameter, {}).items():
                kept = (
                    tensor[: len(self.vocabulary)]
                    if name == "items.weight" and tensor.ndim
                    else tensor
                )
                tensors[f"optimizer.{kind}.{name}"] = kept.detach().cpu().clone()
        return tensors

    def load_optimizer(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `optimizer_tensors` gave. Parameters it does not name start anew."""
        for name, parameter in self.model.named_parameters():
            kinds = {
                kind: tensors[f"optimizer.{kind}.{name}"]
                for kind in ("step", *_MOMENTS)
                if f"optimizer.{kind}.{name}" in tensors
            }
            if kinds:
                self.optimizer.state[parameter] = {
                    kind: tensor.clone() if kind == "step" else tensor.to(parameter.device).clone()
                    for kind, tensor in kinds.items()
                }
