"""What exactly-once output decides: what belongs to one transaction, and how to go on after one
that failed. Pure.

A transaction that failed is never mended. Its producer is closed, and a new one with the same
`transactional.id` makes Kafka end what is left of it and refuse the older one. What the group
has committed then says, once and for all, whether the transaction came to count.
"""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from aiokafka.errors import (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    InvalidTxnState,
    KafkaError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    UnknownProducerId,
)

from service.domain import Offset, Partition
from service.errors import InvalidEventError
from service.settings import KafkaSettings, TopicsSettings
from service.stream.codec import Header, Record
from service.stream.connection import is_passing

_FENCED: tuple[type[BaseException], ...] = (ProducerFenced, InvalidProducerEpoch)
_TOO_LARGE: tuple[type[BaseException], ...] = (MessageSizeTooLargeError,)
# Kafka has lost track of the old producer: a new one begins afresh.
_CURED_BY_A_NEW_PRODUCER = (
    InvalidProducerIdMapping,
    InvalidTxnState,
    OutOfOrderSequenceNumber,
    UnknownProducerId,
)
# aiokafka tells whatever else ended its sender as a bare KafkaError. It may pass, or be a fault
# that never does.
_UNEXPLAINED_TIMES = 3

Message = tuple[bytes, bytes | None, list[Header]]  # without a value: a tombstone
Letter = tuple[Record, InvalidEventError]


@dataclass(frozen=True, slots=True)
class Share:
    """What a batch causes for one input partition; all of it is in one transaction."""

    next_offset: Offset  # to be committed with it
    messages: Sequence[Message]
    letters: Sequence[Letter]


class AfterFailure(enum.Enum):
    """What to do about a transaction that failed."""

    SHORTEN = enum.auto()  # then again: a dead letter was refused as too large
    YIELD = enum.auto()  # wait for a rebalance: the partition seems to have another owner
    AGAIN = enum.auto()
    RAISE = enum.auto()


class Standing(enum.Enum):
    """How what the group has committed stands to a transaction that failed."""

    OPEN = enum.auto()  # nothing of it counts: send all of it again
    DONE = enum.auto()  # it was committed, though we were not told
    OVERTAKEN = enum.auto()  # another member has gone on from here


def transactional_id(kafka: KafkaSettings, topics: TopicsSettings, partition: Partition) -> str:
    """The same for each owner of an input partition, and no other's: topics hold no slash."""
    return f"{kafka.group_id}/{topics.events}/{partition}"


def shares(
    next_offsets: Mapping[Partition, Offset],
    partitions: Sequence[int],
    messages: Sequence[Message],
    letters: Iterable[Letter],
) -> dict[Partition, Share]:
    """A batch by input partition, in the order in which it came. `partitions[i]` is that of
    `messages[i]`; each of them and those of the letters are in `next_offsets`."""
    sent: dict[int, list[Message]] = {partition: [] for partition in next_offsets}
    buried: dict[int, list[Letter]] = {partition: [] for partition in next_offsets}
    for partition, message in zip(partitions, messages, strict=True):
        sent[partition].append(message)
    for letter in letters:
        buried[letter[0].partition].append(letter)
    return {
        partition: Share(offset, sent[partition], buried[partition])
        for partition, offset in next_offsets.items()
    }


def after_failure(error: BaseException, unexplained: int) -> AfterFailure:
    """`unexplained`: how often in a row it failed for a reason that nobody told."""
    if isinstance(error, _FENCED):
        return AfterFailure.YIELD
    if isinstance(error, _TOO_LARGE):
        return AfterFailure.SHORTEN
    if is_passing(error) or isinstance(error, _CURED_BY_A_NEW_PRODUCER):
        return AfterFailure.AGAIN
    if is_unexplained(error) and unexplained < _UNEXPLAINED_TIMES:
        return AfterFailure.AGAIN
    return AfterFailure.RAISE


def is_unexplained(error: BaseException) -> bool:
    return type(error) is KafkaError


def telling(errors: Sequence[BaseException]) -> BaseException:
    """The one of a transaction's errors that says most: behind a refused record Kafka refuses all
    that follow as out of order, and when a producer is fenced nothing else matters."""
    for kinds in (_FENCED, _TOO_LARGE):
        for error in errors:
            if isinstance(error, kinds):
                return error
    out_of_order = [isinstance(error, OutOfOrderSequenceNumber) for error in errors]
    return errors[out_of_order.index(False)] if False in out_of_order else errors[0]


def standing(before: Offset | None, found: Offset | None, after: Offset) -> Standing:
    """`before`: committed when the transaction began; `found`: now that its producer can write no
    more; `after`: what it was to commit. Where that is no further than before, as a leader had lost
    records and others took their place, nobody can tell: better twice than never."""
    if found == before:
        return Standing.OPEN
    return Standing.DONE if found == after else Standing.OVERTAKEN
