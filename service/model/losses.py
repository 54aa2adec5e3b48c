"""Sampled softmax over cosine similarities."""

import math

import torch
from torch import Tensor
from torch.nn import functional


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
) -> Tensor:
    """Mean cross-entropy, in nats, of each state's target among the `drawn` items.

    states [n, dim]; targets [n] rows and `right` [n, dim] their item vectors; drawn [negatives]
    rows shared by all states, from `candidates`, and `wrong` [negatives, dim] their vectors. A
    log-Q correction (Bengio and Senécal, 2008) makes the sum over the drawn an unbiased
    estimate of the sum over all `items` but the target.
    """
    states = functional.normalize(states, dim=-1)
    positive = functional.normalize(right, dim=-1)
    negative = functional.normalize(wrong, dim=-1)
    target = (states * positive).sum(dim=-1, keepdim=True).float() / temperature  # [n, 1]
    others = (states @ negative.T).float() / temperature  # [n, negatives]
    # Each item is drawn negatives / items times on average.
    others = others + math.log(items / len(drawn))
    others = others.masked_fill(drawn[None, :] == targets[:, None], -torch.inf)
    logits = torch.cat([target, others], dim=1)  # [n, 1 + negatives]
    return functional.cross_entropy(logits, torch.zeros_like(targets))


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
