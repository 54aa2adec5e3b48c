"""One optimizer step."""

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from service.errors import NonFiniteError
from service.model.losses import sampled_softmax
from service.model.recommender import Recommender
from service.settings import TrainerSettings


def train_step(
    model: Recommender,
    optimizer: Optimizer,
    rows: Tensor,
    target: Tensor,
    *,
    items: int,
    temperature: float,
    settings: TrainerSettings,
) -> float:
    """Teach the model the marked events from what stands before each; give the loss in nats.

    rows [batch, length] and target [batch, length], of which the first place is never one.
    Only the first `items` rows of the item table are candidates. Raises NonFiniteError before
    the weights change when loss or gradient is not finite.
    """
    wanted = target[:, 1:]
    with torch.autocast(rows.device.type, torch.bfloat16, enabled=rows.device.type == "cuda"):
        states = model(rows[:, :-1])  # [batch, length - 1, dim]
        loss = sampled_softmax(
            states[wanted],  # [targets, dim]
            rows[:, 1:][wanted],  # [targets]
            model.items.weight[:items],
            negatives=settings.negatives,
            temperature=temperature,
        )
    value = float(loss.detach())
    if not torch.isfinite(loss):
        raise NonFiniteError(f"training loss is {value}")
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    norm = clip_grad_norm_(model.parameters(), settings.clip_norm)
    if not torch.isfinite(norm):
        raise NonFiniteError(f"gradient norm is {float(norm)}")
    optimizer.step()
    return value
