"""The item tower: what is known of an item beyond its events, as part of its vector.

    vector = id vector + projection(frozen vector)

A frozen vector is what a pretrained encoder makes of an item's text, and what the catalogue
brings beside, one source after the other. It is never trained; the id vector and the projection
are. So an item that nobody has met yet stands near those that are described alike, and leaves
them as its own events teach its id vector.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from service.domain import Float32s, Int64s, ItemId, ItemKey

_ROWS_AT_ONCE = 16_384  # of a table that is projected as a whole
# In half precision they take half the space of a version, and stand as near to each other.
FROZEN_TYPE = torch.float16


@dataclass(frozen=True, slots=True)
class Source:
    """Where some columns of the frozen vectors come from."""

    name: str
    width: int
    origin: str = ""  # of text: the encoder; vectors of another are of no use to the projection


@dataclass(frozen=True, slots=True)
class Described:
    """Items of the catalogue and their frozen vectors; row i of each column is of the same item."""

    sources: tuple[Source, ...]
    items: tuple[tuple[ItemKey, ItemId], ...]
    frozen: Float32s  # [items, width], of a source that says nothing of an item 0
    digests: Int64s  # [items, sources] of what each source says; 0: nothing
    # By place, where no source says anything: the keys of items of the same category.
    alike: Mapping[int, Int64s] = field(default_factory=dict)

    @property
    def keys(self) -> Int64s:
        return np.fromiter((key for key, _ in self.items), np.int64, len(self.items))


class ItemTower(nn.Module):
    """The projection, and the frozen vectors of the rows of one item table."""

    frozen: Tensor

    def __init__(self, sources: Sequence[Source], rows: int, dim: int) -> None:
        """Projects at random, which keeps angles: near each other before anything is learned is
        what is described alike."""
        super().__init__()
        self.sources = tuple(sources)
        width = sum(source.width for source in sources)
        self.projection = nn.Linear(width, dim, bias=False)
        nn.init.normal_(self.projection.weight, std=dim**-0.5)
        # Not among the weights: it does not change with a step, and may take most of a version.
        self.register_buffer("frozen", torch.zeros(rows, width, dtype=FROZEN_TYPE), False)
        self.digests = np.zeros((rows, len(sources)), np.int64)  # of what each row was made of

    @classmethod
    def from_plain(cls, plain: list[dict[str, Any]], rows: int, dim: int) -> "ItemTower":
        return cls([Source(**source) for source in plain], rows, dim)

    @property
    def plain(self) -> list[dict[str, Any]]:
        return [asdict(source) for source in self.sources]

    def forward(self, rows: Tensor) -> Tensor:
        """What is added to the id vectors of `rows` [any]. [any, dim]"""
        added: Tensor = self.projection(self.frozen[rows].float())
        return added

    def join(self, own: Tensor, rows: Tensor, dropout: float) -> Tensor:
        """Item vectors from the id vectors `own` [n, dim] of `rows` [n], for a step of training.

        Of some described items the id vector is left out, so that the projection learns to do
        without (Volkovs et al., 2017, DropoutNet).
        """
        frozen = self.frozen[rows].float()  # [n, width]
        left_out = (torch.rand(len(rows), device=rows.device) < dropout) & frozen.any(dim=1)
        joined: Tensor = own * ~left_out[:, None] + self.projection(frozen)
        return joined

    @torch.no_grad()
    def added(self, rows: int) -> Tensor:
        """`forward` of the first `rows`, a part at a time. [rows, dim]"""
        parts = self.frozen[:rows].split(_ROWS_AT_ONCE)
        return torch.cat([self.projection(part.float()) for part in parts])

    def is_described(self, start: int) -> Tensor:
        """Of the rows from `start` on. [rows]"""
        return torch.from_numpy(self.digests[start:].any(axis=1)).to(self.frozen.device)

    def put(self, rows: Int64s, frozen: Float32s, digests: Int64s) -> None:
        """Other frozen vectors for `rows`."""
        self.frozen[torch.from_numpy(rows)] = torch.from_numpy(frozen).to(self.frozen)
        self.digests[rows] = digests

    def grow(self, rows: int) -> None:
        """Room for `rows` rows."""
        more = rows - len(self.digests)
        self.frozen = nn.functional.pad(self.frozen, (0, 0, 0, more))
        self.digests = np.pad(self.digests, ((0, more), (0, 0)))

    def keep(self, rows: Tensor) -> None:
        """Only what is known of `rows`, in this order."""
        self.frozen, self.digests = self.frozen[rows], self.digests[rows.cpu().numpy()]

    def tensors(self, rows: int) -> dict[str, Tensor]:
        """Copies of what is known of the first `rows` rows, on the CPU."""
        return {
            "frozen": self.frozen[:rows].cpu().clone(),
            "digests": torch.from_numpy(self.digests[:rows].copy()),
        }

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take what `tensors` gave. Raises KeyError or ValueError where it does not fit."""
        frozen, digests = tensors["frozen"], tensors["digests"].numpy()
        if frozen.shape != self.frozen.shape or digests.shape != self.digests.shape:
            raise ValueError(f"frozen vectors are {tuple(frozen.shape)}, not as the table says")
        self.frozen, self.digests = frozen, digests
