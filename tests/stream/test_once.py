"""Which records share a transaction, and what follows on one that failed."""

import pytest
from aiokafka.errors import (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)

from service.domain import Offset, Partition
from service.errors import DeadLetterReason, InvalidEventError
from service.settings import KafkaSettings, TopicsSettings
from service.stream.once import (
    AfterFailure,
    Message,
    Share,
    Standing,
    after_failure,
    shares,
    standing,
    telling,
    transactional_id,
)
from tests.stream.examples import record

FAULT = InvalidEventError(DeadLetterReason.MALFORMED, "no JSON")


def message(name: str) -> Message:
    return name.encode(), b"{}", []


def test_an_id_is_the_same_for_every_owner_of_a_partition_and_no_others() -> None:
    made = {
        transactional_id(
            KafkaSettings(group_id=group), TopicsSettings(events=events), Partition(partition)
        )
        for group, events, partition in (
            ("a", "b", 1),
            ("a", "b", 11),
            ("a", "b.1", 1),
            ("a/b", "1", 1),
        )
        for _owner in range(2)
    }
    assert made == {"a/b/1", "a/b/11", "a/b.1/1", "a/b/1/1"}


class TestShares:
    def test_each_partition_has_its_own_in_order(self) -> None:
        letter = (record(b"{", partition=2), FAULT)
        ann, bob, ann_again = message("ann"), message("bob"), message("ann")
        found = shares(
            {Partition(0): Offset(5), Partition(2): Offset(9)},
            [0, 2, 0],
            [ann, bob, ann_again],
            [letter],
        )
        assert found == {
            0: Share(Offset(5), [ann, ann_again], []),
            2: Share(Offset(9), [bob], [letter]),
        }
        assert found[Partition(0)].messages[1] is ann_again

    def test_a_partition_without_an_answer_moves_its_offset_all_the_same(self) -> None:
        assert shares({Partition(3): Offset(7)}, [], [], []) == {3: Share(Offset(7), [], [])}


class TestAfterFailure:
    @pytest.mark.parametrize(
        ("error", "then"),
        [
            (ProducerFenced(), AfterFailure.YIELD),
            (InvalidProducerEpoch(), AfterFailure.YIELD),
            (MessageSizeTooLargeError(), AfterFailure.SHORTEN),
            (KafkaConnectionError(), AfterFailure.AGAIN),
            (TimeoutError(), AfterFailure.AGAIN),
            (OutOfOrderSequenceNumber(), AfterFailure.AGAIN),
            (InvalidProducerIdMapping(), AfterFailure.AGAIN),
            (TopicAuthorizationFailedError(), AfterFailure.RAISE),
            (TransactionalIdAuthorizationFailed(), AfterFailure.RAISE),
        ],
        ids=lambda value: value.name if isinstance(value, AfterFailure) else type(value).__name__,
    )
    def test_the_error_decides(self, error: Exception, then: AfterFailure) -> None:
        assert after_failure(error, unexplained=0) is then

    def test_what_nobody_explains_is_tried_a_few_times(self) -> None:
        error = KafkaError("Unexpected error during batch delivery")
        found = [after_failure(error, unexplained) for unexplained in range(1, 5)]
        assert found == [AfterFailure.AGAIN] * 2 + [AfterFailure.RAISE] * 2


class TestTelling:
    def test_the_refusal_says_more_than_what_it_left_out_of_order(self) -> None:
        refused = MessageSizeTooLargeError()
        assert telling([OutOfOrderSequenceNumber(), refused]) is refused

    def test_nothing_matters_once_the_producer_is_fenced(self) -> None:
        fenced = ProducerFenced()
        assert telling([MessageSizeTooLargeError(), KafkaConnectionError(), fenced]) is fenced

    def test_a_cause_says_more_than_out_of_order_and_that_more_than_nothing(self) -> None:
        out_of_order, cause = OutOfOrderSequenceNumber(), TopicAuthorizationFailedError()
        assert telling([out_of_order, cause]) is cause
        assert telling([out_of_order]) is out_of_order


class TestStanding:
    @pytest.mark.parametrize("before", [None, Offset(4)])
    def test_what_was_not_committed_is_open(self, before: Offset | None) -> None:
        assert standing(before, before, Offset(9)) is Standing.OPEN

    @pytest.mark.parametrize("before", [None, Offset(4)])
    def test_what_was_committed_unheard_is_done(self, before: Offset | None) -> None:
        assert standing(before, Offset(9), Offset(9)) is Standing.DONE

    def test_one_that_was_to_commit_no_more_than_there_was_may_be_sent_twice_but_not_never(
        self,
    ) -> None:
        assert standing(Offset(9), Offset(9), Offset(9)) is Standing.OPEN

    @pytest.mark.parametrize("found", [None, 2, 7, 12])
    def test_any_other_offset_is_of_another_member(self, found: int | None) -> None:
        offset = None if found is None else Offset(found)
        assert standing(Offset(4), offset, Offset(9)) is Standing.OVERTAKEN
