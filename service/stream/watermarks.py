"""Where reading begins, and which offset may be committed: all before it is acknowledged. Pure."""

from collections import deque
from dataclasses import dataclass

from service.domain import Offset, Offsets, Partition


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where a partition is taken up."""

    read_from: Offset
    answer_from: Offset
    train_from: Offset
    lost: int = 0  # records that retention removed before they were answered
    untaught: int = 0  # before they were trained on
    unapplied: int = 0  # before they were in the histories that were restored


def beginning(
    start: Offset,
    end: Offset,
    *,
    committed: Offset | None,
    applied: Offset,
    trained: Offset,
    scores: bool = True,
    trains: bool = True,
    remembers: bool = True,
) -> Beginning:
    """How to go on with a partition of which Kafka has the offsets from `start` up to `end`.

    `applied` is the offset up to which histories were restored, 0 where they begin empty, `trained`
    that up to which the newest version was trained, 0 where none was. One past `end` is of another
    topic of the same name, of which nothing is trained yet, or of records that a new leader never
    had: what comes in their place is answered. Only who `scores` reads for the
    sake of answers, and only who `trains`, or who `remembers` what the version's memory has not
    learned yet, for that of what came after the version.
    """
    trained = Offset(0) if trained > end else trained
    first = start if committed is None else min(committed, end)
    wanted = [applied]
    if scores:
        wanted.append(first)
    if trains or remembers:
        wanted.append(trained)
    return Beginning(
        read_from=Offset(max(start, min(wanted))),
        answer_from=Offset(max(start, first)),
        train_from=Offset(max(start, trained)),
        lost=max(start - first, 0) if scores else 0,
        untaught=max(start - trained, 0) if trained and trains else 0,
        unapplied=max(start - applied, 0) if applied else 0,
    )


class AckTracker:
    """Batches in the order in which they were read, and which of them are done.

    A batch may be done before one that was read earlier; its offsets count only once
    all before it are done too.
    """

    def __init__(self) -> None:
        self._open: deque[tuple[int, Offsets]] = deque()
        self._done: set[int] = set()
        self._next_ticket = 0

    def __len__(self) -> int:
        """Batches not yet covered by `committable`."""
        return len(self._open)

    def begin(self, next_offsets: Offsets) -> int:
        """Note a batch that was read; give the ticket by which it is called done."""
        ticket = self._next_ticket
        self._next_ticket += 1
        self._open.append((ticket, next_offsets))
        return ticket

    def done(self, ticket: int) -> dict[Partition, Offset]:
        """All that the batch caused is acknowledged; give the offsets that this frees."""
        self._done.add(ticket)
        freed: dict[Partition, Offset] = {}
        while self._open and self._open[0][0] in self._done:
            ticket, offsets = self._open.popleft()
            self._done.discard(ticket)
            freed.update(offsets)
        return freed
