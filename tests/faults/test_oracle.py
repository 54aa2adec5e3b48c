"""The oracle itself: it must tell every kind of harm."""

from dataclasses import replace

from service.domain import ItemId, UserId, item_key, user_key
from tests.faults.oracle import (
    Found,
    Histories,
    Logged,
    Output,
    Range,
    Teaching,
    ends,
    judge_histories,
    judge_output,
    judge_teaching,
    longest_gap_s,
)
from tests.faults.tail import Answer

LOG = [
    Logged(0, 0, "a", "ann", "x"),
    Logged(0, 1, "b", "ben", "y"),
    Logged(0, 2, "c", "ann", "y"),
    Logged(0, 3, None),
    Logged(0, 4, "d", "ann", "x"),
]
WELL = Output(0, 0, 0, 0, 0)


def answers(*offsets: int) -> list[Answer]:
    """To the events there, in this order on the output topic."""
    by_offset = {one.offset: one for one in LOG}
    return [
        Answer(
            rec_id=f"events/0/{offset}",
            of=(0, offset),
            event_id=by_offset[offset].event_id,
            user_id=by_offset[offset].user_id,
            partition=0,
            offset=place,
            received_s=float(place),
        )
        for place, offset in enumerate(offsets)
    ]


def found(user: str, *offsets: int) -> dict[int, Found]:
    items = {one.offset: item_key(ItemId(one.item_id)) for one in LOG if one.item_id}
    own = tuple(items[offset] for offset in offsets)
    return {user_key(UserId(user)): Found(offsets, own)}


class TestOutput:
    def test_nothing_is_wrong_with_one_answer_to_each_event(self) -> None:
        assert judge_output(LOG, answers(0, 1, 2, 4), [(0, 3)]) == WELL

    def test_an_event_without_an_answer_is_lost(self) -> None:
        assert judge_output(LOG, answers(0, 1, 2), [(0, 3)]) == replace(WELL, lost=1)

    def test_a_bad_record_without_a_dead_letter_is_lost(self) -> None:
        assert judge_output(LOG, answers(0, 1, 2, 4), []) == replace(WELL, lost=1)

    def test_a_dead_letter_is_no_answer_to_an_event(self) -> None:
        assert judge_output(LOG, answers(0, 1, 2), [(0, 3), (0, 4)]) == replace(WELL, lost=1)

    def test_the_same_rec_id_again_is_a_duplicate_and_no_disorder(self) -> None:
        twice = answers(0, 1, 2, 0, 2, 4)
        assert judge_output(LOG, twice, [(0, 3)]) == replace(WELL, duplicates=2)

    def test_an_event_under_two_rec_ids_is_told_apart_from_a_duplicate(self) -> None:
        good = answers(0, 1, 2, 4)
        stray = replace(good[0], rec_id="events/0/9", of=(0, 9), offset=9)
        told = judge_output(LOG, [*good, stray], [(0, 3)])
        assert (told.duplicates, told.duplicates_other_rec_id, told.strangers) == (0, 1, 1)

    def test_an_answer_that_names_another_event_is_a_stranger(self) -> None:
        good = answers(0, 1, 2, 4)
        told = judge_output(LOG, [replace(good[0], event_id="b"), *good[1:]], [(0, 3)])
        assert told.strangers == 1

    def test_an_answer_after_that_to_a_later_event_of_the_user_is_out_of_order(self) -> None:
        assert judge_output(LOG, answers(2, 1, 0, 4), [(0, 3)]) == replace(WELL, out_of_order=1)
        assert judge_output(LOG, answers(1, 0, 2, 4), [(0, 3)]) == WELL  # of different users


