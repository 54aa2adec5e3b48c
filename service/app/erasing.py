"""Where erasures stand among the records of a read."""

from collections.abc import Callable, Iterable, Iterator

from service.domain import Erasure
from service.stream.codec import Record


def between_erasures(
    records: Iterable[Record], erasure_in: Callable[[Record], Erasure | None]
) -> Iterator[tuple[list[Record], list[Erasure]]]:
    """The records in their order, cut behind each run of erasures: what stands before a run, and
    the run."""
    others: list[Record] = []
    erasures: list[Erasure] = []
    for record in records:
        erasure = erasure_in(record)
        if erasure is not None:
            erasures.append(erasure)
            continue
        if erasures:
            yield others, erasures
            others, erasures = [], []
        others.append(record)
    yield others, erasures
