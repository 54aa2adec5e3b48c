"""Which offset may be committed: everything before it is acknowledged. Pure."""

from collections import deque

from service.domain import Offset, Offsets, Partition


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
