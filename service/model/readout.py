"""States as mixtures of what the history holds, in the space of the item vectors.

    mixture at place t = sum over places i <= t of its sequence of  weight(t, i) x input i
    weight(t, .)       = softmax of  query . key / sqrt(dim),  both linear in the backbone's states
    state              = mixture + turn x mixture,  a matrix that is 0 at first

An input is an item vector with what its context features add. The backbone says how much each
counts, and nothing else: states lie among the item vectors from the first step on, where a
body's own output has to learn that first. These are the consistent representations of CORE
(Hou et al., SIGIR 2022), with weights that depend on the place that asks too. A mixture alone
cannot say that one item leads on to another; the turn can.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from service.settings import ModelSettings, ReadoutKind


class Readout(nn.Module):
    """Reads states off inputs, of which a share of `dropout` is left out in training."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.query = nn.Linear(dim, dim, bias=False)
        self.key = nn.Linear(dim, dim, bias=False)
        self.turn = nn.Linear(dim, dim, bias=False)
        nn.init.zeros_(self.turn.weight)

    @classmethod
    def of(cls, settings: ModelSettings) -> "Readout | None":
        """A new one; None where the settings do without."""
        wanted = settings.readout is ReadoutKind.ITEMS
        return cls(settings.dim, settings.own_dropout) if wanted else None

    @property
    def plain(self) -> dict[str, Any]:
        """What it is rebuilt from, beside the weights."""
        return {"dropout": self.dropout}

    def forward(self, states: Tensor, inputs: Tensor, positions: Tensor | None = None) -> Tensor:
        """States [batch, length, dim] from the backbone's and the inputs in the same places, both
        of that shape; `positions` as in `Backbone`."""
        query, key = self.query(states), self.key(states)
        value = functional.dropout(inputs, self.dropout, self.training)
        seen = None if positions is None else _seen(positions)
        mixture = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=seen, is_causal=seen is None
        )
        turned: Tensor = self.turn(mixture)
        return mixture + turned


def _seen(positions: Tensor) -> Tensor:
    """Whether a place stands in the same sequence as another, and not behind it. [batch, length,
    length]"""
    length = positions.shape[1]
    past = torch.ones(length, length, dtype=torch.bool, device=positions.device).tril()
    sequence = (positions == 0).cumsum(dim=1)  # [batch, length] which one of its row
    return past & (sequence[:, :, None] == sequence[:, None, :])


def readout_from(shape: dict[str, Any] | None, dim: int) -> Readout | None:
    """The readout whose `plain` is given; None of None."""
    return Readout(dim, shape["dropout"]) if shape else None
