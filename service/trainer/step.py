"""One optimizer step."""

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from service.errors import NonFiniteError
from service.model.losses import candidates, sampled_softmax
from service.model.precision import has_fast_bf16
from service.model.vocabulary import NO_ROW
from service.settings import TrainerSettings
from service.trainer.anchor import Anchor
from service.trainer.challenger import Challenger
from service.trainer.packing import Packed


def train_step(
    challenger: Challenger,
    batch: Packed,
    *,
    temperature: float,
    settings: TrainerSettings,
    anchor: Anchor | None = None,
) -> float:
    """Teach the challenger the labels of a batch, held by `anchor`; give the loss in nats.

    Only the item vectors that the batch and its negatives name are read and changed, so the
    cost does not grow with the catalogue. Raises NonFiniteError before a weight changes when
    loss or gradient is not finite.
    """
    model, device = challenger.model, batch.item.device
    wanted = batch.label != NO_ROW  # [rows, width]
    target = batch.label[wanted]  # [targets]
    drawn = candidates(challenger.items, settings.negatives, device)  # [negatives]
    used, place = torch.unique(
        torch.cat([batch.item.flatten(), target, drawn]), return_inverse=True
    )
    own = model.items.weight.detach()[used].requires_grad_()  # [used, dim]
    inputs, right, wrong = place.split([batch.item.numel(), len(target), len(drawn)])
    with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
        vectors = model.tower.join(own, used, settings.id_dropout) if model.tower else own
        states = model.states(vectors[inputs].view(*batch.item.shape, -1), batch.position)
        loss = sampled_softmax(
            states[wanted],
            target,
            vectors[right],
            drawn,
            vectors[wrong],
            items=challenger.items,
            temperature=temperature,
        )
        if anchor is not None:
            loss = loss + anchor.pull(
                challenger, batch, states, drawn, vectors[wrong], temperature=temperature
            )
    value = float(loss.detach())
    if not torch.isfinite(loss):
        raise NonFiniteError(f"training loss is {value}")
    challenger.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    _apply(challenger, used, own, settings.clip_norm)
    return value


def _apply(challenger: Challenger, used: Tensor, vectors: Tensor, clip_norm: float) -> None:
    """Move weights and the used id vectors [used, dim] against their gradients."""
    norm = clip_grad_norm_([*challenger.trained.values(), vectors], clip_norm)
    if not torch.isfinite(norm):
        raise NonFiniteError(f"gradient norm is {float(norm)}")
    gradient = vectors.grad
    if gradient is not None:
        challenger.move(used, gradient)
