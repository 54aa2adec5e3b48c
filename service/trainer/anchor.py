"""What holds a step back from forgetting: the champion, as it was when it was crowned."""

from dataclasses import dataclass

import torch
from torch import Tensor

from service.model.losses import divergence
from service.model.recommender import Recommender
from service.settings import KeepSettings
from service.trainer.challenger import Challenger
from service.trainer.packing import Packed


@dataclass(frozen=True, slots=True)
class Anchor:
    """A model to stay near to. Its rows mean the same items as the challenger's."""

    model: Recommender
    rows: int  # that stand for items it knows, row 0 included
    settings: KeepSettings

    def pull(
        self,
        challenger: Challenger,
        batch: Packed,
        states: Tensor,
        drawn: Tensor,
        wrong: Tensor,
        own: Tensor,
        *,
        temperature: float,
    ) -> Tensor:
        """What is added to the loss. `states` [rows, width, dim] are the challenger's, `wrong`
        [negatives, dim] its vectors of the rows `drawn` [negatives] as the step has them, some of
        which lack their id vectors, and `own` [negatives, dim] these."""
        loss = states.new_zeros((), dtype=torch.float32)
        known = drawn < self.rows
        replayed = batch.replayed & (batch.label != 0)
        if self.settings.distil and bool(replayed.any()) and bool(known.any()):
            loss = loss + self.settings.distil * divergence(
                self._states(batch)[replayed],
                self._vectors(drawn[known]),
                states[replayed],
                wrong[known],
                temperature=temperature,
            )
        if self.settings.l2:
            loss = loss + self.settings.l2 * self._distance(challenger, drawn[known], own[known])
        return loss

    @torch.no_grad()
    def _states(self, batch: Packed) -> Tensor:
        """Of items that are new since, it knows nothing."""
        rows = torch.where(batch.item < self.rows, batch.item, 0)
        vectors = self._vectors(rows)  # [rows, width, dim]
        return self.model.states(vectors, batch.position, batch.codes)

    @torch.no_grad()
    def _vectors(self, rows: Tensor) -> Tensor:
        return self.model.vectors(rows)

    def _distance(self, challenger: Challenger, rows: Tensor, own: Tensor) -> Tensor:
        """Half the squared distance of what is trained, and of the vectors of `rows`, whose id
        vectors are `own`. In the champion's stands what its tower added: it has none any more."""
        before = dict(self.model.named_parameters())
        parts = [
            (weight - before[name]).square().sum()
            for name, weight in challenger.trained.items()
            if name in before
        ]
        tower = challenger.model.tower
        vectors = own + tower(rows) if tower else own
        parts.append((vectors - self._vectors(rows)).square().sum())
        return torch.stack(parts).sum() / 2
