"""Sampled softmax over cosine similarities."""

import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

# Logits made at once. Whole, they are read and written a dozen times from memory, and that takes
# longer than all of the arithmetic; so many stay in a CPU's cache.
_LOGITS_AT_ONCE = 1 << 18
_LOGITS_AT_ONCE_ON_CUDA = 1 << 26  # there small kernels cost more than memory
_SMALLEST = 1e-30  # in place of nothing, to divide by


def candidates(rows: Tensor, negatives: int) -> Tensor:
    """Rows to tell targets from: drawn uniformly with replacement from `rows`, or all of them
    where they are not more than `negatives`."""
    if len(rows) <= negatives:
        return rows
    return rows[torch.randint(len(rows), (negatives,), device=rows.device)]


def sampled_softmax(
    states: Tensor,
    targets: Tensor,
    right: Tensor,
    drawn: Tensor,
    wrong: Tensor,
    *,
    items: int,
    temperature: float,
    weight: Tensor | None = None,
) -> Tensor:
    """Mean cross-entropy, in nats, of each state's target among the `drawn` items.

    states [n, dim]; targets [n] rows and `right` [n, dim] their item vectors; drawn [negatives]
    rows shared by all states, from `candidates` out of so many `items`, and `wrong` [negatives,
    dim] their vectors. A log-Q correction (Bengio and Senécal, 2008) makes the sum over the drawn
    an unbiased estimate of the sum over all `items` but the target.

    `weight` [n] is how much each target counts; None: all the same. The mean is by weight, so that
    only ratios matter. A target of a weight below 0 is one that was turned down: its loss is
    -log(1 - p) in place of -log(p), the unlikelihood of Welleck et al. (2020).
    """
    states = functional.normalize(states, dim=-1)
    positive = functional.normalize(right, dim=-1)
    negative = functional.normalize(wrong, dim=-1)
    target = (states * positive).sum(dim=-1).float() / temperature  # [n]
    if weight is None:
        weight = torch.ones_like(target)
    kind = _product_type(states)
    loss: Tensor = _SampledSoftmax.apply(
        (states / temperature).to(kind),
        negative.to(kind),
        target,
        weight / weight.abs().sum(),
        targets,
        drawn,
        math.log(items / len(drawn)),  # each item is drawn negatives / items times on average
    )
    return loss


class _SampledSoftmax(torch.autograd.Function):
    """Sum of weight x -log(e^target / (e^target + e^others)), where others is the log of the sum of
    exp(state . negative) over the drawn that are not the target, plus a correction.

    The logits, [n, negatives], are made a few states at a time, and the gradient with them: kept,
    they would be read from memory, and made twice, they would cost another product.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        negative: Tensor,
        target: Tensor,
        weight: Tensor,
        targets: Tensor,
        drawn: Tensor,
        correction: float,
    ) -> Tensor:
        of_states = torch.empty_like(states)
        of_negative = torch.zeros_like(negative, dtype=torch.float32)
        of_target = torch.empty_like(target)
        loss = torch.zeros_like(target)
        state, hit = _accidental_hits(targets, drawn)
        for one in _portions(states, len(drawn)):
            logits = (states[one] @ negative.T).float()  # [portion, negatives]
            start, end = torch.searchsorted(state, state.new_tensor([one.start, one.stop])).tolist()
            logits[state[start:end] - one.start, hit[start:end]] = -torch.inf
            # Without any other item the sum is 0 and nothing is to be changed.
            most = logits.amax(dim=1, keepdim=True).clamp_min_(torch.finfo(logits.dtype).min)
            chance = logits.sub_(most).exp_()
            total = chance.sum(dim=1)
            sign = weight[one].sign()
            behind = (total.log() + most[:, 0] + correction - target[one]) * sign
            behind.masked_fill_(total == 0, -torch.inf)  # where there is nothing to tell it from
            loss[one] = functional.softplus(behind) * weight[one].abs()
            moved = behind.sigmoid() * weight[one]
            of_target[one] = -moved
            # Whole rows are scaled on the narrow side of the products: it has fewer numbers.
            moved = (moved / total.clamp_min_(_SMALLEST))[:, None].to(states.dtype)
            chance = chance.to(states.dtype)
            of_states[one] = (chance @ negative) * moved
            of_negative += chance.T @ (states[one] * moved)
        ctx.save_for_backward(of_states, of_negative.to(negative.dtype), of_target)
        return loss.sum()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        of_states, of_negative, of_target = ctx.saved_tensors
        return (
            of_states * gradient.to(of_states.dtype),
            of_negative * gradient.to(of_negative.dtype),
            of_target * gradient,
            *[None] * 4,
        )


def _accidental_hits(targets: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
    """Where the target of a state is among the drawn: places in `targets`, in order, and in
    `drawn`. [hits] each

    To compare each with each costs a tenth of a step.
    """
    order = drawn.argsort()
    ranked = drawn[order]
    first = torch.searchsorted(ranked, targets)
    count = torch.searchsorted(ranked, targets, right=True) - first  # [n]
    state = torch.arange(len(targets), device=targets.device).repeat_interleave(count)
    nth = torch.arange(len(state), device=targets.device) - (count.cumsum(0) - count)[state]
    return state, order[first[state] + nth]


def _portions(states: Tensor, negatives: int) -> Iterator[slice]:
    """Cuts of the states."""
    limit = _LOGITS_AT_ONCE if states.device.type == "cpu" else _LOGITS_AT_ONCE_ON_CUDA
    size = max(limit // max(negatives, 1), 1)
    return (slice(start, start + size) for start in range(0, len(states), size))


def _product_type(states: Tensor) -> torch.dtype:
    """What products are made in here; the gradient's, too, which autocast does not reach."""
    device = states.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return states.dtype


def divergence(
    teacher: Tensor, its: Tensor, states: Tensor, vectors: Tensor, *, temperature: float
) -> Tensor:
    """Mean Kullback-Leibler divergence, in nats, of what states say from what a teacher's say.

    teacher and states [n, dim] choose among the same items, whose vectors are `its` and `vectors`
    [items, dim].
    """
    wanted = _log_chances(teacher, its, temperature)  # [n, items]
    found = _log_chances(states, vectors, temperature)
    return functional.kl_div(found, wanted, reduction="batchmean", log_target=True)


def _log_chances(states: Tensor, vectors: Tensor, temperature: float) -> Tensor:
    cosines = functional.normalize(states, dim=-1) @ functional.normalize(vectors, dim=-1).T
    return functional.log_softmax(cosines.float() / temperature, dim=-1)
