"""Altered copies of new sequences, so that a target is not learned from one history alone.

Crop, mask and reorder are those of CL4SRec (Xie et al., 2022), substitute that of CoSeRec (Liu et
al., 2021). There they make pairs to contrast; here a copy is a sequence like any other. Its only
target is the last event of the sequence it is made of, which stays as it is, and only what came
before that event is altered: so nothing is foretold from what came after it.
"""

from collections.abc import Callable

import numpy as np

from service.domain import Int64s
from service.model.memory import Memory
from service.settings import AugmentSettings
from service.trainer.sequences import (
    MASKED,
    Sequences,
    Stretch,
    empty_sequences,
    from_lists,
    join,
)

_FEWEST = 2  # events of a history that can be altered

Random = np.random.Generator
Alter = Callable[[Stretch], Stretch]


class Augmenter:
    """Makes copies with random numbers of its own."""

    def __init__(self, settings: AugmentSettings, memory: Memory | None, seed: int) -> None:
        """Items are substituted by what the `memory` says; without one nothing is."""
        random = self._random = np.random.default_rng(seed)
        part = settings.part
        self._ways: list[tuple[float, Alter]] = [
            (settings.crop, lambda past: crop(past, part, random)),
            (settings.mask, lambda past: mask(past, part, random)),
            (settings.reorder, lambda past: reorder(past, part, random)),
        ]
        if memory is not None:
            nearest = memory.nearest
            self._ways.append(
                (settings.substitute, lambda past: substitute(past, part, random, nearest))
            )

    def copies(self, sequences: Sequences) -> Sequences:
        """Some of the sequences, altered in one way each; one may be there in several ways."""
        made = []
        for chance, alter in self._ways:
            if chance:
                rows = np.flatnonzero(self._random.random(len(sequences)) < chance)
                made.append(self._altered(sequences, rows, alter))
        return join(made, sequences.item.shape[1])

    def _altered(self, sequences: Sequences, rows: Int64s, alter: Alter) -> Sequences:
        length = sequences.item.shape[1]
        copies = []
        for row in rows.tolist():
            targets = np.flatnonzero(sequences.target[row])
            end = int(targets[-1]) if len(targets) else 0
            if end < _FEWEST:
                continue
            past, last = sequences.stretch(row, 0, end), sequences.stretch(row, end, end + 1)
            copies.append((alter(past).followed_by(last), 1))
        return from_lists(copies, length) if copies else empty_sequences(length)


def crop(past: Stretch, part: float, random: Random) -> Stretch:
    """Events that follow each other; `part` of all are left out at the two ends."""
    left = max(round(len(past) * (1 - part)), 1)
    start = int(random.integers(0, len(past) - left + 1))
    return past.part(start, start + left)


def mask(past: Stretch, part: float, random: Random) -> Stretch:
    """`part` of the events blotted out, in their places."""
    item, codes = past.item.copy(), past.codes.copy()
    places = _some(past, part, random)
    item[places], codes[places] = MASKED, 0
    return Stretch(item, codes, past.weight)


def reorder(past: Stretch, part: float, random: Random) -> Stretch:
    """`part` of the events, which follow each other, in another order."""
    count = min(max(round(len(past) * part), 2), len(past))
    start = int(random.integers(0, len(past) - count + 1))
    order = np.arange(len(past))
    random.shuffle(order[start : start + count])
    return Stretch(past.item[order], past.codes[order], past.weight[order])


def substitute(
    past: Stretch, part: float, random: Random, nearest: Callable[[int], int | None]
) -> Stretch:
    """The items of `part` of the events replaced by the `nearest` to each, where there is one."""
    item = past.item.copy()
    for place in _some(past, part, random).tolist():
        other = nearest(int(item[place]))
        item[place] = item[place] if other is None else other
    return Stretch(item, past.codes, past.weight)


def _some(past: Stretch, part: float, random: Random) -> Int64s:
    """Places of `part` of the events, one at least."""
    return random.permutation(len(past))[: max(round(len(past) * part), 1)]
