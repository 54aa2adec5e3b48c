"""Lets aiokafka read records with header names that are not UTF-8.

Kafka asks for UTF-8 and Java clients send nothing else, but a broker takes any bytes. aiokafka
then raises UnicodeDecodeError at every read of that batch, and nothing behind can be read. Here
such a batch is read once more by aiokafka's own Python code, with other bytes escaped.
"""

from collections.abc import Iterator
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

# Of a batch, in all formats: its offset, then the length of what follows.
_LENGTH = slice(8, 12)


def accept_any_header_names() -> None:
    """For all consumers of this process. aiokafka has no setting for it."""
    fetcher.MemoryRecords = Batches


class Batches:
    """The batches in what a broker sent, in place of aiokafka's `MemoryRecords`."""

    def __init__(self, data: bytes) -> None:
        self._batches = MemoryRecords(data)
        self._data = data
        self._start = 0  # of the next batch

    def has_next(self) -> bool:
        return bool(self._batches.has_next())

    def size_in_bytes(self) -> int:
        return int(self._batches.size_in_bytes())

    def next_batch(self) -> "Batch":
        rest = memoryview(self._data)[self._start :]
        size = _LENGTH.stop + int.from_bytes(rest[_LENGTH])
        self._start += size
        return Batch(self._batches.next_batch(), rest[:size])


class Batch:
    """One of them."""

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __next__(self) -> Any:
        return next(self._batch)

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._batch
        except UnicodeDecodeError:
            again = _DefaultRecordBatchPy(self._data)
            iter(again)  # uncompresses it
            again._buffer = _Escaping(again._buffer)
            # From its first record on: aiokafka passes over what is before its position.
            yield from again


class _Escaping(bytearray):
    """Of which parts are decoded whatever they hold."""

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return type(self)(found) if isinstance(key, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "") -> str:
        return super().decode(encoding, errors or "backslashreplace")
