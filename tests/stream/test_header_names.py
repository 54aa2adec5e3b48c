import pytest
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy

from service.stream.header_names import Batches


class Name(str):
    """One that is not UTF-8, as aiokafka's Python code writes it."""

    __slots__ = ()

    def encode(self, *_: str) -> bytes:
        return b"\xff\xfe" + super().encode()


def a_batch(first: int, names: list[str], compression: int) -> bytes:
    builder = _DefaultRecordBatchBuilderPy(2, compression, 0, -1, -1, 0, 1 << 20)
    for number, name in enumerate(names):
        builder.append(number, 0, b"key", b"value", [(name, b"1"), ("own", None)])
    data = bytearray(builder.build())
    data[:8] = first.to_bytes(8)  # which the broker writes
    return bytes(data)


@pytest.mark.parametrize("compression", [0, 1], ids=["plain", "gzip"])
def test_records_with_any_header_names_are_read(compression: int) -> None:
    data = a_batch(0, ["a", Name("b"), "c"], compression) + a_batch(3, ["d"], compression)
    batches = Batches(data + data[:30])  # the last one is cut off, as brokers do
    assert batches.size_in_bytes() == len(data) + 30
    found = {}
    while batches.has_next():
        batch = batches.next_batch()
        assert batch.validate_crc()
        assert not batch.is_control_batch
        for record in batch:  # what comes again is of the same offset
            found[record.offset] = [name for name, _ in record.headers]
            assert (record.key, record.value) == (b"key", b"value")
        assert batch.next_offset == max(found) + 1
    assert found == {0: ["a", "own"], 1: ["\\xff\\xfeb", "own"], 2: ["c", "own"], 3: ["d", "own"]}
