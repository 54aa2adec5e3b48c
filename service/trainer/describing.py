"""What the catalogue says of items, as frozen vectors."""

import logging
from collections import deque
from collections.abc import Sequence
from itertools import chain

import numpy as np
import torch

from service.domain import Float32s, Int64s, stable_key
from service.model.item_tower import Described, Source
from service.model.text_encoder import TextEncoder
from service.settings import ItemsSettings
from service.state.catalogue import CatalogueItem

log = logging.getLogger(__name__)

_MEMBERS = 200  # of a category: more would not move the mean
TEXT = "text"  # the source that is encoded here; the others come as vectors


class Describer:
    """Makes frozen vectors, the text's with a pretrained encoder that is loaded at once."""

    def __init__(self, settings: ItemsSettings, device: torch.device) -> None:
        """Raises ConfigurationError where the encoder cannot be loaded."""
        text = settings.text
        self._encoder = TextEncoder(text.encoder, text, device) if text.encoder else None
        self.sources = tuple(Source(each.name, each.width) for each in settings.vectors)
        if self._encoder:
            origin = f"{text.encoder}@{text.revision or ''}:{text.max_tokens}"
            self.sources = (Source(TEXT, self._encoder.width, origin), *self.sources)
        # Items that were told of, by category; the newest.
        self._members: dict[str, deque[int]] = {}
        self._width = sum(source.width for source in self.sources)

    def digests(self, items: Sequence[CatalogueItem]) -> Int64s:
        """Of what each source says of each item; 0: nothing. [items, sources]"""
        found = np.zeros((len(items), len(self.sources)), np.int64)
        for place, item in enumerate(items):
            for column, source in enumerate(self.sources):
                if source.name == TEXT:
                    found[place, column] = stable_key(item.text) if item.text else 0
                elif source.name in item.vectors:
                    content = item.vectors[source.name].tobytes().hex()
                    found[place, column] = stable_key(content)
        return found

    def describe(self, items: Sequence[CatalogueItem]) -> Described:
        """Blocks while the texts are encoded: on two cores about 200 short ones a second."""
        frozen = np.zeros((len(items), self._width), np.float32)
        start = 0
        for source in self.sources:
            columns = frozen[:, start : start + source.width]
            if source.name == TEXT:
                self._encode(items, columns)
            else:
                for row, item in zip(columns, items, strict=True):
                    row[:] = _unit(item.vectors.get(source.name), source.width)
            start += source.width
        named = tuple((item.key, item.item_id) for item in items)
        digests = self.digests(items)
        alike = {
            place: self._alike(items[place])
            for place in np.flatnonzero(~digests.any(axis=1)).tolist()
            if items[place].categories
        }
        return Described(self.sources, named, frozen, digests, alike)

    def remember(self, items: Sequence[CatalogueItem]) -> None:
        """New items of their categories may begin as the mean of these."""
        for item in items:
            for category in item.categories:
                members = self._members.setdefault(category, deque(maxlen=_MEMBERS))
                members.append(item.key)

    def _alike(self, item: CatalogueItem) -> Int64s:
        """The keys of items of the same categories."""
        members = [self._members.get(category, ()) for category in item.categories]
        return np.unique(np.fromiter(chain.from_iterable(members), np.int64))

    def _encode(self, items: Sequence[CatalogueItem], columns: Float32s) -> None:
        texts = {item.text: place for place, item in enumerate(items) if item.text}
        if self._encoder and texts:
            vectors = self._encoder.encode(list(texts))
            is_finite = np.isfinite(vectors).all(axis=1)
            if not is_finite.all():
                vectors[~is_finite] = 0.0  # one of them would end all training
                log.warning("the encoder gave no numbers for %d texts", (~is_finite).sum())
            known = dict(zip(texts, vectors, strict=True))
            for row, item in zip(columns, items, strict=True):
                if item.text:
                    row[:] = known[item.text]


def _unit(vector: Float32s | None, width: int) -> Float32s:
    """Of length 1, as the encoder's are, so that no source drowns another; none is zeros."""
    if vector is None:
        return np.zeros(width, np.float32)
    exact = vector.astype(np.float64)  # the squares of 32-bit numbers may be too large for them
    unit: Float32s = (exact / np.linalg.norm(exact)).astype(np.float32)
    return unit
