"""What may be committed while batches are acknowledged in any order."""

from random import Random
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.domain import Offset, Partition
from service.stream.watermarks import AckTracker, Beginning, beginning

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


class TestBeginning:
    def at(self, **more: Any) -> Beginning:
        usual: dict[str, Any] = {
            "committed": Offset(70),
            "applied": Offset(60),
            "trained": Offset(50),
        }
        return beginning(Offset(10), Offset(100), **(usual | more))

    def test_reads_from_the_least_of_the_three(self) -> None:
        assert self.at() == Beginning(Offset(50), Offset(70), Offset(50))
        assert self.at(applied=Offset(20)).read_from == 20
        assert self.at(committed=Offset(30)).read_from == 30

    def test_without_any_it_is_the_oldest_record(self) -> None:
        nothing = {"committed": None, "applied": Offset(0), "trained": Offset(0)}
        assert self.at(**nothing) == Beginning(Offset(10), Offset(10), Offset(10))

    def test_who_does_not_train_does_not_read_for_it_nor_who_does_not_answer(self) -> None:
        assert self.at(trains=False, remembers=False).read_from == 60
        assert self.at(trains=False).read_from == 50  # for the sake of its memory
        assert self.at(committed=Offset(30), scores=False).read_from == 50

    def test_what_retention_removed_is_told_by_what_it_was_wanted_for(self) -> None:
        late = beginning(
            Offset(80),
            Offset(100),
            committed=Offset(70),
            applied=Offset(60),
            trained=Offset(50),
        )
        assert late == Beginning(Offset(80), Offset(80), Offset(80), 10, 30, 20)
        reader = beginning(
            Offset(80),
            Offset(100),
            committed=Offset(70),
            applied=Offset(60),
            trained=Offset(50),
            scores=False,
            trains=False,
        )
        assert (reader.lost, reader.untaught, reader.unapplied) == (0, 0, 20)

    def test_of_a_topic_that_was_made_anew_nothing_is_trained(self) -> None:
        assert self.at(trained=Offset(101)).train_from == 10

    def test_what_stands_in_place_of_records_that_are_gone_is_answered(self) -> None:
        """A new leader had not all: the group has committed more than there is."""
        found = self.at(committed=Offset(130), trained=Offset(120))
        assert (found.answer_from, found.lost) == (100, 0)
