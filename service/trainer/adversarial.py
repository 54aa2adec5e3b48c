"""Where item vectors are shifted to for the second loss of a step."""

import torch
from torch import Tensor
from torch.nn import functional


def shifted(vectors: Tensor, epsilon: float) -> Tensor:
    """Item vectors [n, dim], each moved by `epsilon` along its own gradient, the loss's steepest
    ascent; one that has no gradient stays.

    The fast gradient method of Miyato et al. (2017), normalised for each item as in He et al.
    (2018) and not for each sequence: sequences share the vectors.
    """
    gradient = vectors.grad
    if gradient is None:
        return vectors
    with torch.no_grad():
        shift = epsilon * functional.normalize(gradient, dim=-1)
    return vectors + shift
