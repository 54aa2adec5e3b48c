"""Where erasures stand among the records of a read."""

from collections.abc import Iterable, Iterator

from service.domain import Erasure
from service.stream.codec import Record


def between_erasures(
    records: Iterable[tuple[Record, Erasure | None]],
) -> Iterator[tuple[list[Record], list[Erasure]]]:
    """The records in their order, each with the erasure that it is, cut behind each run of these:
    what stands before a run, and the run."""
    others: list[Record] = []
    erasures: list[Erasure] = []
    for record, erasure in records:
        if erasure is not None:
            erasures.append(erasure)
            continue
        if erasures:
            yield others, erasures
            others, erasures = [], []
        others.append(record)
    yield others, erasures