class TestEventsThatComeAgain:
    """An event stands in the log once more; only the first counts."""

    LOG = (*LOG, Logged(0, 5, "a", "ann", "x"))

    def test_one_answer_is_due(self) -> None:
        assert judge_output(self.LOG, answers(0, 1, 2, 4), [(0, 3)]) == WELL

    def test_an_answer_to_the_second_is_one_under_another_rec_id(self) -> None:
        good = answers(0, 1, 2, 4)
        again = replace(good[0], rec_id="events/0/5", of=(0, 5), offset=5)
        told = judge_output(self.LOG, [*good, again], [(0, 3)])
        assert told == replace(WELL, duplicates_other_rec_id=1)

    def test_an_answer_to_the_second_alone_does_not_do(self) -> None:
        good = answers(0, 1, 2, 4)
        again = replace(good[0], rec_id="events/0/5", of=(0, 5), offset=5)
        assert judge_output(self.LOG, [*good[1:], again], [(0, 3)]).lost == 1

    def test_in_a_history_it_is_one_too_many(self) -> None:
        right = found("ann", 0, 2, 4) | found("ben", 1)
        assert judge_histories(self.LOG, right, remembered=64) == Histories(0, 0)
        twice = right | {user_key(UserId("ann")): Found((0, 2, 4, 5), ())}
        assert judge_histories(self.LOG, twice, remembered=64).applied_twice == 1

    def test_it_is_not_to_be_taught(self) -> None:
        assert judge_teaching(self.LOG, [Range(0, 0, 6, 4)]) == Teaching(0, 0)
        assert judge_teaching(self.LOG, [Range(0, 0, 6, 5)]) == Teaching(1, 0)

    def test_in_another_partition_it_is_another_event(self) -> None:
        log = [Logged(0, 0, "a", "ann", "x"), Logged(1, 0, "a", "ann", "x")]
        assert judge_output(log, answers(0), []).lost == 1


class TestHistories:
    def test_nothing_is_wrong_with_each_event_once_in_order(self) -> None:
        right = found("ann", 0, 2, 4) | found("ben", 1)
        assert judge_histories(LOG, right, remembered=64) == Histories(0, 0)

    def test_only_the_last_events_are_remembered(self) -> None:
        right = found("ann", 2, 4) | found("ben", 1)
        assert judge_histories(LOG, right, remembered=2) == Histories(0, 0)

    def test_an_event_that_stands_twice(self) -> None:
        twice = found("ann", 0, 2, 2, 4) | found("ben", 1)
        assert judge_histories(LOG, twice, remembered=64) == Histories(1, 0)

    def test_one_that_stands_twice_and_pushed_another_out(self) -> None:
        twice = found("ann", 4, 4) | found("ben", 1)
        assert judge_histories(LOG, twice, remembered=2) == Histories(2, 0)

    def test_an_event_that_is_missing(self) -> None:
        assert judge_histories(LOG, found("ann", 0, 2, 4), remembered=64) == Histories(1, 0)
        assert judge_histories(LOG, {}, remembered=64) == Histories(4, 0)

    def test_a_user_that_the_log_does_not_know(self) -> None:
        more = found("ann", 0, 2, 4) | found("ben", 1) | found("cid", 1)
        assert judge_histories(LOG, more, remembered=64) == Histories(1, 0)

    def test_disorder(self) -> None:
        mixed = found("ann", 2, 0, 4) | found("ben", 1)
        assert judge_histories(LOG, mixed, remembered=64) == Histories(0, 1)


class TestTeaching:
    def test_ranges_that_tile_the_log(self) -> None:
        tiles = [Range(0, 0, 2, 2), Range(0, 2, 3, 1), Range(0, 4, 5, 1)]
        assert judge_teaching(LOG, tiles) == Teaching(0, 0)

    def test_ranges_that_overlap(self) -> None:
        assert judge_teaching(LOG, [Range(0, 0, 3, 3), Range(0, 2, 5, 2)]) == Teaching(1, 0)

    def test_a_range_with_more_events_than_there_are(self) -> None:
        assert judge_teaching(LOG, [Range(0, 0, 5, 5)]) == Teaching(1, 0)

    def test_a_gap(self) -> None:
        assert judge_teaching(LOG, [Range(0, 0, 2, 2), Range(0, 4, 5, 1)]) == Teaching(0, 1)

    def test_other_partitions_are_others(self) -> None:
        log = [Logged(0, 0, "a", "ann", "x"), Logged(1, 0, "b", "ben", "x")]
        assert judge_teaching(log, [Range(0, 0, 1, 1)]) == Teaching(0, 1)


def test_ends_are_past_the_last_place() -> None:
    assert ends([(0, 4), (1, 0), (0, 2)]) == {0: 5, 1: 1}


def test_the_longest_gap_is_between_neighbours() -> None:
    assert longest_gap_s([5.0, 1.0, 2.0]) == 3.0
    assert longest_gap_s([1.0]) == 0.0
