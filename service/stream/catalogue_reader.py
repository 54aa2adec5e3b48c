"""Reads the items topic: all of it at start, then what is added."""

from aiokafka import AIOKafkaConsumer

from service.settings import KafkaSettings
from service.stream.codec import Record
from service.stream.connection import client_arguments, told
from service.stream.header_names import accept_any_header_names
from service.stream.source import records_of

_RECORDS_AT_ONCE = 1_000


class CatalogueReader:
    """A consumer of every partition, in no group: a compacted topic is read anew at each start."""

    def __init__(self, kafka: KafkaSettings, topic: str) -> None:
        self._kafka = kafka
        self._topic = topic
        self._consumer: AIOKafkaConsumer | None = None

    @property
    def _open(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise RuntimeError("the catalogue reader was not started")
        return self._consumer

    async def start(self) -> None:
        """Raises ConfigurationError or TransientError where Kafka does not take us."""
        accept_any_header_names()
        self._consumer = AIOKafkaConsumer(
            self._topic,
            **client_arguments(self._kafka),
            group_id=None,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        with told(f"read topic {self._topic!r}"):
            await self._consumer.start()
            self._ends = await self._consumer.end_offsets(self._consumer.assignment())

    async def stop(self) -> None:
        if self._consumer is not None:
            await self._consumer.stop()

    async def read(self, timeout_s: float) -> list[Record]:
        """What comes next, of each partition in order; empty when nothing does in time."""
        with told(f"read topic {self._topic!r}"):
            return records_of(
                await self._open.getmany(
                    timeout_ms=round(timeout_s * 1000), max_records=_RECORDS_AT_ONCE
                )
            )

    async def has_caught_up(self) -> bool:
        """Whether all that stood there at the start was read."""
        for partition, end in self._ends.items():
            if await self._open.position(partition) < end:
                return False
        return True
