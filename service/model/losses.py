"""Sampled softmax over cosine similarities."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def sampled_softmax(
    states: Tensor,
    targets: Tensor,
    table: Tensor,
    *,
    negatives: int,
    temperature: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Mean cross-entropy, in nats, of each state's target among sampled items.

    states [n, dim]; targets [n] rows of `table` [rows, dim], whose row 0 is no item and never
    a candidate. The negatives are shared by all states and drawn uniformly with replacement; a
    log-Q correction (Bengio and Senécal, 2008) makes their sum an unbiased estimate of the sum
    over all items but the target. A catalogue of at most `negatives` items is not sampled.
    """
    items = table.shape[0] - 1
    states = functional.normalize(states, dim=-1)
    if items <= negatives:
        logits = states @ functional.normalize(table[1:], dim=-1).T / temperature  # [n, items]
        return functional.cross_entropy(logits.float(), targets - 1)

    drawn = torch.randint(1, items + 1, (negatives,), generator=generator, device=states.device)
    positive = functional.normalize(table[targets], dim=-1)  # [n, dim]
    negative = functional.normalize(table[drawn], dim=-1)  # [negatives, dim]
    right = (states * positive).sum(dim=-1, keepdim=True) / temperature  # [n, 1]
    wrong = states @ negative.T / temperature  # [n, negatives]
    # Each item is drawn negatives / items times on average.
    wrong = wrong.float() + math.log(items / negatives)
    wrong = wrong.masked_fill(drawn[None, :] == targets[:, None], -torch.inf)
    logits = torch.cat([right.float(), wrong], dim=1)  # [n, 1 + negatives]
    return functional.cross_entropy(logits, torch.zeros_like(targets))
