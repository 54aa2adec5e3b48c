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


def candidates(items: int, negatives: int, device: torch.device) -> Tensor:
    """Rows to tell targets from: drawn uniformly with replacement from 1 .. `items`, or all of
    them where they are not more than `negatives`."""
    if items <= negatives:
        return torch.arange(1, items + 1, device=device)
    return torch.randint(1, items + 1, (negatives,), device=device)


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
    rows shared by all states, from `candidates`, and `wrong` [negatives, dim] their vectors. A
    log-Q correction (Bengio and Senécal, 2008) makes the sum over the drawn an unbiased
    estimate of the sum over all `items` but the target.

    `weight` [n] is how much each target counts; None: all the same. The mean is by weight, so that
    only ratios matter. A target of a weight below 0 is one that was turned down: its loss is
    -log(1 - p) in place of -log(p), the unlikelihood of Welleck et al. (2020).
    """
    states = functional.normalize(states, dim=-1)
    positive = functional.normalize(right, dim=-1)
    negative = functional.normalize(wrong, dim=-1)
    target = (states * positive).sum(dim=-1).float() / temperature  # [n]
    kind = _product_type(states)
    others: Tensor = _LogSumOfOthers.apply(
        states.to(kind), negative.to(kind), targets, drawn, temperature
    )
    # Each item is drawn negatives / items times on average.
    others = others + math.log(items / len(drawn))  # [n]
    behind = others - target  # [n]
    if weight is None:
        return functional.softplus(behind).mean()  # -log(e^target / (e^target + e^others))
    counted = weight.abs()
    return (functional.softplus(behind * weight.sign()) * counted).sum() / counted.sum()


class _LogSumOfOthers(torch.autograd.Function):
    """log sum exp(state . negative / temperature) over the drawn that are not the target. [n]

    The logits, [n, negatives], are made a few states at a time, and again for the gradient,
    instead of being kept.
    """

    @staticmethod
    def forward(
        ctx: Any,
        states: Tensor,
        negative: Tensor,
        targets: Tensor,
        drawn: Tensor,
        temperature: float,
    ) -> Tensor:
        ctx.temperature = temperature
        portions = _portions(states, len(drawn))
        log_sum = torch.cat(
            [
                _logits(states[one], negative, targets[one], drawn, temperature).logsumexp(dim=1)
                for one in portions
            ]
        )
        ctx.save_for_backward(states, negative, targets, drawn, log_sum)
        return log_sum

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients  # [n]
        states, negative, targets, drawn, log_sum = ctx.saved_tensors
        # Without any other item the sum is -inf and nothing is to be changed.
        log_sum = log_sum.clamp_min(torch.finfo(log_sum.dtype).min)
        of_states = torch.empty_like(states)
        of_negative = torch.zeros_like(negative, dtype=torch.float32)
        for one in _portions(states, len(drawn)):
            share = _logits(states[one], negative, targets[one], drawn, ctx.temperature)
            share.sub_(log_sum[one, None]).exp_()  # [portion, negatives], of the softmax
            share.mul_(gradient[one, None] / ctx.temperature)
            moved = share.to(states.dtype)
            of_states[one] = moved @ negative
            of_negative += moved.T @ states[one]
        return of_states, of_negative.to(negative.dtype), None, None, None


def _logits(
    states: Tensor, negative: Tensor, targets: Tensor, drawn: Tensor, temperature: float
) -> Tensor:
    """In 32 bits; -inf where the drawn item is the target. [portion, negatives]"""
    logits = (states @ negative.T).float().div_(temperature)
    return logits.masked_fill_(drawn[None, :] == targets[:, None], -torch.inf)


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
