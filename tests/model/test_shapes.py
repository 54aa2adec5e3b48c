"""Which sizes batches are brought to."""

import pytest

from service.model.shapes import common_size


def test_small_sizes_are_themselves() -> None:
    assert [common_size(size) for size in range(17)] == list(range(17))


@pytest.mark.parametrize("limit", [256, 4_096])
def test_there_are_few_and_none_is_much_more(limit: int) -> None:
    sizes = range(1, limit + 1)
    common = [common_size(size) for size in sizes]
    assert all(size <= one <= size * 9 / 8 for size, one in zip(sizes, common, strict=True))
    assert len(set(common)) <= 8 * limit.bit_length()
    assert [common_size(one) for one in common] == common
