"""What may be committed while batches are acknowledged in any order."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from service.domain import Offset, Partition
from service.stream.watermarks import AckTracker

FIRST, SECOND = Partition(0), Partition(1)


def test_a_batch_that_is_done_frees_its_offsets() -> None:
    tracker = AckTracker()
    ticket = tracker.begin({FIRST: Offset(5)})
    assert len(tracker) == 1
    assert tracker.done(ticket) == {FIRST: 5}
    assert len(tracker) == 0


def test_a_batch_waits_for_those_before_it() -> None:
    tracker = AckTracker()
    early = tracker.begin({FIRST: Offset(5)})
    late = tracker.begin({FIRST: Offset(9), SECOND: Offset(2)})
    assert tracker.done(late) == {}
    assert tracker.done(early) == {FIRST: 9, SECOND: 2}


def test_a_partition_is_held_by_an_earlier_batch_of_another() -> None:
    tracker = AckTracker()
    tracker.begin({FIRST: Offset(5)})
    assert tracker.done(tracker.begin({SECOND: Offset(2)})) == {}


# Each batch: how many records of each partition it read; and the order of acknowledgement.
batches = st.lists(
    st.dictionaries(st.integers(0, 3), st.integers(1, 10), min_size=1, max_size=4), max_size=12
)


@given(batches, st.randoms(use_true_random=False))
def test_never_commits_past_an_unfinished_batch_and_everything_in_the_end(
    reads: list[dict[int, int]], random: Random
) -> None:
    tracker = AckTracker()
    position: dict[Partition, int] = {}
    begins: list[dict[Partition, int]] = []  # where each batch starts
    for read in reads:
        begins.append({Partition(p): position.get(Partition(p), 0) for p in read})
        position |= {Partition(p): position.get(Partition(p), 0) + n for p, n in read.items()}
        tracker.begin({Partition(p): Offset(position[Partition(p)]) for p in read})

    committed: dict[Partition, int] = {}
    unfinished = set(range(len(reads)))
    order = list(unfinished)
    random.shuffle(order)
    for ticket in order:
        unfinished.discard(ticket)
        freed = tracker.done(ticket)
        assert all(committed.get(p, 0) < offset for p, offset in freed.items())
        committed |= freed
        for other in unfinished:
            assert all(committed.get(p, 0) <= start for p, start in begins[other].items())
    assert committed == position
    assert len(tracker) == 0
