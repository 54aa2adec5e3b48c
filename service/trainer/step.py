"""One optimizer step."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils import clip_grad_norm_

from service.errors import NonFiniteError
from service.model.click_head import ClickHead
from service.model.losses import candidates, sampled_softmax
from service.model.precision import has_fast_bf16
from service.model.recommender import Recommender
from service.model.vocabulary import NO_ROW
from service.settings import TrainerSettings
from service.trainer.adversarial import shifted
from service.trainer.anchor import Anchor
from service.trainer.challenger import Challenger
from service.trainer.packing import Packed


@dataclass(frozen=True, slots=True)
class ClickBatch:
    """What a step reads of labelled events, and how much their loss counts."""

    weight: float
    context: Tensor  # [rows, length] item rows, NO_ROW behind the last
    length: Tensor  # [rows] of each context; 0: nothing of it is known
    item: Tensor  # [rows] item rows
    signs: Tensor  # [rows, ECHOES + STANDING]
    label: Tensor  # [rows]
    codes: Tensor  # [rows, length, features] beside the context


def train_step(
    challenger: Challenger,
    batch: Packed,
    clicks: ClickBatch | None = None,
    *,
    temperature: float,
    settings: TrainerSettings,
    anchor: Anchor | None = None,
) -> float:
    """Teach the challenger the labels of a batch; give the loss in nats.

    Beside the next items, the click head is taught `clicks`, where there are any, and `anchor`
    holds all back; neither is in the loss that is given. A batch of no rows is for the clicks
    alone: NaN is given then.

    Only the item vectors that the batch and its negatives name are read and changed, so the
    cost does not grow with the catalogue. Negatives are drawn from the items that this step or
    one before it reads or foretells: nobody could have taken the others. Raises NonFiniteError
    before a weight changes when loss or gradient is not finite.
    """
    model, device = challenger.model, batch.item.device
    wanted = batch.label != NO_ROW  # [rows, width]
    target = batch.label[wanted]  # [targets]
    shown = [clicks.context.flatten(), clicks.item] if clicks else []
    challenger.about_to_teach(torch.cat([batch.item.flatten(), target, *shown]))
    drawn = candidates(challenger.taught, settings.negatives)  # [negatives]
    asked = [batch.item.flatten(), target, drawn, *shown]
    used, place = torch.unique(torch.cat(asked), return_inverse=True)
    # By index_select rows are copied whole, which by brackets takes five times as long.
    own = model.items.weight.detach().index_select(0, used).requires_grad_()  # [used, dim]
    inputs, right, wrong, *of_clicks = place.split([len(one) for one in asked])

    def foretell(own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss, states [rows, width, dim] and item vectors [used, dim], from these id vectors."""
        vectors = model.tower.join(own, used, settings.id_dropout) if model.tower else own
        vectors = vectors * (used != NO_ROW)[:, None]  # what is blotted out teaches no vector
        if not len(batch.item):
            return 0.0 * vectors.sum(), vectors[:0, None], vectors
        items = vectors.index_select(0, inputs).view(*batch.item.shape, -1)  # [rows, width, dim]
        states = model.states(items, batch.position, batch.codes)
        asked_states = states.flatten(0, 1).index_select(0, wanted.flatten().nonzero().squeeze(1))
        loss = sampled_softmax(
            asked_states,
            target,
            vectors.index_select(0, right),
            drawn,
            vectors.index_select(0, wrong),
            items=len(challenger.taught),
            temperature=temperature,
            weight=None if batch.weight is None else batch.weight[wanted],
        )
        return loss, states, vectors

    with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
        loss, states, vectors = foretell(own)
        value = float(loss.detach()) if len(batch.item) else math.nan
        if anchor is not None:
            beside = vectors.index_select(0, wrong), own.index_select(0, wrong)
            loss = loss + anchor.pull(
                challenger, batch, states, drawn, *beside, temperature=temperature
            )
    if clicks and model.click:
        loss = loss + click_loss(
            model, model.click, clicks, *(vectors.index_select(0, one) for one in of_clicks)
        )
    if not torch.isfinite(loss):
        raise NonFiniteError(f"training loss is {float(loss.detach())}")
    challenger.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    harder = settings.adversarial
    if harder.epsilon:
        with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
            loss, _, _ = foretell(shifted(own, harder.epsilon))
        (harder.weight * loss).backward()
    _apply(challenger, used, own, settings.clip_norm)
    return value


def click_loss(
    model: Recommender, head: ClickHead, clicks: ClickBatch, context: Tensor, item: Tensor
) -> Tensor:
    """Weighted loss of the click head, from the vectors of contexts [rows x length, dim] and
    items [rows, dim]."""
    device = context.device
    with torch.autocast(device.type, torch.bfloat16, enabled=has_fast_bf16(device)):
        items = context.view(*clicks.context.shape, -1)  # [rows, length, dim]
        states = model.states(items, codes=clicks.codes)
    last = (clicks.length - 1).clamp(min=0)[:, None, None].expand(-1, 1, states.shape[2])
    state = functional.normalize(states.gather(1, last).squeeze(1).float(), dim=-1)  # [rows, dim]
    state = torch.where(clicks.length[:, None] > 0, state, 0.0)
    found = head(state, functional.normalize(item, dim=-1), clicks.signs)
    return clicks.weight * head.mean_loss(found, clicks.label)


def _apply(challenger: Challenger, used: Tensor, vectors: Tensor, clip_norm: float) -> None:
    """Move weights and the used id vectors [used, dim] against their gradients."""
    norm = clip_grad_norm_([*challenger.trained.values(), vectors], clip_norm)
    if not torch.isfinite(norm):
        raise NonFiniteError(f"gradient norm is {float(norm)}")
    gradient = vectors.grad
    if gradient is not None:
        challenger.move(used, gradient)
