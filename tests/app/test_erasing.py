"""Where a read is cut, so that events before and after an erasure are not mixed."""

from hypothesis import given
from hypothesis import strategies as st

from service.app.erasing import between_erasures
from service.domain import Erasure, Offset, Partition, UserId
from service.stream.codec import Record
from tests.stream.examples import record


def erasure_in(one: Record) -> Erasure | None:
    if one.value != b"erase":
        return None
    return Erasure(Partition(one.partition), Offset(one.offset), UserId("u"))


@given(st.lists(st.booleans(), max_size=12))
def test_all_come_in_their_order_and_events_of_one_part_have_no_erasure_between(
    erases: list[bool],
) -> None:
    records = [record(b"erase" if one else b"{}", offset=at) for at, one in enumerate(erases)]
    parts = list(between_erasures((one, erasure_in(one)) for one in records))
    order = []
    for events, erasures in parts:
        order += [one.offset for one in events] + [one.offset for one in erasures]
    assert order == list(range(len(records)))
    assert all(events for events, _ in parts[1:])
    assert all(erasures for _, erasures in parts[:-1])
