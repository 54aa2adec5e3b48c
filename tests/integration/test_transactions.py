"""The lanes of exactly-once output against a real Kafka, without a service around them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition

from service.domain import Offset, Partition
from service.errors import DeadLetterReason, InvalidEventError, TransientError
from service.metrics import Metrics
from service.sandbox.kafka import LocalKafka
from service.settings import KafkaSettings, PrivacySettings, TopicsSettings
from service.stream.codec import Record
from service.stream.dead_letters import DeadLetters
from service.stream.once import Letter, Message, Share
from service.stream.transactions import Transactions
from tests.integration.traffic import (
    COMMITTED,
    Stream,
    dead_letters,
    make_stream,
    recommendations,
)

pytestmark = pytest.mark.integration

PARTITION = Partition(0)
MIB = 1024 * 1024


@pytest.fixture
def stream(kafka: str) -> Stream:
    return make_stream(kafka)


class Owner:
    """Of one input partition."""

    def __init__(self, stream: Stream, consumer: AIOKafkaConsumer) -> None:
        self._events = stream.events
        self._consumer = consumer
        kafka = KafkaSettings(
            bootstrap_servers=stream.bootstrap, group_id=stream.name, session_timeout_s=6
        )
        topics = TopicsSettings(
            events=stream.events,
            recommendations=stream.recommendations,
            dead_letter=stream.dead_letter,
        )
        letters = DeadLetters(topics, PrivacySettings())
        self.transactions = Transactions(kafka, topics, Metrics(), letters)

    async def take_over(self) -> None:
        await self.transactions.open([PARTITION], self.committed)

    async def committed(self, partition: Partition) -> Offset | None:
        found = await self._consumer.committed(TopicPartition(self._events, partition))
        return None if found is None else Offset(found)

    async def answer(self, *offsets: int, letters: tuple[Letter, ...] = ()) -> None:
        messages: list[Message] = [(b"ann", b'{"rec_id":"%d"}' % offset, []) for offset in offsets]
        share = Share(Offset(offsets[-1] + 1), messages, letters)
        await self.transactions.deliver({PARTITION: share})


@asynccontextmanager
async def owners(stream: Stream, count: int) -> AsyncIterator[list[Owner]]:
    consumer = AIOKafkaConsumer(bootstrap_servers=stream.bootstrap, group_id=stream.name)
    consumer.assign([TopicPartition(stream.events, PARTITION)])
    await consumer.start()
    made = [Owner(stream, consumer) for _ in range(count)]
    try:
        yield made
    finally:
        for owner in made:
            await owner.transactions.close()
        await consumer.stop()


def ids(stream: Stream, count: int) -> list[str]:
    return sorted(one.rec_id for one in recommendations(stream, count, 30, COMMITTED))


def test_a_refused_letter_is_shortened_and_the_rest_is_there_once(stream: Stream) -> None:
    value = b"v" * (20 * MIB)
    letter = (
        Record(PARTITION, 2, 0, b"ann", value, ()),
        InvalidEventError(DeadLetterReason.OVERSIZED, "too large"),
    )

    async def work() -> None:
        async with owners(stream, 1) as (owner,):
            await owner.take_over()
            await owner.answer(0, 1, letters=(letter,))
            await owner.answer(3)
            await owner.take_over()  # waits for the end of the last, which Kafka ends behind us
            assert await owner.committed(PARTITION) == 4

    asyncio.run(work())
    assert ids(stream, 3) == ["0", "1", "3"]
    letters = dead_letters(stream, 1, 30, COMMITTED)
    assert [one.value for one in letters] == [value[: 64 * 1024]]


def test_a_former_owner_writes_nothing_more(stream: Stream) -> None:
    async def work() -> None:
        async with owners(stream, 2) as (former, owner):
            await former.take_over()
            await former.answer(0)
            await owner.take_over()
            await owner.answer(1)
            # It does not know; after a while without a rebalance it looks what is committed.
            with pytest.raises(TransientError, match="from 1 to 2"):
                await former.answer(1, 2, 3)

    asyncio.run(work())
    assert ids(stream, 2) == ["0", "1"]


def test_a_broker_that_dies_between_and_within_transactions_spoils_nothing(
    tmp_path: Path,
) -> None:
    with LocalKafka(tmp_path) as broker:
        stream = make_stream(broker.bootstrap)

        async def work() -> None:
            async with owners(stream, 1) as (owner,):
                await owner.take_over()
                await owner.answer(0)
                answering = [asyncio.create_task(owner.answer(number)) for number in range(1, 40)]
                await asyncio.sleep(0.01)
                broker.kill()
                await asyncio.to_thread(broker.start)
                await asyncio.gather(*answering)
                await owner.answer(40)

        asyncio.run(work())
        assert ids(stream, 41) == sorted(str(number) for number in range(41))
